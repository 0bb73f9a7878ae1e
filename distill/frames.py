"""All frames of a dataset in memory, and the targets that are read off each episode: chunks and key moments.

    t        0    1    2    3    4   (last)
    action   a0   a1   a2   a3   a4
    chunk at t=2, H=4:  a2 a3 a4 a4*        * past the end the last action repeats and has weight 0

A key moment is a step where a binary action (gripper, terminate) changes, or the last one. The state change up to the
next two key moments is known in hindsight; predicting it makes the network find the object early (docs/lessons.md).

Right after a key moment only the instruction says where to go next; later the way there already tells. So batches draw those
frames more often (`Frames.draw`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from actlet.errors import DatasetError
from actlet.specs import ActionSpec, ObservationSpec
from episodes.episode import Episode

__all__ = ["Frames"]

_UNDECIDED_STEPS = 4  # Frames after a key moment in which the motion does not tell yet where it goes.


@dataclasses.dataclass
class Frames:
    """N frames of E episodes, episode after episode."""

    images: dict[str, NDArray[np.uint8]]
    """Camera name -> (N, h, w, 3)."""
    state: NDArray[np.float32]
    """(N, S)."""
    action: NDArray[np.float32]
    """(N, A)."""
    episode: NDArray[np.int64]
    """(N,), which episode a frame belongs to."""
    last: NDArray[np.int64]
    """(N,), index of the last frame of the same episode."""
    waypoints: NDArray[np.float32]
    """(N, 2, S), state change to the next two key moments."""
    undecided: NDArray[np.bool_]
    """(N,), True in the first steps of an episode and after each of its key moments but terminate."""
    instructions: list[str]
    """E instructions."""
    commanded: NDArray[np.float32]
    """(N, A), what the robot was really told to do."""
    by_expert: NDArray[np.bool_]
    """(N,), True where `action` is a demonstration's label, False where a student drove and only a teacher knows better."""
    distribution: NDArray[np.float16] | None = None
    """(N, A, K), the teacher's answer for each frame, zero where it was not asked; None without a teacher."""
    names: list[str] = dataclasses.field(default_factory=list)
    """What messages call the E episodes, as in "episode 12"."""

    def __len__(self) -> int:
        return len(self.state)

    @classmethod
    def from_episodes(
        cls,
        episodes: Sequence[Episode],
        observation: ObservationSpec,
        action: ActionSpec,
        *,
        by_expert: bool = True,
        names: Sequence[str] | None = None,
    ) -> Frames:
        """Concatenate checked episodes; `by_expert` is False for episodes that a student drove, `names` are for messages.

        Raises:
            DatasetError: There are none, or one of them differs from the specifications.
        """
        if not episodes:
            raise DatasetError("the dataset holds no episodes to train on: collect some first (actlet collect).")
        names = [f"episode {number}" for number in range(len(episodes))] if names is None else list(names)
        for name, episode in zip(names, episodes, strict=True):
            episode.check(observation, action, name)
        lengths = np.array([len(e) for e in episodes])
        ends = np.cumsum(lengths) - 1
        return cls(
            images={c.name: np.concatenate([e.images[c.name] for e in episodes]) for c in observation.cameras},
            state=np.concatenate([e.state for e in episodes]).astype(np.float32),
            action=np.concatenate([e.action for e in episodes]).astype(np.float32),
            episode=np.repeat(np.arange(len(episodes)), lengths),
            last=np.repeat(ends, lengths),
            waypoints=np.concatenate([_waypoints(e, action) for e in episodes]),
            undecided=np.concatenate([_undecided(e, action) for e in episodes]),
            instructions=[e.instruction for e in episodes],
            commanded=np.concatenate([e.commanded for e in episodes]).astype(np.float32),
            by_expert=np.full(int(lengths.sum()), by_expert),
            names=names,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Frames]) -> Frames:
        """Several tables as one; all or none must carry a teacher's distributions."""
        offsets = np.cumsum([0, *(len(p) for p in parts)])
        episode_offsets = np.cumsum([0, *(len(p.instructions) for p in parts)])
        labelled = [p.distribution for p in parts if p.distribution is not None]
        if labelled and len(labelled) != len(parts):
            raise DatasetError(f"{len(labelled)} of {len(parts)} tables carry a teacher's distributions: label all of them or none.")
        return cls(
            images={name: np.concatenate([p.images[name] for p in parts]) for name in parts[0].images},
            state=np.concatenate([p.state for p in parts]),
            action=np.concatenate([p.action for p in parts]),
            episode=np.concatenate([p.episode + o for p, o in zip(parts, episode_offsets, strict=False)]),
            last=np.concatenate([p.last + o for p, o in zip(parts, offsets, strict=False)]),
            waypoints=np.concatenate([p.waypoints for p in parts]),
            undecided=np.concatenate([p.undecided for p in parts]),
            instructions=[text for p in parts for text in p.instructions],
            commanded=np.concatenate([p.commanded for p in parts]),
            by_expert=np.concatenate([p.by_expert for p in parts]),
            distribution=np.concatenate(labelled) if labelled else None,
            names=[name for p in parts for name in p.names],
        )

    def where(self, row: int) -> str:
        """A frame in words: its episode, its place there and the instruction."""
        episode = int(self.episode[row])
        return f"{self.names[episode]}, frame {row - int(np.searchsorted(self.episode, episode))} ({self.instructions[episode]!r})"

    def draw(self, count: int, undecided_share: float, generator: torch.Generator) -> torch.Tensor:
        """int64 (count,): frames for a batch, this share of them among the `undecided` ones, the others among all."""
        some = round(undecided_share * count)
        undecided = torch.from_numpy(np.flatnonzero(self.undecided))
        chosen = undecided[torch.randint(len(undecided), (some,), generator=generator)]
        return torch.cat([chosen, torch.randint(len(self), (count - some,), generator=generator)])

    def chunk_index(
        self, rows: NDArray[np.int64], horizon: int, waited: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """For frames `rows` (B,): the frames whose actions form their chunks (B, H), and weights (B, H), 0 past the end. Where the robot stands still
        for `waited` (B,) steps first, what comes after them is what would have come at once."""
        steps = np.arange(horizon)[None]
        index = rows[:, None] + (steps if waited is None else np.maximum(steps - waited[:, None], 0))
        last = self.last[rows][:, None]
        return np.minimum(index, last), (index <= last).astype(np.float32)

    def on_its_way(
        self, rows: NDArray[np.int64], delays: NDArray[np.int64], most: int, rests: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """For frames `rows` (B,), seen when their next `delays` (B,) commands were on their way: these, as `actlet.protocols.committed_rows`,
        float32 (B, most, 1 + A). Past the end the last one repeats. `rests`: float32 (B, A), what is on its way instead, NaN for nothing else."""
        index, _ = self.chunk_index(rows, most)
        told = (np.arange(most) < delays[:, None])[..., None]  # (B, D, 1)
        commands = self.commanded[index]
        if rests is not None:
            commands = np.where(np.isnan(rests[:, None]), commands, rests[:, None])
        return np.concatenate([told, told * commands], axis=-1).astype(np.float32)

    def rest(self, rows: NDArray[np.int64], spec: ActionSpec) -> NDArray[np.float32]:
        """float32 (B, A): the command that would stand still at frames `rows` (B,), zero or the command before, as the specification says; at the
        start of an episode, where there is none before, its first."""
        starts = (rows == 0) | (self.episode[rows - 1] != self.episode[rows])
        before = self.commanded[np.where(starts, rows, rows - 1)]
        return np.where([hold == "zero" for hold in spec.hold or ("zero",) * spec.dim], np.float32(0), before)


def _changes(episode: Episode, spec: ActionSpec, but: tuple[str, ...] = ()) -> NDArray[np.int64]:
    """Steps at which a binary action, `but` these, differs from the step before."""
    kept = spec.is_binary & ~np.isin(spec.names, but)
    flags = episode.action[:, kept] > 0.5
    return np.flatnonzero((flags[1:] != flags[:-1]).any(axis=1)) + 1 if flags.size else np.empty(0, np.int64)


def _undecided(episode: Episode, spec: ActionSpec) -> NDArray[np.bool_]:
    # After terminate nothing comes, and a network that sees it more often than it happens ends episodes too early.
    starts = np.append(0, _changes(episode, spec, but=("terminate",)))
    steps = np.arange(len(episode))
    return steps - starts[np.searchsorted(starts, steps, side="right") - 1] < _UNDECIDED_STEPS


def _waypoints(episode: Episode, spec: ActionSpec) -> NDArray[np.float32]:
    steps = len(episode)
    moments = np.unique(np.append(_changes(episode, spec), steps - 1))
    following = np.searchsorted(moments, np.arange(steps), side="left")  # a moment is its own next
    first = moments[np.minimum(following, len(moments) - 1)]
    second = moments[np.minimum(following + 1, len(moments) - 1)]
    return np.stack([episode.state[first] - episode.state, episode.state[second] - episode.state], axis=1).astype(np.float32)
