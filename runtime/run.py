"""Drive a robot with a bundle, or with a policy on another machine: `actlet run`, or `run_policy(...)` from Python.

The robot is named, not imported: ``--robot package.module:factory``. The factory is called with suite, task and seed as keywords and
returns an `actlet.protocols.Robot`. Without ``--robot`` it is the simulated arm. A robot of your own is a class like this::

    # my_arm.py, then: actlet run bundles/int8 --robot my_arm:make_robot --instruction "lift the red block"
    class MyArm:
        observation_spec = ObservationSpec(
            cameras=(CameraSpec(name="front", height=128, width=128),), state_names=("x", "y", "z"), state_units=("m", "m", "m"))
        action_spec = ActionSpec(
            names=("dx", "dy", "dz", "gripper"), units=("m", "m", "m", "1"),
            kinds=("continuous", "continuous", "continuous", "binary"),
            low=(-0.05, -0.05, -0.05, 0), high=(0.05, 0.05, 0.05, 1), frame="base",
            hold=("zero", "zero", "zero", "last"))   # how it stands still when there is no valid action
        rate_hz = 10.0
        def connect(self): self.arm, self.camera = driver.Arm("10.0.0.2"), driver.Camera(0)
        def get_observation(self):
            return Observation(images={"front": self.camera.read_rgb()}, state=self.arm.position().astype(np.float32))
        def send_action(self, action): self.arm.move_by(action[:3], closed=action[3] > 0.5)   # must not block
        def disconnect(self): self.arm.stop()

    def make_robot(**options):
        return MyArm()

Names, units, limits, cameras and rate must be the bundle's, or nothing moves and the message names the difference. Some attributes
are optional: `instruction`, `done` (True ends the run), `success` and `remarks` (words for the summary); `safe_action()`, an action
toward a pose in which the robot may be left, None once it is there, and `emergency_stop()`, for when the failsafe goes that far
(docs/runtime.md); `virtual_time = True` says that the robot is a simulation: its time only passes with commands, so that a run need
not keep the clock, and its cameras are drawn. An `Observation` that says when it was taken (`taken_s`) is not shown to the policy once
it is old. For LeRobot's robots and for ROS 2 nothing has to be written: docs/robots.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from actlet.errors import CallerError, SpecError, UnknownNameError
from actlet.protocols import Policy, Robot
from actlet.specs import require_same
from runtime.access import TLS_CA_HELP, TOKEN_HELP, RemoteAccess
from runtime.backends import add_backend
from runtime.control_loop import LoopConfig, LoopResult, drive
from runtime.edge_first import EdgeFirst, longest_patience_s
from runtime.failsafe import Cause, State, StopButtons
from runtime.inference import Inference, ThreadInference
from runtime.inference_process import InferenceProcess
from runtime.inference_worker import WorkerConfig
from runtime.journal import Journal
from runtime.loop_flags import add_loop_flags, cloud_of, loop_config
from runtime.loop_statistics import LoopStatistics
from runtime.observer import Observer
from runtime.opening import is_elsewhere, is_remote, open_policy
from runtime.real_time import RealTime, take_real_time
from runtime.signature import TRUSTED_KEYS_HELP, keys_to_trust
from runtime.supervisor import SupervisorConfig
from runtime.watched_run import WatchedRun, add_watch_flags

__all__ = ["SIMULATED_ROBOT", "add_arguments", "load_factory", "make_robot", "run", "run_policy"]

SIMULATED_ROBOT = "episodes.simulated_robot:make_robot"
_STATUS_EVERY_S, _PRIORITY = 0.2, 80
_ELSEWHERE = SupervisorConfig(
    standby=False, hang_s=10.0
)  # A policy elsewhere has deadlines of its own, and a standby would take a place at its server.
_EXIT_CODES = {"steps": 0, "done": 0, "terminate": 0, "interrupted": 130}  # The others: 1.


def load_factory(name: str) -> Callable[..., Any]:
    """The function of a "package.module:factory"; the current folder is searched too.

    Raises:
        CallerError: There is no such module or function.
    """
    module_name, _, function = name.partition(":")
    if not module_name or not function:
        raise CallerError(f"robot {name!r}: expected 'package.module:factory', as in {SIMULATED_ROBOT!r}.")
    try:
        sys.path.append("")
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise
        raise CallerError(f"robot {name!r}: there is no module {error.name!r} here or among the installed packages.") from error
    finally:
        sys.path.remove("")
    if not hasattr(module, function):
        raise UnknownNameError(f"function in {module_name}:", function, [key for key in vars(module) if not key.startswith("_")])
    factory: Callable[..., Any] = getattr(module, function)
    return factory


def _takes(factory: Callable[..., Any], keyword: str) -> bool:
    parameters = inspect.signature(factory).parameters
    return keyword in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def make_robot(name: str = SIMULATED_ROBOT, **options: Any) -> Robot:
    """A robot by the name of its factory.

    Args:
        name: "package.module:factory"; the current folder is searched too.
        options: Keywords for the factory, such as suite, task and seed, and robot_config where there is one.

    Raises:
        CallerError: There is no such module or function, or it does not return a robot.
    """
    factory, robot_config = load_factory(name), options.get("robot_config")
    if robot_config is not None and not _takes(factory, "robot_config"):
        raise CallerError(
            f"robot {name!r} takes no --robot-config, but {str(robot_config)!r} was given: leave it out, or name another --robot."
        )
    robot = factory(**options)
    if not isinstance(robot, Robot):
        needed = ("observation_spec", "action_spec", "rate_hz", "connect", "get_observation", "send_action", "disconnect")
        missing = [attribute for attribute in needed if not hasattr(robot, attribute)]
        raise CallerError(f"robot {name!r}: {type(robot).__name__} has no {missing}; a robot has {list(needed)}.")
    return robot


def run_policy(
    policy: str | Path | Policy | InferenceProcess,
    robot: Robot,
    instruction: str | None = None,
    *,
    realtime: bool | None = None,
    config: LoopConfig | None = None,
    on_step: Callable[[int, LoopStatistics], None] | None = None,
    when_unsure: Policy | InferenceProcess | None = None,
    buttons: StopButtons | None = None,
    journal: Journal | None = None,
) -> LoopResult:
    """Drive a robot until it is done.

    Args:
        policy: A bundle's folder, a checkpoint's, the URL of a server, or a policy that is open already, in this process or in processes of its own
            (`runtime.inference_process`; these are closed at the end).
        robot: What moves.
        instruction: What to do; None for the robot's own `instruction`.
        realtime: Keep the clock; None for yes unless the robot's `virtual_time` says that it need not be kept.
        config: How the loop runs; where the policy runs and whether the clock is kept are put in here.
        on_step: Called after every step.
        when_unsure: Is asked when the policy's confidence is below `config.least_confidence` (`runtime.edge_first`).
        buttons: What an operator may press meanwhile.
        journal: Is told what happens, and closed at the end.

    Raises:
        CallerError: The policy is not sound, or robot and policy do not fit; found before motion.
        RemoteError: A server cannot be reached.
    """
    if isinstance(policy, (str, Path)):
        policy = open_policy(policy)
    clipped_before = getattr(policy, "clipped", 0)
    if realtime is None:
        realtime = not getattr(robot, "virtual_time", False)
    # A policy that was made for no delay must have its observation and its first action in the same step.
    threaded = realtime and policy.spec.timing.max_delay_steps > 0
    elsewhere = policy if isinstance(policy, InferenceProcess) and threaded else None
    config = dataclasses.replace(config or LoopConfig(), realtime=realtime, inference="thread" if threaded else "inline")
    both: EdgeFirst | None = None
    inference: Callable[[Policy, Callable[[], float]], Inference] | None = (lambda policy, clock: elsewhere) if elsewhere else None
    if when_unsure is not None:
        if not threaded:
            raise CallerError(
                "a second policy is asked while the robot goes on: that needs real time, and a policy that may be answered late."
            )
        require_same(
            policy.spec.observation,
            when_unsure.spec.observation,
            what="what the robot's policy and the one that is asked when it is unsure observe",
        )
        require_same(
            policy.spec.action, when_unsure.spec.action, what="actions of the robot's policy and of the one that is asked when it is unsure"
        )
        both = _edge_first(elsewhere or policy, when_unsure, config)
        inference = lambda policy, clock: both  # noqa: E731
    try:
        result = drive(robot, policy, instruction, config, on_step=on_step, inference=inference, buttons=buttons, journal=journal)
    finally:
        if both is not None:
            both.close()
        for opened in (policy, when_unsure):
            if isinstance(opened, InferenceProcess):
                opened.close()
    result.statistics.clipped += getattr(policy, "clipped", 0) - clipped_before
    if both is not None:
        result.statistics.asked_elsewhere, result.statistics.used_elsewhere = both.asked_cloud, both.used_cloud
    return result


def _edge_first(edge: Policy | InferenceProcess, cloud: Policy | InferenceProcess, config: LoopConfig) -> EdgeFirst:
    """The two of them as one."""
    timing = edge.spec.timing
    where = [policy if isinstance(policy, InferenceProcess) else ThreadInference(policy, time.monotonic) for policy in (edge, cloud)]
    return EdgeFirst(
        *where,
        least_confidence=config.least_confidence,
        rows=timing.execute_steps,
        patience_s=longest_patience_s(timing, config.rate_hz or timing.rate_hz),
        clock=time.monotonic,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `actlet run`."""
    parser.add_argument(
        "policy",
        help="folder of a bundle or a checkpoint, the URL of an `actlet serve`, as in ws://10.0.0.2:8000, or a file of runtime.rest_policy",
    )
    parser.add_argument("--robot", default=SIMULATED_ROBOT, metavar="MODULE:FACTORY", help="what moves (default: the simulated arm)")
    parser.add_argument(
        "--robot-config",
        type=Path,
        metavar="FILE",
        help="given to the robot's factory as robot_config=FILE; what runtime.robots need (docs/robots.md)",
    )
    parser.add_argument("--suite", default="tabletop", help="suite of simulated tasks (default: tabletop)")
    parser.add_argument("--task", help="task of the suite")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulated episode (default: 0)")
    parser.add_argument("--instruction", help="what to do (default: what the simulated episode asks for)")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--realtime", action="store_true", default=None, help="keep the clock (default for real robots)")
    pace.add_argument(
        "--as-fast-as-possible", action="store_false", dest="realtime", default=None, help="do not wait (default for the simulated arm)"
    )
    parser.add_argument(
        "--inference",
        choices=("process", "thread"),
        help="where the policy runs in real time: in processes of its own, with a standby that takes over when it dies or hangs, or in a thread of this one "
        "(default: process on Linux)",
    )
    parser.add_argument(
        "--observe",
        choices=("loop", "thread"),
        default="loop",
        help="who reads the robot: the loop itself, or a thread, for a robot whose get_observation waits for cameras and may be called beside send_action "
        "(default: loop)",
    )
    parser.add_argument(
        "--priority",
        type=int,
        help="real-time priority of the loop, 1 to 99, 0 for none (default: 80 in real time, none for the simulated arm)",
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of inference (default: 1)")
    add_backend(parser)
    parser.add_argument("--trusted-keys", type=Path, metavar="PATH", help=TRUSTED_KEYS_HELP)
    parser.add_argument("--token-file", type=Path, metavar="PATH", help=f"for a policy elsewhere: {TOKEN_HELP}")
    parser.add_argument("--tls-ca", type=Path, metavar="PEM", help=f"for wss:// and https://: {TLS_CA_HELP}")
    parser.add_argument(
        "--answer-timeout",
        type=float,
        metavar="SECONDS",
        help="longest wait for an answer by ws:// (default: 2; in real time as long as it is of use, by the largest delay that the policy was made for)",
    )
    add_loop_flags(parser)
    add_watch_flags(parser)
    parser.epilog = """\
examples:
  actlet run bundles/int8 --task put --seed 7                       one simulated episode, as fast as possible
  actlet run bundles/int8 --task put --seed 7 --realtime            the same at the robot's rate, policy in processes of its own
  actlet run bundles/int8 --robot my_arm:make_robot --instruction "lift the red block"
  actlet run bundles/int8 --robot my_arm:make_robot --command-rate-hz 500 --schedule receding
  actlet run bundles/int8 --robot runtime.robots.lerobot:make_robot --robot-config my_so101.json --instruction "lift the red block"
  actlet run bundles/int8 --robot my_arm:make_robot --record runs --metrics 9109      recorded for actlet replay, watched by Prometheus
  actlet run ws://10.0.0.2:8000 --task put --seed 7 --realtime      with a policy on another machine
  actlet run bundles/int8 --task put --realtime --least-confidence 0.6 --when-unsure ws://10.0.0.2:8000     edge first, cloud when unsure
  actlet run wss://gpu.lan:8000 --tls-ca ca.pem --token-file token --hold-s 5 --robot my_arm:make_robot --instruction "lift the red block"
"""


def run(arguments: argparse.Namespace) -> int:
    """The verb `run`."""
    _require_effect(arguments)
    access = _access(arguments, arguments.policy)  # First: a wrong path should not take a simulator's start to be seen.
    if arguments.answer_timeout is not None and not 0 < arguments.answer_timeout < math.inf:
        raise CallerError(f"--answer-timeout {arguments.answer_timeout}: expected seconds above 0.")
    if arguments.priority is not None and not 0 <= arguments.priority <= 99:
        raise CallerError(f"--priority {arguments.priority}: expected 1 .. 99, or 0 for none.")
    options = {} if arguments.robot_config is None else {"robot_config": arguments.robot_config}
    robot = make_robot(arguments.robot, suite=arguments.suite, task=arguments.task, seed=arguments.seed, **options)
    is_simulated = getattr(robot, "virtual_time", False)
    if arguments.observe == "thread":
        if is_simulated:
            raise CallerError(
                "--observe thread: this robot is a simulation, whose time only passes with commands; let the loop look at it."
            )
        robot = Observer(robot)
    realtime = arguments.realtime if arguments.realtime is not None else not is_simulated
    if arguments.inference is not None and not realtime:
        raise CallerError(
            f"--inference {arguments.inference} is for a loop that keeps the clock, and this one does not: add --realtime, or leave it out."
        )
    config, cloud = loop_config(arguments), cloud_of(arguments)
    priority = (0 if is_simulated or not realtime else _PRIORITY) if arguments.priority is None else arguments.priority
    policy, unsure = _open(arguments, arguments.policy, realtime, priority, access), None
    try:
        _require_fit(policy, robot, arguments.robot_config or arguments.robot)
        unsure = _open(arguments, cloud, realtime, priority, _access(arguments, cloud)) if cloud is not None else None
        episode = {"suite": arguments.suite, "task": arguments.task, "seed": arguments.seed} if is_simulated else {}
        watched = WatchedRun(arguments, policy, robot, episode)
    except BaseException:
        for opened in (policy, unsure):
            if isinstance(opened, InferenceProcess):
                opened.close()
        raise
    with watched:
        if realtime and priority:
            for refused in take_real_time(RealTime(priority=priority, quiet_collector=True, out_of_memory_score=-900)):
                print(f"not permitted: {refused}", file=sys.stderr)
        status = _StatusLine(robot, arguments.instruction, arguments.steps, watched)
        with _stopped_by_signals() as buttons:
            result = run_policy(
                policy,
                robot,
                arguments.instruction,
                realtime=realtime,
                config=config,
                on_step=status.show,
                when_unsure=unsure,
                buttons=buttons,
                journal=watched.journal,
            )
        watched.finish(result)
    status.end()
    for label, value in _rows(robot, result) + watched.rows:
        print(f"{label:<18} {value}")
    return _EXIT_CODES.get(result.stopped_by, 1)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[StopButtons]:
    """Who ends the program (Ctrl-C, `systemctl stop`, a terminal that is closed) brings the robot to rest first; a second Ctrl-C ends the run at once.
    A signal that is ignored stays so (`nohup`). Pressing a button breaks nothing off, as an exception in the middle of a command would."""
    buttons: StopButtons = StopButtons()
    mine: dict[int, Any] = {}

    def interrupt(number: int, frame: Any) -> None:
        if Cause.OPERATOR_STOP in buttons.pressed:
            signal.default_int_handler(number, frame)
        buttons.stop()
        with contextlib.suppress(OSError):
            os.write(2, b"\ncoming to rest; Ctrl-C again ends the run at once\n")  # A print may be broken off in the middle of another.

    if threading.current_thread() is threading.main_thread():  # Elsewhere nobody may say what a signal does.
        numbers = [number for name in ("SIGTERM", "SIGHUP", "SIGINT") if (number := getattr(signal, name, None)) is not None]
        found = {number: signal.getsignal(number) for number in numbers}
        mine = {number: handler for number, handler in found.items() if handler in (signal.SIG_DFL, signal.default_int_handler)}
    for number in mine:
        signal.signal(number, interrupt if number == signal.SIGINT else lambda *unused: buttons.stop())
    try:
        yield buttons
    finally:
        for number, handler in mine.items():
            signal.signal(number, handler)


def _require_fit(policy: Policy | InferenceProcess, robot: Robot, place: object) -> None:
    """What the loop would refuse as well, with where to mend it.

    Raises:
        SpecError: They differ.
    """
    try:
        require_same(policy.spec.observation, robot.observation_spec, what="the policy's and the robot's observation")
        require_same(policy.spec.action, robot.action_spec, what="the policy's and the robot's action")
        if not math.isclose(policy.spec.timing.rate_hz, robot.rate_hz, rel_tol=1e-3):
            raise SpecError(f"the policy was made for {policy.spec.timing.rate_hz} steps in a second, the robot has {robot.rate_hz}.")
    except SpecError as error:
        raise SpecError(f"{error} Nothing moved. Correct what {place} says of the robot, or use a policy that was made for it.") from error


def _require_effect(arguments: argparse.Namespace) -> None:
    """Refuses what was asked for a policy elsewhere and would change nothing.

    Raises:
        CallerError: No policy is elsewhere, or none that waits as long as is said.
    """
    places = [place for place in (arguments.policy, cloud_of(arguments)) if place is not None]
    for flag, fits, what in (
        ("token_file", is_elsewhere, "on another machine"),
        ("tls_ca", is_elsewhere, "on another machine"),
        ("answer_timeout", is_remote, "that is asked by ws:// or wss://"),
    ):
        if getattr(arguments, flag) is not None and not any(fits(place) for place in places):
            raise CallerError(f"--{flag.replace('_', '-')} is for a policy {what}, which {' and '.join(places)} is not: leave it out.")


def _access(arguments: argparse.Namespace, place: str) -> RemoteAccess | None:
    """How a policy elsewhere is reached, None for one that is here."""
    if not is_elsewhere(place):
        return None
    access = RemoteAccess.of(arguments.token_file, arguments.tls_ca)
    if remark := access.remark(place):
        print(remark, file=sys.stderr)
    return access


def _open(
    arguments: argparse.Namespace, place: str, realtime: bool, priority: int, access: RemoteAccess | None
) -> Policy | InferenceProcess:
    """The policy, here or in processes of its own; `access` for one that is elsewhere."""
    answer_timeout_s = arguments.answer_timeout if arguments.answer_timeout is not None or realtime else 2.0
    if not realtime or arguments.inference == "thread" or (arguments.inference is None and not sys.platform.startswith("linux")):
        return open_policy(
            place,
            arguments.threads,
            trusted_keys=arguments.trusted_keys,
            backend=arguments.backend,
            access=access,
            answer_timeout_s=answer_timeout_s,
        )
    keys = keys_to_trust(arguments.trusted_keys)
    worker = WorkerConfig(
        policy=place,
        threads=arguments.threads,
        backend=arguments.backend,
        trusted_keys=None if keys is None else str(keys.absolute()),
        priority=max(1, priority // 2) if priority else None,  # Below the loop's, above everything else's.
        token_file=None if arguments.token_file is None else str(arguments.token_file.absolute()),
        tls_ca=None if arguments.tls_ca is None else str(arguments.tls_ca.absolute()),
        answer_timeout_s=answer_timeout_s,
    )
    return InferenceProcess(place, worker=worker, supervisor=_ELSEWHERE if access is not None else None)


class _StatusLine:
    """One line on stderr that is written over, or written once where stderr is a file."""

    def __init__(self, robot: Robot, instruction: str | None, steps: int | None, watched: WatchedRun) -> None:
        self._robot, self._instruction, self._of = robot, instruction, f" of {steps}" if steps else ""
        self._due_s, self._shown, self._terminal = 0.0, False, sys.stderr.isatty()
        self._watched, self._before = watched, (time.monotonic(), 0)

    def show(self, step: int, statistics: LoopStatistics) -> None:
        self._watched.step(step, statistics)
        if (self._shown and not self._terminal) or time.monotonic() < self._due_s:
            return
        now_s, monitor, recorder = time.monotonic(), self._watched.monitor, self._watched.recorder
        words = self._instruction or getattr(self._robot, "instruction", "")
        state = f"{monitor.state.name}{f' ({monitor.cause})' if monitor.cause else ''}"
        rate = f", {(monitor.commands - self._before[1]) / (now_s - self._before[0]):.0f} commands/s" if self._shown else ""
        lost = f", {recorder.dropped} records lost" if recorder is not None and recorder.dropped else ""
        lost += ", NOT RECORDED" if recorder is not None and not recorder.is_writing else ""
        self._due_s, self._shown, self._before = now_s + _STATUS_EVERY_S, True, (now_s, monitor.commands)
        line = f"{words!r}: step {step + 1}{self._of}, {state}{rate}, {statistics.chunks} decisions, {statistics.holds} holds{lost}"
        try:
            print(f"\r{line[:140]:<140}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr, flush=True)
        except OSError:  # A terminal that was closed, a full disk: no reason to stop a robot.
            self._due_s, self._terminal = math.inf, False

    def end(self) -> None:
        if self._shown and self._terminal:
            print(file=sys.stderr)


def _rows(robot: Robot, result: LoopResult) -> list[tuple[str, str]]:
    """The summary, label and value."""
    data = result.statistics.to_dict()
    success = getattr(robot, "success", None)
    latency, age = data["decision_latency_ms"], data["action_age_ms"]

    unsure, commands = data["unsure"], data["commands"]

    def milliseconds(summary: dict[str, float] | None) -> str:
        return "not measured" if summary is None else "  ".join(f"{name} {summary[name]:.1f}" for name in ("p50", "p95", "p99", "max"))

    held = "".join(f"; {seconds:.2f} s in {state}" for state, seconds in data["state_s"].items() if state != State.RUN.name and seconds)
    held += "".join(f"; {cause}: {count}" for cause, count in data["causes"].items())

    def rate(value: float | None) -> str:
        return "" if value is None else f", {value:.1f} in a second"

    remarks = getattr(robot, "remarks", "")
    return [
        ("success", "unknown" if success is None else "yes" if success else "no"),
        ("stopped by", f"{result.stopped_by} ({result.message})"),
        ("steps", f"{data['ticks']} in {data['elapsed_s']:.1f} s{rate(data['ticks_per_s'])}; {data['missed_deadlines']} missed"),
        *(
            [("commands", f"{data['sent']} sent in {commands} periods; {data['missed_commands']} missed")]
            if commands > data["ticks"]
            else []
        ),
        (
            "decisions",
            f"{data['chunks']}{rate(data['decisions_per_s'])}; {data['bad_chunks']} bad, {data['late_chunks']} late"
            + (f"; {unsure} steps unsure" if unsure else "")
            + (f"; {data['asked_elsewhere']} asked elsewhere, {data['used_elsewhere']} in time" if data["asked_elsewhere"] else ""),
        ),
        ("decision [ms]", milliseconds(latency)),
        ("action age [ms]", milliseconds(age)),
        ("holds", f"{data['holds']}{held}"),
        ("clipped values", f"{data['clipped']}; slowed {data['slowed']}"),
        *([("robot", str(remarks))] if remarks else []),
    ]
