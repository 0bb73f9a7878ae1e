"""The latency harness on policies whose cost is known, and arithmetic that can be counted by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from actlet.errors import ActletError, CallerError, SpecError
from actlet.protocols import ActionChunk, Observation
from actlet.specs import PolicySpec
from benchmarks.arithmetic import count_bundle, count_graph
from benchmarks.latency import LatencyConfig, measure_by_turns, measure_latency, peak_memory_bytes
from benchmarks.policies import Contender, Sample, parse_contenders, samples_for


class Sleeper:
    """Answers after a while, and remembers in which order policies were asked."""

    def __init__(self, spec: PolicySpec, name: str, seconds: float, log: list[str]) -> None:
        self.spec, self._name, self._seconds, self._log = spec, name, seconds, log
        self.seen: list[int] = []

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        assert len(observations) == len(instructions) == 1
        self._log.append(self._name)
        self.seen.append(id(observations[0].state))
        time.sleep(self._seconds)
        horizon, dim = self.spec.timing.horizon, self.spec.action.dim
        return [ActionChunk(np.zeros((horizon, dim), np.float32), np.ones(horizon, np.float32))]


@pytest.fixture
def samples(tiny_spec: PolicySpec) -> list[Sample]:
    """Two questions of the right shape."""
    return samples_for([], tiny_spec, count=2)


def test_a_sleep_is_wall_time_and_not_cpu_time(tiny_spec: PolicySpec, samples: list[Sample]) -> None:
    """What a policy waits is in its wall time alone."""
    policy = Sleeper(tiny_spec, "slow", 0.02, [])
    timings, _ = measure_by_turns({"slow": policy}, samples, LatencyConfig(rounds=3, calls=1), progress=False)
    assert min(timings["slow"].wall_s) >= 0.02
    assert min(timings["slow"].cpu_s) < 0.02


def test_policies_take_turns(tiny_spec: PolicySpec, samples: list[Sample]) -> None:
    """After one warm-up call per sample, every round asks all, each starting one further."""
    log: list[str] = []
    policies = {name: Sleeper(tiny_spec, name, 0.0, log) for name in "ab"}
    measure_by_turns(policies, samples, LatencyConfig(rounds=2, calls=3, slice_ms=1e6), progress=False)
    assert "".join(log) == "aabb" + "aaabbb" + "bbbaaa"


def test_a_slow_policy_has_one_call_a_turn(tiny_spec: PolicySpec, samples: list[Sample]) -> None:
    """A turn ends with its slice, so that a slow policy does not take the run for itself."""
    policies = {"slow": Sleeper(tiny_spec, "slow", 0.01, []), "fast": Sleeper(tiny_spec, "fast", 0.0, [])}
    timings, _ = measure_by_turns(policies, samples, LatencyConfig(rounds=4, calls=5, slice_ms=1.0), progress=False)
    assert len(timings["slow"].wall_s) == 4


def test_every_call_gets_a_fresh_observation(tiny_spec: PolicySpec, samples: list[Sample]) -> None:
    """A policy cannot answer from what it saw before: the recorded arrays themselves are never handed over."""
    policy = Sleeper(tiny_spec, "a", 0.0, [])
    measure_by_turns({"a": policy}, samples, LatencyConfig(rounds=2, calls=2), progress=False)
    assert policy.seen
    assert not set(policy.seen) & {id(sample.observation.state) for sample in samples}


def test_a_bundle_is_measured_whole(tiny_bundle: Path) -> None:
    """Latency, size, arithmetic and memory of a genuine bundle; the rate is 1 / p50."""
    found = measure_latency([Contender("tiny", tiny_bundle)], LatencyConfig(rounds=2, calls=2), progress=False)
    row = found["policies"]["tiny"]
    assert row["latency_calls"] == 4
    assert row["decision_rate_hz"] == pytest.approx(1e3 / row["latency_ms"]["p50"])
    assert row["size_bytes"] == (tiny_bundle / "policy.onnx").stat().st_size < row["bundle_bytes"]
    assert row["peak_memory_bytes"] > 10e6
    assert found["ceiling_gflops"]["best"] >= found["ceiling_gflops"]["median"] > 0


def test_policies_that_see_other_things_are_not_timed_together(
    make_tiny_bundle: Callable[..., Path], tiny_float_bundle: Path, tmp_path: Path
) -> None:
    """One sample must fit all."""
    with pytest.raises(SpecError, match="'other' sees other things than 'tiny'"):
        measure_latency([Contender("tiny", make_tiny_bundle(tmp_path / "a")), Contender("other", tiny_float_bundle)], progress=False)


def test_memory_of_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    """The child's message reaches the caller."""
    with pytest.raises(ActletError, match="does not exist"):
        peak_memory_bytes(tmp_path / "nothing")


def test_macs_and_parameters_of_a_graph_are_those_counted_by_hand(tmp_path: Path) -> None:
    """A 3x3 convolution from 2 to 4 channels on 5x5 (padded), then 100 -> 7: 5*5*4*2*9 + 100*7 MACs."""
    constants = {"w": np.zeros((4, 2, 3, 3), np.float32), "shape": np.array([1, 100]), "m": np.zeros((100, 7), np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["c", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "m"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 7])
    graph = helper.make_graph(nodes, "g", [x], [y], [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()])
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    count = count_graph(path)
    assert (count.parameters, count.macs) == (4 * 2 * 9 + 700, 5 * 5 * 4 * 2 * 9 + 700)


def test_the_graph_of_a_student_has_the_parameters_of_the_student(tiny_checkpoint: Path, tiny_float_bundle: Path) -> None:
    """Up to what serves training alone (the waypoint head) and tables of constants (bin centres, sizes)."""
    from distill.student import load_student

    student = load_student(tiny_checkpoint)
    kept = student.parameter_count - sum(weight.numel() for weight in student.waypoints.parameters())
    assert count_bundle(tiny_float_bundle).parameters == pytest.approx(kept, rel=0.05)


def test_contenders_have_names(tiny_bundle: Path) -> None:
    """The folder's by default; two of one name are refused."""
    assert [contender.name for contender in parse_contenders([str(tiny_bundle), f"b={tiny_bundle}"])] == ["bundle", "b"]
    with pytest.raises(CallerError, match="two have one name"):
        parse_contenders([str(tiny_bundle), str(tiny_bundle)])
