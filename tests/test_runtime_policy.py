"""A bundle as a policy: its own answers, inside the limits, or no motion."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from actlet.errors import BundleError, MissingLibraryError, ObservationError, RobotFault
from actlet.manifest import read_manifest, record_files, write_manifest
from actlet.protocols import Observation, Policy
from actlet.specs import ObservationSpec, PolicySpec
from runtime import networks as networks_module
from runtime.ort_backend import OrtModel, SessionConfig
from runtime.policy import BundlePolicy

TEXT = "put the cup on the plate"


@pytest.fixture
def observation() -> Observation:
    rng = np.random.default_rng(0)
    return Observation(images={"front": rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)}, state=np.zeros(3, np.float32))


def _relist(folder: Path, **changes: object) -> None:
    manifest = read_manifest(folder)
    write_manifest(folder, dataclasses.replace(manifest, files=record_files(folder), **changes))


def test_a_bundle_is_a_policy(tiny_bundle: Path, tiny_spec: PolicySpec, observation: Observation) -> None:
    """It has the manifest's specification and gives chunks of its horizon."""
    policy = BundlePolicy(tiny_bundle)
    assert isinstance(policy, Policy)
    assert policy.spec == tiny_spec
    (chunk,) = policy.predict([observation], [TEXT])
    assert (chunk.actions.dtype, chunk.actions.shape, chunk.confidence.shape) == (np.float32, (6, 4), (6,))


def test_a_batch_is_a_loop_of_single_answers(tiny_bundle: Path, observation: Observation) -> None:
    """Company in a batch changes nothing, and earlier chunks are not overwritten by later runs."""
    policy = BundlePolicy(tiny_bundle)
    other = dataclasses.replace(observation, state=np.ones(3, np.float32))
    both = policy.predict([observation, other], [TEXT, "lift the cup"])
    alone = [policy.predict([observation], [TEXT])[0], policy.predict([other], ["lift the cup"])[0]]
    for got, expected in zip(both, alone, strict=True):
        np.testing.assert_array_equal(got.actions, expected.actions)
    assert not np.array_equal(both[0].actions, both[1].actions)


def test_the_instruction_decides(tiny_bundle: Path, observation: Observation) -> None:
    """Two instructions for one observation give two chunks."""
    put, lift = BundlePolicy(tiny_bundle).predict([observation] * 2, [TEXT, "lift the cup"])
    assert not np.array_equal(put.actions, lift.actions)


def test_an_instruction_is_encoded_once(tiny_bundle: Path, observation: Observation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control step costs policy.onnx alone; the memory of instructions is bounded."""
    policy = BundlePolicy(tiny_bundle)
    encoded: list[str] = []
    embed = networks_module.Networks.embed
    monkeypatch.setattr(networks_module.Networks, "embed", lambda self, text: (encoded.append(text), embed(self, text))[1])
    for _ in range(3):
        policy.predict([observation], [TEXT])
    assert encoded == [TEXT]
    for i in range(40):
        policy.predict([observation], [f"put {i}"])
    assert len(policy._vectors) == 32


def test_actions_outside_the_limits_are_clipped_and_counted(
    tmp_path: Path, make_tiny_bundle: Callable[..., Path], observation: Observation
) -> None:
    """A network that commands 3 x the range gives the limits, and the number of clipped values is kept."""
    policy = BundlePolicy(make_tiny_bundle(tmp_path / "wild", gain=3.0))
    raw, _ = policy.networks.answer(observation.images, observation.state, policy.networks.embed(TEXT))
    (chunk,) = policy.predict([observation], [TEXT])
    low, high = np.array(policy.spec.action.low, np.float32), np.array(policy.spec.action.high, np.float32)
    assert ((raw < low) | (raw > high)).any()
    assert (chunk.actions >= low).all()
    assert (chunk.actions <= high).all()
    assert policy.clipped == ((raw < low) | (raw > high)).sum()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("part", "place", "named"), [(0, (2, 1), r"actions\[2\] 'dx'"), (1, 2, "confidence")])
def test_an_answer_that_is_not_finite_is_a_fault(
    tiny_bundle: Path,
    observation: Observation,
    monkeypatch: pytest.MonkeyPatch,
    poison: float,
    part: int,
    place: int | tuple[int, int],
    named: str,
) -> None:
    """It never becomes a chunk, and is not counted as clipped; the message names the dimension."""
    policy = BundlePolicy(tiny_bundle)
    infer = policy.networks.infer

    def poisoned(*arguments: object) -> np.ndarray:
        block = infer(*arguments).copy()
        policy.networks.parts(block)[part][place] = poison
        return block

    monkeypatch.setattr(policy.networks, "infer", poisoned)
    with pytest.raises(RobotFault, match=rf"\({named}\).*refused"):
        policy.predict([observation], [TEXT])
    assert policy.clipped == 0


def test_a_chunk_is_memory_of_its_own(tiny_bundle: Path, observation: Observation) -> None:
    """Later decisions, of another instruction and another frame, leave an earlier chunk alone; the same question is answered the same."""
    policy = BundlePolicy(tiny_bundle)
    (first,) = policy.predict([observation], [TEXT])
    kept = first.actions.copy(), first.confidence.copy()
    other = dataclasses.replace(observation, images={name: 255 - frame for name, frame in observation.images.items()})
    (second,) = policy.predict([other], ["lift the cup"])
    assert not np.array_equal(second.actions, first.actions)
    assert np.array_equal(first.actions, kept[0])
    assert np.array_equal(first.confidence, kept[1])
    (again,) = policy.predict([observation], [TEXT])
    assert np.array_equal(again.actions, first.actions)


def test_an_observation_of_another_form_is_refused(tiny_bundle: Path, observation: Observation) -> None:
    """Size, type and finiteness are checked before the network sees it; a long instruction as well."""
    policy = BundlePolicy(tiny_bundle)
    with pytest.raises(ObservationError, match="camera 'front'"):
        policy.predict([dataclasses.replace(observation, images={"front": np.zeros((8, 6, 3), np.uint8)})], [TEXT])
    with pytest.raises(ObservationError, match="not finite"):
        policy.predict([dataclasses.replace(observation, state=np.array([0, np.nan, 0], np.float32))], [TEXT])
    with pytest.raises(ObservationError, match="at most 8 fit"):
        policy.predict([observation], ["put the cup on the plate on the plate"])


def test_another_network_fails_the_self_test(tiny_bundle: Path, tmp_path: Path, make_tiny_bundle: Callable[..., Path]) -> None:
    """A network that does not give the recorded answers is refused although every hash is right."""
    other = make_tiny_bundle(tmp_path / "other", gain=1.01)
    (tiny_bundle / "policy.onnx").write_bytes((other / "policy.onnx").read_bytes())
    _relist(tiny_bundle)
    with pytest.raises(BundleError, match=r"self-test failed: sample 0 .* action, as a share of its range: off by .* at most 0.0001"):
        BundlePolicy(tiny_bundle)


def test_another_tokenizer_fails_the_self_test(tiny_bundle: Path) -> None:
    """The text's way is replayed too: two swapped words of the vocabulary are noticed."""
    path = tiny_bundle / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["cup"], vocabulary["lift"] = vocabulary["lift"], vocabulary["cup"]
    path.write_text(json.dumps(document))
    _relist(tiny_bundle)
    with pytest.raises(BundleError, match=r"self-test failed: .* instruction vector"):
        BundlePolicy(tiny_bundle)


def test_a_network_for_another_robot_is_refused(
    tiny_bundle: Path, tmp_path: Path, make_tiny_bundle: Callable[..., Path], tiny_spec
) -> None:
    """Inputs are compared with the specification, by name, type and shape."""
    wider = ObservationSpec(cameras=tiny_spec.observation.cameras, state_names=("x", "y", "z", "grip"), state_units=("m",) * 4)
    other = make_tiny_bundle(tmp_path / "other", spec=dataclasses.replace(tiny_spec, observation=wider))
    (tiny_bundle / "policy.onnx").write_bytes((other / "policy.onnx").read_bytes())
    _relist(tiny_bundle)
    with pytest.raises(BundleError, match=r"policy.onnx takes .*\(1, 4\).* expected .*\(1, 3\)"):
        BundlePolicy(tiny_bundle)


def test_bytes_that_are_not_a_network_are_refused(tiny_bundle: Path) -> None:
    """By the check of what it is made of; and where that finds nothing, ONNX Runtime's own error becomes the declared one."""
    reads_nothing = onnx.load_from_string((tiny_bundle / "policy.onnx").read_bytes())
    reads_nothing.graph.node[0].input[0] = "nowhere"
    cases = {
        b"not a network": r"policy.onnx: not a network in ONNX's format",
        reads_nothing.SerializeToString(): r"policy.onnx: ONNX Runtime .* cannot load it",
    }
    for content, message in cases.items():
        (tiny_bundle / "policy.onnx").write_bytes(content)
        _relist(tiny_bundle)
        with pytest.raises(BundleError, match=message):
            BundlePolicy(tiny_bundle)


def test_a_provider_that_is_not_there_is_an_error(tiny_bundle: Path) -> None:
    """No silent change to the CPU."""
    with pytest.raises(MissingLibraryError, match=r"\['CUDAExecutionProvider'\] asked for, but this onnxruntime .* has"):
        BundlePolicy(tiny_bundle, config=SessionConfig(providers=("CUDAExecutionProvider",)))


def test_a_network_runs_on_the_provider_that_was_asked_for(tiny_bundle: Path) -> None:
    """What the session reports is kept."""
    assert BundlePolicy(tiny_bundle, threads=2).networks.providers == ("CPUExecutionProvider",)


def test_a_network_refuses_other_inputs(tiny_bundle: Path) -> None:
    """Another name, type or shape never reaches the bound memory."""
    model = OrtModel((tiny_bundle / "policy.onnx").read_bytes(), where="policy.onnx")
    with pytest.raises(BundleError, match=r"policy.onnx: fed with .* expected"):
        model.run({"state": np.zeros((1, 3), np.float32)})


def test_the_optimised_graph_can_be_written(tiny_bundle: Path, tmp_path: Path) -> None:
    """For audits of what really runs."""
    OrtModel((tiny_bundle / "policy.onnx").read_bytes(), config=SessionConfig(optimised_model=tmp_path / "graph.onnx"))
    assert (tmp_path / "graph.onnx").stat().st_size > 0
