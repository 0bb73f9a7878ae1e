"""What LeRobot's saved processors do to observations and to actions, as modules of the exported graph.

    policy_preprocessor.json    rename_observations ─ to_batch ─ device ─ normalizer          policy_postprocessor.json    unnormalizer ─ device

    IDENTITY                           x                                       back  y
    MEAN_STD                           (x - mean) / (std + eps)                back  y std + mean
    MIN_MAX, QUANTILES, QUANTILE10     2 (x - low) / (high - low) - 1          back  (y + 1) (high - low) / 2 + low

low and high are min and max, q01 and q99, q10 and q90; a range of no width counts as one of eps (LeRobot 0.6.1, processor/normalize_processor.py). The
numbers lie in a safetensors file beside each, "<feature>.<statistic>". LeRobot leaves a feature as it is whose statistics are missing; here that
is refused, as is every step and setting that would change what the policy sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from actlet.errors import CheckpointError, SpecError
from actlet.plain import PlainJson
from actlet.storage import read_json

__all__ = ["ACTION", "Feature", "Mode", "Processors", "Scaling", "read_document", "read_processors", "read_tensors"]

ACTION = "action"
Mode = Literal["IDENTITY", "MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10"]
_RANGES = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
_BEFORE, _AFTER = "policy_preprocessor.json", "policy_postprocessor.json"
_RENAME, _NORMALIZE, _RESTORE, _DEVICE = (
    "rename_observations_processor",
    "normalizer_processor",
    "unnormalizer_processor",
    "device_processor",
)
# In LeRobot's order; the batch and the device change no value.
_STEPS = {_BEFORE: (_RENAME, "to_batch_processor", _DEVICE, _NORMALIZE), _AFTER: (_RESTORE, _DEVICE)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature(PlainJson):
    """One of LeRobot's features."""

    type: Literal["STATE", "VISUAL", "ENV", "ACTION"]
    shape: tuple[int, ...]
    """Of a picture (3, height, width)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings(PlainJson):
    """Of a normalizer or unnormalizer."""

    eps: float
    features: dict[str, Feature]
    norm_map: dict[str, Mode]
    normalize_observation_keys: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Processors:
    """What both files say, for one policy."""

    names: dict[str, str]
    """Input of the policy -> the robot's feature that it is; the same name where nothing is renamed."""
    inputs: dict[str, nn.Module]
    """Input -> what scales it."""
    actions: nn.Module
    """What makes actions (…, A) in physical units of the policy's answer."""


class Scaling(nn.Module):
    """x -> (x - low) / width, less 1 for a range; or back."""

    def __init__(self, low: Tensor, width: Tensor, *, is_range: bool, back: bool) -> None:
        super().__init__()
        self.register_buffer("low", low)
        self.register_buffer("width", width)
        self.is_range, self.back = is_range, back

    def forward(self, values: Tensor) -> Tensor:
        """Of any shape that ends as the statistics do."""
        if self.back:
            return (values + 1 if self.is_range else values) * self.width + self.low
        scaled = (values - self.low) / self.width
        return scaled - 1 if self.is_range else scaled


def read_processors(folder: Path, inputs: Mapping[str, Feature], outputs: Mapping[str, Feature], modes: Mapping[str, Mode]) -> Processors:
    """Read what stands beside a policy's config.json.

    Args:
        folder: The checkpoint.
        inputs: Features that the policy reads.
        outputs: Features that it gives.
        modes: Type of feature -> its normalisation, as config.json says; the processors must say the same.

    Raises:
        CheckpointError: A file is missing, has a step or a setting that is not known, contradicts config.json, or lacks a statistic.
    """
    before, after = _read_steps(folder, _BEFORE), _read_steps(folder, _AFTER)
    renamed = before[_RENAME].get("rename_map", {}) if _RENAME in before else {}
    if not isinstance(renamed, dict) or len(set(map(str, renamed.values()))) != len(renamed) or set(renamed) & set(inputs):
        raise CheckpointError(
            f"{folder / _BEFORE}: rename_map {renamed}, expected other names for names that the policy does not read, and none twice."
        )
    back = {new: old for old, new in renamed.items()}
    scaled = {name: _scaling(folder / _BEFORE, before[_NORMALIZE], name, feature, modes) for name, feature in inputs.items()}
    actions = _scaling(folder / _AFTER, after[_RESTORE], ACTION, outputs[ACTION], modes)
    return Processors({name: back.get(name, name) for name in inputs}, scaled, actions)


def read_document(path: Path) -> dict[str, Any]:
    """An object of named values in a JSON file.

    Raises:
        CheckpointError: The file is missing, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing, expected among the files of a LeRobot checkpoint. LeRobot before 0.4 kept the normalisation among the weights: convert such a "
            "checkpoint with its processor/migrate_policy_normalization.py, or copy the whole folder again."
        )
    try:
        document = read_json(path)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error} Copy the checkpoint again.") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds {type(document).__name__}, expected an object. Copy the checkpoint again.")
    return document


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, all of them float32 and finite.

    Raises:
        CheckpointError: They are not, or the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, expected among the files of a LeRobot checkpoint. Copy the whole folder again.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Copy the checkpoint again.") from error
    kinds = {name: str(tensor.dtype) for name, tensor in tensors.items() if tensor.dtype != torch.float32}
    if kinds:
        raise CheckpointError(f"{path}: tensors of another type than float32: {dict(list(kinds.items())[:5])}. Save the policy in float32.")
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(f"{path}: tensors that are not finite: {bad[:5]}; such a policy is never exported.")
    return tensors


def _read_steps(folder: Path, file: str) -> dict[str, dict[str, Any]]:
    """Name of a step -> its settings, and the name of the file with its statistics as "state_file"."""
    listed, known = read_document(folder / file).get("steps"), _STEPS[file]
    steps = [step if isinstance(step, dict) else {} for step in listed] if isinstance(listed, list) else []
    names = [str(step.get("registry_name", step.get("class"))) for step in steps]
    needed = _NORMALIZE if file == _BEFORE else _RESTORE
    if needed not in names or sorted(names) != sorted(set(names) & set(known)):
        raise CheckpointError(
            f"{folder / file}: steps {names}, expected {needed!r} and once at most each of {list(known)}. What another step does to the values would be "
            "missing in the bundle: serve such a policy with scripts/lerobot_server.py, or export it as a module of your own (docs/bundles.md)."
        )
    if odd := [name for name, step in zip(names, steps, strict=True) if not isinstance(step.get("config"), dict)]:
        raise CheckpointError(f"{folder / file}: {odd} without a config, expected one for every step. Copy the checkpoint again.")
    found = {name: {**step["config"], "state_file": step.get("state_file")} for name, step in zip(names, steps, strict=True)}
    if _RENAME in found and names.index(_RENAME) > names.index(needed):
        raise CheckpointError(f"{folder / file}: {_RENAME} comes after {needed}, expected before it, as LeRobot saves them.")
    precision = found.get(_DEVICE, {}).get("float_dtype")
    if precision not in (None, "float32", "float"):
        raise CheckpointError(
            f"{folder / file}: {_DEVICE} rounds to {precision!r}, expected null or 'float32': a bundle begins in float32."
        )
    return found


def _scaling(file: Path, step: dict[str, Any], name: str, feature: Feature, modes: Mapping[str, Mode]) -> nn.Module:
    """What normalises the feature, or makes actions of what is normalised."""
    back = name == ACTION
    where = f"{file}, {_RESTORE if back else _NORMALIZE}"
    try:
        settings = _Settings.from_dict({key: value for key, value in step.items() if key != "state_file"}, where=where)
    except SpecError as error:
        raise CheckpointError(f"{error} Copy the checkpoint again.") from error
    if settings.features.get(name) != feature or settings.norm_map.get(feature.type) != modes.get(feature.type):
        raise CheckpointError(
            f"{where}: {name!r} is {settings.features.get(name)}, {settings.norm_map.get(feature.type)}; config.json says {feature}, "
            f"{modes.get(feature.type)}. Save the policy and its processors together."
        )
    mode, chosen = settings.norm_map.get(feature.type, "IDENTITY"), settings.normalize_observation_keys
    if mode == "IDENTITY" or (not back and chosen is not None and name not in chosen):
        return nn.Identity()
    state_file = step["state_file"]
    if not isinstance(state_file, str) or Path(state_file).name != state_file:
        raise CheckpointError(f"{where}: state_file {state_file!r}, expected the name of a file beside it, with the statistics for {mode}.")
    stored = read_tensors(file.parent / state_file)
    low_name, high_name = ("mean", "std") if mode == "MEAN_STD" else _RANGES[mode]
    low, high = (_statistic(file.parent / state_file, stored, f"{name}.{part}", feature, mode) for part in (low_name, high_name))
    if mode == "MEAN_STD":
        return Scaling(low, high if back else high + settings.eps, is_range=False, back=back)
    width = high - low
    return Scaling(low, torch.where(width == 0, settings.eps, width) / 2, is_range=True, back=back)


def _statistic(path: Path, stored: Mapping[str, Tensor], key: str, feature: Feature, mode: str) -> Tensor:
    if key not in stored:
        raise CheckpointError(
            f"{path}: no {key!r}, which {mode} needs; there are {sorted(stored)}. LeRobot would leave such values as they are: save the "
            "processors again with the statistics of the recordings (dataset_stats)."
        )
    value, pictured = stored[key], feature.type == "VISUAL"
    if pictured and value.dim() == 1:
        value = value[:, None, None]
    expected = (feature.shape[0], 1, 1) if pictured else feature.shape
    if tuple(value.shape) != expected:
        raise CheckpointError(f"{path}: {key!r} has the shape {tuple(value.shape)}, expected {expected} for a feature of {feature.shape}.")
    return value
