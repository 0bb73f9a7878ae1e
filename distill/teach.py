"""Training the RT-2-style teacher; the verb `teach`.

Two stages. First the vision alone learns to see what the instruction asks for, with a small head of its own that is
thrown away (a step costs a quarter of the whole network's). Then everything trains together: the language model reads the
scene tokens and answers with action tokens, the small head keeps the vision honest.

The frozen early vision is computed once per frame and kept in float16: about 70 kB per 128-pixel frame.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from actlet import __version__
from actlet.action_tokens import ActionTokenizer
from actlet.errors import SpecError
from actlet.specs import PolicySpec, TimingSpec, require_same
from actlet.storage import new_folder, write_bytes
from distill.fit import FitConfig, fit, work_folder
from distill.frames import Frames
from distill.losses import gaussian_labels, token_cross_entropy
from distill.model_card import teacher_card
from distill.rt2_teacher import Rt2Teacher, TeacherConfig, load_teacher, save_teacher
from distill.student import ordinal_embedding

__all__ = ["TeachConfig", "add_arguments", "run", "teach"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """How the teacher is trained."""

    vision_steps: int = 1000
    """Updates of the first stage."""
    steps: int = 400
    """Updates of the second stage."""
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
    """Weight of the vision's own head in the second stage."""
    seed: int = 0
    architecture: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.undecided_share <= 1:
            raise SpecError(f"undecided_share {self.undecided_share}: expected 0 .. 1.")


class _Training(nn.Module):
    """The teacher and the head that only training sees."""

    def __init__(self, teacher: Rt2Teacher, rank: int = 32) -> None:
        super().__init__()
        self.teacher = teacher
        dim, features = teacher.spec.action.dim, teacher.config.features
        self.queries = nn.Linear(features, dim * rank)
        self.bins = nn.Parameter(ordinal_embedding(teacher.tokenizer.bins, rank).repeat(dim, 1, 1))
        self.waypoints = nn.Linear(features, 2 * teacher.spec.observation.state_dim)
        self.language_on = False

    def forward(
        self, maps: list[tuple[Tensor, Tensor]], state: Tensor, instructions: list[str], which: Tensor, tokens: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        teacher = self.teacher
        logits = None
        if self.language_on:
            logits, scene = teacher(maps, state, instructions, which, tokens)
        else:
            scene = teacher.see(maps, state, teacher.condition(teacher.texts(instructions))[which])
        queries = self.queries(scene).unflatten(1, (self.bins.shape[0], -1))  # (B, A, R)
        direct = torch.einsum("bar,akr->bak", queries, self.bins)  # (B, A, K)
        return logits, direct, self.waypoints(scene).unflatten(1, (2, -1))


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
    if start is None:
        teacher = Rt2Teacher(
            spec,
            ActionTokenizer.fit(frames.action, spec.action),
            config=config.architecture,
            corpus=sorted(set(frames.instructions)),
            state_mean=frames.state.mean(0),
            state_std=frames.state.std(0) + 1e-3,
        )
    else:
        teacher = load_teacher(start, trainable=True)
        require_same(teacher.spec.observation, spec.observation, what=f"observations of {start} and the datasets")
        require_same(teacher.spec.action, spec.action, what=f"actions of {start} and the datasets")
        lineage = {**lineage, "start": teacher.content_hash}
        config = dataclasses.replace(config, architecture=teacher.config)
    tokenizer = teacher.tokenizer
    maps = {camera.name: _frozen_maps(teacher, frames.images[camera.name], camera.name) for camera in spec.observation.cameras}
    frames.images.clear()  # The maps are all that is seen from here on.
    module = _Training(teacher).to(memory_format=torch.channels_last)  # a fifth faster on a processor
    bins = torch.from_numpy(tokenizer.encode(frames.action))
    is_binary = torch.from_numpy(spec.action.is_binary)
    state = torch.from_numpy(frames.state)
    state_std = state.std(0)
    waypoints = torch.from_numpy(frames.waypoints / (frames.waypoints.std(axis=(0, 1)) + 1e-3))
    unique = list(dict.fromkeys(frames.instructions))
    instruction_of = torch.tensor([unique.index(text) for text in frames.instructions])[torch.from_numpy(frames.episode)]

    def loss_of_batch(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        rows = frames.draw(config.batch_size, config.undecided_share, generator)
        used, which = torch.unique(instruction_of[rows], return_inverse=True)
        inputs = [(fine[rows].float(), coarse[rows].float()) for fine, coarse in maps.values()]
        heard = _disturb(bins[rows], is_binary, tokenizer.bins, config.token_noise, generator)
        noise = config.state_noise * state_std * torch.randn(len(rows), len(state_std), generator=generator)
        logits, direct, way = model(inputs, state[rows] + noise, [unique[i] for i in used.tolist()], which, heard)
        target = gaussian_labels(bins[rows], is_binary, count=tokenizer.bins, sigma=config.sigma)
        losses = {"vision": token_cross_entropy(direct, target), "waypoint": nn.functional.smooth_l1_loss(way, waypoints[rows])}
        auxiliary = losses["vision"] + config.waypoint_weight * losses["waypoint"]
        if logits is None:
            return {"loss": auxiliary, **losses}
        losses["tokens"] = token_cross_entropy(logits, target)
        return {"loss": losses["tokens"] + config.auxiliary_weight * auxiliary, **losses}

    work = work_folder(out, {**lineage, "config": dataclasses.asdict(config), "actlet": __version__})
    log = work / "train_log.jsonl"
    seen = work / "vision.safetensors"
    from safetensors.torch import load_file, save_file

    if config.vision_steps and not seen.is_file():
        vision_fit = FitConfig(
            steps=config.vision_steps, batch_size=config.batch_size, learning_rate=config.vision_learning_rate, seed=config.seed
        )
        trained = fit(
            module,
            loss_of_batch,
            vision_fit,
            state_folder=work / "state-vision",
            log_file=work / "vision_log.jsonl",
            label="teacher, vision",
        )
        save_file({name: p.detach().contiguous() for name, p in _learned(trained).items()}, work / "vision.partial")
        (work / "vision.partial").rename(seen)
    if config.vision_steps:
        module.load_state_dict(load_file(seen), strict=False)
    module.language_on = True
    whole_fit = FitConfig(
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        average_decay=0.99,
        seed=config.seed + 1,
        save_seconds=120.0,
    )
    trained = fit(module, loss_of_batch, whole_fit, state_folder=work / "state", log_file=log, label="teacher, whole")
    lineage = {**lineage, "actlet": __version__, "training": dataclasses.asdict(config), "hours": round((time.time() - started) / 3600, 2)}
    with new_folder(out, overwrite=overwrite) as partial:
        save_teacher(trained.teacher, partial, lineage=lineage)
        shutil.copy(log, partial / "train_log.jsonl")
        write_bytes(partial / "README.md", teacher_card(trained.teacher, lineage).encode())
    shutil.rmtree(work, ignore_errors=True)
    return out


def _disturb(bins: Tensor, is_binary: Tensor, count: int, noise: float, generator: torch.Generator) -> Tensor:
    """int64 (B, A) -> the same with noise."""
    if noise <= 0:
        return bins
    moved = (bins + noise * torch.randn(bins.shape, generator=generator)).round().long().clamp(0, count - 1)
    flipped = torch.where(torch.rand(bins.shape, generator=generator) < 0.05, count - 1 - bins, bins)
    return torch.where(is_binary, flipped, moved)


def _learned(module: nn.Module) -> dict[str, Tensor]:
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen and ".features." not in name}


def _frozen_maps(teacher: Rt2Teacher, images: np.ndarray, name: str) -> tuple[Tensor, Tensor]:
    fine, coarse = [], []
    for start in tqdm(range(0, len(images), 64), desc=f"frozen vision, {name}", unit="batch"):
        a, b = teacher.features(torch.from_numpy(images[start : start + 64]))
        fine.append(a.half())
        coarse.append(b.half())
    return torch.cat(fine), torch.cat(coarse)


EPILOG = """\
examples:
  actlet teach --data data/table --out checkpoints/teacher
  actlet teach --data data/more --start checkpoints/teacher --vision-steps 100 --steps 150 --out checkpoints/better
  actlet teach --data data/table --out checkpoints/quick --vision-steps 100 --steps 100      to see it run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb `teach`."""
    defaults = TeachConfig()
    parser.epilog = EPILOG
    parser.add_argument("--data", required=True, nargs="+", help="LeRobotDataset folders (v3.0 or v2.1)")
    parser.add_argument("--out", required=True, help="the checkpoint folder to make")
    parser.add_argument("--start", help="a teacher's checkpoint to go on from, or 'shipped' (default: none)")
    parser.add_argument(
        "--vision-steps", type=int, default=defaults.vision_steps, help="updates of the vision alone (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=defaults.steps, help="updates of the whole network (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size, help="frames per update (default: %(default)s)")
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
    from distill import shipped_teacher

    config = TeachConfig(
        vision_steps=arguments.vision_steps,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        architecture=TeacherConfig(layers=arguments.layers),
    )
    start = shipped_teacher() if arguments.start == "shipped" else arguments.start
    out = teach(arguments.data, arguments.out, config, start=start, overwrite=arguments.overwrite)
    print((out / "README.md").read_text(encoding="utf-8"))
    print(f"teacher written to {out}")
    return 0
