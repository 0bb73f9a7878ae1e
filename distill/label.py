"""Ask a teacher about every frame of a dataset, with as many processes and machines as there are: the verb `label`.

A teacher is slow, and its answers do not change: they are worth asking for once. `accelerate launch` and `torchrun` start the processes;
process r of R first makes shards r, r + R, ... of the folder, then whatever the others lack, each in an order of its own, and leaves a
shard alone as soon as it is there. So runs that were started apart share the work too, and a process that dies costs its one shard, which
another process, or the next run, makes. `distill.label_store` says what a folder holds.

How many bins are kept was chosen on 60 episodes of the suite `tabletop` (1,276 frames) and the teacher that comes along, which learned from
labels 12 bins wide. What is read back against what the teacher said (8 dimensions; the expected value, in the 6 continuous ones):

    k                                                  16     32     64    128    256
    mass in the kept bins, mean, %                   56.2   77.8   94.6   99.4    100
    total variation distance, largest                0.52   0.40   0.26   0.09   1.5e-4
    shift of the expected value, mean, bins          20.1   11.3    3.6   0.38   3e-4
    bytes a frame (dense float16: 4096)               244    400    705   1240   1646

The tail is spread over all other bins, so it pulls the expected value to the middle of the range: with k = 32 by 11 bins, which is another
motion. 128 is the least of these that keeps the motion (95 % of the shifts are below 2.2 bins). A teacher with narrower peaks is well
served by fewer; k = K loses nothing, for a third more bytes than 128.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import time
from pathlib import Path

import numpy as np
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from tqdm.auto import tqdm

from actlet.action_tokens import ActionTokenizer
from actlet.errors import DatasetError, SpecError
from actlet.protocols import Observation, Teacher
from actlet.specs import require_same, require_same_rate
from distill import SHIPPED, teacher_folder
from distill.label_store import LabelIdentity, LabelStore, Shard
from distill.processes import processes
from distill.same_ranges import require_same_ranges
from distill.sampled_teacher import SampledTeacher
from distill.teachers import teacher_for
from episodes.lerobot_dataset import LeRobotDataset, open_dataset

__all__ = ["LabelConfig", "LabelReport", "add_arguments", "label", "run"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """What is kept of an answer, and in which pieces the work is done."""

    top_k: int = 128
    """k, the bins of K whose probability is kept: see the module. With k = K nothing is lost but float16's rounding."""
    shard_frames: int = 512
    """Frames at which a shard is full: what a process that is killed loses at most, but for the shard's last episode."""
    batch_size: int = 32
    """Frames per question."""
    cut_off_share: float = 0.05
    """Largest share of a dimension's actions that may lie outside the teacher's bins, 1 for any ranges; see `distill.same_ranges`."""
    samples: int = 0
    """Actions that are drawn for a frame from a teacher that gives samples (`distill.sampled_teacher`), binned in the dataset's own ranges; 0 for
    one that gives distributions."""

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise SpecError(f"samples {self.samples}: expected 0, or at least 2.")
        if min(self.top_k, self.shard_frames, self.batch_size) < 1:
            raise SpecError(
                f"top_k {self.top_k}, shard_frames {self.shard_frames}, batch_size {self.batch_size}: expected at least 1 of each."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelReport:
    """What a run did, as its first process saw it."""

    path: Path
    frames: int
    """N, all of which are labelled now."""
    shards: int
    found: int
    """Frames that were labelled before."""
    size_bytes: int
    """Of all shards."""
    seconds: float
    """Of the labelling alone."""
    processes: int

    def __str__(self) -> str:
        made = self.frames - self.found
        rate = made / self.seconds if self.seconds > 0 else 0.0
        return (
            f"{self.path}: {self.frames} frames in {self.shards} shards, {self.size_bytes / self.frames:.0f} bytes a frame; "
            f"{self.found} were there, {made} labelled in {self.seconds:.1f} s ({rate:.1f} frames/s, {self.processes} processes)."
        )


def label(data: str | Path, teacher: str | Path, out: str | Path, config: LabelConfig | None = None) -> LabelReport:
    """Label what is missing in a folder, together with all processes that were launched for it. All return when nothing is missing.

    Args:
        data: A LeRobotDataset folder.
        teacher: A teacher's checkpoint folder, or the URL of a server; with `config.samples` the URL of a policy's server or its file.
        out: The folder of labels, new or begun before with the same arguments.
        config: How.

    Raises:
        DatasetError: The dataset cannot be used.
        CheckpointError: The teacher cannot be loaded, or its answers are no distributions.
        SpecError: Teacher and dataset do not fit, in their ranges or otherwise, or the folder was begun for other labels.
        StorageError: The disk is full, or the folder cannot be written.
    """
    config, state = config or LabelConfig(), processes()
    dataset = open_dataset(data)
    asked = teacher_for(teacher, dataset, config.samples)
    require_same(asked.spec.observation, dataset.observation_spec, what="observations of teacher and dataset")
    require_same(asked.spec.action, dataset.action_spec, what="actions of teacher and dataset")
    require_same_rate(asked.spec.timing.rate_hz, dataset.rate_hz, what="teacher and dataset")
    states, actions = dataset.read_vectors()
    if config.samples:
        asked = SampledTeacher(asked, ActionTokenizer.fit(actions, dataset.action_spec), config.samples)
    require_same_ranges(states, actions, asked, dataset, asked.tokenizer, cut_off_share=config.cut_off_share)
    [content_hash] = broadcast_object_list([dataset.content_hash if state.is_main_process else None])  # It reads the whole dataset.
    identity = LabelIdentity(
        teacher=asked.content_hash,
        dataset=content_hash,
        spec=asked.spec,
        tokenizer=asked.tokenizer,
        top_k=config.top_k,
        shard_frames=config.shard_frames,
        samples=config.samples,
    )
    store = LabelStore.create(Path(out), identity, dataset)
    own = set(store.shards[state.process_index :: state.num_processes])
    _remove_damaged(store, own)
    state.wait_for_everyone()
    started, frames, lacking = time.monotonic(), sum(map(len, store.shards)), sum(map(len, store.missing()))
    with tqdm(
        total=frames, initial=frames - lacking, desc="teacher's answers", unit="frame", mininterval=2.0, disable=not state.is_main_process
    ) as progress:
        order = random.Random()
        while missing := store.missing():
            mine = [shard for shard in missing if shard in own]
            others = [shard for shard in missing if shard not in own]
            for shard in order.sample(mine, len(mine)) + order.sample(others, len(others)):
                answers = _ask(asked, dataset, shard, config.batch_size, progress)
                if answers is not None:
                    store.write(shard, answers)
                progress.update(frames - sum(map(len, store.missing())) - progress.n)  # What other processes made counts too.
    return LabelReport(
        path=store.folder,
        frames=frames,
        shards=len(store.shards),
        found=frames - lacking,
        size_bytes=sum(shard.file.stat().st_size for shard in store.shards),
        seconds=time.monotonic() - started,
        processes=state.num_processes,
    )


def _remove_damaged(store: LabelStore, shards: set[Shard]) -> None:
    """Read what is there; what is not whole goes, and is made anew."""
    for shard in shards.difference(store.missing()):
        try:
            store.read(shard)
        except DatasetError as error:
            print(error, file=sys.stderr)
            shard.file.unlink(missing_ok=True)


def _ask(teacher: Teacher, dataset: LeRobotDataset, shard: Shard, batch_size: int, progress: tqdm) -> NDArray[np.float32] | None:
    """float32 (T, A, K), the teacher's answers for a shard's frames; None where somebody else has made the shard meanwhile."""
    if shard.file.is_file():
        return None
    observations, instructions, answers = [], [], []
    for episode in dataset.iterate(shard.episodes):
        observations += [
            Observation({name: images[t] for name, images in episode.images.items()}, episode.state[t]) for t in range(len(episode))
        ]
        instructions += [episode.instruction] * len(episode)
    for start in range(0, len(observations), batch_size):
        if shard.file.is_file():
            return None
        answers.append(teacher.action_distribution(observations[start : start + batch_size], instructions[start : start + batch_size]))
        progress.update(len(answers[-1]))
    return np.concatenate(answers)


EPILOG = """\
Any number of processes share the work, also several runs at once on one folder. After Ctrl-C, or when a process died, the same command
labels what is missing.

examples:
  actlet label --data data/table --out labels/table                          with the teacher that comes along
  torchrun --nproc_per_node 2 -m distill.label --data data/table --out labels/table
  accelerate launch --multi_gpu --num_processes 2 -m distill.label --data data/table --out labels/table    on processors
  actlet label --data data/table --teacher checkpoints/teacher --top-k 256 --out labels/exact      another teacher, nothing left out
  actlet label --data data/table --teacher ws://10.0.0.2:8000 --samples 8 --out labels/flow        a policy that gives samples
  actlet distill --data data/table --labels labels/table --out checkpoints/student
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb `label`."""
    defaults = LabelConfig()
    parser.epilog = EPILOG
    parser.add_argument("--data", required=True, help="a LeRobotDataset folder (v3.0 or v2.1)")
    parser.add_argument(
        "--teacher", default=SHIPPED, help="a teacher's folder, or the ws:// of a server (default: %(default)s, which comes along)"
    )
    parser.add_argument("--out", required=True, help="the folder of labels, new or begun before")
    parser.add_argument("--top-k", type=int, default=defaults.top_k, help="bins whose probability is kept, of 256 (default: %(default)s)")
    parser.add_argument(
        "--shard-frames", type=int, default=defaults.shard_frames, help="frames at which a file is full (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size, help="frames per question (default: %(default)s)")
    parser.add_argument(
        "--cut-off-share",
        type=float,
        default=defaults.cut_off_share,
        help="share of a dimension's actions that may lie outside the teacher's bins, 1 for any ranges (default: %(default)s)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=defaults.samples,
        help="actions drawn for a frame, for a policy that samples, such as a flow (default: off)",
    )


def run(arguments: argparse.Namespace) -> int:
    """The verb `label`."""
    teacher = teacher_folder(arguments.teacher)
    config = LabelConfig(
        top_k=arguments.top_k,
        shard_frames=arguments.shard_frames,
        batch_size=arguments.batch_size,
        cut_off_share=arguments.cut_off_share,
        samples=arguments.samples,
    )
    state = processes()
    report = label(arguments.data, teacher, arguments.out, config)
    if state.is_main_process:
        print(report)
    state.destroy_process_group()
    return 0


if __name__ == "__main__":
    from actlet.command_line import main

    sys.exit(main(["label", *sys.argv[1:]]))
