"""LeRobot's ACT (Action Chunking Transformer, Zhao et al. 2023) at inference, made of the tensors that LeRobot saved.

    pictures ─ ResNet ─ 1 x 1 convolution ─ tokens, sine positions ─────────────┐
    zeros (the latent), state, environment ─ linear ─ tokens, learned positions ┴ encoder ─┐
                                  zeros, learned positions, one for each step of the chunk ┴ decoder ─ linear ─ chunk

The arithmetic is that of LeRobot 0.6.1 (policies/act/modeling_act.py). At inference the latent is zero and the variational encoder unused, so its tensors
are left out. A robot asks one question at a time, so tokens are (N, D): layers keep LeRobot's names in the exported graph.

Shape letters: N tokens, D `dim_model`, S state, E environment, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.lerobot_act_config import ENVIRONMENT, STATE, ActConfig
from export.lerobot_layers import Resnet, Weights

__all__ = ["Act"]

_LATENT_ENCODER = "model.vae_encoder"


class Act(nn.Module):
    """The network.

    Args:
        config: What it is made of.
        tensors: All tensors of model.safetensors, by LeRobot's names.

    Raises:
        CheckpointError: One is missing, has another shape, or is unknown.
    """

    def __init__(self, config: ActConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        weights, dim = Weights(tensors), config.dim_model
        self.backbone = Resnet(weights, "backbone", config.vision_backbone, dilated=config.replace_final_stride_with_dilation)
        self.encoder_img_feat_input_proj = weights.convolution("encoder_img_feat_input_proj", self.backbone.channels, dim, 1)
        self.register_buffer("latent", torch.zeros(1, config.latent_dim))
        self.encoder_latent_input_proj = weights.linear("encoder_latent_input_proj", config.latent_dim, dim)
        if STATE in config.vectors:
            self.encoder_robot_state_input_proj = weights.linear("encoder_robot_state_input_proj", config.vectors[STATE], dim)
        if ENVIRONMENT in config.vectors:
            self.encoder_env_state_input_proj = weights.linear("encoder_env_state_input_proj", config.vectors[ENVIRONMENT], dim)
        learned = weights.take("encoder_1d_feature_pos_embed.weight", 1 + len(config.vectors), dim)
        stride = self.backbone.stride
        maps = [_sine_positions(-(-height // stride), -(-width // stride), dim) for height, width in config.images.values()]
        self.register_buffer("positions", torch.cat([learned, *maps]))
        self.encoder = _Encoder(weights, config)
        self.decoder = _Decoder(weights, config)
        self.register_buffer("steps", weights.take("decoder_pos_embed.weight", config.chunk_size, dim))
        self.action_head = weights.linear("action_head", dim, config.action_dim)
        weights.finish(ignored=(_LATENT_ENCODER,) if config.use_vae else ())

    def forward(self, images: Sequence[Tensor], state: Tensor | None, environment: Tensor | None) -> Tensor:
        """One chunk, normalised.

        Args:
            images: A picture (1, 3, height, width) each, normalised, in the order of `ActConfig.images`.
            state: (1, S), normalised; None where the network reads none.
            environment: (1, E), the same.

        Returns:
            (chunk_size, A).
        """
        tokens = [self.encoder_latent_input_proj(self.latent)]  # (1, D)
        if state is not None:
            tokens.append(self.encoder_robot_state_input_proj(state))  # (1, D)
        if environment is not None:
            tokens.append(self.encoder_env_state_input_proj(environment))  # (1, D)
        for image in images:
            tokens.append(self.encoder_img_feat_input_proj(self.backbone(image)).reshape(self.positions.shape[1], -1).T)  # (h w, D)
        seen = self.encoder(torch.cat(tokens), self.positions)  # (N, D)
        return self.action_head(self.decoder(self.steps, seen, self.positions))


class _Attention(nn.Module):
    def __init__(self, weights: Weights, name: str, config: ActConfig) -> None:
        super().__init__()
        self.heads = config.n_heads
        self.query, self.key, self.value = weights.projections(name, config.dim_model)
        self.out_proj = weights.linear(f"{name}.out_proj", config.dim_model, config.dim_model)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, D) of N queries and M keys and values."""
        layers = ((self.query, query), (self.key, key), (self.value, value))
        q, k, v = (layer(values).unflatten(1, (self.heads, -1)).transpose(0, 1) for layer, values in layers)  # (heads, N, D / heads)
        attention = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[2]), dim=-1)  # (heads, N, M)
        return self.out_proj((attention @ v).transpose(0, 1).flatten(1))


class _Layer(nn.Module):
    """What a layer of the encoder and one of the decoder have in common."""

    def __init__(self, weights: Weights, name: str, config: ActConfig, norms: int) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.self_attn = _Attention(weights, f"{name}.self_attn", config)
        self.linear1 = weights.linear(f"{name}.linear1", config.dim_model, config.dim_feedforward)
        self.linear2 = weights.linear(f"{name}.linear2", config.dim_feedforward, config.dim_model)
        self.activation = functional.gelu if config.feedforward_activation == "gelu" else functional.relu
        for i in range(1, 1 + norms):
            self.add_module(f"norm{i}", weights.norm(f"{name}.norm{i}", config.dim_model))

    def feed_forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return self.linear2(self.activation(self.linear1(x)))


class _EncoderLayer(_Layer):
    def __init__(self, weights: Weights, name: str, config: ActConfig) -> None:
        super().__init__(weights, name, config, norms=2)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        if self.pre_norm:
            y = self.norm1(x)
            x = x + self.self_attn(y + positions, y + positions, y)
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x + self.self_attn(x + positions, x + positions, x))
        return self.norm2(x + self.feed_forward(x))


class _DecoderLayer(_Layer):
    def __init__(self, weights: Weights, name: str, config: ActConfig) -> None:
        super().__init__(weights, name, config, norms=3)
        self.multihead_attn = _Attention(weights, f"{name}.multihead_attn", config)

    def forward(self, x: Tensor, steps: Tensor, seen: Tensor, positions: Tensor) -> Tensor:
        keys = seen + positions
        if self.pre_norm:
            y = self.norm1(x)
            x = x + self.self_attn(y + steps, y + steps, y)
            x = x + self.multihead_attn(self.norm2(x) + steps, keys, seen)
            return x + self.feed_forward(self.norm3(x))
        x = self.norm1(x + self.self_attn(x + steps, x + steps, x))
        x = self.norm2(x + self.multihead_attn(x + steps, keys, seen))
        return self.norm3(x + self.feed_forward(x))


class _Encoder(nn.Module):
    def __init__(self, weights: Weights, config: ActConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_EncoderLayer(weights, f"encoder.layers.{i}", config) for i in range(config.n_encoder_layers))
        self.norm = weights.norm("encoder.norm", config.dim_model) if config.pre_norm else nn.Identity()

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, positions)
        return self.norm(tokens)


class _Decoder(nn.Module):
    def __init__(self, weights: Weights, config: ActConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_DecoderLayer(weights, f"decoder.layers.{i}", config) for i in range(config.n_decoder_layers))
        self.norm = weights.norm("decoder.norm", config.dim_model)

    def forward(self, steps: Tensor, seen: Tensor, positions: Tensor) -> Tensor:
        x = torch.zeros_like(steps)
        for layer in self.layers:
            x = layer(x, steps, seen, positions)
        return self.norm(x)


def _sine_positions(height: int, width: int, dim: int) -> Tensor:
    """float32 (h w, D): sines and cosines by turns, the first half of the row, the second of the column, both counted from 1 and scaled to 2 pi."""
    frequency = np.float32(10000) ** (2 * (np.arange(dim // 2) // 2) / (dim // 2)).astype(np.float32)

    def waves(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        place = np.arange(1, count + 1, dtype=np.float32)
        angle = (place / (place[-1] + np.float32(1e-6)) * np.float32(2 * math.pi))[:, None] / frequency
        return np.stack([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], axis=-1).reshape(count, -1)

    rows, columns = waves(height), waves(width)
    both = [np.broadcast_to(rows[:, None], (height, width, dim // 2)), np.broadcast_to(columns[None], (height, width, dim // 2))]
    return torch.from_numpy(np.concatenate(both, axis=2).reshape(height * width, dim))
