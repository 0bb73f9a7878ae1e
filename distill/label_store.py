"""A teacher's answers for every frame of a dataset, on disk: Parquet shards that any number of processes and machines write.

    labels/labels.json               whose answers to what: teacher, dataset, specification, bins, k, and how frames are shared out
    labels/00000-of-00041.parquet    the frames of the dataset's first episodes, a row each
    labels/00001-of-00041.parquet    ...

Whole consecutive episodes make a shard, as many as it takes to reach `shard_frames`. Its columns are episode_index and frame_index
(int64) and, for each action dimension, what `distill.top_k` keeps: bins.NAME (k uint8 or uint16), probability.NAME (k float16) and
tail.NAME (float16). The content of labels.json stands in every shard's metadata too, so a shard of another teacher, dataset or k is known
wherever it comes from; pages carry checksums. A shard appears under its name when it is whole, by renaming, so no writer needs a lock: two
that make the same shard make the same thing twice, and nothing worse.

    answers = read_labels("labels", open_dataset("data/table"))     # float16 (N, A, K), in the order of `distill.frames.Frames`
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from actlet.action_tokens import ActionTokenizer
from actlet.errors import CheckpointError, DatasetError, SpecError
from actlet.plain import PlainJson
from actlet.specs import PolicySpec, require_same
from actlet.storage import read_json, write_bytes, write_json
from distill.top_k import TopK
from episodes.lerobot_dataset import LeRobotDataset

__all__ = ["LabelIdentity", "LabelStore", "Shard", "read_labels"]

SCHEMA_VERSION = 1
INDEX = "labels.json"
_METADATA_KEY = b"actlet.labels"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelIdentity(PlainJson):
    """Whose answers to what, and in which form: what every shard of a folder has in common."""

    teacher: str
    """SHA-256 of the teacher's weights."""
    dataset: str
    """`LeRobotDataset.content_hash`."""
    spec: PolicySpec
    """The teacher's."""
    tokenizer: ActionTokenizer
    """The bounds of the bins, and K, their number."""
    top_k: int
    """k, the bins that are kept."""
    shard_frames: int
    """Frames at which a shard is full."""
    samples: int = 0
    """Actions that were drawn for a frame, where the teacher gives samples; 0 where it gives distributions."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `samples` only where there are some."""
        data = super().to_dict()
        if not self.samples:
            del data["samples"]
        return data

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.tokenizer.bins or self.shard_frames < 1:
            raise SpecError(
                f"labels: top_k {self.top_k}, shard_frames {self.shard_frames}; expected 1 .. {self.tokenizer.bins} and at least 1."
            )

    def document(self) -> dict[str, Any]:
        """What is written: plain JSON types."""
        sizes = {"action_dim": self.spec.action.dim, "bins": self.tokenizer.bins}
        return {"schema_version": SCHEMA_VERSION, "kind": "labels", **sizes, **self.to_dict()}

    @classmethod
    def from_document(cls, data: Any, where: Path) -> LabelIdentity:
        """The inverse of `document`.

        Raises:
            DatasetError: It is none, or one of another version.
        """
        head = ("schema_version", "kind", "action_dim", "bins")
        if not isinstance(data, dict) or (data.get("schema_version"), data.get("kind")) != (SCHEMA_VERSION, "labels"):
            got = {key: data.get(key) for key in head[:2]} if isinstance(data, dict) else type(data).__name__
            raise DatasetError(f"{where}: got {got}, expected labels of version {SCHEMA_VERSION}. Label into another folder.")
        try:
            identity = cls.from_dict({key: value for key, value in data.items() if key not in head}, where=str(where))
        except SpecError as error:
            raise DatasetError(f"{error} Remove the file and label again.") from error
        if identity.document() != data:
            raise DatasetError(f"{where}: action_dim or bins contradict spec and tokenizer. Remove the file and label again.")
        return identity


@dataclasses.dataclass(frozen=True)
class Shard:
    """Consecutive episodes of a dataset, and the file that holds the answers for their frames."""

    file: Path
    episodes: range
    """Positions in the dataset."""
    lengths: tuple[int, ...]
    """Frames of each episode."""

    def __len__(self) -> int:
        return sum(self.lengths)

    def index(self) -> dict[str, NDArray[np.int64]]:
        """Columns episode_index and frame_index, int64 (T,)."""
        return {
            "episode_index": np.repeat(np.arange(self.episodes.start, self.episodes.stop), self.lengths),
            "frame_index": np.concatenate([np.arange(length) for length in self.lengths]),
        }


class LabelStore:
    """A folder of labels. Made by `create` or `open`; holds no open file."""

    def __init__(self, folder: Path, identity: LabelIdentity, dataset: LeRobotDataset) -> None:
        self.folder, self.identity = folder, identity
        self.shards = _share_out(folder, [episode.length for episode in dataset.episodes], identity.shard_frames)
        self.finish = (
            f"actlet label --data {shlex.quote(str(dataset.path))} --teacher TEACHER --out {shlex.quote(str(folder))} "
            f"--top-k {identity.top_k} --shard-frames {identity.shard_frames}"
        )
        """The command that makes what is missing."""

    @classmethod
    def create(cls, folder: Path, identity: LabelIdentity, dataset: LeRobotDataset) -> LabelStore:
        """Begin a folder, or go on with one that was begun for the same.

        Raises:
            SpecError: It was begun for another teacher, dataset, k or size of shards; names what differs.
            DatasetError: Its labels.json cannot be used.
            StorageError: The folder cannot be written.
        """
        index = folder / INDEX
        if not index.is_file():
            write_json(index, identity.document())
        _require_same(identity, _read_index(folder), index)  # Read back: another run may have begun the folder just now.
        return cls(folder, identity, dataset)

    @staticmethod
    def dataset_of(folder: str | Path) -> str:
        """The content hash of the dataset that a folder of labels was made for.

        Raises:
            DatasetError: The folder holds no labels.
        """
        return _read_index(Path(folder)).dataset

    @classmethod
    def open(cls, folder: str | Path, dataset: LeRobotDataset) -> LabelStore:
        """A folder that was begun.

        Raises:
            DatasetError: There is none, or it was made for another dataset.
        """
        folder = Path(folder)
        identity = _read_index(folder)
        if identity.dataset != dataset.content_hash:
            raise DatasetError(
                f"{folder}: labels of the dataset {identity.dataset}, expected those of {dataset.path}, {dataset.content_hash}. "
                f"Give the dataset that they were made for, or label this one: actlet label --data {dataset.path} --out OTHER_FOLDER"
            )
        return cls(folder, identity, dataset)

    def missing(self) -> list[Shard]:
        """Shards without a file."""
        there = {file.name for file in self.folder.glob("*.parquet")}
        return [shard for shard in self.shards if shard.file.name not in there]

    def write(self, shard: Shard, distribution: NDArray[np.float32]) -> None:
        """Write a shard, whole or not at all.

        Args:
            shard: One of `shards`.
            distribution: float32 (T, A, K), the teacher's answer for each of its frames.

        Raises:
            CheckpointError: These are no distributions.
            StorageError: The disk is full, or the folder cannot be written.
        """
        expected = (len(shard), self.identity.spec.action.dim, self.identity.tokenizer.bins)
        answers = TopK.of(distribution, self.identity.top_k) if distribution.shape == expected else None
        if answers is None or answers.fault():
            raise CheckpointError(
                f"the teacher's answers for episodes {shard.episodes.start} .. {shard.episodes.stop - 1}: "
                f"{answers.fault() if answers is not None else f'shape {distribution.shape}'}; expected {expected}, each row a distribution. "
                "The teacher's checkpoint may be damaged: copy it again, or train it again."
            )
        columns: dict[str, Any] = {name: pa.array(values) for name, values in shard.index().items()}
        for d, name in enumerate(self.identity.spec.action.names):
            columns[f"bins.{name}"] = _list_column(answers.bins[:, d])
            columns[f"probability.{name}"] = _list_column(answers.probability[:, d])
            columns[f"tail.{name}"] = pa.array(np.ascontiguousarray(answers.tail[:, d]))
        table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(self.identity.document())})
        buffer = pa.BufferOutputStream()
        # Neighbouring probabilities have the same high byte: with the bytes apart a shard is a sixth smaller.
        apart = [f"probability.{name}.list.element" for name in self.identity.spec.action.names]
        pq.write_table(table, buffer, compression="zstd", use_dictionary=False, use_byte_stream_split=apart, write_page_checksum=True)
        write_bytes(shard.file, buffer.getvalue().to_pybytes())

    def read(self, shard: Shard) -> TopK:
        """Read and check a shard: answers (T, A).

        Raises:
            DatasetError: The file is missing, cut or damaged, or does not hold distributions for exactly these frames.
            SpecError: It belongs to other labels.
        """
        try:
            with pq.ParquetFile(shard.file, page_checksum_verification=True) as file:
                document = json.loads((file.schema_arrow.metadata or {}).get(_METADATA_KEY, b"null"))
                _require_same(self.identity, LabelIdentity.from_document(document, shard.file), shard.file)
                table = file.read(use_threads=False)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._damaged(shard, (str(error) or repr(error)).splitlines()[0]) from error
        for name, expected in shard.index().items():
            if name not in table.column_names or not np.array_equal(table.column(name).to_numpy(), expected):
                raise self._damaged(shard, f"{name} differs from the dataset's frames")
        names = self.identity.spec.action.names
        bins, probability, tail = (
            np.stack([self._values(shard, table, f"{part}.{name}", width) for name in names], axis=1)
            for part, width in (("bins", self.identity.top_k), ("probability", self.identity.top_k), ("tail", 1))
        )
        answers = TopK(bins, probability, tail[..., 0], self.identity.tokenizer.bins)
        if fault := answers.fault():
            raise self._damaged(shard, fault)
        return answers

    def _values(self, shard: Shard, table: pa.Table, name: str, width: int) -> NDArray[Any]:
        """A column without gaps as (T, width)."""
        if name not in table.column_names:
            raise self._damaged(shard, f"there is no column {name}")
        column = table.column(name).combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        kinds = (pa.float16(),) if not name.startswith("bins.") else (pa.uint8(), pa.uint16())
        if column.null_count or flat.null_count or len(flat) != len(shard) * width or flat.type not in kinds:
            raise self._damaged(shard, f"column {name} is {column.type} with {len(flat)} values, {flat.null_count} missing")
        return np.asarray(flat.to_numpy()).reshape(len(shard), width)

    def _damaged(self, shard: Shard, why: str) -> DatasetError:
        return DatasetError(
            f"{shard.file} cannot be used: {why}; expected a whole shard of labels for episodes {shard.episodes.start} .. "
            f"{shard.episodes.stop - 1}, {len(shard)} frames. It is made anew by: {self.finish}"
        )


def read_labels(folder: str | Path, dataset: LeRobotDataset, episodes: Sequence[int] | None = None) -> NDArray[np.float16]:
    """The teacher's answers for all frames of a dataset, or of some of its episodes.

    Args:
        folder: What `actlet label` wrote.
        dataset: The dataset that it was written for.
        episodes: Positions in the dataset, each once; None for all.

    Returns:
        float16 (N, A, K), episode after episode in the given order, each row a distribution.

    Raises:
        DatasetError: There are no labels, they are for another dataset, frames are missing, or a shard is damaged.
        SpecError: A shard belongs to other labels.
    """
    store = LabelStore.open(folder, dataset)
    chosen = range(len(dataset)) if episodes is None else episodes
    ends = np.cumsum([0, *(dataset.episodes[episode].length for episode in chosen)])
    first = {episode: int(start) for episode, start in zip(chosen, ends, strict=False)}
    missing = store.missing()
    lacking = sum(n for shard in missing for episode, n in zip(shard.episodes, shard.lengths, strict=True) if episode in first)
    if lacking:
        raise DatasetError(
            f"{store.folder}: labels of {lacking} of {ends[-1]} frames are missing ({len(missing)} of {len(store.shards)} shards). "
            f"Finish them with: {store.finish}, where TEACHER is the one of content hash {store.identity.teacher[:12]}."
        )
    answers = np.empty((int(ends[-1]), store.identity.spec.action.dim, store.identity.tokenizer.bins), np.float16)
    for shard in store.shards:
        if not any(episode in first for episode in shard.episodes):
            continue
        whole, row = store.read(shard).dense(), 0
        for episode, length in zip(shard.episodes, shard.lengths, strict=True):
            if episode in first:
                answers[first[episode] : first[episode] + length] = whole[row : row + length]
            row += length
    return answers


def _read_index(folder: Path) -> LabelIdentity:
    index = folder / INDEX
    if not index.is_file():
        raise DatasetError(f"{index} is missing: {folder} holds no labels. Make some with: actlet label --data … --out {folder}")
    try:
        data = read_json(index)
    except ValueError as error:
        raise DatasetError(f"{index} cannot be read: {error}. Remove the file and label again.") from error
    return LabelIdentity.from_document(data, index)


def _require_same(expected: LabelIdentity, found: LabelIdentity, where: Path) -> None:
    try:
        require_same(expected, found, what=f"{where}: these labels and the ones asked for")
    except SpecError as error:
        raise SpecError(f"{error} Label into another folder, or ask for what is there.") from error


def _share_out(folder: Path, lengths: Sequence[int], shard_frames: int) -> list[Shard]:
    """Whole consecutive episodes, until a shard has `shard_frames` frames."""
    parts: list[range] = []
    start = total = 0
    for episode, length in enumerate(lengths):
        total += length
        if total >= shard_frames or episode == len(lengths) - 1:
            parts.append(range(start, episode + 1))
            start, total = episode + 1, 0
    return [
        Shard(folder / f"{number:05d}-of-{len(parts):05d}.parquet", part, tuple(lengths[part.start : part.stop]))
        for number, part in enumerate(parts)
    ]


def _list_column(values: NDArray[Any]) -> pa.Array:
    """(T, k) -> lists of fixed size."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])
