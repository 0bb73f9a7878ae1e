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
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actlet import __version__
from actlet.action_tokens import ActionTokenizer
from actlet.errors import CallerError, SpecError
from actlet.specs import PolicySpec, TimingSpec, require_same, require_same_rate
from actlet.storage import new_folder, write_bytes
from distill.backbones import PRECISIONS
from distill.fit import FitConfig, fit, work_folder
from distill.frames import Frames
from distill.model_card import teacher_card
from distill.processes import processes
from distill.rt2_teacher import Rt2Teacher
from distill.teacher_batches import Batches, Training, plan_every_frame
from distill.teacher_checkpoint import load_teacher, save_teacher
from distill.teacher_config import QUESTION, VOCABULARIES, TeacherConfig
from distill.web_data import WEB_SETS, WebData, accuracy, held_out_questions, load_web_data
from distill.web_pictures import FOLDER_SETS

__all__ = ["PLANNER", "TeachConfig", "add_arguments", "run", "teach"]

PLANNER = "episodes.tabletop_plans:plans"
HELD_OUT_QUESTIONS = 400


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
    """Sets of `distill.web_data.load_web_data`, as "easy-vqa" or "emoji=FOLDER"; without any, training is on the robot's data alone."""
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
        CallerError: It was started in several processes.
        SpecError: The datasets, or `start` and they, differ in what is seen or commanded, or in their rate.
        StorageError: `out` exists, or cannot be written.
    """
    from episodes.lerobot_dataset import open_dataset

    datasets = [open_dataset(folder) for folder in ([data] if isinstance(data, str | Path) else data)]
    first = datasets[0]
    for other in datasets[1:]:
        require_same(first.observation_spec, other.observation_spec, what=f"observations of {first.path} and {other.path}")
        require_same(first.action_spec, other.action_spec, what=f"actions of {first.path} and {other.path}")
        require_same_rate(first.rate_hz, other.rate_hz, what=f"{first.path} and {other.path}")
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
    launched = int(os.environ.get("WORLD_SIZE", "1"))  # Of torchrun and Accelerate; asked before they could begin to wait for each other.
    if launched > 1:
        raise CallerError(
            f"a teacher is trained in one process, and this is one of {launched}: start it without a launcher, on one GPU or none."
        )
    torch.manual_seed(config.seed)
    started = time.time()
    first = spec.observation.cameras[0]
    web = load_web_data(config.web, height=first.height, width=first.width, seed=config.seed) if config.web else None
    plans = plan_every_frame(frames, spec, config.planner) if config.plan_share else None
    device = processes().device
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
        require_same_rate(teacher.spec.timing.rate_hz, spec.timing.rate_hz, what=f"{start} and the datasets")
        lineage = {**lineage, "start": teacher.content_hash}
        config = dataclasses.replace(config, architecture=teacher.config)
    web = web and _sayable(web, teacher)
    batches = Batches(teacher, frames, web, plans, config)
    frames.images.clear()  # The maps are all that is seen from here on.
    module = Training(teacher, len(batches.answer_names)).to(memory_format=torch.channels_last)  # a fifth faster on a processor
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
            schedule = FitConfig(steps=steps, batch_size=config.batch_size, learning_rate=rate, seed=config.seed, bf16=False)
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
            bf16=False,  # Its gradients were not finite in bfloat16.
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


def _sayable(web: WebData, teacher: Rt2Teacher) -> WebData:
    """Without the answers that a teacher cannot say: made without them, as one to start from is, it may use their words as actions."""
    lost = []
    for answer in sorted(set(web.answers)):
        try:
            teacher.words([answer])
        except SpecError:
            lost.append(answer)
    if lost:
        print(f"web: questions are left out whose answers' words mean actions to this teacher: {', '.join(lost)}", file=sys.stderr)
    return web.without(lost)


def _stage(module: Training, losses: Callable[..., dict[str, Tensor]], config: FitConfig, work: Path, name: str) -> None:
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


def _learned(module: Training) -> dict[str, Tensor]:
    """Parameters that learn, and buffers, but for those of the frozen backbones."""
    learned = {name for name, p in module.named_parameters() if p.requires_grad}
    frozen = (".language.", ".features.") if module.teacher.config.pretrained else ()
    buffers = {name for name, _ in module.named_buffers() if not any(part in name for part in frozen)}
    return {name: value for name, value in module.state_dict().items() if name in learned | buffers}


EPILOG = """\
examples:
  actlet teach --data data/table --out checkpoints/teacher
  actlet teach --data data/more --start checkpoints/teacher --vision-steps 100 --steps 150 --out checkpoints/better
  actlet teach --data data/table --web easy-vqa --web-steps 600 --out checkpoints/cofined    co-fine-tuned with questions of the web
  actlet teach --data data/table --web easy-vqa emoji=node_modules/emoji-datasource-google --out checkpoints/named
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
    parser.add_argument("--start", help="a teacher's checkpoint to go on from, or 'rt2-base' (default: none)")
    parser.add_argument(
        "--web",
        nargs="*",
        default=[],
        metavar="SET",
        help="questions about pictures to mix in: "
        + ", ".join([*WEB_SETS, *(f"{name}=FOLDER" for name in FOLDER_SETS)])
        + "; how to fetch the folders: docs/web-data.md (default: none)",
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
