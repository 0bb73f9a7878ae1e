"""scripts/aarch64.py: bundles answer on an emulated Arm processor as here, with nothing but numpy and ONNX Runtime installed there."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_dataset import OBSERVATION, an_episode, write
from torch import Tensor, nn

from actlet.specs import TimingSpec
from export.own_policy import OwnPolicy, export_module
from quantize.quantize_bundle import quantize_bundle
from quantize.schemes import scheme

SCRIPT = Path(__file__).parent.parent / "scripts" / "aarch64.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("aarch64", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Policy(nn.Module):
    """Convolutions of both cameras and the state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.see = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU())
        self.act = nn.Sequential(nn.Linear(64 + 3, 96), nn.ReLU(), nn.Linear(96, 4 * 3))

    def forward(self, front: Tensor, wrist: Tensor, state: Tensor) -> Tensor:
        seen = [self.see(frame.float().permute(0, 3, 1, 2) / 127.5 - 1).mean((2, 3)) for frame in (front, wrist)]
        return 0.5 * torch.tanh(self.act(torch.cat([*seen, state], dim=1))).unflatten(1, (4, 3))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("dpkg-deb") is None, reason="needs x86-64 and dpkg-deb, as Debian has")
def test_an_arm_processor_answers_as_this_one(script: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    """Float within 1e-5 of an action's range, integers within the step that their tolerance allows; and nothing of the training side is imported."""
    data = write(tmp_path / "data", [an_episode(seed) for seed in range(20)], observation_spec=OBSERVATION).path
    timing = TimingSpec(rate_hz=10, horizon=4, execute_steps=2, max_delay_steps=1)
    bundles = {"tiny": tiny_bundle, "float32": export_module(OwnPolicy(Policy(), timing), data, tmp_path / "float32").out}
    for precision in ("int8", "int4", "int4-int8"):
        bundles[precision] = quantize_bundle(
            bundles["float32"], tmp_path / precision, scheme=scheme(precision), data=data, allow_slower=True
        ).out
    try:
        script.fetch()
    except OSError as error:  # What urllib raises is one.
        pytest.skip(f"Debian's mirror cannot be reached: {error}")
    found = script.ask(list(bundles.values()))
    assert found["machine"] == "aarch64"
    assert found["training_side"] == []
    rows = {name: found["bundles"][str(path.resolve())] for name, path in bundles.items()}
    for name, row in rows.items():
        most = 0.02 if "int8" in name else 1e-5
        assert row["questions"] > 0
        assert row["actions"] <= most, (name, row)
        assert row["confidence"] <= most, (name, row)
    print(rows, file=sys.stderr)
