"""Training a student on demonstrations and on a teacher's answers. The verb is in `distill.train_command`.

    new scenes ─ what the teacher sees there ─┐
    demonstrations ─ teacher's distributions ─┼─ fit ─ student ─ drives in simulation ─ teacher labels what it saw ─┐
                    expert's actions ─────────┘    ▲                                                                │
                                                   └──────────────── on-policy round (DAgger, Ross et al. 2011) ────┘

What the teacher says about the demonstrations can be asked for beforehand, by many processes (`distill.label`). Without a teacher
it is behaviour cloning; without a suite there are neither on-policy rounds nor new scenes (`distill.scenes`).
On a recorded dataset some episodes are held out, and the error on them is reported against two baselines (`distill.held_out`).

What a batch is made of: `distill.student_batches`. How it is cut short when the student gets no better: `distill.judge`.

Under a launcher (`distill.processes`) all processes train, each on its share of every batch. Everything else is the main process's: it asks
the teacher, drives and writes while the others wait, and they read what it wrote. So a teacher is better asked beforehand, by all of them.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from actlet import __version__
from actlet.action_tokens import ActionTokenizer
from actlet.errors import SpecError, StorageError
from actlet.protocols import SamplingTeacher, Teacher
from actlet.specs import PolicySpec, TimingSpec, require_same, require_same_rate
from actlet.storage import new_folder, write_bytes
from distill.driving import on_policy_episodes, on_policy_seeds, successes, write_checkpoint
from distill.fake_quantize import FakeQuantizer
from distill.fit import FitConfig, fit, work_folder
from distill.frames import Frames
from distill.held_out import held_out_error
from distill.judge import Judge
from distill.label_store import LabelStore, read_labels
from distill.labels import label_frames
from distill.model_card import student_card
from distill.processes import processes
from distill.rollouts import driven_frames, open_rollouts, require_answers, stores_by_dataset
from distill.same_ranges import require_same_ranges
from distill.sampled_teacher import SampledTeacher
from distill.scenes import Scenes, SeeingTeacher, look_at_episodes, look_at_scenes
from distill.spent import Spent
from distill.student import Student, StudentPolicy
from distill.student_batches import StudentBatches, StudentInTraining
from distill.student_sizes import size_name
from distill.teachers import teacher_for
from distill.text_encoder import load_text_encoder
from distill.train_config import TrainConfig
from distill.train_log import require_tensorboard
from episodes.episode import Episode
from episodes.lerobot_dataset import LeRobotDataset, open_dataset
from episodes.seeds import TRAIN_SEED_START, TUNING_SEED_START
from episodes.split import split_episodes

__all__ = ["TrainConfig", "distill", "student_spec"]

SAMPLES = 16
_SCENE_SEED_START = TRAIN_SEED_START + 600_000  # training seeds that neither collection nor driving reaches


def distill(
    data: str | Path,
    out: str | Path,
    *,
    teacher: str | Path | Teacher | SamplingTeacher | None = None,
    suite: str | None = None,
    labels: str | Path | Sequence[str | Path] | None = None,
    rollouts: Sequence[str | Path] = (),
    config: TrainConfig | None = None,
    overwrite: bool = False,
    tensorboard: str | Path | None = None,
) -> Path:
    """Train a student and write its checkpoint. A run that was cut off goes on when called again with the same arguments.

    Args:
        data: A LeRobotDataset folder.
        out: The checkpoint folder to make.
        teacher: A teacher's checkpoint folder, the URL of a server that serves one, the teacher itself, or None for behaviour cloning. With
            `config.samples` a policy whose answers are drawn: its URL, its file, or itself (`distill.sampled_teacher`). Through a server there
            are its distributions, but no new scenes, since what a teacher sees inside does not travel; a line on standard error says so.
        suite: The simulated suite for on-policy rounds and new scenes, which may be another one of the same robot than the dataset was recorded
            in, or None for recorded data, where episodes are held out instead.
        labels: A folder that `distill.label` wrote for `data`: the demonstrations' labels are read from it, and the teacher is asked
            about what the student reached and about new scenes alone. Without a teacher they are all that is asked of one.
            Several folders, where `rollouts` are labelled, too: each finds its dataset by itself.
        rollouts: LeRobotDataset folders of runs that a student drove, as recorded on the robot: see `distill.rollouts`.
        config: How.
        overwrite: Replace a checkpoint that exists.
        tensorboard: A folder for TensorBoard's files, one of each round, or None.

    Returns:
        `out`.

    Raises:
        DatasetError: The dataset or a rollout cannot be used, its labels are incomplete or for another dataset, or nobody can be asked about
            a rollout.
        CheckpointError: The teacher cannot be loaded.
        RemoteError: The server does not answer; what has been labelled is kept.
        SpecError: Teacher and dataset do not fit, in their ranges (`distill.same_ranges`) or otherwise, the labels are another teacher's, there are fewer updates than rounds, a batch cannot be
            shared out among the processes, there is patience without a suite, or bfloat16 that this machine has no arithmetic for.
        TrainingError: A loss, a gradient or the weights are not finite.
        MissingLibraryError: `tensorboard` is not installed, and asked for.
        StorageError: `out` exists, or cannot be written.
    """
    config, out, here = config or TrainConfig(), Path(out), processes()
    precision = FitConfig(steps=1, bf16=config.bf16).precision  # Refused before hours of labels, not after them.
    if tensorboard is not None:
        require_tensorboard()
    if out.exists() and not overwrite:
        raise StorageError(f"{out} exists already: choose another name, remove it, or pass --overwrite.")
    if config.patience is not None and not suite:
        raise SpecError(
            f"patience {config.patience} without a suite: success is judged in simulation. Name a suite, or leave patience out."
        )
    if config.batch_size % here.num_processes:
        raise SpecError(
            f"a batch of {config.batch_size} cannot be shared out among {here.num_processes} processes: make it a multiple of that."
        )
    rounds = config.rounds if teacher is not None and suite else 1
    if config.steps < rounds:
        raise SpecError(f"{config.steps} updates cannot be shared out among {rounds} rounds: give at least one to each, or fewer rounds.")
    dataset = open_dataset(data)
    driven = open_rollouts(rollouts, dataset)
    asked = teacher_for(teacher, dataset, config.samples) if teacher else None
    if suite and config.scenes and asked is not None and not isinstance(asked, SeeingTeacher):
        print(f"{teacher}: gives distributions alone; the student is trained without the {config.scenes} new scenes.", file=sys.stderr)
    stores = stores_by_dataset(labels, [dataset, *driven])
    store, any_store = stores.get(dataset.content_hash), next(iter(stores.values()), None)
    require_answers(driven, stores, asked)
    arguments = {
        "data": dataset.content_hash,
        "teacher": asked.content_hash if asked is not None else None,
        "suite": suite,
        "labels": [store.identity.document() for store in stores.values()],
        "rollouts": [rollout.content_hash for rollout in driven],
        "config": dataclasses.asdict(config),
        "actlet": __version__,
    }
    train_rows, held_rows = (list(range(len(dataset))), []) if suite else split_episodes(dataset, config.held_out_fraction, config.seed)
    observation, action = dataset.observation_spec, dataset.action_spec
    if asked is not None:
        require_same(asked.spec.observation, observation, what="observations of teacher and dataset")
        require_same(asked.spec.action, action, what="actions of teacher and dataset")
        require_same_rate(asked.spec.timing.rate_hz, dataset.rate_hz, what="teacher and dataset")
    count = max(1, round(config.labelled_share * len(train_rows)))
    labelled = sorted(np.random.default_rng(config.seed).permutation(len(train_rows))[:count].tolist())
    states, actions = dataset.read_vectors(train_rows)
    tokenizer, taught_by = ActionTokenizer.fit(actions, action), None
    if config.samples and asked is not None:
        bins = any_store.identity.tokenizer if any_store is not None else tokenizer  # All answers in the same ones.
        asked = SampledTeacher(asked, bins, config.samples, "mean" if config.target == "regression" else "binned")
    if any_store is not None:
        _require_labels_of(asked, any_store)
        tokenizer, taught_by = any_store.identity.tokenizer, any_store.identity.teacher
    elif asked is not None:
        tokenizer, taught_by = asked.tokenizer, asked.content_hash  # the teacher's bins are the ones that its distributions are over
    if taught_by is not None:
        require_same_ranges(states, actions, asked, dataset, tokenizer, cut_off_share=config.cut_off_share)
        for rollout in driven:
            require_same_ranges(*rollout.read_vectors(), asked, rollout, tokenizer, cut_off_share=config.cut_off_share)
    if store is not None:
        stored = read_labels(store.folder, dataset, [train_rows[row] for row in labelled])
    with here.main_process_first():
        work = work_folder(out, arguments)
    spent = Spent(work, here.process_index)
    episodes = dataset.read_all(train_rows, progress=here.is_main_process)
    frames = Frames.from_episodes(episodes, observation, action, names=[f"episode {row}" for row in train_rows])
    spec = student_spec(dataset, config)
    if store is not None:
        frames.distribution = _answers_in_place(stored, frames, labelled)
    elif asked is not None:
        with here.main_process_first():
            frames.distribution = label_frames(asked, frames, work / "labels", episodes=labelled)
    torch.manual_seed(config.seed)
    texts = load_text_encoder().encode(sorted(set(frames.instructions)))
    student = Student(
        spec,
        tokenizer,
        config.architecture,
        state_mean=frames.state.mean(0),
        state_std=frames.state.std(0) + 1e-3,
        instruction_mean=texts.mean(0),
        instruction_std=texts.std(0),
    )
    scenes = None
    if isinstance(asked, SeeingTeacher) and suite and config.scenes:
        seeds = range(_SCENE_SEED_START, _SCENE_SEED_START + config.scenes)
        recorded_in = dataset.provenance.get("suite_name", suite)  # A seed may lay another scene in `suite`, with other sentences.
        with here.main_process_first():
            scenes = look_at_scenes(asked, suite, seeds, work / "scenes")
            scenes = _with_glances(scenes, asked, recorded_in, config, episodes, work / "glances")
    del episodes  # The pictures are in `frames`.
    spent.note()
    rounding = None
    if config.quantize_aware is not None:
        rounding = FakeQuantizer(student, config.quantize_aware, begin=int(config.quantize_aware_from * (config.steps // rounds) * rounds))
    module = StudentInTraining(student, scenes.features.shape[1] if scenes is not None else 0, rounding)
    module = module.to(memory_format=torch.channels_last)  # a fifth faster on a processor
    demonstrated_mean = frames.action.mean(0)
    if driven:
        if frames.distribution is None:  # Labels for the rollouts alone: about the demonstrations nobody was asked.
            frames.distribution = np.zeros((*frames.action.shape, tokenizer.bins), np.float16)
        with here.main_process_first():
            reached_before = driven_frames(driven, stores, asked, work / "rollouts")
        frames = Frames.concatenate([frames, *reached_before])
    judge, drove = None, []
    for number in range(rounds):
        if number > 0:
            folder = work / f"round-{number}"
            with here.main_process_first():
                visited = on_policy_episodes(module.student, suite, config, folder, number)
                drove.append({"successes": sum(episode.success for episode in visited), "episodes": len(visited)})
                names = [f"on-policy episode {i} of round {number}, seed {episode.seed}" for i, episode in enumerate(visited)]
                reached = Frames.from_episodes(visited, observation, action, by_expert=False, names=names)
                reached.distribution = label_frames(asked, reached, folder / "labels", label="teacher's answers, on-policy")
                if scenes is not None:
                    scenes = _with_glances(scenes, asked, suite, config, visited, folder / "glances")
            frames = Frames.concatenate([frames, reached])
        batches = StudentBatches(module.student, frames, scenes, config, device=here.device, part=(here.process_index, here.num_processes))
        settings = FitConfig(
            steps=config.steps // rounds,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            bf16=config.bf16,
            seed=config.seed * 100 + number,
        )
        if config.patience is not None:
            judge = Judge(
                work,
                number,
                steps=settings.steps,
                every=config.judge_every,
                patience=config.patience,
                drive=functools.partial(successes, suite=suite, episodes=config.judge_episodes, folder=work / "judged"),
                state=here,
            )
        fitted = fit(
            module,
            batches.losses,
            settings,
            state_folder=work / f"state-{number}",
            log_file=work / f"log-{number}.jsonl",
            label=f"student, round {number + 1} of {rounds}" if rounds > 1 else "student",
            parameter_groups=module.parameter_groups(config.muon_scale),
            blame=batches.blame,
            judge=judge,
            on_save=spent.note,
            tensorboard=Path(tensorboard) / f"round-{number + 1}" if tensorboard is not None else None,
        )
        assert isinstance(fitted, StudentInTraining)
        module = fitted.to("cpu")  # It drives and is written from there.
        if judge is not None:
            judge.restore(module)
    spent.note()
    here.wait_for_everyone()
    if here.is_main_process:
        lineage: dict[str, Any] = {
            "dataset": dataset.content_hash,
            "dataset_episodes": len(train_rows),
            "teacher": taught_by,
            "labels_top_k": store.identity.top_k if store is not None else None,
            "samples": asked.count if isinstance(asked, SampledTeacher) else 0,
            "rollouts": [rollout.content_hash for rollout in driven],
            "suite": suite,
            "scenes": len(scenes.state) if scenes is not None else 0,
            "size": size_name(config.architecture),
            "training": dataclasses.asdict(config),
            "drove": drove,
            "seeds": _seeds(config, rounds, scenes is not None),
            "updates": judge.updates if judge is not None else rounds * (config.steps // rounds),
            "processes": here.num_processes,
            "device": here.device.type,
            "precision": precision,
            **Spent.total(work),
            "judgements": judge.judgements if judge is not None else None,
            "best_judgement": judge.best if judge is not None else None,
            "actlet": __version__,
            "created": time.strftime("%Y-%m-%d"),
        }
        if held_rows:
            lineage["held_out"] = held_out_error(StudentPolicy(module.student), dataset.read_all(held_rows), demonstrated_mean)
        _save(module.student, frames, out, lineage, work, overwrite=overwrite)
        shutil.rmtree(work, ignore_errors=True)
    here.wait_for_everyone()
    return out


def student_spec(dataset: LeRobotDataset, config: TrainConfig) -> PolicySpec:
    """What a student of this dataset sees and commands, and when."""
    return PolicySpec(
        observation=dataset.observation_spec,
        action=dataset.action_spec,
        timing=TimingSpec(
            rate_hz=dataset.rate_hz,
            horizon=config.horizon,
            execute_steps=config.execute_steps,
            max_delay_steps=max(config.horizon // 4, config.delay_steps),
            committed_steps=config.delay_steps,
        ),
    )


def _require_labels_of(teacher: Any, store: LabelStore) -> None:
    if teacher is not None and teacher.content_hash != store.identity.teacher:
        raise SpecError(
            f"{store.folder}: labels of the teacher {store.identity.teacher}, expected those of {teacher.content_hash}. Pass the teacher that "
            "made them with --teacher, '--teacher none' to learn from the labels alone, or no --labels."
        )


def _answers_in_place(answers: NDArray[np.float16], frames: Frames, labelled: list[int]) -> NDArray[np.float16]:
    """(M, A, K), the answers for all frames of some episodes -> (N, A, K), zero for the others."""
    if len(answers) == len(frames):
        return answers
    whole = np.zeros((len(frames), *answers.shape[1:]), np.float16)
    whole[np.isin(frames.episode, labelled)] = answers
    return whole


def _with_glances(scenes: Scenes, teacher: Any, suite: str | None, config: TrainConfig, episodes: list[Episode], folder: Path) -> Scenes:
    """Add what the teacher sees in frames of these episodes."""
    if not config.glances or all(episode.seed is None for episode in episodes):
        return scenes
    assert suite is not None
    return Scenes.concatenate([scenes, look_at_episodes(teacher, suite, episodes, config.glances, folder, seed=config.seed)])


def _seeds(config: TrainConfig, rounds: int, looks: bool) -> dict[str, Any]:
    """Which seeds decided what; of episodes and scenes the first and the last."""
    seeds: dict[str, Any] = {"training": config.seed}
    if rounds > 1:
        seeds["on_policy"] = [on_policy_seeds(config, 1)[0], on_policy_seeds(config, rounds - 1)[-1]]
    if looks:
        seeds["scenes"] = [_SCENE_SEED_START, _SCENE_SEED_START + config.scenes - 1]
    if config.patience is not None:
        seeds["judgements"] = [TUNING_SEED_START, TUNING_SEED_START + config.judge_episodes - 1]
    return seeds


def _save(student: Student, frames: Frames, out: Path, lineage: dict[str, Any], work: Path, *, overwrite: bool) -> None:
    rows = np.linspace(0, len(frames) - 1, SAMPLES).astype(int)
    texts = [frames.instructions[frames.episode[row]] for row in rows]
    samples = {f"images.{name}": torch.from_numpy(images[rows]) for name, images in frames.images.items()}
    told = student.spec.timing.committed_steps
    if told:
        samples["committed"] = torch.from_numpy(frames.on_its_way(rows, np.arange(SAMPLES) % (told + 1), told))
    samples |= {"state": torch.from_numpy(frames.state[rows]), "instruction": torch.from_numpy(load_text_encoder().encode(texts))}
    with new_folder(out, overwrite=overwrite) as partial:
        write_checkpoint(student, partial, lineage, texts)
        write_bytes(partial / "samples.safetensors", save(samples))
        logs = sorted(work.glob("log-*.jsonl"))
        write_bytes(partial / "train_log.jsonl", b"".join(log.read_bytes() for log in logs))
        write_bytes(partial / "README.md", student_card(student, lineage).encode())
