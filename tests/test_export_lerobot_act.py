"""export.lerobot_checkpoint: a LeRobot ACT checkpoint becomes a bundle that answers as LeRobot itself did, or is refused by name.

tests/data/lerobot_act holds what LeRobot 0.6.1 wrote and answered (`scripts/lerobot_act_fixture.py`). With ``ACTLET_LEROBOT_PYTHON=/path/to/python``, a
Python that can import lerobot, the last test makes it anew and compares.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from small_dataset import an_episode, edit_json, write

from actlet.command_line import main
from actlet.errors import CheckpointError, SpecError
from actlet.manifest import read_manifest
from actlet.protocols import Observation
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, TimingSpec
from actlet.storage import sha256
from episodes.lerobot_dataset import LeRobotDataset
from export.lerobot_act import Act
from export.lerobot_act_config import ENVIRONMENT, STATE
from export.lerobot_checkpoint import LeRobotAct, export_lerobot, is_lerobot, read_act
from export.lerobot_processors import Feature, Scaling, read_processors, read_tensors
from quantize.quantize_bundle import quantize_bundle
from quantize.schemes import scheme
from runtime.policy import BundlePolicy

FOLDER = Path(__file__).parent / "data" / "lerobot_act"
SCRIPT = Path(__file__).parents[1] / "scripts" / "lerobot_act_fixture.py"
LEROBOT_PYTHON = os.environ.get("ACTLET_LEROBOT_PYTHON", "")
VARIANTS = ("two_cameras", "environment", "dilated")
TOLERANCE = 1e-4  # Of the range of LeRobot's own actions, as `export.parity`; seen: 1e-6 to 1e-5.
NORMALIZER = "policy_preprocessor_step_3_normalizer_processor.safetensors"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script that made the data, from its file: it belongs to no package."""
    spec = importlib.util.spec_from_file_location("lerobot_act_fixture", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A checkpoint, and what LeRobot answered."""

    folder: Path
    observations: dict[str, NDArray[Any]]
    """The robot's feature -> (N, …)."""
    actions: NDArray[np.float32]
    """(N, H, A)."""

    def vector(self, row: int) -> NDArray[np.float32]:
        """The state, and the environment behind it; three numbers that nobody reads where there is neither."""
        parts = [self.observations[name][row] for name in (STATE, ENVIRONMENT) if name in self.observations]
        return np.concatenate(parts or [np.full(3, 7, np.float32)])

    def assert_same(self, answers: NDArray[np.float32]) -> None:
        """Within the tolerance of what LeRobot answered."""
        reach = np.ptp(self.actions, axis=(0, 1))
        assert (np.ptp(self.actions, axis=0).mean(axis=0) > 100 * TOLERANCE * reach).all(), "the answers depend on what is seen"
        assert (np.abs(answers - self.actions) / reach).max() < TOLERANCE


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, script: ModuleType) -> Callable[[str], Recorded]:
    """Makes what a name stands for, once."""
    made: dict[str, Recorded] = {}

    def make(name: str) -> Recorded:
        if name not in made:
            folder = tmp_path_factory.mktemp("lerobot") / name
            shutil.copytree(FOLDER / name, folder)
            document = json.loads((folder / "lerobot.json").read_text())
            weights = script.weights({key: tuple(shape) for key, shape in document["tensors"].items()})
            assert script.digest(weights) == document["weights_sha256"]
            save_file(weights, folder / "model.safetensors")
            observations = script.observations({key: tuple(shape) for key, shape in document["observations"].items()})
            assert script.digest(observations) == document["observations_sha256"]
            made[name] = Recorded(folder, observations, np.array(document["actions"], np.float32))
        return made[name]

    return make


def write_recordings(path: Path, checkpoint: Recorded, *, more: tuple[CameraSpec, ...] = (), **changes: Any) -> LeRobotDataset:
    """Recordings of the robot that the checkpoint is for, its cameras in another order."""
    frames = {name.rpartition(".")[2]: values.shape for name, values in checkpoint.observations.items() if values.ndim == 4}
    cameras = tuple(CameraSpec(name=name, height=shape[1], width=shape[2]) for name, shape in sorted(frames.items()))
    states, dim = len(checkpoint.vector(0)), checkpoint.actions.shape[2]
    sees = ObservationSpec(cameras=(*more, *cameras), state_names=tuple(f"joint_{i}" for i in range(states)), state_units=("rad",) * states)
    does = ActionSpec(
        names=tuple(f"joint_{i}" for i in range(dim)),
        units=("rad",) * dim,
        kinds=("continuous",) * dim,
        low=(-20.0,) * dim,
        high=(20.0,) * dim,
        frame="joint",
    )
    sees, does = (dataclasses.replace(spec, **{k: v for k, v in changes.items() if hasattr(spec, k)}) for spec in (sees, does))
    episodes = [an_episode(seed, observation=sees, action=does) for seed in range(8)]
    return write(path, episodes, observation_spec=sees, action_spec=does)


def copied(checkpoint: Recorded, folder: Path) -> Path:
    """A copy to change, without its weights: what is wrong with the rest is found before they are read."""
    return Path(shutil.copytree(checkpoint.folder, folder, ignore=shutil.ignore_patterns("model.safetensors")))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_module_answers_as_lerobot_did(name: str, recorded: Callable[[str], Recorded]) -> None:
    """Three backbones, both places of the norms, with and without state, environment and latent, three normalisations; and flags above one half."""
    checkpoint = recorded(name)
    config, network, processors = read_act(checkpoint.folder)
    answers = []
    for is_binary in ([False] * config.action_dim, [True] * config.action_dim):
        module = LeRobotAct(network, config, processors, range(len(config.images)), is_binary).eval()
        with torch.inference_mode():
            for row in range(len(checkpoint.actions)):
                frames = [torch.from_numpy(checkpoint.observations[processors.names[key]][row])[None] for key in config.images]
                answers.append(module(*frames, torch.from_numpy(checkpoint.vector(row))[None])[0].numpy())
    plain, flags = np.split(np.stack(answers), 2)
    checkpoint.assert_same(plain)
    np.testing.assert_array_equal(flags, plain > 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_bundle_answers_as_lerobot_did(
    name: str, recorded: Callable[[str], Recorded], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the verb, with cameras in another order and one that the policy does not look at; names, rate and steps are the recordings' and the checkpoint's."""
    checkpoint = recorded(name)
    side = CameraSpec(name="side", height=4, width=4)
    dataset = write_recordings(tmp_path / "data", checkpoint, more=(side,))
    assert main(["export", str(checkpoint.folder), "--data", str(dataset.path), "--out", str(tmp_path / "act")]) == 0
    said, unread = capsys.readouterr().out, ["side"] if name != "dilated" else ["side", STATE]
    assert f"the policy does not read {unread}" in said
    assert ("temporal_ensemble_coeff 0.01: LeRobot averages" in said) == (name == "environment")
    manifest, policy = read_manifest(tmp_path / "act"), BundlePolicy(tmp_path / "act")
    assert (manifest.spec.observation, manifest.spec.action) == (dataset.observation_spec, dataset.action_spec)
    horizon, steps = {"two_cameras": (6, 3), "environment": (5, 1), "dilated": (4, 4)}[name]
    assert manifest.spec.timing == TimingSpec(rate_hz=10.0, horizon=horizon, execute_steps=steps, max_delay_steps=1)
    assert (manifest.text_encoder, manifest.lineage.checkpoint) == (None, sha256(checkpoint.folder / "model.safetensors"))
    assert {"model.backbone.conv1", "model.encoder.layers.0.linear1", "model.action_head"} <= {node.name for node in manifest.nodes}
    observations = [
        Observation(
            {"side": np.full((4, 4, 3), row, np.uint8)}
            | {key.rpartition(".")[2]: values[row] for key, values in checkpoint.observations.items() if values.ndim == 4},
            checkpoint.vector(row),
        )
        for row in range(len(checkpoint.actions))
    ]
    chunks = policy.predict(observations, ["put"] * len(observations))
    checkpoint.assert_same(np.stack([chunk.actions for chunk in chunks]))
    if name == "two_cameras":
        way = scheme("int8")
        assert way.int8 is not None
        way = dataclasses.replace(way, int8=dataclasses.replace(way.int8, min_matrix=1))  # This network is a small one of its kind.
        report = quantize_bundle(tmp_path / "act", tmp_path / "int8", scheme=way, data=dataset.path, allow_slower=True)
        assert report.error.mean < 0.1
        assert sum(node.executed == "int8" for node in read_manifest(tmp_path / "int8").nodes) > 40


def test_a_checkpoint_is_recognised(recorded: Callable[[str], Recorded], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its config.json; the verb asks for recordings and takes no mapping, and names the types that it does not know."""
    folder, out = recorded("two_cameras").folder, str(tmp_path / "out")
    assert is_lerobot(folder)
    assert not is_lerobot(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "student"}')
    assert not is_lerobot(tmp_path)
    assert main(["export", str(folder), "--out", out]) == 2
    assert "--data is needed" in capsys.readouterr().err
    assert main(["export", str(folder), "--data", "data", "--mapping", "theirs.json", "--out", out]) == 2
    assert "only ['--data', '--opset'] belongs to it" in capsys.readouterr().err
    other = copied(recorded("two_cameras"), tmp_path / "other")
    edit_json(other / "config.json", type="diffusion")
    assert main(["export", str(other), "--data", "data", "--out", out]) == 2
    assert (
        "type 'diffusion', expected 'act', the only one of LeRobot's policies that is exported by name; serve it" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_window": 5}, r"config\.json: unknown keys \['attention_window'\], missing keys \[\].*serve it from LeRobot's own"),
        ({"vision_backbone": "resnet101"}, r"vision_backbone: got 'resnet101', expected one of \['resnet18', 'resnet34', 'resnet50'\]"),
        ({"feedforward_activation": "glu"}, r"feedforward_activation: got 'glu', expected one of \['relu', 'gelu'\]"),
        ({"n_obs_steps": 2}, r"n_obs_steps 2, n_action_steps 3: expected 1, and at most chunk_size \(6\)"),
        ({"n_action_steps": 7}, r"n_action_steps 7: expected 1, and at most chunk_size \(6\)"),
        ({"n_heads": 5}, r"dim_model 32, expected a multiple of n_heads \(5\) and of 4"),
        ({"n_decoder_layers": 0}, r"\{'n_decoder_layers': 0\}, expected 1 or more"),
        ({"dim_model": "32"}, r"dim_model: got '32', expected a whole number"),
        ({"pre_norm": 1}, r"pre_norm: got 1, expected true or false"),
        ({"replace_final_stride_with_dilation": True}, r"replace_final_stride_with_dilation with resnet18, expected resnet50"),
        ({"use_peft": True}, r"use_peft is true: the weights are adapters\. Merge them"),
        ({"normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MEAN_STD"}}, r"'observation\.state' is .*MEAN_STD; config\.json says .*MIN_MAX"),
        ({"input_features": {STATE: {"type": "STATE", "shape": [3]}}}, r"input_features \['observation\.state'\], no picture: expected at least one"),
        ({"input_features": {"x": {"type": "LANGUAGE", "shape": [3]}}}, r"input_features\['x'\]\.type: got 'LANGUAGE', expected one of"),
        ({"input_features": {"observation.images.a": {"type": "VISUAL", "shape": [1, 6, 8]}}}, r"of VISUAL has the shape \(1, 6, 8\), expected \(3, height, width\)"),
        ({"output_features": {"actions": {"type": "ACTION", "shape": [4]}}}, r"output_features \['actions'\], expected 'action'"),
    ],
)  # fmt: skip
def test_settings_that_are_not_known_are_refused(
    changes: dict[str, Any], message: str, recorded: Callable[[str], Recorded], tmp_path: Path
) -> None:
    """Each by its name, with what was expected."""
    folder = copied(recorded("two_cameras"), tmp_path / "act")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        read_act(folder)


def test_what_only_training_reads_may_be_anything(recorded: Callable[[str], Recorded], tmp_path: Path) -> None:
    """An older LeRobot's config.json has fewer of these, and a key that the network needs may not be missing."""
    folder = copied(recorded("two_cameras"), tmp_path / "act")
    (folder / "model.safetensors").symlink_to(recorded("two_cameras").folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for key in ("use_peft", "pretrained_path", "pretrained_revision", "license"):
        del config[key]
    config |= {"device": "cuda", "kl_weight": 1.0, "replace_final_stride_with_dilation": 0}
    (folder / "config.json").write_text(json.dumps(config))
    assert read_act(folder)[0].chunk_size == 6
    del config["latent_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"missing keys \['latent_dim'\]"):
        read_act(folder)


def test_tensors_are_those_of_the_configuration(recorded: Callable[[str], Recorded], tmp_path: Path) -> None:
    """Missing, of another shape, unknown, or of a latent encoder that config.json does not have."""
    config, _, _ = read_act(recorded("two_cameras").folder)
    tensors = read_tensors(recorded("two_cameras").folder / "model.safetensors")
    norm, head = "model.backbone.layer2.0.bn1.running_var", "model.action_head.weight"
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({norm: None}, {}, rf"tensor '{norm}' is missing, expected \(128,\) from config\.json"),
        ({head: tensors[head][:3]}, {}, r"'model\.action_head\.weight' has the shape \(3, 32\), expected \(4, 32\)"),
        ({}, {"dim_feedforward": 64}, r"linear1\.weight' has the shape \(48, 32\), expected \(64, 32\)"),
        ({"model.extra": torch.zeros(1)}, {}, r"1 tensors that config\.json does not explain, such as \['model\.extra'\]"),
        ({}, {"use_vae": False}, r"\d+ tensors that config\.json does not explain, such as \['model\.vae_encoder"),
        ({}, {"n_encoder_layers": 1}, r"such as \['model\.encoder\.layers\.1\."),
    ]
    for changes, settings, message in cases:
        changed = {name: value for name, value in {**tensors, **changes}.items() if value is not None}
        with pytest.raises(CheckpointError, match=message):
            Act(dataclasses.replace(config, **settings), changed)
    half = {"a": np.zeros(2, np.float16), "b": np.zeros(2, np.float32)}
    save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match=r"another type than float32: \{'a': 'torch\.float16'\}"):
        read_tensors(tmp_path / "half.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "half.safetensors").read_bytes()[:20])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(tmp_path / "cut.safetensors")


def change_steps(folder: Path, file: str, change: Callable[[list[Any]], Any]) -> None:
    """Edit the steps of a processor."""
    document = json.loads((folder / file).read_text())
    change(document["steps"])
    (folder / file).write_text(json.dumps(document))


def change_statistics(folder: Path, **changes: Any) -> None:
    """Replace statistics of the preprocessor, or take them away (None)."""
    stored = {**load_file(folder / NORMALIZER), **{name.replace("__", "."): value for name, value in changes.items()}}
    save_file({name: value for name, value in stored.items() if value is not None}, folder / NORMALIZER)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "policy_preprocessor.json").unlink(), r"policy_preprocessor\.json is missing.*LeRobot before 0\.4 kept the normalisation"),
        (lambda f: (f / NORMALIZER).unlink(), r"step_3_normalizer_processor\.safetensors is missing"),
        (lambda f: change_statistics(f, observation__state__std=None), r"no 'observation\.state\.std', which MEAN_STD needs; there are \['action\.max'"),
        (lambda f: change_statistics(f, observation__state__mean=np.float32([0, np.nan, 0])), r"not finite: \['observation\.state\.mean'\]"),
        (lambda f: change_statistics(f, observation__state__mean=np.zeros(2, np.float32)), r"'observation\.state\.mean' has the shape \(2,\), expected \(3,\)"),
        (lambda f: change_steps(f, "policy_preprocessor.json", lambda s: s.insert(0, {"registry_name": "crop"})), r"steps \['crop', .* expected 'normalizer_processor'"),
        (lambda f: change_steps(f, "policy_preprocessor.json", lambda s: s.insert(0, {"class": "my.Step"})), r"steps \['my\.Step', "),
        (lambda f: change_steps(f, "policy_preprocessor.json", lambda s: s.pop(3)), r"expected 'normalizer_processor' and once at most"),
        (lambda f: change_steps(f, "policy_preprocessor.json", lambda s: s.append(s.pop(0))), r"comes after normalizer_processor, expected before"),
        (lambda f: change_steps(f, "policy_postprocessor.json", lambda s: s.append(s[0])), r"steps \['unnormalizer_processor', .* and once at most"),
        (lambda f: change_steps(f, "policy_preprocessor.json", lambda s: s[2]["config"].update(float_dtype="bfloat16")), r"rounds to 'bfloat16'"),
        (lambda f: change_steps(f, "policy_preprocessor.json", lambda s: s[3].update(state_file="../x.safetensors")), r"state_file '\.\./x\.safetensors', expected the name"),
        (lambda f: change_steps(f, "policy_preprocessor.json", lambda s: s[3]["config"].update(clip=1)), r"unknown keys \['clip'\]"),
        (lambda f: change_steps(f, "policy_preprocessor.json", lambda s: s[3]["config"]["features"].pop(STATE)), r"'observation\.state' is None, MEAN_STD; config\.json says"),
        (lambda f: change_steps(f, "policy_preprocessor.json", lambda s: s[0]["config"].update(rename_map={"a": "b", "c": "b"})), r"expected other names for .*, and none twice"),
        (lambda f: change_steps(f, "policy_preprocessor.json", lambda s: s[0]["config"].update(rename_map={STATE: "b"})), r"expected other names for .*, and none twice"),
        (lambda f: (f / "policy_postprocessor.json").write_text("[]"), r"policy_postprocessor\.json holds list, expected an object"),
    ],
)  # fmt: skip
def test_processors_that_are_not_known_are_refused(
    spoil: Callable[[Path], Any], message: str, recorded: Callable[[str], Recorded], tmp_path: Path
) -> None:
    """Files, steps, settings and statistics; LeRobot leaves values as they are whose statistics are missing."""
    folder = copied(recorded("two_cameras"), tmp_path / "act")
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        read_act(folder)


def test_every_normalisation_is_lerobots(recorded: Callable[[str], Recorded], tmp_path: Path) -> None:
    """The five modes forward and back, a range of no width, statistics of pictures as (3,), and keys that are left as they are."""
    folder = copied(recorded("two_cameras"), tmp_path / "act")
    flat = {"q10": np.float32([-1, 0, 2]), "q90": np.float32([3, 0, 2.5]), "q01": np.float32([0, 1, 2]), "q99": np.float32([4, 5, 8])}
    change_statistics(folder, **{f"{STATE}.{name}": value for name, value in flat.items()})
    stored = load_file(folder / NORMALIZER)
    x = np.float32([[0.5, 0.0, 3.0]])

    def module(mode: str, **settings: Any) -> Any:
        def change(steps: list[Any]) -> None:
            steps[3]["config"] |= {"norm_map": {**modes, "STATE": mode}, **settings}

        modes = {"VISUAL": "MEAN_STD", "ACTION": "MEAN_STD"}
        change_steps(folder, "policy_preprocessor.json", change)
        inputs = {STATE: Feature(type="STATE", shape=(3,))}
        return read_processors(folder, inputs, {"action": Feature(type="ACTION", shape=(4,))}, {**modes, "STATE": mode}).inputs[STATE]  # type: ignore[dict-item]

    for mode, (low, high) in {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}.items():
        bottom, width = stored[f"{STATE}.{low}"], stored[f"{STATE}.{high}"] - stored[f"{STATE}.{low}"]
        expected = 2 * (x - bottom) / np.where(width == 0, np.float32(1e-8), width) - 1
        scale = module(mode)
        np.testing.assert_allclose(scale(torch.from_numpy(x)).numpy(), expected, rtol=1e-6, atol=1e-6)
        back = Scaling(scale.low, scale.width, is_range=True, back=True)
        np.testing.assert_allclose(back(scale(torch.from_numpy(x))).numpy(), x, atol=1e-6)
    scaled = module("MEAN_STD")(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(scaled, (x - stored[f"{STATE}.mean"]) / (stored[f"{STATE}.std"] + np.float32(1e-8)), rtol=1e-6)
    for left in (module("IDENTITY"), module("MEAN_STD", normalize_observation_keys=["observation.images.front"])):
        np.testing.assert_array_equal(left(torch.from_numpy(x)).numpy(), x)
    edit = {f"observation.images.front.{part}": np.float32([0.1, 0.2, 0.3]) for part in ("mean", "std")}
    picture, plain = copied(recorded("two_cameras"), tmp_path / "flat"), {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    change_statistics(picture, **edit)
    shape = Feature(type="VISUAL", shape=(3, 64, 48))
    read = read_processors(picture, {"observation.images.front": shape}, {"action": Feature(type="ACTION", shape=(4,))}, plain)  # type: ignore[arg-type]
    assert read.inputs["observation.images.front"](torch.zeros(1, 3, 2, 2)).shape == (1, 3, 2, 2)


def test_recordings_of_another_robot_are_refused(recorded: Callable[[str], Recorded], tmp_path: Path) -> None:
    """Cameras, sizes of pictures, states and actions; nothing is written."""
    two, environment = recorded("two_cameras"), recorded("environment")
    small = (CameraSpec(name="front", height=32, width=48), CameraSpec(name="wrist", height=50, width=70))
    cases = [
        (two, {"cameras": small[1:]}, r"camera 'observation\.images\.front'.*The checkpoint looks at \['observation\.images\.wrist', 'obs"),
        (two, {"cameras": small}, r"pictures of .*'observation\.images\.front': \(32, 48\).*expected .*\(64, 48\)"),
        (
            two,
            {"state_names": ("a", "b"), "state_units": ("1", "1")},
            r"'observation\.state': 2, 'action': 4\}, expected \{'observation\.state': 3",
        ),
        (environment, {"state_names": ("a", "b"), "state_units": ("1", "1")}, r"expected \{'observation\.state': 7.*one behind the other"),
    ]
    for i, (checkpoint, changes, message) in enumerate(cases):
        dataset = write_recordings(tmp_path / str(i), checkpoint, **changes)
        with pytest.raises(SpecError, match=message):
            export_lerobot(checkpoint.folder, dataset.path, tmp_path / "out")
    dataset = write_recordings(tmp_path / "data", environment)
    with pytest.raises(SpecError, match="The checkpoint looks at"):
        export_lerobot(two.folder, dataset.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_script_imports_neither_lerobot_nor_anything_of_ours() -> None:
    """It runs in LeRobot's environment, and its numbers are made in ours."""
    code = (
        f"import sys, runpy; runpy.run_path({str(SCRIPT)!r}, run_name='x'); "
        "print([m for m in ('torch', 'lerobot', 'actlet', 'export') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="/")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.skipif(
    not LEROBOT_PYTHON, reason="LeRobot lives in an environment of its own: name its Python in ACTLET_LEROBOT_PYTHON to test with it"
)
@pytest.mark.slow
def test_lerobot_still_answers_so(tmp_path: Path) -> None:
    """What is kept is what LeRobot writes and answers now."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [LEROBOT_PYTHON, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, cwd="/", env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in VARIANTS:
        kept, made = (json.loads((folder / name / "lerobot.json").read_text()) for folder in (FOLDER, tmp_path))
        np.testing.assert_allclose(made.pop("actions"), kept.pop("actions"), atol=1e-5)
        assert {**made, "versions": 0} == {**kept, "versions": 0}
        files = {file.name for file in (FOLDER / name).iterdir()}
        assert files == {file.name for file in (tmp_path / name).iterdir()}
        for file in files - {"lerobot.json"}:
            assert (FOLDER / name / file).read_bytes() == (tmp_path / name / file).read_bytes(), file
