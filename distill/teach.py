"""Training the RT-2-style teacher; the verb `teach`.

Up to three stages, each skipped where its number of updates is 0:

1. *web*: the whole network learns to answer questions about pictures (what a vision-language model brings along).
2. *vision*: the vision alone learns to see what the instruction asks for, with a small head of its own that is thrown away (a step costs
   a quarter of the whole network's).
3. *whole*: everything trains together; the language model reads the scene tokens and answers with action tokens, the small head keeps the
   vision honest.

With web data, stages 2 and 3 mix it into every batch (co-fine-tuning, RT-2's recipe against forgetting). With a planner, a share of the
robot's rows says its plan in words before the action tokens.

The frozen early vision is computed once per frame and kept in float16: about 70 kB per 128-pixel frame.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from actlet import __version__
from actlet.action_tokens import ActionTokenizer
from actlet.errors import SpecError
from actlet.specs import PolicySpec, TimingSpec, require_same
from actlet.storage import new_folder, write_bytes
from distill.backbones import PRECISIONS
from distill.fit import FitConfig, fit, work_folder
from distill.frames import Frames
from distill.losses import gaussian_labels, token_cross_entropy
from distill.model_card import teacher_card
from distill.rt2_teacher import Rt2Teacher
from distill.student import ordinal_embedding
from distill.teacher_checkpoint import load_teacher, save_teacher
from distill.teacher_config import GREY, PROMPT, QUESTION, VOCABULARIES, TeacherConfig
from distill.teacher_parts import Words
from distill.web_data import WEB_SETS, WebData, accuracy, held_out_questions, load_web_data

__all__ = ["PLANNER", "TeachConfig", "add_arguments", "run", "teach"]

PLANNER = "episodes.tabletop_plans:plans"
HELD_OUT_QUESTIONS = 400
Maps = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """How the teacher is trained."""

    web_steps: int = 0
    """Updates of the first stage."""
    vision_steps: int = 1000
    """Updates of the second stage."""
    steps: int = 400
    """Updates of the third stage."""
    batch_size: int = 64
    vision_learning_rate: float = 1e-3
    learning_rate: float = 6e-4
    sigma: float = 12.0
    """Width of the token labels, in bins."""
    token_noise: float = 12.0
    """Noise on the tokens that later tokens see, in bins; a flag is wrong one time in twenty. When it acts, the teacher sees its own
    tokens, which are not the expert's: without noise it infers the descent from the exact sideways motion of the expert."""
    state_noise: float = 0.1
    """Noise on the state, in standard deviations: see `distill.train.TrainConfig`."""
    undecided_share: float = 0.5
    """Share of a batch drawn where only the instruction says what comes next: see `distill.frames.Frames.draw`."""
    waypoint_weight: float = 3.0
    """Weight of the waypoints beside the tokens for the vision's own head."""
    auxiliary_weight: float = 0.3
    """Weight of the vision's own head in the third stage."""
    web: tuple[str, ...] = ()
    """Sets of `distill.web_data.load_web_data`; without any, training is on the robot's data alone."""
    web_share: float = 0.25
    """Share of a batch of the second and third stage that is drawn from them."""
    plan_share: float = 0.0
    """Share of the robot's rows that say their plan before they act."""
    planner: str = PLANNER
    """``"module:function"``; (instruction, bool (T,) fingers closed, bool (T,) terminate) -> T plans."""
    load: str = "fp32"
    """Precision of the frozen language model: "fp32", "int8" or "nf4" (QLoRA)."""
    seed: int = 0
    architecture: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "web", tuple(self.web))
        for name in ("undecided_share", "web_share", "plan_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpecError(f"{name} {getattr(self, name)}: expected 0 .. 1.")
        if self.web_share == 1 or (self.web_steps and not self.web):
            raise SpecError(f"web {self.web}, web_share {self.web_share}, web_steps {self.web_steps}: expected a set, and a share below 1.")


@dataclasses.dataclass
class _Rows:
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


class _Training(nn.Module):
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

    def forward(self, rows: _Rows) -> dict[str, Tensor]:
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


def teach(
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    config: TeachConfig | None = None,
    *,
    start: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Train a teacher on a dataset and write its checkpoint.

    Args:
        data: A LeRobotDataset folder, or several with the same cameras, state and action.
        out: The checkpoint folder to make: config.json, adapter.safetensors, train_log.jsonl, README.md.
        config: How. Its architecture counts for nothing where there is a `start`.
        start: A teacher's checkpoint to go on from; its tokens and what it standardises by stay as they are.
        overwrite: Replace a checkpoint that exists.

    Raises:
        DatasetError: A dataset cannot be used.
        CheckpointError: `start` cannot be loaded.
        SpecError: The datasets, or `start` and they, differ in what is seen or commanded.
        StorageError: `out` exists, or cannot be written.
    """
    from episodes.lerobot_dataset import open_dataset

    datasets = [open_dataset(folder) for folder in ([data] if isinstance(data, str | Path) else data)]
    first = datasets[0]
    for other in datasets[1:]:
        require_same(first.observation_spec, other.observation_spec, what=f"observations of {first.path} and {other.path}")
        require_same(first.action_spec, other.action_spec, what=f"actions of {first.path} and {other.path}")
    frames = Frames.concatenate([Frames.from_episodes(each.read_all(), each.observation_spec, each.action_spec) for each in datasets])
    spec = PolicySpec(
        observation=first.observation_spec,
        action=first.action_spec,
        timing=TimingSpec(rate_hz=first.rate_hz, horizon=1, execute_steps=1, max_delay_steps=0),
    )
    lineage = {"dataset": " ".join(each.content_hash for each in datasets), "dataset_episodes": sum(len(each) for each in datasets)}
    return teach_on_frames(frames, spec, Path(out), config or TeachConfig(), lineage=lineage, start=start, overwrite=overwrite)


def teach_on_frames(
    frames: Frames,
    spec: PolicySpec,
    out: Path,
    config: TeachConfig,
    *,
    lineage: dict[str, object],
    start: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """`teach` on frames that are in memory already."""
    torch.manual_seed(config.seed)
    started = time.time()
    first = spec.observation.cameras[0]
    web = load_web_data(config.web, height=first.height, width=first.width, seed=config.seed) if config.web else None
    plans = _plans(frames, spec, config.planner) if config.plan_share else None
    device = Accelerator().device
    if start is None:
        said = [] if web is None else [*(QUESTION.format(question=q) for q in web.questions), *(" " + a for a in web.answers)]
        teacher = Rt2Teacher(
            spec,
            ActionTokenizer.fit(frames.action, spec.action),
            config=config.architecture,
            corpus=sorted(set(frames.instructions)),
            other_texts=sorted({*said, *(" " + plan for plan in plans or ())}),
            state_mean=frames.state.mean(0),
            state_std=frames.state.std(0) + 1e-3,
            load=config.load,
            device=device,
        )
    else:
        teacher = load_teacher(start, trainable=True, load=config.load, device=str(device))
        require_same(teacher.spec.observation, spec.observation, what=f"observations of {start} and the datasets")
        require_same(teacher.spec.action, spec.action, what=f"actions of {start} and the datasets")
        lineage = {**lineage, "start": teacher.content_hash}
        config = dataclasses.replace(config, architecture=teacher.config)
    batches = _Batches(teacher, frames, web, plans, config)
    frames.images.clear()  # The maps are all that is seen from here on.
    module = _Training(teacher, len(batches.answer_names)).to(memory_format=torch.channels_last)  # a fifth faster on a processor
    work = work_folder(out, {**lineage, "config": dataclasses.asdict(config), "actlet": __version__})
    log = work / "train_log.jsonl"
    held_out = held_out_questions(HELD_OUT_QUESTIONS, height=first.height, width=first.width) if "easy-vqa" in config.web else None
    scores: dict[str, float] = {}
    for name, steps, rate in (
        ("web", config.web_steps, config.learning_rate),
        ("vision", config.vision_steps, config.vision_learning_rate),
    ):
        if steps:
            module.language_on = name == "web"
            share = 1.0 if name == "web" else config.web_share if web is not None else 0.0
            schedule = FitConfig(steps=steps, batch_size=config.batch_size, learning_rate=rate, seed=config.seed)
            _stage(module, lambda model, generator, share=share: batches.losses(model, share, generator), schedule, work, name)
            if held_out is not None and name == "web":
                scores["after the web alone"] = round(accuracy(module.teacher, held_out), 4)
    module.language_on = True
    lineage = {**lineage, "actlet": __version__, "training": dataclasses.asdict(config)}
    trained: Any = module.eval()
    if config.steps:
        whole = FitConfig(
            steps=config.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            average_decay=0.99,
            seed=config.seed + 1,
            save_seconds=120.0,
        )
        share = config.web_share if web is not None else 0.0
        trained = fit(
            module,
            lambda model, generator: batches.losses(model, share, generator),
            whole,
            state_folder=work / "state",
            log_file=log,
            label="teacher, whole",
        )
    if held_out is not None:
        scores["at the end"] = round(accuracy(trained.teacher, held_out), 4)
        lineage["held_out_questions"] = {"set": "easy-vqa, test", "questions": HELD_OUT_QUESTIONS, "answered right": scores}
    lineage["hours"] = round((time.time() - started) / 3600, 2)
    with new_folder(out, overwrite=overwrite) as partial:
        save_teacher(trained.teacher, partial, lineage=lineage)
        for file in work.glob("*_log.jsonl"):
            shutil.copy(file, partial / file.name)
        write_bytes(partial / "README.md", teacher_card(trained.teacher, lineage).encode())
    shutil.rmtree(work, ignore_errors=True)
    return out


def _stage(module: _Training, losses: Callable[..., dict[str, Tensor]], config: FitConfig, work: Path, name: str) -> None:
    """Train `module` through an early stage, or load what came out of it before the run was cut off."""
    from safetensors.torch import load_file, save_file

    done = work / f"{name}.safetensors"
    if not done.is_file():
        trained = fit(
            module, losses, config, state_folder=work / f"state-{name}", log_file=work / f"{name}_log.jsonl", label=f"teacher, {name}"
        )
        save_file({name: p.detach().cpu().contiguous() for name, p in _learned(trained).items()}, work / f"{name}.partial")
        (work / f"{name}.partial").rename(done)
    module.load_state_dict(load_file(done), strict=False)


class _Batches:
    """Draws batches of the robot's and the web's rows, and judges what is answered to them."""

    def __init__(self, teacher: Rt2Teacher, frames: Frames, web: WebData | None, plans: list[str] | None, config: TeachConfig) -> None:
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
        batch = _Rows(
            inputs=inputs,
            state=state.to(self.device),
            prompts=[self.prompts[i] for i in used.tolist()],
            which=which.to(self.device),
            heard=_disturb(bins, self.is_binary, self.count, config.token_noise, generator).to(self.device),
            plans=self.plans[rows[robot - planned :]] if planned and self.plans is not None else None,
            answers=answers,
        )
        return self._judge(model(batch), batch, bins.to(self.device), self.waypoints[rows].to(self.device), pairs)

    def _judge(self, found: dict[str, Tensor], batch: _Rows, bins: Tensor, waypoints: Tensor, pairs: Tensor | None) -> dict[str, Tensor]:
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


def _plans(frames: Frames, spec: PolicySpec, planner: str) -> list[str]:
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


def _learned(module: _Training) -> dict[str, Tensor]:
    """Parameters that learn, and buffers, but for those of the frozen backbones."""
    learned = {name for name, p in module.named_parameters() if p.requires_grad}
    frozen = (".language.", ".features.") if module.teacher.config.pretrained else ()
    buffers = {name for name, _ in module.named_buffers() if not any(part in name for part in frozen)}
    return {name: value for name, value in module.state_dict().items() if name in learned | buffers}


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


EPILOG = """\
examples:
  actlet teach --data data/table --out checkpoints/teacher
  actlet teach --data data/more --start checkpoints/teacher --vision-steps 100 --steps 150 --out checkpoints/better
  actlet teach --data data/table --web easy-vqa --web-steps 600 --out checkpoints/cofined    co-fine-tuned with questions of the web
  actlet teach --data data/table --plan-share 0.5 --out checkpoints/planning                 says its plan before it acts
  actlet teach --data data/table --load nf4 --out checkpoints/qlora                          language model in 4 bits (QLoRA)
  actlet teach --data data/table --out checkpoints/quick --vision-steps 100 --steps 100      to see it run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb `teach`."""
    defaults = TeachConfig()
    parser.epilog = EPILOG
    parser.add_argument("--data", required=True, nargs="+", help="LeRobotDataset folders (v3.0 or v2.1)")
    parser.add_argument("--out", required=True, help="the checkpoint folder to make")
    parser.add_argument("--start", help="a teacher's checkpoint to go on from, 'shipped' or 'rt2-base' (default: none)")
    parser.add_argument(
        "--web",
        nargs="*",
        default=[],
        metavar="SET",
        help=f"questions about pictures to mix in: {', '.join(WEB_SETS)}, or NAME=FOLDER for those that are read from a folder (default: none)",
    )
    parser.add_argument(
        "--web-share", type=float, default=defaults.web_share, help="share of each batch that is the web's (default: %(default)s)"
    )
    parser.add_argument(
        "--web-steps",
        type=int,
        default=defaults.web_steps,
        help="updates on the web's questions alone, before all others (default: %(default)s)",
    )
    parser.add_argument(
        "--plan-share",
        type=float,
        default=defaults.plan_share,
        help="share of the robot's rows that say a plan first (default: %(default)s)",
    )
    parser.add_argument(
        "--load",
        choices=PRECISIONS,
        default=defaults.load,
        help="precision of the frozen language model; nf4: QLoRA (default: %(default)s)",
    )
    parser.add_argument(
        "--vocabulary",
        choices=VOCABULARIES,
        default=TeacherConfig().vocabulary,
        help="which tokens mean actions (default: %(default)s; with --start, as there)",
    )
    parser.add_argument("--from-scratch", action="store_true", help="without pretrained weights, for comparison")
    parser.add_argument(
        "--vision-steps", type=int, default=defaults.vision_steps, help="updates of the vision alone (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=defaults.steps, help="updates of the whole network (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size, help="frames per update (default: %(default)s)")
    parser.add_argument(
        "--learning-rate", type=float, default=defaults.learning_rate, help="peak, of the whole network (default: %(default)s)"
    )
    parser.add_argument(
        "--vision-learning-rate", type=float, default=defaults.vision_learning_rate, help="peak, of the vision alone (default: %(default)s)"
    )
    parser.add_argument(
        "--layers",
        type=int,
        default=TeacherConfig().layers,
        help="layers of the language model that are kept (default: %(default)s; with --start, as there)",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="random seed (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that exists")


def run(arguments: argparse.Namespace) -> int:
    """The verb `teach`."""
    from distill import teacher_folder

    config = TeachConfig(
        vision_steps=arguments.vision_steps,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        vision_learning_rate=arguments.vision_learning_rate,
        web=tuple(arguments.web),
        web_share=arguments.web_share,
        web_steps=arguments.web_steps,
        plan_share=arguments.plan_share,
        load=arguments.load,
        seed=arguments.seed,
        architecture=TeacherConfig(layers=arguments.layers, vocabulary=arguments.vocabulary, pretrained=not arguments.from_scratch),
    )
    start = teacher_folder(arguments.start) if arguments.start else None
    out = teach(arguments.data, arguments.out, config, start=start, overwrite=arguments.overwrite)
    print((out / "README.md").read_text(encoding="utf-8"))
    print(f"teacher written to {out}")
    return 0
