"""What a student is trained on, batch by batch: demonstrations, what it reached by itself, and scenes seen through the teacher's eyes.

    a batch    the first rows: frames, with targets for their chunks      the others: scenes, or frames of one
    losses     tokens, waypoint                                           features

The target of a token on a demonstration is teacher_weight * teacher's distribution + (1 - teacher_weight) * Gaussian
around the demonstrated bin (the Gaussian alone where the teacher was not asked); on a state that the student reached, the
teacher's distribution alone.

Delay training (`TrainConfig.delay_steps`; Black et al. 2025, training-time action conditioning): a frame is drawn with a delay d of 0 .. D steps. The
student is told the d commands that were really given from then on, disturbances included, and learns the rows from d on::

    frame t, d = 2     told       c0   c1                       what was commanded at t and t + 1
                       learned    -    -    a2   a3   a4 ...    the answers to what t + 2, t + 3, ... then looked like

Without that, row 1 presumes that row 0 was carried out, which under a delay it never is: each answer leaves the motion that is left to
a row that is never used, and the hand stands still (docs/lessons.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.frames import Frames
from distill.losses import gaussian_labels, token_cross_entropy
from distill.scenes import Scenes
from distill.student import Student, StudentOutput
from distill.text_encoder import load_text_encoder
from distill.train_config import TrainConfig

__all__ = ["StudentBatches", "StudentInTraining"]


class StudentInTraining(nn.Module):
    """The student, and the layer through which its features are compared with the teacher's."""

    def __init__(self, student: Student, teacher_features: int) -> None:
        super().__init__()
        self.student = student
        self.imitate = nn.Linear(student.config.features, teacher_features) if teacher_features else None

    def forward(
        self, images: list[Tensor], state: Tensor, instruction: Tensor, committed: Tensor | None = None
    ) -> tuple[StudentOutput, Tensor | None]:
        """(B, ...) inputs -> the student's output, and its idea of the teacher's features (B, F')."""
        output: StudentOutput = self.student(images, state, instruction, committed)
        return output, self.imitate(output.features) if self.imitate is not None else None

    def parameter_groups(self, muon_scale: float) -> list[dict[str, Any]]:
        """For `distill.fit.fit`. Muon is for matrices between features (Jordan et al. 2024): not for biases, nor for the layers that answer."""
        student = self.student
        outputs = {id(p) for part in (student.queries, student.waypoints, self.imitate) if part is not None for p in part.parameters()}
        inner = [p for p in self.parameters() if p.ndim >= 2 and id(p) not in outputs and p is not student.bins]
        if not muon_scale:
            return [{"params": list(self.parameters())}]
        chosen = {id(p) for p in inner}
        return [
            {"params": [p for p in self.parameters() if id(p) not in chosen]},
            {"params": inner, "lr_scale": muon_scale, "muon": True},
        ]


class StudentBatches:
    """Draws batches and says what the student loses on them.

    Args:
        student: Whose specification, bins and pooling count; it is not kept.
        frames: Demonstrations, and what the student reached.
        scenes: What the teacher sees elsewhere, or None.
        config: How.
    """

    def __init__(self, student: Student, frames: Frames, scenes: Scenes | None, config: TrainConfig) -> None:
        self._config, self._frames, self._tokenizer = config, frames, student.tokenizer
        self._bins = torch.from_numpy(student.tokenizer.encode(frames.action))
        self._told = student.spec.timing.committed_steps
        self._is_binary = torch.from_numpy(student.spec.action.is_binary)
        self._vectors = torch.from_numpy(load_text_encoder().encode(frames.instructions))
        self._state, self._episode = torch.from_numpy(frames.state), torch.from_numpy(frames.episode)
        self._state_std = self._state.std(0)
        self._expert = torch.from_numpy(frames.by_expert)
        waypoint_scale = frames.waypoints[frames.by_expert].std(axis=(0, 1)) + 1e-3
        self._waypoints = torch.from_numpy(frames.waypoints / waypoint_scale)
        self._answers = None if frames.distribution is None else torch.from_numpy(frames.distribution)
        names = [camera.name for camera in student.spec.observation.cameras]
        self._pictures = student.pool([frames.images[name] for name in names])
        self._shifts = [round(config.shift * max(small.shape[1:3])) for small in self._pictures]
        self._pairs = round(config.scene_share * config.batch_size) if scenes is not None else 0
        if scenes is not None:
            self._views = student.pool([scenes.images[name] for name in names])
            self._scene_state, self._scene_of = torch.from_numpy(scenes.state), torch.from_numpy(scenes.scene)
            self._scene_vectors = torch.from_numpy(load_text_encoder().encode(scenes.instructions))
            features = torch.from_numpy(scenes.features)
            spread = features.std(0)
            self._features = (features - features.mean(0)) / (spread + 0.05 * spread.mean() + 1e-6)

    def losses(self, model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch through the model (a `StudentInTraining`): ``loss`` and its parts."""
        config = self._config
        rows = self._frames.draw(config.batch_size - self._pairs, config.undecided_share, generator)
        index, weight = self._frames.chunk_index(rows.numpy(), config.horizon)
        images = [_shifted(small, rows, pixels, generator) for small, pixels in zip(self._pictures, self._shifts, strict=True)]
        states, instructions = self._state[rows], self._vectors[self._episode[rows]]
        if self._pairs:
            pairs = torch.randint(len(self._scene_of), (self._pairs,), generator=generator)
            scenes = self._scene_of[pairs]
            seen = [_shifted(small, scenes, pixels, generator) for small, pixels in zip(self._views, self._shifts, strict=True)]
            images = [torch.cat(both) for both in zip(images, seen, strict=True)]
            states, instructions = torch.cat([states, self._scene_state[scenes]]), torch.cat([instructions, self._scene_vectors[pairs]])
        delays = torch.randint(self._told + 1, (len(rows),), generator=generator).numpy() if self._told else np.zeros(len(rows), np.int64)
        committed = torch.from_numpy(self._frames.on_its_way(rows.numpy(), delays, self._told))
        committed = torch.cat([committed, torch.zeros(len(states) - len(rows), *committed.shape[1:])])  # Scenes have not begun to move.
        weight = weight * (np.arange(config.horizon) >= delays[:, None])
        noise = config.state_noise * self._state_std * torch.randn(states.shape, generator=generator)
        output, imitated = model(images, states + noise, instructions, committed)
        count = len(rows)  # The first rows are demonstrations, the others scenes.
        tokens = token_cross_entropy(
            output.logits[:count], self._targets(torch.from_numpy(index)), torch.from_numpy(weight.astype(np.float32))
        )
        distance = nn.functional.smooth_l1_loss(output.waypoints[:count], self._waypoints[rows], reduction="none").mean((1, 2))
        way = (distance * self._expert[rows]).sum() / self._expert[rows].sum().clamp(min=1)
        losses = {"loss": tokens + config.waypoint_weight * way, "tokens": tokens, "waypoint": way}
        if self._pairs:
            losses["features"] = nn.functional.smooth_l1_loss(imitated[count:], self._features[pairs])
            losses["loss"] = losses["loss"] + config.feature_weight * losses["features"]
        return losses

    def _targets(self, index: Tensor) -> Tensor:
        """(B, H) frames -> (B, H, A, K)."""
        demonstrated = gaussian_labels(self._bins[index], self._is_binary, count=self._tokenizer.bins, sigma=self._config.sigma)
        if self._answers is None:
            return demonstrated
        taught = self._answers[index].float()
        total = taught.sum(-1, keepdim=True)  # (B, H, A, 1), 0 where the teacher was not asked
        share = torch.where(self._expert[index], self._config.teacher_weight, 1.0)[..., None, None] * (total > 0)
        return share * taught / total.clamp(min=0.5) + (1 - share) * demonstrated


def _shifted(frames: np.ndarray, rows: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """uint8 (N, h, w, 3) -> (B, h, w, 3): the rows, each moved by up to `largest` pixels each way, its border repeated.

    Random shifts (Yarats et al. 2021, DrQ): a picture that is never twice the same is not learned by heart.
    """
    moves = torch.randint(-largest, largest + 1, (len(rows), 2), generator=generator).numpy()
    height, width = frames.shape[1:3]
    y, x = (np.clip(np.arange(size)[None] + moves[:, axis : axis + 1], 0, size - 1) for axis, size in enumerate((height, width)))
    return torch.from_numpy(frames[rows.numpy()[:, None, None], y[:, :, None], x[:, None, :]])
