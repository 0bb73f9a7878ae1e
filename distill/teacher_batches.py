"""What an RT-2-style teacher is trained on, batch by batch: the robot's rows, plans among them, and the web's; and what is lost on them."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from actlet.errors import SpecError
from actlet.specs import PolicySpec
from distill.frames import Frames
from distill.losses import gaussian_labels, token_cross_entropy
from distill.rt2_teacher import Rt2Teacher
from distill.student import ordinal_embedding
from distill.teacher_config import GREY, PROMPT, QUESTION
from distill.teacher_parts import Words
from distill.web_data import WebData

__all__ = ["BatchConfig", "Batches", "Rows", "Training", "plan_every_frame"]

Maps = tuple[Tensor, Tensor]


class BatchConfig(Protocol):
    """What of `distill.teach.TeachConfig` a batch needs."""

    batch_size: int
    sigma: float
    token_noise: float
    state_noise: float
    undecided_share: float
    waypoint_weight: float
    auxiliary_weight: float
    plan_share: float


@dataclasses.dataclass
class Rows:
    """One batch. The robot's rows come first, those that plan at their end; then the web's."""

    inputs: list[Maps] | list[Tensor]
    """Of each camera: frozen maps, or uint8 frames where the vision learns."""
    state: Tensor
    prompts: list[str]
    which: Tensor
    heard: Tensor
    """int64 (R, A): the tokens that later tokens see."""
    plans: Words | None
    answers: Words | None

    @property
    def robot(self) -> int:
        return len(self.heard)


class Training(nn.Module):
    """The teacher and the head that only training sees."""

    def __init__(self, teacher: Rt2Teacher, answers: int, rank: int = 32) -> None:
        super().__init__()
        self.teacher = teacher
        dim, features = teacher.spec.action.dim, teacher.config.features
        self.queries = nn.Linear(features, dim * rank)
        self.bins = nn.Parameter(ordinal_embedding(teacher.tokenizer.bins, rank).repeat(dim, 1, 1))
        self.waypoints = nn.Linear(features, 2 * teacher.spec.observation.state_dim)
        self.answers = nn.Linear(features, max(1, answers))
        self.language_on = False

    def forward(self, rows: Rows) -> dict[str, Tensor]:
        """Logits and predictions of the rows that have them; the vision looks at all rows at once, so that its batch statistics are one."""
        teacher, robot = self.teacher, rows.robot
        maps = [teacher.look(x) if isinstance(x, Tensor) else x for x in rows.inputs]
        text = teacher.texts(rows.prompts)
        scene = teacher.see(maps, rows.state, teacher.condition(text)[rows.which])
        found: dict[str, Tensor] = {"answers": self.answers(scene[robot:])}
        queries = self.queries(scene[:robot]).unflatten(1, (self.bins.shape[0], -1))  # (R, A, rank)
        found["direct"] = torch.einsum("bar,akr->bak", queries, self.bins)  # (R, A, K)
        found["waypoints"] = self.waypoints(scene[:robot]).unflatten(1, (2, -1))
        if not self.language_on:
            return found
        reading = teacher.read(text)

        def say(part: slice, tokens: Tensor | None, words: Words | None) -> tuple[Tensor | None, Tensor | None]:
            return teacher.answer_logits(reading, rows.which[part], scene[part], tokens, words)

        planned = 0 if rows.plans is None else len(rows.plans.ids)
        acting, planning = slice(0, robot - planned), slice(robot - planned, robot)
        logits = []
        if robot > planned:
            logits.append(say(acting, rows.heard[acting], None)[0])
        if rows.plans is not None:
            more, words = say(planning, rows.heard[planning], rows.plans)
            logits.append(more)
            found["plan words"] = words  # type: ignore[assignment]
        if logits:
            found["tokens"] = torch.cat(logits)  # type: ignore[arg-type]
        if rows.answers is not None:
            found["web words"] = say(slice(robot, None), None, rows.answers)[1]  # type: ignore[assignment]
        return found


class Batches:
    """Draws batches of the robot's and the web's rows, and judges what is answered to them."""

    def __init__(self, teacher: Rt2Teacher, frames: Frames, web: WebData | None, plans: list[str] | None, config: BatchConfig) -> None:
        self.config, self.frames, self.web = config, frames, web
        self.device, self.count = teacher.device, teacher.tokenizer.bins
        cameras = teacher.spec.observation.cameras
        self.robot_inputs = [_inputs(teacher, frames.images[camera.name], camera.name) for camera in cameras]
        self.bins = torch.from_numpy(teacher.tokenizer.encode(frames.action))
        self.is_binary = torch.from_numpy(teacher.spec.action.is_binary)
        self.state = torch.from_numpy(frames.state)
        self.state_mean, self.state_std = teacher.state_mean.cpu(), self.state.std(0)
        self.waypoints = torch.from_numpy(frames.waypoints / (frames.waypoints.std(axis=(0, 1)) + 1e-3))
        prompts = list(dict.fromkeys(PROMPT.format(instruction=text) for text in frames.instructions))
        places = {prompt: place for place, prompt in enumerate(prompts)}
        told = torch.tensor([places[PROMPT.format(instruction=text)] for text in frames.instructions])
        self.prompt_of = told[torch.from_numpy(frames.episode)]
        self.plans = None if plans is None else _Phrases.of(teacher, plans)
        self.answer_names: list[str] = []
        if web is not None:
            self.web_inputs: list[Any] = [_inputs(teacher, web.images, "web")]
            for camera in cameras[1:]:
                grey = np.full((1, camera.height, camera.width, 3), GREY, np.uint8)
                self.web_inputs.append(_inputs(teacher, grey, camera.name))
            questions = list(dict.fromkeys(QUESTION.format(question=q) for q in web.questions))
            places = {question: len(prompts) + place for place, question in enumerate(questions)}
            self.question_of = torch.tensor([places[QUESTION.format(question=q)] for q in web.questions])
            prompts = prompts + questions
            self.picture = torch.from_numpy(web.picture)
            self.answers = _Phrases.of(teacher, web.answers)
            self.answer_names = self.answers.names
        self.prompts = prompts

    def losses(self, model: nn.Module, web_share: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a batch, of which this share is the web's, and ask the model."""
        config = self.config
        asked = round(web_share * config.batch_size)
        robot = config.batch_size - asked
        rows = self.frames.draw(robot, config.undecided_share, generator)
        rows = rows[torch.randperm(robot, generator=generator)]  # `draw` sorts: rows that plan and rows that act shall be alike
        planned = round(config.plan_share * robot) if self.plans is not None else 0
        noise = config.state_noise * self.state_std * torch.randn(robot, self.state.shape[1], generator=generator)
        state = self.state[rows] + noise
        which = self.prompt_of[rows]
        inputs = [_take(x, rows) for x in self.robot_inputs]
        answers = pairs = None
        if asked and self.web is not None:
            pairs = torch.randint(len(self.picture), (asked,), generator=generator)
            seen = [self.picture[pairs], *[torch.zeros(asked, dtype=torch.int64)] * (len(self.web_inputs) - 1)]
            inputs = [_join(a, _take(b, s)) for a, b, s in zip(inputs, self.web_inputs, seen, strict=True)]
            state = torch.cat([state, self.state_mean.expand(asked, -1)])
            which = torch.cat([which, self.question_of[pairs]])
            answers = self.answers[pairs]
        used, which = torch.unique(which, return_inverse=True)
        bins = self.bins[rows]
        batch = Rows(
            inputs=inputs,
            state=state.to(self.device),
            prompts=[self.prompts[i] for i in used.tolist()],
            which=which.to(self.device),
            heard=_disturb(bins, self.is_binary, self.count, config.token_noise, generator).to(self.device),
            plans=self.plans[rows[robot - planned :]] if planned and self.plans is not None else None,
            answers=answers,
        )
        return self._judge(model(batch), batch, bins.to(self.device), self.waypoints[rows].to(self.device), pairs)

    def _judge(self, found: dict[str, Tensor], batch: Rows, bins: Tensor, waypoints: Tensor, pairs: Tensor | None) -> dict[str, Tensor]:
        config, losses = self.config, {}
        share = batch.robot / config.batch_size  # A row counts as much whether it is the robot's or the web's.
        auxiliary = total = torch.zeros((), device=self.device)
        target = gaussian_labels(bins, self.is_binary.to(self.device), count=self.count, sigma=config.sigma)
        if batch.robot:
            losses["vision"] = token_cross_entropy(found["direct"], target)
            losses["waypoint"] = nn.functional.smooth_l1_loss(found["waypoints"], waypoints)
            auxiliary = share * (losses["vision"] + config.waypoint_weight * losses["waypoint"])
        if pairs is not None:
            losses["web, vision"] = nn.functional.cross_entropy(found["answers"], self.answers.name_of[pairs].to(self.device))
            auxiliary = auxiliary + (1 - share) * losses["web, vision"]
        if "tokens" in found:
            losses["tokens"] = token_cross_entropy(found["tokens"], target)
            total = total + share * losses["tokens"]
        if "plan words" in found and batch.plans is not None:
            losses["plan"] = _words_loss(found["plan words"], batch.plans)
            total = total + share * config.plan_share * losses["plan"]
        if "web words" in found and batch.answers is not None:
            losses["web"] = _words_loss(found["web words"], batch.answers)
            total = total + (1 - share) * losses["web"]
        spoken = any(name in found for name in ("tokens", "web words"))
        return {"loss": total + config.auxiliary_weight * auxiliary if spoken else auxiliary, **losses}


@dataclasses.dataclass
class _Phrases:
    """What is said at each of N rows, by few different phrases."""

    names: list[str]
    words: Words
    name_of: Tensor

    @classmethod
    def of(cls, teacher: Rt2Teacher, texts: Sequence[str]) -> _Phrases:
        names = sorted(set(texts))
        places = {name: place for place, name in enumerate(names)}
        return cls(names, teacher.words(names), torch.tensor([places[text] for text in texts]))

    def __getitem__(self, rows: Tensor) -> Words:
        words = self.words[self.name_of[rows].to(self.words.ids.device)]
        longest = int(words.mask.sum(1).max())
        return Words(words.ids[:, :longest], words.mask[:, :longest])


def _words_loss(logits: Tensor, words: Words) -> Tensor:
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), words.ids.flatten(), reduction="none")
    return (loss * words.mask.flatten()).sum() / words.mask.sum()


def plan_every_frame(frames: Frames, spec: PolicySpec, planner: str) -> list[str]:
    """A plan for each frame, from the instruction and the recorded flags."""
    names = list(spec.action.names)
    if not {"gripper", "terminate"} <= set(names):
        raise SpecError(f"plans are read off the actions 'gripper' and 'terminate'; this robot's are {names}. Train without plans.")
    module, _, function = planner.partition(":")
    plan: Callable[[str, NDArray[np.bool_], NDArray[np.bool_]], list[str]] = getattr(importlib.import_module(module), function)
    flags = frames.action > 0.5
    said: list[str] = []
    for episode, instruction in enumerate(frames.instructions):
        own = flags[frames.episode == episode]
        said += plan(instruction, own[:, names.index("gripper")], own[:, names.index("terminate")])
    return said


def _disturb(bins: Tensor, is_binary: Tensor, count: int, noise: float, generator: torch.Generator) -> Tensor:
    """int64 (B, A) -> the same with noise."""
    if noise <= 0:
        return bins
    moved = (bins + noise * torch.randn(bins.shape, generator=generator)).round().long().clamp(0, count - 1)
    flipped = torch.where(torch.rand(bins.shape, generator=generator) < 0.05, count - 1 - bins, bins)
    return torch.where(is_binary, flipped, moved)


def _inputs(teacher: Rt2Teacher, images: NDArray[np.uint8], name: str) -> Maps | Tensor:
    """Frozen maps of all frames in float16; or the frames, where the vision learns. On the teacher's device."""
    if not teacher.config.pretrained:
        return torch.from_numpy(images).to(teacher.device)
    fine, coarse = [], []
    for start in tqdm(range(0, len(images), 64), desc=f"frozen vision, {name}", unit="batch"):
        a, b = teacher.look(torch.from_numpy(images[start : start + 64]))
        fine.append(a.half())
        coarse.append(b.half())
    return torch.cat(fine), torch.cat(coarse)


def _take(inputs: Any, rows: Tensor) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[rows.to(inputs.device)]
    fine, coarse = inputs
    rows = rows.to(fine.device)
    return fine[rows].float(), coarse[rows].float()


def _join(a: Any, b: Any) -> Any:
    return torch.cat([a, b]) if isinstance(a, Tensor) else tuple(torch.cat(pair) for pair in zip(a, b, strict=True))
