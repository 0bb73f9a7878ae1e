"""Recorded runs of a student as on-policy data, without a simulator: DAgger's states (Ross et al. 2011) from a real robot.

    robot ─ a student drives ─ recorded as a LeRobotDataset ─ the teacher says what would have been right ─ trained on beside demonstrations

What the student did there is nobody's example: its actions are executed history alone, every target is the teacher's, from its own mouth or
from a folder of labels. A rollout is taken only where it shows the same robot at the same rate, told in the demonstrations' words: any
sentence of them, since the teacher may know more sentences than were demonstrated, but no word beyond them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actlet.errors import DatasetError, SpecError
from actlet.protocols import Teacher
from actlet.specs import require_same, require_same_rate
from distill.frames import Frames
from distill.label_store import LabelStore, read_labels
from distill.labels import label_frames
from episodes.lerobot_dataset import LeRobotDataset, open_dataset

__all__ = ["driven_frames", "open_rollouts", "require_answers", "stores_by_dataset"]


def open_rollouts(folders: Sequence[str | Path], demonstrations: LeRobotDataset) -> list[LeRobotDataset]:
    """Open recordings of a student and compare them with the demonstrations. No frame is decoded.

    Raises:
        DatasetError: A folder cannot be used, is given twice, is the demonstrations themselves, or holds instructions in words that they do not.
        SpecError: Another robot, or another rate.
    """
    rollouts = [open_dataset(folder) for folder in folders]
    known = {episode.instruction for episode in demonstrations.episodes}
    words = dict.fromkeys(word for instruction in sorted(known) for word in _words(instruction))
    seen = {demonstrations.content_hash: demonstrations.path}
    for rollout in rollouts:
        require_same(
            demonstrations.observation_spec, rollout.observation_spec, what=f"observations of the demonstrations and {rollout.path}"
        )
        require_same(demonstrations.action_spec, rollout.action_spec, what=f"actions of the demonstrations and {rollout.path}")
        require_same_rate(demonstrations.rate_hz, rollout.rate_hz, what=f"the demonstrations and {rollout.path}")
        if rollout.content_hash in seen:
            raise DatasetError(
                f"{rollout.path} is the same data as {seen[rollout.content_hash]}: give recordings in which a student drove, each once, as rollouts."
            )
        seen[rollout.content_hash] = rollout.path
        told = [episode.instruction for episode in rollout.episodes if episode.instruction not in known]
        strange = [instruction for instruction in told if not _words(instruction) or set(_words(instruction)) - words.keys()]
        if strange:
            unknown = next((word for word in _words(strange[0]) if word not in words), "")
            close = difflib.get_close_matches(unknown, list(words), n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise DatasetError(
                f"{rollout.path}: the instructions of {len(strange)} episodes have words that no demonstration has, as {unknown!r} in "
                f"{strange[0]!r}.{hint} Known: {' '.join(words)}. Record what the student was really told, in the demonstrations' words, or add "
                "demonstrations with these."
            )
    return rollouts


def _words(instruction: str) -> list[str]:
    return re.findall(r"\w+", instruction.lower())


def stores_by_dataset(folders: str | Path | Sequence[str | Path] | None, datasets: Sequence[LeRobotDataset]) -> dict[str, LabelStore]:
    """Folders of labels, by the content hash of the dataset that each was made for.

    Raises:
        DatasetError: A folder holds no labels, or those of another dataset, or two hold those of one.
        SpecError: They are two teachers', or over different bins.
    """
    folders = [] if folders is None else [folders] if isinstance(folders, (str, Path)) else folders
    by_hash = {dataset.content_hash: dataset for dataset in reversed(datasets)}
    stores: dict[str, LabelStore] = {}
    for folder in folders:
        found = LabelStore.dataset_of(folder)
        store = LabelStore.open(folder, by_hash.get(found, datasets[0]))  # Says what differs where it is none of them.
        if found in stores:
            raise DatasetError(f"{folder} and {stores[found].folder} are labels of the same dataset: give one of them.")
        stores[found] = store
    for store in list(stores.values())[1:]:
        first = next(iter(stores.values()))
        if (store.identity.teacher, store.identity.tokenizer) != (first.identity.teacher, first.identity.tokenizer):
            raise SpecError(
                f"{store.folder}: labels of the teacher {store.identity.teacher[:12]}, expected those of {first.identity.teacher[:12]} as in "
                f"{first.folder}, over the same bins: one student learns from one teacher. Label again with the other one."
            )
    return stores


def require_answers(rollouts: Sequence[LeRobotDataset], stores: dict[str, LabelStore], teacher: Any) -> None:
    """Refuse recordings about which nobody can be asked.

    Raises:
        DatasetError: There is neither a teacher nor a folder of labels for one of them.
    """
    for rollout in rollouts:
        if teacher is None and rollout.content_hash not in stores:
            raise DatasetError(
                f"{rollout.path}: a student drove there, and without a teacher nobody knows what would have been right. Give --teacher, or --labels "
                f"of a teacher for it: actlet label --data {rollout.path} --out FOLDER"
            )


def driven_frames(rollouts: Sequence[LeRobotDataset], stores: dict[str, LabelStore], teacher: Teacher | None, folder: Path) -> list[Frames]:
    """Read recordings of a student, with the teacher's answer for every frame.

    Args:
        rollouts: What `open_rollouts` found.
        stores: What `stores_by_dataset` found; the teacher is not asked about these.
        teacher: Whom to ask about the others.
        folder: Where finished answers are kept.

    Returns:
        A table for each, `by_expert` False everywhere.
    """
    tables = []
    for number, rollout in enumerate(rollouts):
        names = [f"{rollout.path.name}, episode {row}" for row in range(len(rollout))]
        frames = Frames.from_episodes(rollout.read_all(), rollout.observation_spec, rollout.action_spec, by_expert=False, names=names)
        store = stores.get(rollout.content_hash)
        if store is not None:
            frames.distribution = read_labels(store.folder, rollout)
        else:
            assert teacher is not None
            frames.distribution = label_frames(teacher, frames, folder / str(number), label=f"teacher's answers, {rollout.path.name}")
        tables.append(frames)
    return tables
