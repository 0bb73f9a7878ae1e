"""A LeRobot checkpoint as a bundle: `actlet export FOLDER --data data/my_robot --out bundles/act`.

    config.json, model.safetensors ─ lerobot_act ────────┐
    policy_pre-, policy_postprocessor ─ lerobot_processors ┼─ one module: frames and state as they come, actions in physical units ─ own_policy ─ bundle
    recordings ─ names, units, limits, rate, sizes ───────┘

What LeRobot's inference does to an observation (prepare_observation_for_inference, preprocessor, predict_action_chunk, postprocessor) is all in the graph.
Of LeRobot's policies ACT is known; whatever a checkpoint says that is not, is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from actlet.errors import CheckpointError, SpecError, UnknownNameError
from actlet.specs import TimingSpec
from actlet.storage import read_json, sha256
from episodes.lerobot_dataset import LeRobotDataset, open_dataset
from export.lerobot_act import Act
from export.lerobot_act_config import ENVIRONMENT, STATE, ActConfig
from export.lerobot_processors import ACTION, Processors, read_document, read_processors, read_tensors
from export.own_policy import OwnExportReport, OwnPolicy, export_module
from export.to_onnx import OPSET

__all__ = ["LeRobotAct", "export_lerobot", "is_lerobot", "read_act"]

_OTHERWISE = (
    "serve it from LeRobot's own environment with scripts/lerobot_server.py, or export it as a module of your own (docs/bundles.md)."
)
_GOLDEN = 4  # A ResNet on frames as they come takes a second for each: opening a bundle has 30 s of processor time (`runtime.trial`).
# What only training, LeRobot's hub and its choice of a device read.
_OF_NO_MATTER = (
    {"device", "use_amp", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path", "pretrained_revision"}
    | {"pretrained_backbone_weights", "n_vae_encoder_layers", "dropout", "kl_weight"}
    | {"optimizer_lr", "optimizer_weight_decay", "optimizer_lr_backbone"}
)


def is_lerobot(folder: str | Path) -> bool:
    """Whether this is the folder of a policy that LeRobot saved, of whatever type."""
    try:
        config = read_json(Path(folder) / "config.json")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and isinstance(config.get("type"), str) and "input_features" in config


class LeRobotAct(nn.Module):
    """An ACT checkpoint with its processors, as `export.own_policy` asks for one.

    Args:
        network: The policy.
        config: What it was made of.
        processors: What scales its inputs and actions.
        cameras: For every picture of the checkpoint, which of the robot's frames it is.
        is_binary: Actions that are flags: 1 above one half.
    """

    def __init__(self, network: Act, config: ActConfig, processors: Processors, cameras: Sequence[int], is_binary: Sequence[bool]) -> None:
        super().__init__()
        self.model, self.cameras, self.has_flags = network, tuple(cameras), any(is_binary)
        self.pictures = nn.ModuleList(processors.inputs[name] for name in config.images)
        self.state, self.environment = (processors.inputs.get(name) for name in (STATE, ENVIRONMENT))
        self.state_dim = config.vectors.get(STATE, 0)
        self.actions = processors.actions
        self.register_buffer("is_binary", torch.tensor(is_binary))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Frames uint8 (1, h, w, 3) of the robot, and its state with the environment's behind it (1, S + E) -> actions (1, H, A)."""
        *frames, vector = inputs
        images = [
            scale(frames[camera].permute(0, 3, 1, 2).float() / 255) for scale, camera in zip(self.pictures, self.cameras, strict=True)
        ]
        state = self.state(vector[:, : self.state_dim]) if self.state is not None else None
        environment = self.environment(vector[:, self.state_dim :]) if self.environment is not None else None
        actions = self.actions(self.model(images, state, environment))[None]
        return torch.where(self.is_binary, (actions > 0.5).float(), actions) if self.has_flags else actions


def read_act(folder: str | Path) -> tuple[ActConfig, Act, Processors]:
    """Read a checkpoint.

    Raises:
        CheckpointError: It is of another type, or incomplete, or has something that is not known; the message names it.
    """
    folder = Path(folder)
    config = _read_config(folder / "config.json")
    read = {name: feature for name, feature in config.input_features.items() if feature.type == "VISUAL" or name in config.vectors}
    processors = read_processors(folder, read, config.output_features, config.normalization_mapping)
    return config, Act(config, read_tensors(folder / "model.safetensors")), processors


def export_lerobot(
    folder: str | Path, data: str | Path, out: str | Path, *, opset: int = OPSET, overwrite: bool = False
) -> OwnExportReport:
    """A LeRobot checkpoint as a bundle.

    Args:
        folder: What LeRobot saved (its pretrained_model).
        data: Recordings of the robot (a LeRobotDataset folder), such as those that the policy was trained on.
        out: The bundle's folder to make.
        opset: Version of the standard operators, 17 .. 23.
        overwrite: Replace a bundle that exists.

    Raises:
        CheckpointError: The checkpoint is damaged, of a type that is not known, or has a setting that is not.
        SpecError: The recordings have other cameras, sizes or vectors than the checkpoint.
        BundleError: The bundle answers differently from the module; nothing is written.
        DatasetError: The recordings cannot be used.
        StorageError: `out` exists, or cannot be written.
    """
    config, network, processors = read_act(folder)
    dataset, cameras = _recordings(data, config, processors)
    timing = TimingSpec(
        rate_hz=dataset.rate_hz, horizon=config.chunk_size, execute_steps=config.n_action_steps, max_delay_steps=config.chunk_size // 4
    )
    module = LeRobotAct(network, config, processors, cameras, dataset.action_spec.is_binary.tolist())
    weights = sha256(Path(folder) / "model.safetensors")
    report = export_module(OwnPolicy(module, timing), dataset, out, opset=opset, checkpoint=weights, golden=_GOLDEN, overwrite=overwrite)
    return dataclasses.replace(report, notes=_notes(config, dataset, cameras))


def _read_config(path: Path) -> ActConfig:
    document = read_document(path)
    kind = document.pop("type", None)
    if kind != "act":
        raise CheckpointError(
            f"{path}: type {kind!r}, expected 'act', the only one of LeRobot's policies that is exported by name; {_OTHERWISE}"
        )
    if document.pop("use_peft", False):
        raise CheckpointError(f"{path}: use_peft is true: the weights are adapters. Merge them into the policy, and save it again.")
    known = {name: value for name, value in document.items() if name not in _OF_NO_MATTER}
    known |= {name: bool(value) for name, value in known.items() if name == "replace_final_stride_with_dilation" and value in (0, 1)}
    try:
        return ActConfig.from_dict(known, where="config.json")
    except SpecError as error:
        raise CheckpointError(f"{path.parent}: {error} If the checkpoint is as you want it: {_OTHERWISE}") from error


def _recordings(data: str | Path, config: ActConfig, processors: Processors) -> tuple[LeRobotDataset, list[int]]:
    """The recordings, and which of their cameras every picture of the checkpoint is."""
    columns = [processors.names[name] for name in config.images]
    vector = processors.names.get(STATE, STATE)
    dataset = open_dataset(data, state=vector)
    try:
        cameras = open_dataset(data, state=vector, cameras=columns).observation_spec.cameras
    except UnknownNameError as error:
        raise SpecError(
            f"{data}: {error} The checkpoint looks at {columns}: give recordings of the robot that it was trained on."
        ) from error
    sizes = {column: (camera.height, camera.width) for column, camera in zip(columns, cameras, strict=True)}
    expected = dict(zip(columns, config.images.values(), strict=True))
    if sizes != expected:
        raise SpecError(
            f"{data}: pictures of (height, width) {sizes}, expected {expected} from config.json: ACT takes frames in the size that it was trained on."
        )
    got = {vector: dataset.observation_spec.state_dim, ACTION: dataset.action_spec.dim}
    wanted = {vector: sum(config.vectors.values()) if config.vectors else got[vector], ACTION: config.action_dim}
    if got != wanted:
        parts = f" ({config.vectors} one behind the other, since a bundle has one vector)" if ENVIRONMENT in config.vectors else ""
        raise SpecError(
            f"{data}: vectors of the sizes {got}, expected {wanted} from config.json{parts}: give recordings of the robot that it was trained on."
        )
    return dataset, [dataset.observation_spec.cameras.index(camera) for camera in cameras]


def _notes(config: ActConfig, dataset: LeRobotDataset, cameras: Sequence[int]) -> tuple[str, ...]:
    notes = []
    if config.temporal_ensemble_coeff is not None:
        notes.append(
            f"temporal_ensemble_coeff {config.temporal_ensemble_coeff:g}: LeRobot averages the chunks of all past steps; actlet's loop asks at every step too, and "
            "uses the newest chunk (runtime/chunk_schedule.py)"
        )
    unread = [camera.name for i, camera in enumerate(dataset.observation_spec.cameras) if i not in cameras]
    unread += [name for name, feature in config.input_features.items() if feature.type == "STATE" and name not in config.vectors]
    unread += [] if config.vectors or not dataset.observation_spec.state_dim else [STATE]
    if unread:
        notes.append(f"the policy does not read {unread}")
    return tuple(notes)
