"""The frames of one episode out of a film, for datasets whose cameras are of dtype "video" (most on public hubs are).

Version 3.0 puts many episodes into one film; an episode begins at a given second of it, and step i is the frame at i / rate after
that. Decoding is the optional package PyAV's work. Films are only read: frames of a lossy film do not come back as they went in.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actlet.errors import DatasetError, MissingExtraError
from actlet.specs import CameraSpec
from episodes.lerobot_layout import COPY_AGAIN, INFO_PATH

__all__ = ["read_film"]


def read_film(path: Path, start_s: float, rate_hz: float, steps: int, camera: CameraSpec, where: str) -> NDArray[np.uint8]:
    """Decode an episode's frames.

    Args:
        path: The film.
        start_s: Where the episode begins in it, in [s].
        rate_hz: Steps in a second.
        steps: T.
        camera: The size that frames must have.
        where: What messages begin with.

    Returns:
        uint8 (T, height, width, 3).

    Raises:
        DatasetError: The film is missing or damaged, its frames have another size, or a step has no frame.
        MissingExtraError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", "video", f"{where}: reading videos") from error
    frames = np.empty((steps, camera.height, camera.width, 3), np.uint8)
    seen = np.zeros(steps, bool)
    try:
        with av.open(str(path)) as film:
            stream = film.streams.video[0]
            tick_s = float(stream.time_base or 0)
            if tick_s <= 0:
                raise DatasetError(f"{where}: the film {path} has no time base. {COPY_AGAIN}")
            # Decoding can begin at a key frame only: the last one before the episode.
            film.seek(int(start_s / tick_s), stream=stream, backward=True)
            for picture in film.decode(stream):
                step = round(((picture.pts or 0) * tick_s - start_s) * rate_hz)
                if 0 <= step < steps:
                    frame = picture.to_ndarray(format="rgb24")
                    if frame.shape != frames.shape[1:]:
                        raise DatasetError(f"{where}: {path} has frames of {frame.shape}, expected {frames.shape[1:]} as {INFO_PATH} says.")
                    frames[step], seen[step] = frame, True
                if step >= steps - 1:
                    break
    except (av.FFmpegError, OSError, IndexError) as error:
        raise DatasetError(f"{where}: the film {path} cannot be decoded ({error}). {COPY_AGAIN}") from error
    if not seen.all():
        raise DatasetError(f"{where}: the film {path} has frames for {seen.sum()} of {steps} steps from {start_s:.3f} s on. {COPY_AGAIN}")
    return frames
