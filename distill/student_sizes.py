"""A family of students: three presets of one network, named after how many parameters they have at most.

=====  ==========  =============  =========================================================================
name   parameters  on the table   what it is for
=====  ==========  =============  =========================================================================
nano   1 M         0.48 M         a small computer beside other work
micro  5 M         1.94 M         the default
small  20 M        10.0 M         a computer of its own, tasks that need more eyes; train it on a GPU
=====  ==========  =============  =========================================================================

"On the table" is the suite `tabletop`: two cameras of 128 x 128, seven state entries, eight actions of eight dimensions. The limits
hold for 1 to 3 cameras of any resolution, 4 to 14 state entries and action dimensions, and horizons up to 16. The head grows with
horizon times dimensions, the eyes with the cameras: beyond that `require_size` says by how much a preset is above its limit.

Most of a decision's time is spent where the picture is still large, so `small` grows in its late stages. How long each takes is
measured by `benchmarks.student_latency`, on the machine that it is for; on one core of an Intel Xeon with AMX the medians were 0.7, 1.3
and 7.5 ms in float, 0.6, 0.7 and 1.9 ms in int8. How well each acts depends on the task and is measured in closed loop.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from actlet.action_tokens import ActionTokenizer
from actlet.errors import SpecError, UnknownNameError
from actlet.specs import PolicySpec
from distill.student import Student, StudentConfig

__all__ = ["DEFAULT_SIZE", "SIZES", "StudentSize", "parameters_of", "require_size", "size_name", "student_size", "untrained_student"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentSize:
    """A preset and its promise."""

    name: str
    architecture: StudentConfig
    max_parameters: int
    """What it has at most; see the module's docstring for which specifications."""


DEFAULT_SIZE = "micro"
SIZES: dict[str, StudentSize] = {
    size.name: size
    for size in (
        StudentSize(
            name="nano",
            architecture=StudentConfig(
                channels=(16, 32, 48),
                condition_dim=64,
                keypoints=16,
                asked_keypoints=8,
                squeeze_channels=6,
                features=128,
                token_rank=12,
            ),
            max_parameters=1_000_000,
        ),
        StudentSize(name="micro", architecture=StudentConfig(), max_parameters=5_000_000),
        StudentSize(
            name="small",
            architecture=StudentConfig(
                channels=(64, 128, 256),
                blocks=(1, 2, 3),
                condition_dim=256,
                squeeze_channels=16,
                features=512,
                token_rank=48,
            ),
            max_parameters=20_000_000,
        ),
    )
}
"""Name -> size, the smallest first."""


def student_size(name: str) -> StudentSize:
    """The size of a name; raises UnknownNameError."""
    if name not in SIZES:
        raise UnknownNameError("size of students", name, list(SIZES))
    return SIZES[name]


def size_name(architecture: StudentConfig) -> str | None:
    """Which preset a network is, however it is decoded, or None where it is none of them."""
    plain = dataclasses.replace(architecture, mode_reach=0)
    return next((size.name for size in SIZES.values() if size.architecture == plain), None)


def untrained_student(spec: PolicySpec, architecture: StudentConfig) -> Student:
    """A student with random weights in evaluation mode, whose bins span the limits of the action specification."""
    tokenizer = ActionTokenizer(np.asarray(spec.action.low, np.float32), np.asarray(spec.action.high, np.float32))
    return Student(spec, tokenizer, architecture).eval()


def parameters_of(architecture: StudentConfig, spec: PolicySpec) -> int:
    """How many parameters a student has; nothing is allocated."""
    with torch.device("meta"):
        return untrained_student(spec, architecture).parameter_count


def require_size(name: str, spec: PolicySpec) -> StudentSize:
    """The size of a name, if it keeps its promise for this specification.

    Raises:
        UnknownNameError: There is no such size.
        SpecError: It has more parameters than its name allows.
    """
    size = student_size(name)
    got = parameters_of(size.architecture, spec)
    if got > size.max_parameters:
        raise SpecError(
            f"size {name!r} has {got / 1e6:.2f} M parameters for {len(spec.observation.cameras)} cameras, {spec.observation.state_dim} state "
            f"entries and {spec.timing.horizon} actions of {spec.action.dim} dimensions, expected at most {size.max_parameters / 1e6:g} M. "
            "Take a larger size, a shorter horizon or fewer cameras, choose by a latency budget, or give TrainConfig an architecture of your own."
        )
    return size
