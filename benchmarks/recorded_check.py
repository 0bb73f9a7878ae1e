"""Does a bundle see and move as the recordings of this robot do? What is wrong between them is found and named before anything moves.

A policy that fits a robot does roughly what its recordings do. One that is wired wrongly does not, and nothing raises an error: a driver gives
BGR, two axes have changed places, a joint is in degrees, actions were recorded at another rate. So the bundle answers recorded moments of the robot as they
are, and again under every suspicion: channels turned around, cameras exchanged, two states or two actions exchanged, a sign, a unit. If under one of them
it comes much closer to what was recorded, in nearly all episodes, that is what is wrong, and the line says so.

    error of a frame     mean over continuous dimensions of |answer - recorded| / range (the tokenizer's), first row of the chunk
    a suspicion holds    the mean error falls to `FALLS_TO` of what it is as it stands or less, and in at least `EPISODES` of the episodes

Beside it: whether every state lies where those of the bundle's own recorded questions lie (another zero, unit or statistics), and for all continuous dimensions
how large recorded motions are beside the answered ones (another rate or unit makes it a factor).

Tried on a student of `tabletop` with its demonstrations spoiled one way at a time: channels of one camera and of both, cameras, two states, two actions and a sign were named,
twice and half the motion, a zero moved by a metre and millimetres too; as they are, nothing was.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import SpecError
from actlet.protocols import Observation
from actlet.specs import require_same, require_same_rate
from episodes.lerobot_dataset import LeRobotDataset, open_dataset
from runtime.policy import BundlePolicy

__all__ = ["RecordedCheck", "Suspicion", "check_recorded"]

FALLS_TO = 0.75
STRONGLY = 0.5
EPISODES = 0.7
FRAMES = 120
_LEAST_CORRELATION = 0.2
"""Of answers and recordings over all moments; below it they have nothing to do with each other."""
_UNITS = {
    "1000 times too large (mm for m?)": 0.001,
    "1000 times too small (m for mm?)": 1000.0,
    "in degrees for radians": np.pi / 180,
    "in radians for degrees": 180 / np.pi,
}
_FAR = 6.0
"""A state is elsewhere if its median is this many spreads from that of the bundle's own questions."""


@dataclasses.dataclass(frozen=True)
class Suspicion:
    """Something that would explain a difference."""

    what: str
    error: float
    """Mean error under it, share of the range."""
    better_in: float
    """Share of the episodes in which it is smaller than as it stands."""


@dataclasses.dataclass(frozen=True)
class RecordedCheck:
    """What the recordings say of a bundle."""

    frames: int
    error: float
    """As it stands, share of the range."""
    correlation: float
    """Of answers and recordings, over all frames and continuous dimensions."""
    problems: tuple[str, ...]
    """In words; empty where the bundle fits."""
    suspicions: tuple[Suspicion, ...]
    """All that were looked at, the best first."""


@dataclasses.dataclass(frozen=True)
class _Moments:
    """Recorded moments, and what was done."""

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    text: tuple[str, ...]
    action: NDArray[np.float32]
    """(N, A)."""
    episode: NDArray[np.int64]
    """(N,), which episode each is of."""


def check_recorded(bundle: str | Path | BundlePolicy, data: str | Path | LeRobotDataset, *, frames: int = FRAMES) -> RecordedCheck:
    """Let a bundle answer recorded moments of the robot.

    Args:
        bundle: The bundle's folder, or opened.
        data: Recordings of the robot as its driver gives them now, of somebody who did well.
        frames: About how many moments.

    Raises:
        SpecError: Names, units, sizes or rate differ, which needs no answers to be seen; or there is no continuous action.
        BundleError: The bundle is not sound.
        DatasetError: The recordings cannot be used.
    """
    policy = bundle if isinstance(bundle, BundlePolicy) else BundlePolicy(bundle)
    dataset = data if isinstance(data, LeRobotDataset) else open_dataset(data)
    require_same(policy.spec.observation, dataset.observation_spec, what="observations of the bundle and of the recordings")
    require_same(policy.spec.action, dataset.action_spec, what="actions of the bundle and of the recordings")
    require_same_rate(policy.spec.timing.rate_hz, dataset.rate_hz, what="bundle and recordings")
    moving = ~policy.spec.action.is_binary
    if not moving.any():
        raise SpecError("the policy has no continuous action: nothing can be compared.")
    moments = _moments(dataset, frames)
    limits = np.asarray(policy.spec.action.high, np.float32) - np.asarray(policy.spec.action.low, np.float32)
    tokenizer = policy.bundle.manifest.tokenizer
    unit = np.maximum(tokenizer.high - tokenizer.low, 1e-3 * limits)[moving]
    done = moments.action[:, moving]
    as_it_is = _answers(policy, moments)[:, moving]
    before = np.abs(as_it_is - done).mean(0) / unit
    error = _errors(as_it_is, done, unit)
    found = [
        Suspicion(what, float(other.mean()), _better(other, error, moments.episode))
        for what, answer in _suspicions(policy, moments)
        for other in [_errors(*answer(as_it_is, done, moving), unit)]
    ]
    found.sort(key=lambda suspicion: suspicion.error)
    # A state that lies elsewhere makes every answer wrong; only what mends nearly all of it explains more.
    elsewhere = _elsewhere(policy, moments)
    falls_to = STRONGLY if elsewhere else FALLS_TO
    problems = [
        f"{suspicion.what}: so the answers come within {suspicion.error:.1%} of the range of what was recorded, as it stands within {error.mean():.1%}"
        for suspicion in found[:1]
        if suspicion.error <= falls_to * error.mean() and suspicion.better_in >= EPISODES
    ]
    correlation = _correlation(as_it_is / unit, done / unit)
    names = [name for name, moves in zip(policy.spec.action.names, moving, strict=True) if moves]
    if not problems:
        problems += elsewhere or _factor(as_it_is, done, names, policy.spec.timing.rate_hz)
    if not problems and not correlation >= _LEAST_CORRELATION:
        worst = names[int(np.argmax(before))]
        problems.append(
            f"the answers have nothing to do with what was recorded (correlation {correlation:.2f}, worst {worst}): the normalisation statistics of another "
            "dataset, another robot's recordings, or a policy that cannot do this"
        )
    return RecordedCheck(len(done), float(error.mean()), correlation, tuple(problems), tuple(found))


def _moments(dataset: LeRobotDataset, frames: int) -> _Moments:
    """Moments spread over the episodes, at most eight of each."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, max(1, frames // 8)).astype(int)).tolist()
    share = -(-frames // len(chosen))
    images: dict[str, list[NDArray[np.uint8]]] = {camera.name: [] for camera in dataset.observation_spec.cameras}
    states, texts, actions, numbers = [], list[str](), [], list[int]()
    for number, episode in enumerate(dataset.iterate(chosen)):
        steps = np.unique(np.linspace(0, len(episode) - 1, min(share, len(episode))).astype(int))
        for name, recorded in episode.images.items():
            images[name].append(recorded[steps])
        states.append(episode.state[steps])
        actions.append(episode.action[steps])
        texts += [episode.instruction] * len(steps)
        numbers += [number] * len(steps)
    stacked = {name: np.concatenate(blocks) for name, blocks in images.items()}
    return _Moments(stacked, np.concatenate(states).astype(np.float32), tuple(texts), np.concatenate(actions), np.array(numbers))


def _answers(
    policy: BundlePolicy, moments: _Moments, change: Callable[[dict[str, Any], NDArray[np.float32]], Any] | None = None
) -> NDArray[np.float32]:
    """(N, A): the first row of every chunk; asked instruction by instruction, since each has a session of its own."""
    answers = np.zeros_like(moments.action)
    for row in sorted(range(len(answers)), key=lambda row: moments.text[row]):
        images: dict[str, Any] = {name: recorded[row] for name, recorded in moments.images.items()}
        state = moments.state[row]
        if change is not None:
            images, state = change(images, state)
        answers[row] = policy.predict([Observation(images, state)], [moments.text[row]])[0].actions[0]
    return answers


Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


def _suspicions(policy: BundlePolicy, moments: _Moments) -> list[tuple[str, Callable[..., Pair]]]:
    """What may be wrong, and how answers (N, A') and recordings (N, A') look if it is."""
    spec, found = policy.spec, list[tuple[str, Callable[..., Pair]]]()

    def seen(what: str, change: Callable[[dict[str, Any], NDArray[np.float32]], Any]) -> None:
        found.append((what, lambda answers, done, moving: (_answers(policy, moments, change)[:, moving], done)))

    for camera in spec.observation.cameras:

        def turned(images: dict[str, Any], state: NDArray[np.float32], name: str = camera.name) -> Any:
            return {**images, name: np.ascontiguousarray(images[name][..., ::-1])}, state

        seen(f"camera {camera.name!r} gives BGR for RGB: its channels are swapped", turned)
    if len(spec.observation.cameras) > 1:

        def all_turned(images: dict[str, Any], state: NDArray[np.float32]) -> Any:
            return {name: np.ascontiguousarray(frame[..., ::-1]) for name, frame in images.items()}, state

        seen("all cameras give BGR for RGB: their channels are swapped", all_turned)
    for a, b in itertools.combinations(spec.observation.cameras, 2):
        if (a.height, a.width) == (b.height, b.width):

            def exchanged(images: dict[str, Any], state: NDArray[np.float32], pair: tuple[str, str] = (a.name, b.name)) -> Any:
                return {**images, pair[0]: images[pair[1]], pair[1]: images[pair[0]]}, state

            seen(f"the cameras {a.name!r} and {b.name!r} are exchanged", exchanged)
    names, units = spec.observation.state_names, spec.observation.state_units
    for i, j in itertools.combinations(range(len(names)), 2):
        if units[i] == units[j]:

            def swapped(images: dict[str, Any], state: NDArray[np.float32], pair: tuple[int, int] = (i, j)) -> Any:
                other = state.copy()
                other[[*pair]] = state[[*reversed(pair)]]
                return images, other

            seen(f"the states {names[i]!r} and {names[j]!r} are swapped", swapped)
    for i, name in enumerate(names):
        width, known = float(moments.state[:, i].std()), float(policy.bundle.golden.state[:, i].std())
        for how, factor in {"of the other sign": -1.0, **_units_that_fit(width, known)}.items():

            def scaled(images: dict[str, Any], state: NDArray[np.float32], place: int = i, factor: float = factor) -> Any:
                other = state.copy()
                other[place] *= factor
                return images, other

            seen(f"the state {name!r} is {how}", scaled)
    moving = [name for name, binary in zip(spec.action.names, spec.action.is_binary, strict=True) if not binary]
    for i, j in itertools.combinations(range(len(moving)), 2):

        def permuted(answers: NDArray[np.float32], done: NDArray[np.float32], _: Any, pair: tuple[int, int] = (i, j)) -> Pair:
            other = done.copy()
            other[:, [*pair]] = done[:, [*reversed(pair)]]
            return answers, other

        found.append((f"the actions {moving[i]!r} and {moving[j]!r} are swapped", permuted))
    for i, name in enumerate(moving):

        def negated(answers: NDArray[np.float32], done: NDArray[np.float32], _: Any, place: int = i) -> Pair:
            other = done.copy()
            other[:, place] *= -1
            return answers, other

        found.append((f"the action {name!r} is of the other sign", negated))
    return found


def _errors(answers: NDArray[np.float32], done: NDArray[np.float32], unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,): error of every frame."""
    errors: NDArray[np.float32] = (np.abs(answers - done) / unit).mean(axis=1)
    return errors


def _better(errors: NDArray[np.float32], before: NDArray[np.float32], episode: NDArray[np.int64]) -> float:
    """Share of the episodes whose mean error is smaller."""
    numbers = np.unique(episode)
    return float(np.mean([errors[episode == number].mean() < before[episode == number].mean() for number in numbers]))


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Of two (N, A') after their means per dimension are taken away; 0 where one of them does not vary."""
    a, b = a - a.mean(0), b - b.mean(0)
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / size) if size > 0 else 0.0


def _factor(answers: NDArray[np.float32], done: NDArray[np.float32], names: Sequence[str], rate_hz: float) -> list[str]:
    """Recorded motions that are a multiple of the answered ones, in every dimension that goes along at all."""
    ratios = {}
    for i, name in enumerate(names):
        if _correlation(answers[:, i : i + 1], done[:, i : i + 1]) > 0.5:
            # The geometric mean of both regressions: noise on one side alone would pull a slope towards 0.
            ratios[name] = float(np.sqrt((done[:, i] ** 2).sum() / max(float((answers[:, i] ** 2).sum()), 1e-20)))
    if not ratios:
        return []
    middle = float(np.median(list(ratios.values())))
    if 1 / 1.5 < middle < 1.5:
        return []
    shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    return [
        f"recorded actions are {middle:.2g} times the answered ones ({shown}): recorded at another control rate, as at {rate_hz / middle:.3g} Hz for the bundle's "
        f"{rate_hz:g} Hz, or in another unit"
    ]


def _units_that_fit(width: float, known: float) -> dict[str, float]:
    """A unit that is wrong makes the spread wrong by the same factor; a factor near 0 that does not would only hide a state that does harm."""
    return {how: factor for how, factor in _UNITS.items() if 0.2 * known <= width * factor <= 5 * known}


def _elsewhere(policy: BundlePolicy, moments: _Moments) -> list[str]:
    """States that lie where the bundle's own recorded questions do not."""
    known, found = policy.bundle.golden.state, []
    for i, name in enumerate(policy.spec.observation.state_names):
        middle, spread = float(np.median(known[:, i])), float(known[:, i].std())
        here, width = float(np.median(moments.state[:, i])), float(moments.state[:, i].std())
        if abs(here - middle) > _FAR * max(spread, 0.1 * width, 1e-6):
            unit = policy.spec.observation.state_units[i]
            fits = [how for how, factor in _units_that_fit(width, spread).items() if abs(factor * here - middle) <= 3 * max(spread, 1e-6)]
            why = fits[0] if fits else "another zero, another frame of reference, or other statistics?"
            found.append(
                f"the state {name!r} is elsewhere: {here:.3g} +- {width:.2g} {unit} in the recordings, {middle:.3g} +- {spread:.2g} {unit} where the policy was "
                f"made: {why}"
            )
    return found
