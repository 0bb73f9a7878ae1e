"""Every error that actlet raises on purpose.

The tree::

    ActletError
    ├── CallerError                 the caller's fault: the command line exits with 2
    │   ├── SpecError               a specification contradicts itself, or two specifications differ
    │   ├── UnknownNameError        a task, column, policy … that does not exist; names the closest match
    │   ├── DatasetError            a dataset is missing, cut, empty, or of another shape than it says
    │   ├── RecordingError          a recorded run is missing, is none, or has nothing that can be read
    │   ├── CheckpointError         a checkpoint folder is missing, incomplete, or of another kind
    │   ├── BundleError             a bundle is missing, altered, or fails its self-test
    │   ├── ObservationError        a frame or state of another size, type or range than the specification
    │   ├── ActionError             a command of another shape, not finite, or a token that is not an action
    │   ├── QuantizationError       nothing was quantized, or not what was asked for
    │   ├── TrainingError           a loss, a gradient or the weights are not finite: training cannot go on
    │   ├── MissingExtraError       an optional Python package is absent; names the extra to install
    │   ├── MissingLibraryError     a system library is absent; names the line to run
    │   └── StorageError            the disk is full, or a folder cannot be written
    ├── RemoteError                 a policy over the network did not answer, or with something that cannot be used
    └── RobotFault                  the robot side met a condition in which it must not move on

A message says what happened, what it got, what it expected, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

__all__ = [
    "ActionError",
    "ActletError",
    "BundleError",
    "CallerError",
    "CheckpointError",
    "DatasetError",
    "MissingExtraError",
    "MissingLibraryError",
    "ObservationError",
    "QuantizationError",
    "RecordingError",
    "RemoteError",
    "RobotFault",
    "SpecError",
    "StorageError",
    "TrainingError",
    "UnknownNameError",
]


class ActletError(Exception):
    """Root of the tree."""


class CallerError(ActletError):
    """The caller can mend it: the command line prints the message and exits with 2."""


class SpecError(CallerError):
    """A specification contradicts itself, or two specifications that must agree differ."""


class UnknownNameError(CallerError):
    """A name that does not exist.

    Args:
        kind: What the name should name, as in "task".
        got: The name that was asked for.
        known: The names that exist.
    """

    def __init__(self, kind: str, got: str, known: Sequence[str]) -> None:
        close = difflib.get_close_matches(got, known, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        shown = ", ".join(repr(name) for name in list(known)[:60]) or "none"
        super().__init__(f"unknown {kind} {got!r}.{hint} Known: {shown}.")
        self.kind, self.got, self.known = kind, got, tuple(known)


class DatasetError(CallerError):
    """A dataset on disk is missing, cut, empty, or of another shape than it says."""


class RecordingError(CallerError):
    """A recorded run is missing, is none, or has nothing that can be read."""


class CheckpointError(CallerError):
    """A checkpoint folder is missing, incomplete, or of another kind than asked for."""


class BundleError(CallerError):
    """A bundle is missing, incomplete, altered, or fails its self-test."""


class ObservationError(CallerError):
    """A camera frame or state of another size, type or range than the specification says."""


class ActionError(CallerError):
    """A command of the wrong shape, one that is not finite, or a token that is not an action."""


class QuantizationError(CallerError):
    """A quantization that had no effect, or another one than asked for."""


class TrainingError(CallerError):
    """A loss, a gradient or the weights are not finite; the message says which frames are to blame."""


class MissingExtraError(CallerError):
    """An optional Python package is absent.

    Args:
        package: The package that cannot be imported.
        extra: The extra of actlet that installs it.
        why: What it is needed for.
    """

    def __init__(self, package: str, extra: str, why: str) -> None:
        super().__init__(f"{why} needs the package {package!r}, which is not installed. Run: pip install 'actlet[{extra}]'")


class MissingLibraryError(CallerError):
    """A system library is absent.

    Args:
        what: What cannot be done, and what was tried.
        how_to_fix: The line to run.
    """

    def __init__(self, what: str, how_to_fix: str) -> None:
        super().__init__(f"{what} Run: {how_to_fix}")


class StorageError(CallerError):
    """The disk is full, or a file or folder cannot be written."""


class RemoteError(ActletError):
    """A policy over the network cannot be reached, did not answer in time, or answered with something that cannot be used."""


class RobotFault(ActletError):
    """The robot side met a condition in which it must not move on (lost robot, unusable command)."""
