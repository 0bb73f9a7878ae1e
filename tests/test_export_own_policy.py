"""export.own_policy and export.foreign_onnx: policies of your own become bundles that answer as they do, or nothing is written and the message says why."""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_dataset import OBSERVATION, an_episode, write
from torch import Tensor, nn

from actlet.command_line import main
from actlet.errors import BundleError, CallerError, CheckpointError, SpecError
from actlet.manifest import manifest_hash, read_manifest
from actlet.protocols import Observation
from actlet.specs import CameraSpec, PolicySpec, TimingSpec
from distill.text_encoder import EMBEDDING_DIM
from episodes.lerobot_dataset import LeRobotDataset
from export.foreign_onnx import ForeignMapping, foreign_graph, read_foreign_onnx, read_mapping
from export.own_policy import OwnPolicy, export_module, export_onnx, find_policy
from export.recorded_samples import MOMENTS, moments_of
from quantize.quantize_bundle import quantize_bundle
from quantize.schemes import scheme
from runtime import trial
from runtime.policy import BundlePolicy

SEES = dataclasses.replace(OBSERVATION, cameras=(CameraSpec(name="front", height=24, width=32),))
TIMING = TimingSpec(rate_hz=10, horizon=4, execute_steps=2, max_delay_steps=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    episodes = [an_episode(seed, observation=SEES) for seed in range(20)]
    return write(tmp_path_factory.mktemp("recordings") / "data", episodes, observation_spec=SEES)


class Mine(nn.Module):
    """A convolution of the first camera and the state; actions and nothing else, or confidence too."""

    def __init__(self, dataset: LeRobotDataset, *, sure: bool = False, language: bool = False, horizon: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.horizon, self.dim, self.sure = horizon, dataset.action_spec.dim, sure
        self.see = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        width = 8 + dataset.observation_spec.state_dim + (EMBEDDING_DIM if language else 0)
        self.act = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, horizon * self.dim))
        self.unsure = nn.Linear(width, horizon)

    def forward(self, *inputs: Tensor) -> Any:
        frames, *vectors = inputs[0], *(value for value in inputs if value.dim() == 2)
        seen = torch.cat([self.see(frames.float().permute(0, 3, 1, 2) / 255), *vectors], dim=1)
        actions = 0.01 * self.act(seen).unflatten(1, (self.horizon, self.dim))
        return (actions, torch.sigmoid(self.unsure(seen))) if self.sure else actions


@pytest.mark.parametrize(("sure", "language", "opset"), [(False, False, 18), (True, True, 18), (True, False, 17), (True, False, 23)])
def test_a_module_becomes_a_bundle(dataset: LeRobotDataset, tmp_path: Path, sure: bool, language: bool, opset: int) -> None:
    """With and without confidence and language, in several operator sets; it answers as the module does."""
    module = Mine(dataset, sure=sure, language=language)
    report = export_module(OwnPolicy(module, TIMING, language), dataset.path, tmp_path / "mine", opset=opset)
    assert max(worst.difference for worst in report.worst) < 1e-5
    manifest = read_manifest(tmp_path / "mine")
    assert (manifest.text_encoder is None) == (not language)
    assert ("instruction.onnx" in manifest.files) == language
    assert manifest.lineage.dataset == dataset.content_hash
    policy, episode = BundlePolicy(tmp_path / "mine"), dataset.read(0)
    assert policy.spec.timing == TIMING
    chunk = policy.predict([Observation({name: frames[0] for name, frames in episode.images.items()}, episode.state[0])], ["lift it"])[0]
    assert chunk.actions.shape == (4, dataset.action_spec.dim)
    if not sure:
        np.testing.assert_array_equal(chunk.confidence, 1)


def test_what_a_robot_would_refuse_is_not_exported(dataset: LeRobotDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that cannot be opened within a trial's memory: nothing is written, and what was there before stays."""
    network = write_foreign(tmp_path / "theirs.onnx", dataset)
    mapping = ForeignMapping.from_dict(mapping_for(dataset))
    before = export_module(OwnPolicy(Mine(dataset), TIMING), dataset.path, tmp_path / "mine").bundle_hash
    monkeypatch.setattr(trial, "_BASE_BYTES", 64 << 20)  # Less than numpy and ONNX Runtime take by themselves.
    message = r"^as a robot opens it: ((?!partial).)*Nothing was written\.$"
    with pytest.raises(BundleError, match=message):
        export_module(OwnPolicy(Mine(dataset), TIMING), dataset.path, tmp_path / "mine", overwrite=True)
    with pytest.raises(BundleError, match=message):
        export_onnx(network, mapping, dataset.path, tmp_path / "out")
    assert manifest_hash(tmp_path / "mine") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "theirs.onnx"]


def test_it_becomes_smaller_like_any_other(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """A policy without language is quantized, and its child opened."""
    export_module(OwnPolicy(Mine(dataset), TIMING), dataset.path, tmp_path / "mine")
    for precision in ("int8", "int4"):
        report = quantize_bundle(tmp_path / "mine", tmp_path / precision, scheme=scheme(precision), data=dataset.path, allow_slower=True)
        assert report.error.mean < 0.1
        assert BundlePolicy(tmp_path / precision).bundle.manifest.text_encoder is None


def test_what_cannot_be_a_policy_is_refused(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """Another horizon, weights that are not finite, a forward that fails, dropout that is on: nothing is written."""
    broken = Mine(dataset)
    with torch.no_grad():
        broken.act[0].weight[0, 0] = torch.nan

    class Fails(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            raise KeyError("camera")

    class Random(Mine):
        def forward(self, *inputs: Tensor) -> Any:
            return super().forward(*inputs) + 0.01 * torch.rand(1)

    cases: list[tuple[nn.Module, type[Exception], str]] = [
        (Mine(dataset, horizon=3), SpecError, r"the policy gives \(1, 3, \d\) and \(1, 3\), expected"),
        (broken, CheckpointError, r"weights that are not finite: \['module\.act\.0\.weight'\]"),
        (Fails(), CheckpointError, r"the policy fails on a recorded sample \(KeyError: 'camera'\); it is called with \['images\."),
        (Random(dataset), BundleError, r"RandomUniformLike|RandomUniform|parity: actions differs from the original"),
    ]
    for module, error, message in cases:
        with pytest.raises(error, match=message):
            export_module(OwnPolicy(module, TIMING), dataset.path, tmp_path / "out")
    with pytest.raises(CallerError, match=r"opset 12, expected 17 \.\. 23"):
        export_module(OwnPolicy(Mine(dataset), TIMING), dataset.path, tmp_path / "out", opset=12)
    assert list(tmp_path.iterdir()) == []


POLICIES = """
from export.own_policy import OwnPolicy
kept = OwnPolicy(None, None)
def make():
    return 3
def of(size, colour="red", *more, **others):
    return kept
def policy():
    return kept
def without_a_package():
    import a_package_that_nobody_has
def without_a_part():
    from actlet import nothing_of_the_kind
def without_an_attribute():
    return kept.modul
def with_too_many():
    return policy(1)
"""


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where one is, with policies in a file of a name of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "found_policies.py").write_text(POLICIES)
    (tmp_path / "broken_policies.py").write_text("import a_package_that_nobody_has\n")
    (tmp_path / "misspelt_policies.py").write_text("import os\nos.no_such_function()\n")
    yield tmp_path
    for name in ("found_policies", "broken_policies", "misspelt_policies"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("found_policies:make", "returned a int, expected an export"),
        ("found_policies:other", "has no attribute 'other'"),
        ("found_policies:kept", "is a OwnPolicy, expected a function without arguments"),
        ("found_policies:of", r"takes \['size'\], expected a function without arguments"),
        ("nowhere:make", "No module named 'nowhere', neither installed nor in /"),
        ("found_policies.deeper:make", "No module named 'found_policies.deeper'"),
        ("found_policies", "expected package.module:function"),
        (":make", "expected package.module:function"),
        (".found_policies:make", "expected package.module:function"),
        ("found_policies:", "expected package.module:function"),
    ],
)
@pytest.mark.usefixtures("own_folder")
def test_what_is_no_policy_is_said(place: str, message: str) -> None:
    """A name of nothing, of something else, or of none of the form."""
    with pytest.raises(CallerError, match=message):
        find_policy(place)


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("found_policies:without_a_package", ImportError, "No module named 'a_package_that_nobody_has'"),
        ("found_policies:without_a_part", ImportError, "cannot import name 'nothing_of_the_kind'"),
        ("found_policies:without_an_attribute", AttributeError, "has no attribute 'modul'"),
        ("found_policies:with_too_many", TypeError, "takes 0 positional arguments but 1 was given"),
        ("broken_policies:make", ImportError, "No module named 'a_package_that_nobody_has'"),
        ("misspelt_policies:make", AttributeError, "has no attribute 'no_such_function'"),
    ],
)
def test_an_error_inside_comes_out_with_its_traceback(own_folder: Path, place: str, error: type[Exception], message: str) -> None:
    """From Python, and from the command line, which takes no package of theirs for one of actlet's."""
    command = ["export", place, "--data", str(own_folder), "--out", str(own_folder / "out")]
    for call in (lambda: find_policy(place), lambda: main(command)):
        with pytest.raises(error, match=message) as caught:
            call()
        assert not isinstance(caught.value, CallerError)
        assert f"{place.split(':')[0]}.py" in "".join(traceback.format_exception(caught.value))


def test_a_policy_is_found_by_name(own_folder: Path) -> None:
    """In the current folder."""
    assert isinstance(find_policy("found_policies:policy"), OwnPolicy)
    assert str(own_folder) in sys.path


@pytest.mark.parametrize(
    "lengths", [[1], [2, 1], [40], [5, 50], [3] * 7, [1] * 15, [1] * 16, [100] * 8, [9] * 300, list(range(1, 60)), [1, 10_000]]
)
def test_moments_are_spread_over_the_recordings(lengths: list[int]) -> None:
    """As many as there may be, none twice, first frames among them, and no long stretch of the recordings without one."""
    moments = moments_of(lengths)
    total, starts = sum(lengths), np.cumsum([0, *lengths])
    assert moments == moments_of(list(lengths))
    assert len(set(moments)) == len(moments) == min(total, MOMENTS)
    assert all(0 <= step < lengths[episode] for episode, step in moments)
    assert sum(step == 0 for _, step in moments) >= min(len(lengths), MOMENTS // 2)
    assert (0, 0) in moments
    places = [starts[episode] + step for episode, step in moments]
    assert places == sorted(places)
    assert max(np.diff([-1, *places, total])) <= max(2 * total / (MOMENTS - min(len(lengths), MOMENTS // 2)), 2)


def test_one_episode_gives_all_moments(tmp_path: Path) -> None:
    """Its first and its last frame among them; the bundle's self-test replays them."""
    seed = next(seed for seed in range(99) if len(an_episode(seed, observation=SEES)) > 5)
    data = write(tmp_path / "data", [an_episode(seed, observation=SEES)], observation_spec=SEES)
    export_module(OwnPolicy(Mine(data), TIMING), data.path, tmp_path / "mine")
    golden, episode = BundlePolicy(tmp_path / "mine").bundle.golden, data.read(0)
    np.testing.assert_array_equal(golden.state, episode.state)
    for name, frames in episode.images.items():
        np.testing.assert_array_equal(golden.images[name], frames)


def write_foreign(
    path: Path, dataset: LeRobotDataset, *, layout: str = "NCHW", size: tuple[int, int] | None = None, batch: int | str = 1, **names: str
) -> Path:
    """A network as others export theirs: a normalised picture and state in, normalised actions out, one of ours called "state"."""
    camera, states, dim = dataset.observation_spec.cameras[0], dataset.observation_spec.state_dim, dataset.action_spec.dim
    height, width = size or (camera.height, camera.width)
    shape = [batch, 3, height, width] if layout == "NCHW" else [batch, height, width, 3]
    rng = np.random.default_rng(0)
    constants = {
        "weight": rng.normal(size=(3 + states, 4 * dim)).astype(np.float32),
        "axes": np.array([2, 3] if layout == "NCHW" else [1, 2]),
        "sizes": np.array([1, 4, dim]),
    }
    nodes = [
        helper.make_node("Abs", ["picture"], ["bright"]),  # So that the scale's sign and place are seen.
        helper.make_node("ReduceMean", ["bright", "axes"], ["actions"], keepdims=0),
        helper.make_node("Concat", ["actions", "state"], ["features"], axis=1),
        helper.make_node("MatMul", ["features", "weight"], ["flat"]),
        helper.make_node("Tanh", ["flat"], ["bounded"]),
        helper.make_node("Reshape", ["bounded", "sizes"], ["action"]),
    ]
    inputs = [
        helper.make_tensor_value_info("picture", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, states]),
    ]
    graph = helper.make_graph(
        nodes,
        "theirs",
        inputs,
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, [1, 4, dim])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def mapping_for(dataset: LeRobotDataset, **changes: Any) -> dict[str, Any]:
    """What the network of `write_foreign` takes and gives."""
    states, dim = dataset.observation_spec.state_dim, dataset.action_spec.dim
    camera = dataset.observation_spec.cameras[0].name
    picture = {"camera": camera, "layout": "NCHW", "scale": 1 / 255, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "size": None}
    plain = {
        "timing": TIMING.to_dict(),
        "images": {"picture": {**picture, **changes.pop("picture", {})}},
        "state": {"name": "state", "mean": [0.1 * i for i in range(states)], "std": [1.0 + i for i in range(states)]},
        "actions": {"name": "action", "mean": [0.5] + [0.0] * (dim - 1), "std": [0.6] + [0.02] * (dim - 1)},
        "instruction": None,
        "confidence": None,
    }
    return {**plain, **changes}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("size", [None, (12, 20)])
def test_somebodys_network_becomes_a_bundle(dataset: LeRobotDataset, tmp_path: Path, layout: str, size: tuple[int, int] | None) -> None:
    """Pictures in both layouts and of another size; what the graph does is what torch and numpy do with the original."""
    network = write_foreign(tmp_path / "theirs.onnx", dataset, layout=layout, size=size)
    (tmp_path / "theirs.json").write_text(json.dumps(mapping_for(dataset, picture={"layout": layout, "size": size and list(size)})))
    report = export_onnx(network, tmp_path / "theirs.json", dataset.path, tmp_path / "out")
    assert max(worst.difference for worst in report.worst) < 1e-4
    manifest = read_manifest(tmp_path / "out")
    assert manifest.text_encoder is None
    policy, episode = BundlePolicy(tmp_path / "out"), dataset.read(1)
    seen = Observation({name: frames[0] for name, frames in episode.images.items()}, episode.state[0])
    actions = policy.predict([seen], [""])[0].actions
    assert set(np.unique(actions[:, manifest.spec.action.is_binary])) <= {0.0, 1.0}
    assert np.abs(actions).max() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {}}, r"the mapping names the inputs \['state'\], but the network takes \['picture', 'state'\]"),
        ({"state": None}, r"the mapping names the inputs \['picture'\], but the network takes"),
        ({"picture": {"camera": "nobody"}}, r"the mapping reads the cameras \['nobody'\], and the recordings have"),
        ({"picture": {"layout": "NHWC"}}, r"input 'picture' has the shape \(1, 3, \d+, \d+\), expected \(1, \d+, \d+, 3\)"),
        ({"picture": {"std": [1.0, 0.0, 1.0]}}, "expected positive numbers"),
        ({"picture": {"mean": [1.0]}}, r"expected three, three, and \(height, width\)"),
        ({"state": {"name": "state", "mean": [0.0], "std": [1.0]}}, r"state 'state': 1 numbers, expected \d, one for each of"),
        ({"actions": {"name": "nothing", "mean": [], "std": []}}, r"names the outputs \['nothing'\], but the network gives \['action'\]"),
        ({"timing": {**TIMING.to_dict(), "horizon": 8}}, r"output 'action' has the shape \(1, 4, \d\), expected one of \[\(1, 8, \d\)"),
        ({"more": 1}, r"unknown keys \['more'\]"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(dataset: LeRobotDataset, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """With what differs; nothing is written."""
    network = write_foreign(tmp_path / "theirs.onnx", dataset)
    (tmp_path / "theirs.json").write_text(json.dumps(mapping_for(dataset, **changes)))
    with pytest.raises(SpecError, match=message):
        export_onnx(network, tmp_path / "theirs.json", dataset.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dynamic_axes_are_refused_with_the_reason(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """And so are a file that is missing, a mapping that is none, and weights in another file."""
    network = write_foreign(tmp_path / "theirs.onnx", dataset, batch="batch")
    with pytest.raises(CheckpointError, match=r"'picture' has the shape \['batch', 3, .*fixed ones .* without dynamic axes"):
        read_foreign_onnx(network)
    with pytest.raises(CheckpointError, match="no such file"):
        read_foreign_onnx(tmp_path / "none.onnx")
    (tmp_path / "broken.json").write_text("{")
    for place in ("none.json", "broken.json"):
        with pytest.raises(SpecError, match="cannot be read as a mapping"):
            read_mapping(tmp_path / place)
    model = onnx.load(write_foreign(tmp_path / "big.onnx", dataset))
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(BundleError, match="holds weights in another file"):
        read_foreign_onnx(tmp_path / "big.onnx")


class Resized(nn.Module):
    """Reads its own shapes, and makes arrays of them: a picture cut, padded and scaled, a constant repeated, a filled one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.dim, self.query, self.act = dim, nn.Parameter(torch.randn(1, 4, 5)), nn.LazyLinear(dim)

    def forward(self, picture: Tensor, state: Tensor) -> Tensor:
        rows = picture.shape[2] // 2
        seen = nn.functional.interpolate(nn.functional.pad(picture[:, :, rows:], (1, 1, 2, 2)), scale_factor=0.5, mode="bilinear")
        seen = seen.flatten(2).mean(2, keepdim=True).transpose(1, 2).repeat(1, 4, 1)
        batch, length = seen.shape[:2]
        told = state[:, None].expand(batch, length, state.shape[1])
        ones = torch.ones(batch, length, state.shape[1])
        actions = self.act(torch.cat([seen, told * ones, self.query.expand(batch, -1, -1)], dim=2))
        return torch.tanh(actions).reshape(1, 4, self.dim)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folding", [True, False])
def test_shapes_that_a_file_computes_are_stored(dataset: LeRobotDataset, tmp_path: Path, folding: bool) -> None:
    """As torch's older exporter writes them; the bundle answers as the file does, and computes no shape."""
    camera, states = dataset.observation_spec.cameras[0], dataset.observation_spec.state_dim
    module = Resized(dataset.action_spec.dim).eval()
    example = torch.zeros(1, 3, camera.height, camera.width), torch.zeros(1, states)
    module(*example)
    names = {"input_names": ["picture", "state"], "output_names": ["action"]}
    torch.onnx.export(module, example, tmp_path / "theirs.onnx", dynamo=False, opset_version=17, do_constant_folding=folding, **names)
    before = {node.op_type for node in onnx.load(tmp_path / "theirs.onnx").graph.node}
    assert {"Constant", "Shape", "ConstantOfShape", "Expand", "Tile", "Resize", "Pad"} - before <= ({"Shape"} if folding else set())
    report = export_onnx(tmp_path / "theirs.onnx", ForeignMapping.from_dict(mapping_for(dataset)), dataset.path, tmp_path / "out")
    assert not {"Shape", "Constant", "Gather", "Where"} & set(report.operators)
    assert {"Resize", "Pad", "Expand"} <= set(report.operators)


def test_shapes_that_depend_on_the_state_are_refused(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """Whatever computes them: more rows could be asked for by another state than by those that were tried."""
    network = write_foreign(tmp_path / "theirs.onnx", dataset)
    model = onnx.load(network)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1]), "one"))
    nodes = [
        helper.make_node("Cast", ["state"], ["whole"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["whole"], ["most"], keepdims=0),
        helper.make_node("Mul", ["one", "most"], ["size"]),
        helper.make_node("Expand", ["most", "size"], ["large"], name="grow"),
        helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["added"], to=TensorProto.FLOAT),
    ]
    last = model.graph.node[-1]
    last.output[0] = "shaped"
    model.graph.node.extend([*nodes, helper.make_node("Add", ["shaped", "added"], ["action"])])
    onnx.save(model, network)
    with pytest.raises(BundleError, match=r"policy\.onnx: node 'policy/grow' \(Expand\) takes its shape from the value 'policy/size'"):
        export_onnx(network, ForeignMapping.from_dict(mapping_for(dataset)), dataset.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _retyped(model: onnx.ModelProto, name: str, kind: int) -> onnx.ModelProto:
    """The network with another type at one of its ends, and a Cast behind it."""
    graph = model.graph
    inner = f"{name}.inside"
    value = next(value for value in (*graph.input, *graph.output) if value.name == name)
    value.type.tensor_type.elem_type = kind
    is_input = value in list(graph.input)
    for node in graph.node:
        side = node.input if is_input else node.output
        side[:] = [inner if other == name else other for other in side]
    cast = helper.make_node(
        "Cast", [name if is_input else inner], [inner if is_input else name], to=TensorProto.FLOAT if is_input else kind
    )
    nodes = [cast, *graph.node] if is_input else [*graph.node, cast]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "picture",
            TensorProto.FLOAT16,
            r"input 'picture' is float16, expected float \(32 bits\), which the mapping feeds: export the network in float32",
        ),
        ("picture", TensorProto.UINT8, "input 'picture' is uint8, expected float"),
        ("state", TensorProto.DOUBLE, "input 'state' is double, expected float"),
        ("state", TensorProto.INT64, "input 'state' is int64, expected float"),
        ("action", TensorProto.FLOAT16, r"output 'action' is float16, expected float \(32 bits\), which the mapping reads"),
        ("action", TensorProto.INT32, "output 'action' is int32, expected float"),
        ("action", TensorProto.BOOL, "output 'action' is bool, expected float"),
    ],
)
def test_another_type_is_refused(dataset: LeRobotDataset, tmp_path: Path, name: str, kind: int, message: str) -> None:
    """Of half the bits, of twice, of whole numbers; nothing is written."""
    network = write_foreign(tmp_path / "theirs.onnx", dataset)
    onnx.save(_retyped(onnx.load(network), name, kind), network)
    with pytest.raises(SpecError, match=message):
        export_onnx(network, ForeignMapping.from_dict(mapping_for(dataset)), dataset.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_together_is_refused(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """An input named twice, outputs of another rank, an output without a shape, and operators that do not fit each other."""
    network = write_foreign(tmp_path / "theirs.onnx", dataset)
    mapping, dim = mapping_for(dataset), dataset.action_spec.dim
    out = tmp_path / "out"

    def export(model: onnx.ModelProto, mapping: dict[str, Any] = mapping) -> None:
        onnx.save(model, network)
        export_onnx(network, ForeignMapping.from_dict(mapping), dataset.path, out)

    twice = {**mapping, "instruction": "state"}
    with pytest.raises(
        SpecError, match=r"names the inputs \['picture', 'state', 'state'\], but the network takes \['picture', 'state'\]: name each once"
    ):
        export(onnx.load(network), twice)
    for shape in ([4 * dim], [1, 4, dim, 1], [1, 4 * dim], []):
        model = onnx.load(network)
        sizes = next(tensor for tensor in model.graph.initializer if tensor.name == "sizes")
        sizes.CopyFrom(numpy_helper.from_array(np.array(shape or [1, 4, dim]), "sizes"))
        if not shape:
            model.graph.node[-1].output[0] = "shaped"
            model.graph.node.append(helper.make_node("ReduceMax", ["shaped"], ["action"], keepdims=0))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("action", TensorProto.FLOAT, shape))
        with pytest.raises(
            SpecError, match=r"output 'action' has the shape \(.*\), expected one of \[\(1, 4, \d\), \(4, \d\)\]: horizon 4"
        ):
            export(model)
        network = write_foreign(tmp_path / "theirs.onnx", dataset)
    flat = onnx.load(network)
    flat.graph.input[1].CopyFrom(helper.make_tensor_value_info("state", TensorProto.FLOAT, [dataset.observation_spec.state_dim]))
    flat.graph.node.insert(0, helper.make_node("Unsqueeze", ["state", "first"], ["row"]))
    flat.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    for node in list(flat.graph.node)[1:]:
        node.input[:] = ["row" if name == "state" else name for name in node.input]
    with pytest.raises(
        SpecError, match=r"input 'state' has the shape \(3,\), expected \(1, 3\) .* correct the mapping, or export the network so"
    ):
        export(flat)
    write_foreign(network, dataset)
    unshaped = onnx.load(network)
    unshaped.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(CheckpointError, match=r"theirs\.onnx: not a sound network \(.*'shape' of 'type' is required"):
        export(unshaped)
    write_foreign(network, dataset)
    unsound = onnx.load(network)
    unsound.graph.input[1].type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(CheckpointError, match=r"theirs\.onnx: not a sound network \(.*: export it again"):
        export(unsound)
    write_foreign(network, dataset)
    named = {**mapping, "confidence": "sure"}
    with pytest.raises(SpecError, match=r"names the outputs \['action', 'sure'\], but the network gives \['action'\]: name one of them"):
        export(onnx.load(network), named)
    assert not out.exists()


def test_names_of_theirs_are_never_ours(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """Their "state" is normalised, ours is not; their "actions" is a feature."""
    model = read_foreign_onnx(write_foreign(tmp_path / "theirs.onnx", dataset))
    spec = PolicySpec(observation=dataset.observation_spec, action=dataset.action_spec, timing=TIMING)
    graph = foreign_graph(model, ForeignMapping.from_dict(mapping_for(dataset)), spec).graph
    made = [name for node in graph.node for name in node.output]
    assert len(made) == len(set(made))
    assert {"policy/actions", "actions", "policy/state"} <= set(made)


def test_the_verb_tells_them_apart(
    dataset: LeRobotDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module by name, a network by its ending; what is missing is named."""
    monkeypatch.chdir(tmp_path)
    network = write_foreign(tmp_path / "theirs.onnx", dataset)
    (tmp_path / "theirs.json").write_text(json.dumps(mapping_for(dataset)))
    data, out = str(dataset.path), str(tmp_path / "out")
    assert main(["export", str(network), "--mapping", "theirs.json", "--data", data, "--out", out]) == 0
    assert "parity with the original" in capsys.readouterr().out
    assert main(["export", str(network), "--data", data, "--out", out, "--overwrite"]) == 2
    assert "--mapping is needed" in capsys.readouterr().err
    assert main(["export", "nowhere:make", "--data", data, "--mapping", "theirs.json", "--out", out]) == 2
    assert "--mapping with nowhere:make: only ['--data', '--opset'] belongs to it" in capsys.readouterr().err
    assert main(["export", "checkpoints/student", "--opset", "18", "--out", out]) == 2
    assert "--opset with checkpoints/student: only nothing of the kind belongs to it" in capsys.readouterr().err
