"""The steps of an episode as rows of a parquet file: encoding frames, and reading rows and frames back.

Our writer gives every episode a row group of its own, so that one episode is read without touching its neighbours. Foreign files may
keep everything in one row group; the last one that was read stays in memory, so that reading episode after episode reads it once.
"""

from __future__ import annotations

import bisect
import io
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from actlet.errors import DatasetError
from actlet.specs import CameraSpec
from episodes.lerobot_layout import COPY_AGAIN, INFO_PATH, unreadable

__all__ = ["StepFile", "decode_frame", "decode_frames", "encode_frame", "finite_vectors", "vector_column", "vectors"]

# Level 6 makes rendered frames a tenth smaller for twice the time; the format is lossless at every level.
PNG_LEVEL = 1


def encode_frame(frame: NDArray[np.uint8]) -> bytes:
    """uint8 (height, width, 3) -> PNG, which is lossless."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def decode_frame(data: bytes) -> NDArray[np.uint8]:
    """Encoded bytes (PNG, JPEG, WebP …) -> uint8 (height, width, 3).

    Raises:
        ValueError: The bytes are not a whole picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(str(error)) from error


def vector_column(values: NDArray[Any]) -> pa.Array:
    """(T, D) -> an Arrow column; LeRobot stores vectors of one entry as plain numbers."""
    flat = pa.array(np.ascontiguousarray(values).ravel())
    return flat if values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def vectors(column: pa.ChunkedArray, where: str) -> NDArray[np.float32]:
    """An Arrow column of numbers or of lists of one length -> float32 (T, D).

    Raises:
        DatasetError: Entries are missing, of different lengths, or no numbers.
    """
    array = column.combine_chunks()
    steps, nulls = len(array), array.null_count
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    nulls += array.null_count
    numeric = pa.types.is_floating(array.type) or pa.types.is_integer(array.type)
    if nulls or steps == 0 or len(array) % steps or not numeric:
        raise DatasetError(
            f"{where}: {steps} entries of type {column.type} with {nulls} missing; expected vectors of one length without gaps. {COPY_AGAIN}"
        )
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.float32).reshape(steps, -1)


def finite_vectors(column: pa.ChunkedArray, names: tuple[str, ...], where: str) -> NDArray[np.float32]:
    """A column of vectors as float32 (T, D), with one name for each of the D entries.

    Raises:
        DatasetError: Another width, or a value that is not finite.
    """
    values = vectors(column, where)
    if values.shape[1] != len(names):
        raise DatasetError(f"{where}: vectors of {values.shape[1]}, expected {len(names)}: {names}. {COPY_AGAIN}")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        step, entry = (int(i) for i in bad[0])
        raise DatasetError(
            f"{where}: {values[step, entry]} at step {step} ({names[entry]!r}), {len(bad)} such in all; expected finite numbers. "
            "Remove the episode, or repair it at its source."
        )
    return values


def decode_frames(column: pa.ChunkedArray, camera: CameraSpec, where: str) -> NDArray[np.uint8]:
    """A column of {bytes, path} as uint8 (T, height, width, 3).

    Raises:
        DatasetError: A frame is missing, damaged, or of another size.
    """
    frames = np.empty((len(column), camera.height, camera.width, 3), np.uint8)
    for step, cell in enumerate(column.to_pylist()):
        try:
            frame = decode_frame((cell or {}).get("bytes") or b"")
        except ValueError as error:
            raise DatasetError(f"{where}: no whole picture at step {step} ({error}). {COPY_AGAIN}") from error
        if frame.shape != frames.shape[1:]:
            raise DatasetError(
                f"{where}: a frame of {frame.shape} at step {step}, expected {frames.shape[1:]} as {INFO_PATH} says. "
                "Resize the frames, or correct the shape there."
            )
        frames[step] = frame
    return frames


class StepFile:
    """One parquet file of steps. Opening reads its footer alone; it holds no open file and may be sent to another process."""

    def __init__(self, path: Path) -> None:
        """Read the footer.

        Raises:
            DatasetError: The file is missing or cut.
        """
        try:
            self._metadata = pq.read_metadata(path)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path, error) from error
        self.path = path
        self.rows: int = self._metadata.num_rows
        self.columns: tuple[str, ...] = tuple(self._metadata.schema.to_arrow_schema().names)
        groups = [self._metadata.row_group(i).num_rows for i in range(self._metadata.num_row_groups)]
        self._ends = list(accumulate(groups))
        self._kept: tuple[tuple[int, int, tuple[str, ...]], pa.Table] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def read(self, first: int, count: int, columns: tuple[str, ...]) -> pa.Table:
        """Rows `first` .. `first + count - 1` of some columns.

        Raises:
            DatasetError: A column or the rows are not there, or the file is damaged.
        """
        missing = [name for name in columns if name not in self.columns]
        if missing:
            raise DatasetError(
                f"{self.path}: got the columns {list(self.columns)}, expected {missing} too (info.json names them). {COPY_AGAIN}"
            )
        if first < 0 or first + count > self.rows:
            raise DatasetError(f"{self.path}: rows {first} .. {first + count - 1} are asked for, but it has {self.rows}. {COPY_AGAIN}")
        low, high = bisect.bisect_right(self._ends, first), bisect.bisect_left(self._ends, first + count)
        start = self._ends[low - 1] if low else 0
        key, kept = (low, high, columns), self._kept
        if kept is not None and kept[0] == key:
            table = kept[1]
        else:
            try:
                with pq.ParquetFile(self.path, metadata=self._metadata) as file:
                    table = file.read_row_groups(list(range(low, high + 1)), columns=list(columns), use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise unreadable(self.path, error) from error
            # A row group of several episodes is kept for the next of them.
            self._kept = (key, table) if table.num_rows > count else None
        return table.slice(first - start, count)
