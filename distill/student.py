"""The student: one forward pass from camera frames, state and instruction vector to a whole action chunk.

    frames (B, h, w, 3) uint8 ─ pool, normalise ─ FilmTrunk per camera ─ keypoints, flattened map ──┐
    state (B, S) ─ normalise ─ linear ──────────────────────────────────────────────────────────────┼─ linear ─ tokens
    actions on their way (B, D, 1 + A) ─ normalise ─ linear ─────────────────────────────────────────┤   (where the specification has any)
    instruction (B, E) ─ linear ─ condition of every block, and what to look for ───────────────────┘

The head answers, for each of H steps and A dimensions, a distribution over K = 256 bins: all tokens of RT-2's action
at once instead of one at a time. It is factored, logits[h, a, k] = query[h, a] . bin[a, k] with vectors of rank R, since
a full layer of H * A * K outputs would be three quarters of the network.

Decoding is part of the network: the expectation over the bins of a continuous dimension (an argmax over 256 bins that
are close in probability jumps; measured in docs/lessons.md), the more probable half of a binary one; terminate needs more. The result is in
physical units, inside the bounds of the tokenizer and the limits of the action specification.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from actlet.action_tokens import ActionTokenizer
from actlet.errors import CheckpointError, SpecError
from actlet.protocols import ActionChunk, Observation, committed_rows
from actlet.specs import ActionSpec, PolicySpec
from actlet.storage import read_json
from distill.film_cnn import FilmTrunk
from distill.text_encoder import EMBEDDING_DIM, load_text_encoder

__all__ = [
    "SCHEMA_VERSION",
    "Student",
    "StudentConfig",
    "StudentOutput",
    "StudentPolicy",
    "flag_thresholds",
    "load_student",
    "open_student",
    "ordinal_embedding",
    "student_config_json",
]

SCHEMA_VERSION = 2
_STEEPNESS = 2.0**40
"""Of a flag around its threshold. float32 numbers up to 1 next to a threshold of 0.5 or more are 2^-25 away from it or further."""
_SMALLEST_STD = 0.005  # Of an entry of an instruction vector; sentences of one template differ by 0.02, others by 0.05.


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The shape of the network. The default, "micro" of `distill.student_sizes`, has about 1.9 M parameters for two cameras."""

    image_px: int = 64
    """The longer side of a frame is pooled down to about this many pixels, by a whole factor."""
    channels: tuple[int, ...] = (32, 48, 96)
    blocks: tuple[int, ...] = (1, 1, 2)
    condition_dim: int = 128
    instruction_dim: int = EMBEDDING_DIM
    keypoints: int = 32
    """Points per camera that the network looks for in every scene; their coordinates are features."""
    asked_keypoints: int = 16
    """Points per camera that it looks for because the instruction asks for them."""
    squeeze_channels: int = 8
    """Channels that are kept per position before the picture is flattened."""
    features: int = 256
    token_rank: int = 32
    """R, the rank of the factored token head."""
    dropout: float = 0.1
    """Share of the joint features that is switched off in training."""
    mode_reach: int = 0
    """A continuous dimension is decoded by the expectation over this many bins on each side of the likeliest one, for a teacher that has
    several ways to go (`benchmarks.multimodal`); 0 for the expectation over all."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if self.mode_reach < 0:
            raise SpecError(f"student: mode_reach {self.mode_reach}, expected 0 or more bins.")
        if len(self.channels) != len(self.blocks) or min(self.channels + self.blocks) < 1:
            raise SpecError(f"student: channels {self.channels} and blocks {self.blocks}: give one positive number of each per stage.")


@dataclasses.dataclass(frozen=True)
class StudentOutput:
    """What the network says before decoding."""

    logits: Tensor
    """(B, H, A, K)."""
    waypoints: Tensor
    """(B, 2, S): normalised state change to the next two key moments of the demonstration; used in training only."""
    features: Tensor
    """(B, F): what logits and waypoints are read from."""


class Student(nn.Module):
    """See the module's docstring.

    Args:
        spec: What it sees and commands.
        tokenizer: Bounds of the bins.
        config: The shape of the network.
        state_mean: float32 (S,) of the training data.
        state_std: float32 (S,) of the training data.
        instruction_mean: float32 (E,) of the training data's different instructions.
        instruction_std: float32 (E,) of the same.
    """

    def __init__(
        self,
        spec: PolicySpec,
        tokenizer: ActionTokenizer,
        config: StudentConfig | None = None,
        *,
        state_mean: np.ndarray | None = None,
        state_std: np.ndarray | None = None,
        instruction_mean: np.ndarray | None = None,
        instruction_std: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.tokenizer, self.config = spec, tokenizer, config or StudentConfig()
        c, state_dim = self.config, spec.observation.state_dim
        self.condition = nn.Sequential(
            nn.Linear(c.instruction_dim, c.condition_dim), nn.ReLU(), nn.Linear(c.condition_dim, c.condition_dim), nn.ReLU()
        )
        self.trunks, self.squeezes, self.points = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.pooling: list[tuple[int, int]] = []
        """Per camera, the factor that a whole frame is pooled by, and the height that it then has."""
        for camera in spec.observation.cameras:
            factor = max(1, round(max(camera.height, camera.width) / c.image_px))
            trunk = FilmTrunk(3, c.channels, c.condition_dim, c.blocks)
            height, width = camera.height // factor, camera.width // factor
            self.pooling.append((factor, height))
            for _ in c.channels:
                height, width = math.ceil(height / 2), math.ceil(width / 2)
            self.trunks.append(trunk)
            self.squeezes.append(
                nn.Sequential(
                    nn.Conv2d(trunk.channels_out, c.squeeze_channels, 1),
                    nn.ReLU(),
                    nn.Flatten(),
                    nn.Linear(c.squeeze_channels * height * width, c.features // 2),
                    nn.ReLU(),
                )
            )
            self.points.append(_Keypoints(trunk.channels_out, c.keypoints, c.asked_keypoints, c.condition_dim, height, width))
        self.state_layer = nn.Sequential(nn.Linear(state_dim, 64), nn.ReLU())
        horizon, dim, told = spec.timing.horizon, spec.action.dim, spec.timing.committed_steps
        self.committed_layer = nn.Sequential(nn.Flatten(), nn.Linear(told * (1 + dim), 64), nn.ReLU()) if told else None
        if self.committed_layer is not None:  # Commands that it was never told of change nothing: demonstrations tell of rest alone.
            with torch.no_grad():
                self.committed_layer[1].weight.unflatten(1, (told, 1 + dim))[..., 1:] = 0
        joint = (c.features // 2 + 2 * (c.keypoints + c.asked_keypoints)) * len(self.trunks) + 64 + c.condition_dim + (64 if told else 0)
        self.dropout = nn.Dropout(c.dropout)
        self.mix = nn.Sequential(nn.Linear(joint, c.features), nn.ReLU(), nn.Linear(c.features, c.features), nn.ReLU())
        self.queries = nn.Linear(c.features, horizon * dim * c.token_rank)
        self.is_by_dimension = False
        """Whether the rows of `queries` are in the order (A, H, R), which needs no turning around, instead of a checkpoint's (H, A, R)."""
        self.bins = nn.Parameter(ordinal_embedding(tokenizer.bins, c.token_rank).repeat(dim, 1, 1))  # (A, K, R)
        self.waypoints = nn.Linear(c.features, 2 * state_dim)
        mean = np.zeros(state_dim, np.float32) if state_mean is None else state_mean
        std = np.ones(state_dim, np.float32) if state_std is None else state_std
        self.register_buffer("state_mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("state_std", torch.as_tensor(std, dtype=torch.float32))
        text = self.config.instruction_dim
        mean = np.zeros(text, np.float32) if instruction_mean is None else instruction_mean
        std = np.full(text, 0.05, np.float32) if instruction_std is None else instruction_std
        std = np.maximum(std, max(0.25 * float(std.mean()), _SMALLEST_STD))  # What never varies in training counts little.
        self.register_buffer("instruction_mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("instruction_std", torch.as_tensor(std, dtype=torch.float32))
        self.register_buffer("numbers", torch.arange(tokenizer.bins, dtype=torch.float32), persistent=False)
        self.register_buffer("centres", torch.as_tensor(tokenizer.centres()), persistent=False)
        self.register_buffer("is_binary", torch.as_tensor(spec.action.is_binary, dtype=torch.float32), persistent=False)
        self.register_buffer("level", flag_thresholds(spec.action) * self.is_binary, persistent=False)
        self.register_buffer("steepness", 1 + self.is_binary * (_STEEPNESS - 1), persistent=False)
        is_terminate = torch.tensor([float(name == "terminate") for name in spec.action.names])
        self.register_buffer("is_terminate", is_terminate, persistent=False)
        # (H, A): no row but the first ends an episode by itself.
        may_end = torch.cat([torch.ones(1, dim), (1 - is_terminate).repeat(horizon - 1, 1)])
        self.register_buffer("low", torch.tensor(spec.action.low) * may_end, persistent=False)
        self.register_buffer("high", torch.tensor(spec.action.high) * may_end, persistent=False)
        self.register_buffer("share", torch.full((dim,), 1 / (dim * math.log(tokenizer.bins))), persistent=False)
        # What is on its way, as bins see it: -1 and 1 at the bounds.
        half, middle = (tokenizer.high - tokenizer.low) / 2, (tokenizer.high + tokenizer.low) / 2
        scale = 1 / np.maximum(half, 1e-3 * (np.asarray(spec.action.high) - np.asarray(spec.action.low)))
        self.register_buffer("committed_middle", torch.tensor([0.0, *middle], dtype=torch.float32), persistent=False)
        self.register_buffer("committed_scale", torch.tensor([1.0, *scale], dtype=torch.float32), persistent=False)

    def forward(
        self,
        images: Sequence[Tensor],
        state: Tensor,
        instruction: Tensor,
        committed: Tensor | None = None,
        looks: Tensor | None = None,
    ) -> StudentOutput:
        """Run the network.

        Args:
            images: One uint8 (B, h, w, 3) per camera, in the order of the specification: whole frames, or pooled ones (`Student.pool`).
            state: float32 (B, S), physical units.
            instruction: float32 (B, E), of `distill.text_encoder`.
            committed: float32 (B, D, 1 + A), of `actlet.protocols.committed_rows`; needed where D is not 0.
            looks: int64 (R,), where `committed` has R rows: which of the B it is about. One look answers several of them.
        """
        condition = self.condition(((instruction - self.instruction_mean) / self.instruction_std).clamp(-5.0, 5.0))
        seen = []
        for frames, trunk, squeeze, points, (factor, height) in zip(
            images, self.trunks, self.squeezes, self.points, self.pooling, strict=True
        ):
            x = frames.to(torch.float32).permute(0, 3, 1, 2)  # (B, 3, h, w); in this order, since TensorRT turns no bytes around
            if x.shape[2] != height:
                x = nn.functional.avg_pool2d(x, factor)
            x = trunk(x * (1 / 127.5) - 1.0, condition)
            seen += [squeeze(x), points(x, condition)]
        seen += [self.state_layer((state - self.state_mean) / self.state_std), condition]
        if looks is not None:
            seen = [part.index_select(0, looks) for part in seen]
        if self.committed_layer is not None:
            assert committed is not None
            is_on = committed.split([1, self.spec.action.dim], dim=-1)[0]
            rows = ((committed - self.committed_middle) * self.committed_scale).clamp(-2.0, 2.0)  # (R, D, 1 + A), the first column as it is
            seen.insert(-1, self.committed_layer(rows * is_on))
        features = self.mix(self.dropout(torch.cat(seen, dim=1)))  # (B, F)
        horizon, dim = self.spec.timing.horizon, self.spec.action.dim
        queries = self.queries(features)
        if self.is_by_dimension:
            queries = queries.unflatten(1, (dim, horizon, self.config.token_rank))
        else:
            queries = queries.unflatten(1, (horizon, dim, self.config.token_rank)).transpose(1, 2)  # (B, A, H, R)
        logits = torch.matmul(queries, self.bins.transpose(1, 2)).transpose(1, 2)  # (B, H, A, K)
        return StudentOutput(logits, self.waypoints(features).unflatten(1, (2, -1)), features)

    def pool(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Whole frames of each camera, uint8 (N, h, w, 3), pooled once instead of in every update; rounded to bytes."""
        pooled = []
        for frames, (factor, _) in zip(images, self.pooling, strict=True):
            blocks = (torch.from_numpy(frames[i : i + 512]).permute(0, 3, 1, 2).float() for i in range(0, len(frames), 512))
            small = [nn.functional.avg_pool2d(x, factor).round().to(torch.uint8).permute(0, 2, 3, 1).numpy() for x in blocks]
            pooled.append(np.concatenate(small) if factor > 1 else frames)
        return pooled

    def decode(self, logits: Tensor, committed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """logits (B, H, A, K), committed (B, D, 1 + A) -> actions (B, H, A) in physical units, confidence (B, H) in [0, 1].

        An episode is ended on what is seen, not on what is foreseen: row 0 alone says terminate, and where actions are on their way, it says so for
        the first row after them as well (and for those before it, which are not used).
        """
        logits = logits.transpose(1, 2)  # (B, A, H, K), in which order the network makes them
        certainties = torch.log_softmax(logits, dim=-1)
        probabilities = certainties.exp()  # Two of three passes of a second softmax are saved.
        actions = self._expectation(probabilities)  # (B, H, A)
        if self.config.mode_reach:
            actions = actions + (self._around_the_mode(probabilities) - actions) * (1 - self.is_binary)
        # A flag's distance from its threshold, so steep that it is 0 or 1 within limits: fewer operators than a comparison, and the same.
        actions = torch.minimum(torch.maximum((actions - self.level) * self.steepness, self.low), self.high)
        ended = (
            actions.split([1, len(self.low) - 1], dim=1)[0] * self.is_terminate if self.committed_layer is not None else None
        )  # (B, 1, A)
        if ended is not None:
            assert committed is not None
            batch, told = committed.shape[:2]
            before, after = torch.zeros(batch, 1, 1), torch.zeros(batch, len(self.low) - told - 1, 1)
            is_on = committed.split([1, self.spec.action.dim], dim=-1)[0]
            actions = actions + torch.cat([before, is_on, after], dim=1) * ended  # (B, H, 1) * (B, 1, A)
        # Not log(probabilities + 1e-9): the exporter drops so small a number, and a bin of probability 0 makes the confidence NaN.
        certainty = torch.matmul(
            self.share, (probabilities * certainties).sum(-1)
        )  # (B, H): minus the mean entropy, of the greatest there is
        return actions, (1.0 + certainty).clamp(0.0, 1.0)

    def _expectation(self, weights: Tensor) -> Tensor:
        """(B, A, H, K) -> (B, H, A): the bins' centres, weighted."""
        return torch.matmul(weights, self.centres[:, :, None]).squeeze(-1).transpose(1, 2)

    def _around_the_mode(self, probabilities: Tensor) -> Tensor:
        """(B, A, H, K) -> (B, H, A): the expectation over the bins near the likeliest one, each dimension and step by itself."""
        likeliest = probabilities.argmax(-1, keepdim=True).to(torch.float32)
        near = probabilities * ((self.numbers - likeliest).abs() <= float(self.config.mode_reach)).to(torch.float32)
        return self._expectation(near) / near.sum(-1).transpose(1, 2)

    def exportable(self) -> nn.Module:
        """A copy of the network with decoding, taking one positional tensor per input: what policy.onnx holds."""
        student = copy.deepcopy(self)
        if not self.is_by_dimension:
            student.is_by_dimension, order = True, (self.spec.timing.horizon, self.spec.action.dim, self.config.token_rank)
            with torch.no_grad():
                for rows in (student.queries.weight, student.queries.bias):
                    rows.copy_(rows.unflatten(0, order).transpose(0, 1).flatten(0, 2))
        return _Exportable(student)

    @property
    def parameter_count(self) -> int:
        """Trainable numbers in the network."""
        return sum(p.numel() for p in self.parameters())


class _Keypoints(nn.Module):
    """Where in the picture each of P features is: a spatial softmax (Levine et al. 2016).

    It generalises over positions, which a layer on the flattened picture has to learn place by place. Most features are
    learned; the last ones are asked for by the instruction, which makes their weights: what is named first and what is
    named second can be looked for side by side, where one modulated map has to choose (docs/lessons.md).
    """

    def __init__(self, channels: int, points: int, asked: int, condition_dim: int, height: int, width: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, points, 1)
        self.ask = nn.Linear(condition_dim, asked * channels) if asked else None
        if self.ask is not None:
            nn.init.normal_(self.ask.weight, std=0.4 / math.sqrt(channels))
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("grid", torch.stack([x.flatten(), y.flatten()], dim=1), persistent=False)  # (h * w, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C, h, w), condition (B, D) -> (B, 2 P), coordinates in [-1, 1]."""
        maps = self.maps(x).flatten(2)  # (B, P', h * w)
        if self.ask is not None:
            asked = self.ask(condition).unflatten(1, (-1, x.shape[1]))  # (B, P - P', C)
            maps = torch.cat([maps, torch.matmul(asked, x.flatten(2))], dim=1)
        return torch.matmul(torch.softmax(maps, dim=-1), self.grid).flatten(1)


class _Exportable(nn.Module):
    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(frames of each camera …, state, instruction, what is on its way) -> (actions (1, H, A), confidence (1, H)); the last where it is told."""
        cameras = len(self.student.trunks)
        state, instruction, *told = inputs[cameras:]
        committed = told[0] if told else None
        actions, confidence = self.student.decode(self.student(inputs[:cameras], state, instruction, committed).logits, committed)
        return actions, confidence


def ordinal_embedding(bins: int, rank: int) -> Tensor:
    """(K, R): smooth in the bin's number, so that neighbouring bins start out alike."""
    position = torch.linspace(-1, 1, bins)[:, None]
    frequency = torch.linspace(0.5, 6.0, rank // 2)[None] * math.pi / 2
    return torch.cat([torch.sin(position * frequency), torch.cos(position * frequency)], dim=1) / math.sqrt(rank / 2)


def flag_thresholds(spec: ActionSpec) -> Tensor:
    """(A,): how probable 1 must be for a flag to be 1. Terminate cannot be undone, and the last moment before success looks like the
    first one after it: at 0.5 most failures of a half-trained policy were episodes that it ended a step too early, and at 0.9 still
    all nine failures of a teacher in "touch"."""
    return torch.tensor([0.97 if name == "terminate" else 0.5 for name in spec.names])


class StudentPolicy:
    """A student in torch as a `Policy`: for evaluation during training; the robot runs the exported bundle."""

    def __init__(self, student: Student) -> None:
        self.student = student.eval()
        self.spec = student.spec
        self._text = load_text_encoder()

    @torch.inference_mode()
    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """One chunk per observation; see `actlet.protocols.Policy`."""
        images = [torch.from_numpy(np.stack([o.images[camera.name] for o in observations])) for camera in self.spec.observation.cameras]
        state = torch.from_numpy(np.stack([o.state for o in observations]).astype(np.float32))
        instruction = torch.from_numpy(self._text.encode(list(instructions)))
        committed = torch.from_numpy(np.stack([committed_rows(o, self.spec) for o in observations]))
        actions, confidence = self.student.decode(self.student(images, state, instruction, committed).logits, committed)
        return [ActionChunk(a, c) for a, c in zip(actions.numpy(), confidence.numpy(), strict=True)]


def student_config_json(student: Student, *, lineage: dict[str, Any], sample_instructions: Sequence[str]) -> dict[str, Any]:
    """What a student checkpoint's config.json holds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "student",
        "spec": student.spec.to_dict(),
        "tokenizer": student.tokenizer.to_dict(),
        "architecture": dataclasses.asdict(student.config),
        "text_encoder": "all-MiniLM-L6-v2",
        "sample_instructions": list(sample_instructions),
        "lineage": lineage,
    }


def load_student(folder: str | Path) -> Student:
    """Load a student checkpoint in evaluation mode.

    Raises:
        CheckpointError: The folder is missing, incomplete, of another kind or version.
    """
    folder = Path(folder)
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing: {folder} is not a student checkpoint. Make one with: actlet distill --data … --out {folder}"
            )
    try:
        config = read_json(config_file)
        if (config.get("schema_version"), config.get("kind")) != (SCHEMA_VERSION, "student"):
            raise CheckpointError(
                f"{config_file}: kind {config.get('kind')!r}, version {config.get('schema_version')!r}; expected 'student', {SCHEMA_VERSION}."
            )
        student = Student(
            PolicySpec.from_dict(config["spec"]), ActionTokenizer.from_dict(config["tokenizer"]), StudentConfig(**config["architecture"])
        )
        student.load_state_dict(load_file(weights_file))
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read as a student checkpoint: {error}. Copy it again, or distill it again.") from error
    return student.eval()


def open_student(folder: str | Path) -> StudentPolicy:
    """A student checkpoint as a policy; raises as `load_student` does."""
    return StudentPolicy(load_student(folder))
