"""What a student is trained on, batch by batch: demonstrations, what it reached by itself, and scenes seen through the teacher's eyes.

    a batch    the first rows: frames, with targets for their chunks      the others: scenes, or frames of one
    losses     tokens, waypoint                                           features

What the tokens of a chunk are taught: `distill.targets`.

Delay training (`TrainConfig.delay_steps`; Black et al. 2025, training-time action conditioning): every frame is looked at once and answered twice, as
if at once, and with a delay d of 1 .. D steps. For that the student is told what is on its way meanwhile, and learns the rows from d on. Where it
drove itself, that is what it really commanded, and what comes after it are the teacher's answers to what t + d, t + d + 1, ... then looked like. Of
a demonstration it is told to stand still for d steps, and what comes after that is what would have come at once::

    frame t, d = 2, driven          told  c0    c1        learned  -  -  a2  a3 ...
    frame t, d = 2, demonstrated    told  rest  rest      learned  -  -  a0  a1 ...

Without being told, row 1 presumes that row 0 was carried out, which under a delay it never is: each answer leaves the motion that is left to
a row that is never used, and the hand stands still. Told what the expert did next, a student copies it, since the expert, who knows better
where the goal is than the picture shows, gives it away; and what it did itself, slower and slower, it then copies too (docs/lessons.md).

Whether to terminate is learned from row 0 of every frame and decoded from there, and later rows learn nothing of the frames that end an
episode: trained to foresee the end, a student stopped a step before it.

Several processes share a batch: each draws all of it, from the same generator, and takes every n-th row. So they learn from what one
process would learn from; only batch normalisation and dropout see the difference.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.fake_quantize import FakeQuantizer
from distill.frames import Frames
from distill.scenes import Scenes
from distill.student import Student, StudentOutput
from distill.targets import Targets
from distill.text_encoder import load_text_encoder
from distill.train_config import TrainConfig

__all__ = ["StudentBatches", "StudentInTraining"]


class StudentInTraining(nn.Module):
    """The student, the layer through which its features are compared with the teacher's, and the rounding that it is trained with."""

    def __init__(self, student: Student, teacher_features: int, fake_quantizer: FakeQuantizer | None = None) -> None:
        super().__init__()
        self.student, self.fake_quantizer = student, fake_quantizer
        self.imitate = nn.Linear(student.config.features, teacher_features) if teacher_features else None

    def forward(
        self, images: list[Tensor], state: Tensor, instruction: Tensor, committed: Tensor | None = None, looks: Tensor | None = None
    ) -> tuple[StudentOutput, Tensor | None]:
        """(B, ...) inputs, or with `looks` (R,) R rows of `committed` -> the student's output, and its idea of the teacher's features (R, F'); float32,
        whatever it computed in."""
        inputs = (images, state, instruction, committed, looks)
        output: StudentOutput = self.fake_quantizer(self.student, *inputs) if self.fake_quantizer is not None else self.student(*inputs)
        imitated = self.imitate(output.features).float() if self.imitate is not None else None
        return StudentOutput(output.logits.float(), output.waypoints.float(), output.features.float()), imitated

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


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """A batch, or some rows of one, as it was drawn."""

    rows: Tensor
    """int64 (R,), frames."""
    delays: Tensor
    """int64 (R,), control steps by which the second answer to each comes late; 0 where there is none."""
    pairs: Tensor
    """int64 (P,), scenes under an instruction."""
    moves: list[Tensor]
    """Of each camera int64 (R + P, 2), pixels down and right."""
    noise: Tensor
    """float32 (R + P, S), standard normal."""

    def take(self, rows: Tensor, pairs: Tensor) -> _Drawn:
        """Of its frames those at `rows`, of its pairs those at `pairs`."""
        both = torch.cat([rows, pairs + len(self.rows)])
        return _Drawn(self.rows[rows], self.delays[rows], self.pairs[pairs], [moves[both] for moves in self.moves], self.noise[both])


class StudentBatches:
    """Draws batches and says what the student loses on them.

    Args:
        student: Whose specification, bins and pooling count; it is not kept.
        frames: Demonstrations, and what the student reached.
        scenes: What the teacher sees elsewhere, or None.
        config: How. Its `batch_size` is the whole batch, of all processes together.
        device: Where batches are made; what they are made from moves there once.
        part: (i, n): this is process i of n, and its part of a batch is every n-th row.
    """

    def __init__(
        self,
        student: Student,
        frames: Frames,
        scenes: Scenes | None,
        config: TrainConfig,
        *,
        device: torch.device | str = "cpu",
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._config, self._frames, self._scenes = config, frames, scenes
        self._device, self._part = torch.device(device), part
        here = self._device
        self._targets = Targets(student.spec.action, student.tokenizer, frames, config, device=here)
        self._told, self._action = student.spec.timing.committed_steps, student.spec.action
        self._is_terminate = torch.tensor([name == "terminate" for name in student.spec.action.names]).to(here)
        self._vectors = torch.from_numpy(load_text_encoder().encode(frames.instructions)).to(here)
        self._state, self._episode = torch.from_numpy(frames.state).to(here), torch.from_numpy(frames.episode).to(here)
        self._state_std = self._state.std(0)
        self._expert = torch.from_numpy(frames.by_expert).to(here)
        waypoint_scale = frames.waypoints[frames.by_expert].std(axis=(0, 1)) + 1e-3
        self._waypoints = torch.from_numpy(frames.waypoints / waypoint_scale).to(here)
        names = [camera.name for camera in student.spec.observation.cameras]
        self._pictures = [torch.from_numpy(small).to(here) for small in student.pool([frames.images[name] for name in names])]
        self._shifts = [round(config.shift * max(small.shape[1:3])) for small in self._pictures]
        processes = part[1]
        self._pairs = processes * round(config.scene_share * config.batch_size / processes) if scenes is not None else 0
        if scenes is not None:
            self._views = [torch.from_numpy(small).to(here) for small in student.pool([scenes.images[name] for name in names])]
            self._scene_state, self._scene_of = torch.from_numpy(scenes.state).to(here), torch.from_numpy(scenes.scene).to(here)
            self._scene_vectors = torch.from_numpy(load_text_encoder().encode(scenes.instructions)).to(here)
            features = torch.from_numpy(scenes.features).to(here)
            spread = features.std(0)
            self._features = (features - features.mean(0)) / (spread + 0.05 * spread.mean() + 1e-6)

    def losses(self, model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        """This process's part of a batch through the model (a `StudentInTraining`): ``loss`` and its parts.

        Args:
            model: On the same device.
            generator: On the processor, and the same in all processes.
        """
        return self._losses(model, self._own(self._draw(generator)))

    def blame(self, model: nn.Module, generator: torch.Generator) -> tuple[list[str], int]:
        """Ask, one row at a time, on which rows of a batch the loss or its gradient is not finite.

        Args:
            model: The network as it was when that was found; in evaluation mode afterwards, its gradients cleared.
            generator: The one that drew the batch, as it was before.

        Returns:
            A line for each such row of this process's part, and how many rows that part has.
        """
        drawn, nothing = self._own(self._draw(generator)), torch.empty(0, dtype=torch.int64)
        model.eval()
        found, sound = [], None
        for number, row in enumerate(drawn.rows.tolist()):
            if parts := _not_finite(model, self._losses(model, drawn.take(torch.tensor([number]), nothing))):
                found.append(f"{self._frames.where(row)}: {', '.join(parts)}{self._bad_targets(row)}")
            else:
                sound = number
        for number, pair in enumerate(drawn.pairs.tolist() if sound is not None else []):  # A pair is asked beside a frame that is sound.
            if parts := _not_finite(model, self._losses(model, drawn.take(torch.tensor([sound]), torch.tensor([number])))):
                assert self._scenes is not None
                bad = "" if self._features[pair].isfinite().all() else "; what the teacher sees there is not finite"
                found.append(f"scene {int(self._scene_of[pair])} ({self._scenes.instructions[pair]!r}): {', '.join(parts)}{bad}")
        return found, len(drawn.noise)

    def _draw(self, generator: torch.Generator) -> _Drawn:
        """The whole batch."""
        config = self._config
        rows = self._frames.draw(config.batch_size - self._pairs, config.undecided_share, generator)
        delays = torch.randint(1, self._told + 1, (len(rows),), generator=generator) if self._told else torch.zeros_like(rows)
        moves = [_moves(len(rows), pixels, generator) for pixels in self._shifts]
        pairs = torch.empty(0, dtype=torch.int64)
        if self._pairs:
            pairs = torch.randint(len(self._scene_of), (self._pairs,), generator=generator)
            moves = [torch.cat([own, _moves(len(pairs), pixels, generator)]) for own, pixels in zip(moves, self._shifts, strict=True)]
        noise = torch.randn((config.batch_size, self._state.shape[1]), generator=generator)
        return _Drawn(rows, delays, pairs, moves, noise)

    def _own(self, drawn: _Drawn) -> _Drawn:
        """This process's part."""
        index, count = self._part
        return drawn.take(torch.arange(len(drawn.rows))[index::count], torch.arange(len(drawn.pairs))[index::count])

    def _losses(self, model: nn.Module, drawn: _Drawn) -> dict[str, Tensor]:
        config, here = self._config, self._device
        places = drawn.rows.numpy()
        index, weight = (torch.from_numpy(table).to(here) for table in self._frames.chunk_index(places, config.horizon))
        rows, pairs, moves = drawn.rows.to(here), drawn.pairs.to(here), [each.to(here) for each in drawn.moves]
        count = len(rows)  # The first rows are demonstrations, the others scenes.
        images = [_shifted(small, rows, move[:count]) for small, move in zip(self._pictures, moves, strict=True)]
        states, instructions = self._state[rows], self._vectors[self._episode[rows]]
        if len(pairs):
            scenes = self._scene_of[pairs]
            seen = [_shifted(small, scenes, move[count:]) for small, move in zip(self._views, moves, strict=True)]
            images = [torch.cat(both) for both in zip(images, seen, strict=True)]
            states, instructions = torch.cat([states, self._scene_state[scenes]]), torch.cat([instructions, self._scene_vectors[pairs]])
        noise = config.state_noise * self._state_std * drawn.noise.to(here)
        committed = looks = token_weight = None
        answers = torch.arange(count, device=here)  # Rows of the output whose tokens are taught.
        if self._told:
            late, late_index, late_weight, token_weight = self._late(drawn)
            nothing = late.new_zeros(len(states), *late.shape[1:])
            committed, looks = torch.cat([nothing, late]), torch.cat([torch.arange(len(states), device=here), answers])
            answers = torch.cat([answers, answers + len(states)])
            index, weight = torch.cat([index, late_index]), torch.cat([weight * self._learned(index), late_weight])
            token_weight = torch.cat([torch.ones_like(token_weight), token_weight])
        output, imitated = model(images, states + noise, instructions, committed, looks)
        tokens = self._targets.loss(output.logits[answers], index, weight, token_weight)
        distance = nn.functional.smooth_l1_loss(output.waypoints[:count], self._waypoints[rows], reduction="none").mean((1, 2))
        way = (distance * self._expert[rows]).sum() / self._expert[rows].sum().clamp(min=1)
        losses = {"loss": tokens + config.waypoint_weight * way, "tokens": tokens, "waypoint": way}
        if len(pairs):
            losses["features"] = nn.functional.smooth_l1_loss(imitated[count : len(states)], self._features[pairs])
            losses["loss"] = losses["loss"] + config.feature_weight * losses["features"]
        return losses

    def _learned(self, index: Tensor) -> Tensor:
        """int64 (R, H), frames of chunks -> bool (R, H): what is learned of them, where a student is told what is on its way."""
        return (torch.arange(index.shape[1], device=index.device) == 0) | ~self._targets.ends(index)

    def _late(self, drawn: _Drawn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the second answers what is on its way (R, D, 1 + A), the frames that they are taught from (R, H), and weights (R, H) and (R, H, A)."""
        here, places, late = self._device, drawn.rows.numpy(), drawn.delays.numpy()
        is_shown = self._frames.by_expert[places]
        rests = np.where(is_shown[:, None], self._frames.rest(places, self._action), np.nan)
        told = torch.from_numpy(self._frames.on_its_way(places, late, self._told, rests)).to(here)
        tables = self._frames.chunk_index(places, self._config.horizon, np.where(is_shown, late, 0))
        index, weight = (torch.from_numpy(table).to(here) for table in tables)
        delays, steps = drawn.delays.to(here)[:, None], torch.arange(self._config.horizon, device=here)
        in_time = steps >= delays  # (R, H)
        return told, index, weight * self._learned(index) * (in_time | (steps == 0)), (in_time[..., None] | self._is_terminate).float()

    def _bad_targets(self, row: int) -> str:
        """Where the teacher's answers for a frame's chunk are not finite, in words; states and actions were refused when they were read."""
        steps = range(row, min(row + self._config.horizon, int(self._frames.last[row]) + 1))
        bad = [step for step in steps if not self._targets.is_finite(step)]
        return f"; the teacher's answer is not finite for {self._frames.where(bad[0])}" if bad else ""


def _moves(count: int, largest: int, generator: torch.Generator) -> Tensor:
    """int64 (count, 2): up to `largest` pixels each way."""
    return torch.randint(-largest, largest + 1, (count, 2), generator=generator)


def _shifted(frames: Tensor, rows: Tensor, moves: Tensor) -> Tensor:
    """uint8 (N, h, w, 3) -> (B, h, w, 3): the rows (B,), each moved by its `moves` (B, 2) pixels, its border repeated.

    Random shifts (Yarats et al. 2021, DrQ): a picture that is never twice the same is not learned by heart.
    """
    height, width = frames.shape[1:3]
    y, x = (
        (torch.arange(size, device=moves.device) + moves[:, axis, None]).clamp(0, size - 1) for axis, size in enumerate((height, width))
    )
    pixels = (rows[:, None, None] * height + y[:, :, None]) * width + x[:, None, :]  # (B, h, w)
    return frames.view(-1, 3).index_select(0, pixels.flatten()).view(-1, height, width, 3)  # five times as fast as three indices


def _not_finite(model: nn.Module, losses: dict[str, Tensor]) -> list[str]:
    """Which parts of a loss, or "gradient", are not finite."""
    model.zero_grad()
    losses["loss"].backward()
    parts = [name for name, value in losses.items() if not value.isfinite() and name != "loss"]
    parts = parts or ([] if losses["loss"].isfinite() else ["loss"])
    finite = all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    return parts or ([] if finite else ["gradient"])
