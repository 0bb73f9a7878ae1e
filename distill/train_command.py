"""The verb `distill`: its options, and one call of `distill.train.distill`."""

from __future__ import annotations

import argparse
import dataclasses

from distill import SHIPPED, teacher_folder
from distill.processes import processes
from distill.size_choice import add_size_arguments, asked_architecture, forget_choice
from distill.target_options import add_target_arguments, target_settings
from distill.train import distill, student_spec
from distill.train_config import TrainConfig
from episodes.lerobot_dataset import open_dataset

__all__ = ["add_arguments", "run"]

EPILOG = """\
examples:
  actlet distill --data data/table --out checkpoints/student                      with the teacher that comes along
  actlet distill --data data/table --teacher ws://10.0.0.2:8000 --out checkpoints/student       with `actlet serve` on a larger machine
  actlet distill --data data/table --teacher none --out checkpoints/cloned        behaviour cloning
  actlet distill --data data/table --quantize-aware int4 --out checkpoints/student     with int4's rounding, to be quantized to it
  actlet distill --data data/table --labels labels/table --out checkpoints/student     with answers that actlet label wrote
  actlet distill --data data/table --size nano --out checkpoints/nano
  actlet distill --data data/table --budget-ms 5 --precision int8 --out checkpoints/student    the largest that decides in 5 ms here
  actlet distill --data data/table --patience 2 --out checkpoints/student         ends when it gets no better in simulation
  torchrun --nproc_per_node 2 -m actlet distill --data data/table --labels labels/table --out checkpoints/student    two processes or GPUs
  actlet distill --data data/recordings --teacher none --suite none --out checkpoints/real
  actlet distill --data data/recordings --rollouts data/monday data/tuesday --suite none --out checkpoints/better    runs of a student, on the robot
  actlet distill --data data/recordings --teacher ws://10.0.0.2:8000 --samples 8 --suite none --out checkpoints/pi   a flow's samples
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb `distill`."""
    defaults = TrainConfig()
    parser.epilog = EPILOG
    parser.add_argument("--data", required=True, help="a LeRobotDataset folder (v3.0 or v2.1)")
    parser.add_argument("--out", required=True, help="the checkpoint folder to make")
    parser.add_argument(
        "--teacher",
        default=SHIPPED,
        help="a teacher's folder, the ws:// of a server, or 'none' (default: %(default)s, which comes along)",
    )
    parser.add_argument(
        "--suite", default="tabletop", help="simulated suite for on-policy rounds, or 'none' for recordings (default: tabletop)"
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        help="folders that 'actlet label' wrote for this dataset or a rollout, in place of asking the teacher about it",
    )
    parser.add_argument(
        "--rollouts",
        nargs="+",
        default=(),
        help="LeRobotDataset folders in which a student drove the robot: states for the teacher to label",
    )
    add_size_arguments(parser)
    parser.add_argument("--steps", type=int, default=defaults.steps, help="updates, all rounds together (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=defaults.rounds, help="rounds of training; between them the student drives (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=defaults.batch_size, help="frames per update, of all processes together (default: %(default)s)"
    )
    parser.add_argument(
        "--on-policy-episodes",
        type=int,
        default=defaults.on_policy_episodes,
        help="episodes that the student drives between two rounds (default: %(default)s)",
    )
    parser.add_argument(
        "--scenes", type=int, default=defaults.scenes, help="new scenes seen through the teacher's eyes (default: %(default)s)"
    )
    parser.add_argument(
        "--delay-steps",
        type=int,
        default=defaults.delay_steps,
        help="largest delay, in control steps, that the student is trained for; it is told what is on its way (default: %(default)s)",
    )
    parser.add_argument("--horizon", type=int, default=defaults.horizon, help="actions in a chunk (default: %(default)s)")
    parser.add_argument(
        "--patience",
        type=int,
        help=f"a round ends after this many judgements without more success, one every {defaults.judge_every} updates; the best weights are kept (default: off)",
    )
    parser.add_argument(
        "--judge-episodes",
        type=int,
        default=defaults.judge_episodes,
        help="episodes of a judgement, of tuning seeds (default: %(default)s)",
    )
    parser.add_argument("--tensorboard", metavar="FOLDER", help="write TensorBoard's files there too (needs: pip install tensorboard)")
    add_target_arguments(parser)
    parser.add_argument(
        "--quantize-aware", choices=("int8", "int4"), help="train with this precision's rounding, so that quantizing takes less away"
    )
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=defaults.bf16,
        help="compute in bfloat16; processors with AMX can, too (default: on a GPU that can)",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="random seed (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that exists")


def run(arguments: argparse.Namespace) -> int:
    """The verb `distill`."""
    teacher = None if arguments.teacher == "none" else teacher_folder(arguments.teacher)
    config = TrainConfig(
        steps=arguments.steps,
        rounds=arguments.rounds,
        batch_size=arguments.batch_size,
        horizon=arguments.horizon,
        execute_steps=min(TrainConfig().execute_steps, arguments.horizon),
        delay_steps=min(arguments.delay_steps, arguments.horizon - 1),
        on_policy_episodes=arguments.on_policy_episodes,
        scenes=arguments.scenes,
        patience=arguments.patience,
        judge_episodes=arguments.judge_episodes,
        quantize_aware=arguments.quantize_aware,
        bf16=arguments.bf16,
        seed=arguments.seed,
        **target_settings(arguments),
    )
    architecture = asked_architecture(arguments, lambda: student_spec(open_dataset(arguments.data), config))
    config = dataclasses.replace(config, architecture=dataclasses.replace(architecture, mode_reach=arguments.mode_reach))
    suite = None if arguments.suite == "none" else arguments.suite
    out = distill(
        arguments.data,
        arguments.out,
        teacher=teacher,
        suite=suite,
        labels=arguments.labels,
        rollouts=arguments.rollouts,
        config=config,
        overwrite=arguments.overwrite,
        tensorboard=arguments.tensorboard,
    )
    here = processes()
    if here.is_main_process:
        forget_choice(out)
        print((out / "README.md").read_text(encoding="utf-8"))
        print(f"student written to {out}")
    here.destroy_process_group()
    return 0
