"""benchmarks.recorded_check: recordings that are wired otherwise than the bundle are found and what is wrong is named; those that fit are left alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_dataset import write
from torch import Tensor, nn

from actlet.command_line import main
from actlet.errors import SpecError
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, TimingSpec
from benchmarks.recorded_check import check_recorded
from episodes.episode import Episode
from episodes.lerobot_dataset import LeRobotDataset
from export.own_policy import OwnPolicy, export_module

SEES = ObservationSpec(
    cameras=(CameraSpec(name="front", height=8, width=8), CameraSpec(name="wrist", height=8, width=8)),
    state_names=("x", "y", "turn"),
    state_units=("m", "m", "rad"),
)
DOES = ActionSpec(
    names=("dx", "dy", "grip"),
    units=("m", "m", "1"),
    kinds=("continuous", "continuous", "binary"),
    low=(-0.4, -0.4, 0),
    high=(0.4, 0.4, 1),
    frame="base",
)


class Expert(nn.Module):
    """What the recordings were made by: red against blue in front, green at the wrist, and both places."""

    def forward(self, front: Tensor, wrist: Tensor, state: Tensor) -> Tensor:
        colour, other = (frame.float().mean((1, 2)) / 255 for frame in (front, wrist))
        x, y, turn = state.unbind(1)
        dx = 0.2 * torch.tanh(3 * (colour[:, 0] - colour[:, 2]) + 2 * x)
        dy = 0.2 * torch.tanh(3 * (other[:, 1] - 0.5) - y + turn)
        return torch.stack([dx, dy, (x > 0).float()], dim=1)[:, None]  # (1, 1, 3)


def recorded(seed: int) -> Episode:
    """Coloured pictures and places; what the expert did, with a little noise."""
    rng = np.random.default_rng(seed)
    steps = 10
    colours = {name: rng.integers(40, 216, (steps, 1, 1, 3)) for name in ("front", "wrist")}
    images = {name: (colour + rng.integers(-30, 30, (steps, 8, 8, 3))).clip(0, 255).astype(np.uint8) for name, colour in colours.items()}
    state = np.stack([rng.normal(0.1, 0.4, steps), rng.normal(-0.2, 0.5, steps), rng.normal(0.3, 0.5, steps)], axis=1).astype(np.float32)
    with torch.no_grad():
        inputs = (torch.from_numpy(images["front"]), torch.from_numpy(images["wrist"]), torch.from_numpy(state))
        action = Expert()(*inputs)[:, 0].numpy() + np.array([0.01, 0.01, 0]) * rng.normal(size=(steps, 3))
    return Episode(instruction="go", images=images, state=state, action=action.astype(np.float32), success=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expert")
    data = write(folder / "data", [recorded(seed) for seed in range(20)], observation_spec=SEES, action_spec=DOES)
    timing = TimingSpec(rate_hz=10, horizon=1, execute_steps=1, max_delay_steps=0)
    return export_module(OwnPolicy(Expert(), timing), data.path, folder / "bundle").out


def spoiled(place: Path, change: Callable[[Episode], Episode] = lambda episode: episode, **options: Any) -> LeRobotDataset:
    """Other recordings of the same, changed."""
    return write(place, [change(recorded(seed)) for seed in range(100, 116)], **{"observation_spec": SEES, "action_spec": DOES, **options})


def _images(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Episode], Episode]:
    return lambda episode: dataclasses.replace(episode, images=change(episode.images))


def _columns(field: str, change: Callable[[Any], Any]) -> Callable[[Episode], Episode]:
    def changed(episode: Episode) -> Episode:
        values = getattr(episode, field).copy()
        change(values)
        return dataclasses.replace(episode, **{field: values})

    return changed


def _swap(values: Any) -> None:
    values[:, [0, 1]] = values[:, [1, 0]]


def _scale(values: Any, places: slice, factor: float) -> None:
    values[:, places] *= factor


def _negate(values: Any) -> None:
    values[:, 1] *= -1


def _move(values: Any) -> None:
    values[:, 0] += 40


WRONG: dict[str, tuple[Callable[[Episode], Episode], str]] = {
    "one camera's channels": (
        _images(lambda i: {**i, "front": i["front"][..., ::-1]}),
        "camera 'front' gives BGR for RGB: its channels are swapped",
    ),
    "exchanged cameras": (_images(lambda i: {"front": i["wrist"], "wrist": i["front"]}), "the cameras 'front' and 'wrist' are exchanged"),
    "two states": (_columns("state", _swap), "the states 'x' and 'y' are swapped"),
    "two actions": (_columns("action", _swap), "the actions 'dx' and 'dy' are swapped"),
    "a sign": (_columns("action", _negate), "the action 'dy' is of the other sign"),
    "degrees": (_columns("state", lambda v: _scale(v, slice(2, 3), 57.29578)), "the state 'turn' is .*in degrees for radians"),
    "millimetres": (_columns("state", lambda v: _scale(v, slice(0, 2), 1000.0)), r"the state 'x' is .*1000 times too large \(mm for m\?\)"),
    "twice the motion": (
        _columns("action", lambda v: _scale(v, slice(0, 2), 2.0)),
        r"recorded actions are 2 times the answered ones .*as at [45][.0-9]* Hz for the bundle's 10 Hz",
    ),
    "another zero": (
        _columns("state", _move),
        "the state 'x' is elsewhere: 40.* another zero, another frame of reference, or other statistics",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(bundle: Path, tmp_path: Path, name: str) -> None:
    """One thing at a time, and nothing else is blamed."""
    change, message = WRONG[name]
    found = check_recorded(bundle, spoiled(tmp_path / "data", change))
    with pytest.raises(SpecError, match=message):
        raise SpecError(" / ".join(found.problems))
    if name not in ("millimetres",):  # Two states are: each is said.
        assert len(found.problems) == 1


def test_recordings_that_fit_are_left_alone(bundle: Path, tmp_path: Path) -> None:
    """Close to what was recorded, and nothing to say."""
    found = check_recorded(bundle, spoiled(tmp_path / "data"))
    assert found.problems == ()
    assert found.error < 0.05
    assert found.correlation > 0.9
    assert len(found.suspicions) > 10


def test_recordings_of_something_else_are_said_to_be(bundle: Path, tmp_path: Path) -> None:
    """Actions in another order have nothing to do with what is answered."""
    rng = np.random.default_rng(0)
    found = check_recorded(bundle, spoiled(tmp_path / "data", _columns("action", lambda values: rng.shuffle(values))))
    assert len(found.problems) == 1
    assert "nothing to do with what was recorded" in found.problems[0]
    assert "statistics of another dataset" in found.problems[0]


def test_what_the_specifications_say_is_said_first(bundle: Path, tmp_path: Path) -> None:
    """Another rate, other names or units, before anything is answered."""
    with pytest.raises(SpecError, match="control rate 10 Hz and 20 Hz"):
        check_recorded(bundle, spoiled(tmp_path / "fast", rate_hz=20.0))
    other = dataclasses.replace(SEES, state_units=("m", "m", "deg"))
    with pytest.raises(SpecError, match="state_units"):
        check_recorded(bundle, spoiled(tmp_path / "units", observation_spec=other))


def test_the_doctor_asks_the_recordings(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line that says they fit, or a PROBLEM with what is wrong and exit code 2."""
    spoiled(tmp_path / "good")
    spoiled(tmp_path / "bad", _columns("state", _swap))
    assert main(["doctor", str(bundle), "--data", str(tmp_path / "good")]) == 0
    assert "nothing looks swapped" in capsys.readouterr().out
    assert main(["doctor", str(bundle), "--data", str(tmp_path / "bad")]) == 2
    out = capsys.readouterr().out
    assert "PROBLEM  recordings bad" in out
    assert "the states 'x' and 'y' are swapped" in out
    assert main(["doctor", "--data", str(tmp_path / "good")]) == 2
