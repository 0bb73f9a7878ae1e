"""config.json of LeRobot's ACT: what it says of the network, each value checked, and no other."""

from __future__ import annotations

import dataclasses
from typing import Literal

from actlet.errors import SpecError
from actlet.plain import PlainJson
from export.lerobot_layers import Backbone
from export.lerobot_processors import ACTION, Feature, Mode

__all__ = ["ENVIRONMENT", "STATE", "ActConfig"]

STATE, ENVIRONMENT = "observation.state", "observation.environment_state"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActConfig(PlainJson):
    """What config.json says of the network; all of LeRobot's ACTConfig but what only training and its hub read."""

    input_features: dict[str, Feature]
    output_features: dict[str, Feature]
    normalization_mapping: dict[str, Mode]
    n_obs_steps: int
    chunk_size: int
    n_action_steps: int
    vision_backbone: Backbone
    replace_final_stride_with_dilation: bool
    pre_norm: bool
    dim_model: int
    n_heads: int
    dim_feedforward: int
    feedforward_activation: Literal["relu", "gelu"]
    """LeRobot's own network fails with the third that it names, "glu"."""
    n_encoder_layers: int
    n_decoder_layers: int
    use_vae: bool
    latent_dim: int
    temporal_ensemble_coeff: float | None

    def __post_init__(self) -> None:
        if small := {name: value for name, value in vars(self).items() if type(value) is int and value < 1}:
            raise SpecError(f"config.json: {small}, expected 1 or more.")
        if self.n_obs_steps != 1 or self.n_action_steps > self.chunk_size:
            raise SpecError(
                f"config.json: n_obs_steps {self.n_obs_steps}, n_action_steps {self.n_action_steps}: expected 1, and at most chunk_size "
                f"({self.chunk_size})."
            )
        if self.dim_model % self.n_heads or self.dim_model % 4:
            raise SpecError(f"config.json: dim_model {self.dim_model}, expected a multiple of n_heads ({self.n_heads}) and of 4.")
        if self.replace_final_stride_with_dilation and self.vision_backbone != "resnet50":
            raise SpecError(
                f"config.json: replace_final_stride_with_dilation with {self.vision_backbone}, expected resnet50: the others have none."
            )
        self._check_features()

    def _check_features(self) -> None:
        for name, feature in (*self.input_features.items(), *self.output_features.items()):
            pictured = feature.type == "VISUAL"
            if len(feature.shape) != (3 if pictured else 1) or min(feature.shape) < 1 or (pictured and feature.shape[0] != 3):
                raise SpecError(
                    f"config.json: {name!r} of {feature.type} has the shape {feature.shape}, expected (3, height, width) or (size,)."
                )
        kinds = {STATE: "STATE", ENVIRONMENT: "ENV"}
        odd = {
            name: feature.type
            for name, feature in self.input_features.items()
            if feature.type == "ACTION" or (feature.type == "ENV" and name != ENVIRONMENT) or feature.type != kinds.get(name, feature.type)
        }
        if odd or not self.images:
            raise SpecError(
                f"config.json: input_features {list(self.input_features)}, {odd or 'no picture'}: expected at least one of VISUAL (a bundle has a camera), "
                f"and of others {STATE!r} of STATE and {ENVIRONMENT!r} of ENV."
            )
        if self.output_features.get(ACTION, Feature(type="STATE", shape=(1,))).type != "ACTION":
            raise SpecError(f"config.json: output_features {list(self.output_features)}, expected {ACTION!r}.")

    @property
    def images(self) -> dict[str, tuple[int, int]]:
        """Picture -> (height, width), in the order in which the network takes them."""
        return {name: feature.shape[1:3] for name, feature in self.input_features.items() if feature.type == "VISUAL"}  # type: ignore[misc]

    @property
    def vectors(self) -> dict[str, int]:
        """The state and the environment, as far as the network reads them -> size. It reads no other vector, as LeRobot's does not."""
        found = {name: self.input_features.get(name) for name in (STATE, ENVIRONMENT)}
        return {name: feature.shape[0] for name, feature in found.items() if feature is not None}

    @property
    def action_dim(self) -> int:
        """A."""
        return self.output_features[ACTION].shape[0]
