"""Episodes for a dataset from a recorded run: steps that follow each other, each with what was seen and what was then sent.

    step      0     1     2     3     4     5     6     7
    seen      yes   yes   yes   yes   no    yes   yes   yes
    sent      yes   yes   yes   yes   yes   yes   –     yes        (step 6 was skipped: the loop was late)
    episode   0     0     0     0           1                      two: 0 .. 3, and 5 alone, which is too short

The action of a step is what was sent in it, after all limits, holds included: what the robot did. Of several commands in a step a displacement is their
sum, anything else the last. What came after the failsafe's RAMP is no policy's doing and is left out. A run that was not observed at every
step falls into pieces; `actlet run --record-every-step` observes at every step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import RecordingError
from runtime.failsafe import State
from runtime.journal import NOT_ASKED
from runtime.recording import Recording
from runtime.recording_rows import CommandRow
from runtime.replay_steps import Step, steps_of

__all__ = ["RecordedEpisode", "recorded_episodes"]

_SHOWN = ("", NOT_ASKED)
"""Observations that nothing is wrong with."""
_SHORTEST = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedEpisode:
    """Steps `first_step` .. `first_step` + T - 1; the fields of `episodes.episode.Episode`."""

    first_step: int
    instruction: str
    images: dict[str, NDArray[np.uint8]]
    """Camera -> uint8 (T, height, width, 3)."""
    state: NDArray[np.float32]
    """float32 (T, S)."""
    action: NDArray[np.float32]
    """float32 (T, A), what was sent."""
    success: bool
    seed: int | None
    task: str


def recorded_episodes(run: Recording, success: bool | None = None) -> list[RecordedEpisode]:
    """The episodes of a run.

    Args:
        run: With pictures.
        success: Whether the instruction was carried out at the end; None for what the robot said, and where it said nothing for no.

    Raises:
        RecordingError: There are no two steps that follow each other, with pictures, state and command.
    """
    spec, pictured = run.spec, set(run.pictured_steps)
    whole = [step for step in steps_of(run) if step.step in pictured and _is_whole(step, spec.observation.state_dim)]
    pieces: list[list[Step]] = []
    for step in whole:
        if pieces and step.step == pieces[-1][-1].step + 1:
            pieces[-1].append(step)
        else:
            pieces.append([step])
    kept = [piece for piece in pieces if len(piece) >= _SHORTEST]
    if not kept:
        raise RecordingError(
            f"{run.path}: no two steps follow each other that have pictures of all cameras, a state and a command ({len(whole)} steps have, "
            f"{len(run.commands)} commands are there). Record with pictures and --record-every-step."
        )
    said = (run.result or {}).get("success") if success is None else success
    about = run.about["about"]
    return [
        RecordedEpisode(
            first_step=piece[0].step,
            instruction=run.instruction,
            images=_images(run, piece),
            state=np.stack([step.observed.state for step in piece if step.observed is not None]),
            action=np.stack([_sent(run, step.commands) for step in piece]),
            success=bool(said) and piece is pieces[-1],
            seed=about.get("seed"),
            task=str(about.get("task") or ""),
        )
        for piece in kept
    ]


def _is_whole(step: Step, states: int) -> bool:
    if step.observed is None or not step.commands or step.observed.refused not in _SHOWN:
        return False
    sound = step.observed.state.shape == (states,) and bool(np.isfinite(step.observed.state).all())
    return sound and (step.state is None or State[step.state.state] < State.RAMP)


def _images(run: Recording, piece: list[Step]) -> dict[str, Any]:
    frames = [run.pictures(step.step) for step in piece]
    return {camera.name: np.stack([found[camera.name] for found in frames]) for camera in run.spec.observation.cameras}


def _sent(run: Recording, commands: tuple[CommandRow, ...]) -> NDArray[np.float32]:
    sent = np.array([command.sent for command in commands], np.float64)
    action = run.spec.action
    hold = action.hold or ("last",) * action.dim
    adds_up = [hold[i] == "zero" and action.kinds[i] == "continuous" and not action.units[i].endswith("/s") for i in range(action.dim)]
    return np.asarray(np.where(adds_up, sent.sum(axis=0), sent[-1]), np.float32)
