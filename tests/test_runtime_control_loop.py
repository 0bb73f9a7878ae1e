"""The control loop in virtual time: every step has a safe command, every end has a reason, nothing is raised."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlet.errors import CallerError, RobotFault, SpecError
from actlet.protocols import ActionChunk, Observation, Robot
from actlet.specs import PolicySpec
from episodes.lockstep import PlannedEpisode, run_in_lockstep
from episodes.simulated_robot import SimulatedRobot
from runtime import inference as inference_module
from runtime.chunk_schedule import ScheduleConfig
from runtime.control_loop import LoopConfig, LoopResult, drive
from runtime.failsafe import FailsafeConfig
from runtime.inference import Answer, ThreadInference

INLINE = LoopConfig(inference="inline", realtime=False, max_steps=20, schedule=ScheduleConfig(blend_steps=0))


class FakeRobot:
    """Records commands; fails on request."""

    instruction = "put the cup on the plate"

    def __init__(self, spec: PolicySpec) -> None:
        self.observation_spec, self.action_spec, self.rate_hz = spec.observation, spec.action, spec.timing.rate_hz
        self.commands: list[np.ndarray] = []
        self.observed = 0
        self.connected, self.disconnects = False, 0
        self.fail: Callable[[str], None] = lambda what: None

    def connect(self) -> None:
        self.fail("connect")
        self.connected = True

    def get_observation(self) -> Observation:
        self.fail("observe")
        self.observed += 1
        return Observation(
            images={"front": np.full((6, 8, 3), self.observed % 251, np.uint8)}, state=np.full(3, len(self.commands), np.float32)
        )

    def send_action(self, action: np.ndarray) -> None:
        self.fail("send")
        self.commands.append(action)

    def disconnect(self) -> None:
        self.connected = False
        self.disconnects += 1
        self.fail("disconnect")


class FakePolicy:
    """Answers with `answer(number of the call, observation)`."""

    def __init__(self, spec: PolicySpec, answer: Callable[[int, Observation], object] | None = None) -> None:
        self.spec, self.calls = spec, 0
        self._answer = answer or (lambda call, observation: self.chunk(0.01))

    def chunk(self, value: float) -> ActionChunk:
        actions = np.full((self.spec.timing.horizon, self.spec.action.dim), value, np.float32)
        actions[:, [0, 3]] = 0, 1
        return ActionChunk(actions=actions, confidence=np.ones(self.spec.timing.horizon, np.float32))

    def predict(self, observations: list[Observation], instructions: list[str]) -> list[object]:
        self.calls += 1
        return [self._answer(self.calls, observations[0])]


class VirtualTime:
    """A clock that only sleep and `advance` move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    advance = sleep


def _raise(error: BaseException) -> None:
    raise error


def _run(
    robot: FakeRobot, policy: FakePolicy, config: LoopConfig = INLINE, time: VirtualTime | None = None, **options: object
) -> LoopResult:
    assert isinstance(robot, Robot)
    time = time or VirtualTime()
    return drive(robot, policy, config=config, clock=time.clock, sleep=time.sleep, **options)


@pytest.fixture
def robot(tiny_spec: PolicySpec) -> FakeRobot:
    return FakeRobot(tiny_spec)


def test_every_step_sends_one_command(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """20 steps, 20 commands, one hold at the end; observed only when a chunk is due."""
    policy = FakePolicy(tiny_spec)
    result = _run(robot, policy)
    assert (result.stopped_by, result.statistics.ticks, result.statistics.sent, result.statistics.holds) == ("steps", 20, 20, 0)
    assert len(robot.commands) == 21
    np.testing.assert_array_equal(robot.commands[-1], [0, 0, 0, 1])
    assert policy.calls == robot.observed == 7  # ceil(20 / execute_steps)
    assert (robot.connected, robot.disconnects) == (False, 1)


def test_inline_it_is_the_receding_horizon_of_the_evaluation(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """The actions are those of: observe, execute the first `execute_steps` actions of the chunk, observe again."""

    def answer(call: int, observation: Observation) -> ActionChunk:
        actions = np.zeros((6, 4), np.float32)
        actions[:, 1] = 1e-4 * (10 * observation.state[0] + np.arange(6))
        return ActionChunk(actions=actions, confidence=np.ones(6, np.float32))

    _run(robot, FakePolicy(tiny_spec, answer))
    expected = [1e-4 * (10 * (step - step % 3) + step % 3) for step in range(20)]
    np.testing.assert_allclose([command[1] for command in robot.commands[:20]], expected, rtol=1e-5)


hostile_numbers = st.floats(width=32) | st.sampled_from([1e300, -1e300, math.nan, math.inf])
hostile_arrays = st.tuples(
    st.sampled_from([(6, 4), (6, 4), (5, 4), (6,), (0,), (6, 4, 1)]), st.lists(hostile_numbers, min_size=24, max_size=24)
).map(lambda pair: np.resize(np.array(pair[1], np.float64), pair[0]))
hostile_answers = st.one_of(
    hostile_arrays,
    hostile_arrays.map(lambda array: array.astype(object)),
    st.sampled_from(
        [None, "left", [[1, 2], [3]], np.array([["a"]]), {}, 1 + 2j, ValueError("no"), MemoryError(), RobotFault("x"), "empty", "chunkless"]
    ),
)


@given(
    answers=st.lists(hostile_answers, min_size=1, max_size=8),
    blend=st.integers(0, 3),
    rule=st.sampled_from(["newest", "receding"]),
    slow=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_no_policy_can_make_it_send_an_unsafe_command(
    tiny_spec: PolicySpec, answers: list[object], blend: int, rule: str, slow: bool
) -> None:
    """Whatever the policy returns or raises: every command is finite, inside the limits, changes slowly, and nothing is raised."""
    spec = tiny_spec

    class Hostile(FakePolicy):
        def predict(self, observations: list[Observation], instructions: list[str]) -> list[object]:
            self.calls += 1
            answer = answers[self.calls % len(answers)]
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, str):
                return [] if answer == "empty" else [answer]
            return [ActionChunk(actions=answer, confidence=answer)]

    robot = FakeRobot(spec)
    most = (1.0, 0.02, 0.02, 1.0)
    config = dataclasses.replace(INLINE, schedule=ScheduleConfig(rule=rule, blend_steps=blend), max_change=most if slow else None)
    result = _run(robot, Hostile(spec), config)
    low, high = np.array(spec.action.low, np.float32), np.array(spec.action.high, np.float32)
    for command in robot.commands:
        assert command.dtype == np.float32
        assert np.isfinite(command).all()
        assert ((command >= low) & (command <= high)).all()
    if slow and len(robot.commands) > 1:
        assert np.abs(np.diff(robot.commands, axis=0))[:, 1:3].max() <= 0.02 + 1e-7
    assert result.stopped_by in ("steps", "policy", "terminate")
    assert robot.disconnects == 1


def test_it_holds_on_bad_chunks_and_stops_after_some_in_a_row(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """The good chunk plays to its horizon, then HOLD with the gripper kept, then the stop with the last error."""
    policy = FakePolicy(tiny_spec, lambda call, observation: policy.chunk(0.01) if call == 1 else policy.chunk(math.nan))
    result = _run(robot, policy)
    assert result.stopped_by == "policy"
    assert "5 unusable answers in a row, the last: ActionError: chunk of shape (6, 4): expected (6, 4), all finite" in result.message
    np.testing.assert_allclose(robot.commands[5], [0, 0.01, 0.01, 1], rtol=1e-6)
    for command in robot.commands[6:]:
        np.testing.assert_array_equal(command, [0, 0, 0, 1])
    assert result.statistics.bad_chunks == 9  # At steps 3 to 11: the fifth is a cause, and HOLD since step 6 becomes RAMP at step 11.
    assert result.statistics.holds == 5


def test_one_good_chunk_ends_a_row_of_bad_ones(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """A bad answer is asked again in the next step; the robot goes on."""
    policy = FakePolicy(tiny_spec, lambda call, observation: policy.chunk(math.nan if call % 3 == 0 else 0.01))
    result = _run(robot, policy, dataclasses.replace(INLINE, failsafe=FailsafeConfig(max_bad_chunks=2)))
    assert (result.stopped_by, result.statistics.holds) == ("steps", 0)
    assert result.statistics.bad_chunks > 1


@pytest.mark.parametrize("what", ["connect", "observe", "send"])
def test_a_robot_that_fails_is_stopped_and_disconnected(robot: FakeRobot, tiny_spec: PolicySpec, what: str) -> None:
    """No exception leaves the loop; the message names the robot's error."""
    robot.fail = lambda now: _raise(OSError("cable")) if now == what else None
    result = _run(robot, FakePolicy(tiny_spec))
    assert result.stopped_by == "robot"
    assert "OSError: cable" in result.message
    assert robot.disconnects == 1


def test_a_robot_that_fails_to_disconnect_is_told(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """The reason of the stop stays, the failure is added."""
    robot.fail = lambda now: _raise(OSError("stuck")) if now == "disconnect" else None
    result = _run(robot, FakePolicy(tiny_spec))
    assert result.stopped_by == "steps"
    assert "disconnecting failed (OSError: stuck)" in result.message


def test_ctrl_c_holds_and_disconnects(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """An interrupt is a stop like the others: the last command stands still."""
    policy = FakePolicy(tiny_spec, lambda call, observation: policy.chunk(0.01) if call < 3 else _raise(KeyboardInterrupt()))
    result = _run(robot, policy)
    assert result.stopped_by == "interrupted"
    np.testing.assert_array_equal(robot.commands[-1], [0, 0, 0, 1])
    assert robot.disconnects == 1


def test_a_failing_status_line_is_a_fault_not_an_exception(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """Even what the caller hung on the loop cannot leave the robot moving."""
    result = _run(robot, FakePolicy(tiny_spec), on_step=lambda step, statistics: _raise(ZeroDivisionError()))
    assert (result.stopped_by, robot.disconnects) == ("fault", 1)


def test_terminate_ends_the_run(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """The policy's terminate is sent, then the loop stops."""

    def answer(call: int, observation: Observation) -> ActionChunk:
        actions = np.zeros((6, 4), np.float32)
        actions[2, 0] = 1
        return ActionChunk(actions=actions, confidence=np.ones(6, np.float32))

    result = _run(robot, FakePolicy(tiny_spec, answer))
    assert (result.stopped_by, result.statistics.ticks) == ("terminate", 3)
    assert [command[0] for command in robot.commands] == [0, 0, 1, 0]


def test_a_robot_that_says_done_ends_the_run(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """As a simulated task does, and nothing is sent after it; what is not simulated is made to stand still."""
    robot.done = True
    result = _run(robot, FakePolicy(tiny_spec))
    assert (result.stopped_by, len(robot.commands)) == ("done", 2)
    np.testing.assert_array_equal(robot.commands[-1], [0, 0, 0, 1])
    robot.virtual_time = True
    result = _run(robot, FakePolicy(tiny_spec))
    assert (result.stopped_by, len(robot.commands)) == ("done", 3)


@pytest.mark.parametrize("task", ["red", "blue"])
def test_a_simulated_episode_ends_as_in_the_evaluation(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What success rates are measured with and what drives the robot are the same policy at the same steps."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from point_reach import PictureReader, make_suite

    suite = make_suite()
    plans = [PlannedEpisode(index=seed, task=task, seed=seed) for seed in range(5)]
    evaluated = {outcome.result.seed: outcome.result for outcome in run_in_lockstep(PictureReader(), suite, plans, batch=3)}
    assert len(evaluated) == 5
    for seed, expected in evaluated.items():
        robot = SimulatedRobot(suite.make(task), seed=seed)
        result = drive(robot, PictureReader(), config=dataclasses.replace(INLINE, max_steps=None))
        assert (robot.success, result.statistics.ticks, result.stopped_by) == (expected.success, expected.steps, "done")


def test_deadlines_are_absolute(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """Work of 30 ms in a period of 100 ms: 20 steps take 19 periods and the last work, without drift."""
    time = VirtualTime()
    robot.fail = lambda what: time.advance(0.03) if what == "send" else None
    result = _run(robot, FakePolicy(tiny_spec), dataclasses.replace(INLINE, realtime=True), time)
    assert result.statistics.missed_deadlines == 0
    assert result.statistics.elapsed_s == pytest.approx(2.0)


def test_missed_steps_are_skipped_and_counted_never_caught_up(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """One step takes 3.5 periods: three are missed, and the next command is due at its own time with its own action."""
    time, stamps = VirtualTime(), []

    def slow(what: str) -> None:
        if what == "send":
            stamps.append(round((time.now - 1000) / 0.1, 6))
            if len(stamps) == 3:
                time.advance(0.35)

    robot.fail = slow
    result = _run(robot, FakePolicy(tiny_spec), dataclasses.replace(INLINE, realtime=True, max_steps=10), time)
    assert stamps[:10] == [0, 1, 2, 6, 7, 8, 9, 10]
    assert (result.statistics.missed_deadlines, result.statistics.ticks) == (3, 7)


def test_a_policy_that_hangs_ends_in_hold(robot: FakeRobot, tiny_spec: PolicySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer at all: nothing is commanded before the first action (a flag has no last value), then the stop."""
    monkeypatch.setattr(inference_module, "_CLOSE_TIMEOUT_S", 0.01)
    release = threading.Event()
    policy = FakePolicy(tiny_spec, lambda call, observation: release.wait(10))
    try:
        result = _run(robot, policy, LoopConfig(failsafe=FailsafeConfig(wait_s=0.7)))
        assert (result.stopped_by, result.statistics.ticks, robot.commands) == ("hold", 7, [])
        assert "no valid action for 7 steps" in result.message
    finally:
        release.set()


def test_late_chunks_are_counted_and_end_the_run(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """Every answer takes longer than the policy was made for: it is never used, and the message says why."""
    clock = VirtualTime()

    def answer(call: int, observation: Observation) -> ActionChunk:
        clock.advance(0.35)
        return policy.chunk(0.01)

    policy = FakePolicy(tiny_spec, answer)
    config = dataclasses.replace(INLINE, realtime=True, failsafe=FailsafeConfig(max_bad_chunks=3), max_steps=400)
    result = _run(robot, policy, config, clock)
    assert result.stopped_by == "policy"
    assert result.statistics.late_chunks == 5  # The third is a cause, which lasts for two more of 0.4 s each.
    assert "chunk of step 8 came at step 11, later than the 2 steps the policy was made for" in result.message
    assert robot.commands == []


def test_a_chunk_that_took_one_period_starts_with_its_second_action(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """Actions belong to their own time: what was meant for the time of thinking is skipped, not played late."""
    clock = VirtualTime()

    def answer(call: int, observation: Observation) -> ActionChunk:
        clock.advance(0.13)
        actions = np.zeros((6, 4), np.float32)
        actions[:, 1] = 0.001 * np.arange(6)
        return ActionChunk(actions=actions, confidence=np.ones(6, np.float32))

    _run(robot, FakePolicy(tiny_spec, answer), dataclasses.replace(INLINE, realtime=True, max_steps=3), clock)
    assert [round(1000 * float(command[1])) for command in robot.commands[:2]] == [1, 2]


def test_another_robot_is_refused_before_it_is_connected(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """Names, cameras and rate are compared; the message names the difference."""
    names = ("terminate", "dx", "dz", "gripper")
    robot.action_spec = dataclasses.replace(tiny_spec.action, names=names)
    with pytest.raises(SpecError, match=r"robot's action differ: names\[2\] is 'dz', expected 'dy'"):
        _run(robot, FakePolicy(tiny_spec))
    robot.action_spec, robot.rate_hz = tiny_spec.action, 20.0
    with pytest.raises(SpecError, match="made for 10 steps in a second, the robot has 20"):
        _run(robot, FakePolicy(tiny_spec))
    assert robot.disconnects == 0


def test_without_an_instruction_nothing_moves(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """The robot is let go and the message says what to give."""
    robot.instruction = " "
    with pytest.raises(CallerError, match="no instruction: say what to do"):
        _run(robot, FakePolicy(tiny_spec))
    assert (robot.commands, robot.disconnects) == ([], 1)


def test_contradicting_settings_are_refused() -> None:
    """A thread cannot keep up with a loop that does not wait; counts are at least one."""
    with pytest.raises(CallerError, match="inference in a thread needs real time"):
        LoopConfig(realtime=False)
    with pytest.raises(CallerError, match=r"^LoopConfig: time_to_live_steps 0: expected 1 or more\.$"):
        LoopConfig(time_to_live_steps=0)
    with pytest.raises(CallerError, match="rate_hz nan: expected a rate above 0 Hz"):
        LoopConfig(rate_hz=math.nan)
    with pytest.raises(CallerError, match=r"least_confidence 1\.5"):
        LoopConfig(least_confidence=1.5)


def test_the_statistics_are_plain_numbers(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """Counts, rates and percentiles, ready for JSON; what was not measured is None."""
    clock = VirtualTime()

    def answer(call: int, observation: Observation) -> ActionChunk:
        clock.advance(0.004)
        return policy.chunk(0.5)

    policy = FakePolicy(tiny_spec, answer)
    data = _run(robot, policy, dataclasses.replace(INLINE, realtime=True), clock).statistics.to_dict()
    assert data["clipped"] == 2 * 20
    assert data["chunks"] == 7
    assert data["decision_latency_ms"]["p50"] == pytest.approx(4.0)
    assert data["action_age_ms"]["max"] == pytest.approx(200.0)  # The third action of a chunk, two steps after its observation.
    assert data["ticks_per_s"] == pytest.approx(10, rel=0.06)
    robot.fail = lambda what: _raise(OSError()) if what == "connect" else None
    data = _run(robot, policy).statistics.to_dict()
    assert (data["ticks_per_s"], data["decision_latency_ms"]) == (None, None)


def test_the_thread_takes_one_observation_at_a_time(tiny_spec: PolicySpec, robot: FakeRobot) -> None:
    """Busy means False, never a queue of old observations; the answer comes back with its step."""
    release = threading.Event()

    def answer(call: int, observation: Observation) -> ActionChunk:
        release.wait(10)
        return policy.chunk(0.01)

    policy = FakePolicy(tiny_spec, answer)
    inference = ThreadInference(policy, time.monotonic)
    observation = robot.get_observation()
    assert inference.submit(observation, "put", 3)
    assert not inference.submit(observation, "put", 4)
    assert inference.poll() is None
    release.set()
    deadline = time.monotonic() + 10
    while (got := inference.poll()) is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert got is not None
    assert got.observed_at == 3
    assert inference.submit(observation, "put", 5)
    inference.close()
    assert not inference._thread.is_alive()


class Late:
    """Where a policy runs that answers so many steps after it was asked, one number for each question in turn."""

    def __init__(self, policy: FakePolicy, time: VirtualTime, steps: list[float]) -> None:
        self.policy, self.time, self.steps, self.waiting, self.asked = policy, time, steps, None, 0

    def submit(self, observation: Observation, instruction: str, step: int) -> bool:
        if self.waiting is not None:
            return False
        (chunk,) = self.policy.predict([observation], [instruction])
        late_s = self.steps[self.asked % len(self.steps)] / self.policy.spec.timing.rate_hz
        self.asked += 1
        self.waiting = Answer(observed_at=step, chunk=chunk, error="", submitted_s=self.time.now, finished_s=self.time.now + late_s)
        return True

    def poll(self) -> Answer | None:
        if self.waiting is None or self.time.now < self.waiting.finished_s:
            return None
        answer, self.waiting = self.waiting, None
        return answer

    def close(self) -> None:
        pass


def told_spec(spec: PolicySpec, committed_steps: int = 3) -> PolicySpec:
    timing = dataclasses.replace(spec.timing, horizon=8, execute_steps=1, max_delay_steps=7, committed_steps=committed_steps)
    return dataclasses.replace(spec, timing=timing)


@given(late=st.lists(st.floats(0.1, 3.4), min_size=1, max_size=9), slow=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_the_policy_is_told_what_will_really_be_commanded(tiny_spec: PolicySpec, late: list[float], slow: bool, seed: int) -> None:
    """However late each answer is, what was said to be on its way is what the robot gets then, limits included; and nobody waits for ever."""
    spec, rng = told_spec(tiny_spec), np.random.default_rng(seed)
    robot, time, told = FakeRobot(spec), VirtualTime(), []

    def answer(call: int, observation: Observation) -> ActionChunk:
        told.append(
            (len(robot.commands) - 1, observation.committed)
        )  # Asked when this step's command is out, which is the first it is told.
        actions = rng.uniform(-0.04, 0.04, (8, 4)).astype(np.float32)
        actions[:, [0, 3]] = 0, rng.integers(0, 2)
        return ActionChunk(actions=actions, confidence=np.ones(8, np.float32))

    config = LoopConfig(max_steps=60, max_change=(1.0, 0.01, 0.01, 1.0) if slow else None)
    result = _run(robot, FakePolicy(spec, answer), config, time, inference=lambda policy, clock: Late(policy, time, late))
    assert result.stopped_by == "steps"
    first = 60 - (len(robot.commands) - 1)  # Nothing is sent before the first answer; the last command is the hold at the end.
    assert first <= 4
    assert result.statistics.holds == first
    said = [(sent, committed) for sent, committed in told if committed is not None]
    assert said
    for sent, committed in said:
        there = robot.commands[sent : min(sent + len(committed), len(robot.commands) - 1)]
        np.testing.assert_array_equal(committed[: len(there)], there)
    if slow:
        assert np.abs(np.diff(robot.commands[:-1], axis=0))[:, 1:3].max() <= 0.01 + 1e-7


def test_one_slow_answer_does_not_starve_those_after_it(tiny_spec: PolicySpec) -> None:
    """After it the loop reckons with its delay for a while: each answer waits, and none throws away the one before."""
    spec, time = told_spec(tiny_spec, 4), VirtualTime()
    late = [0.5] * 5 + [3.5] + [0.5] * 50
    policy = FakePolicy(spec, lambda call, observation: policy.chunk(1e-3 * call))
    robot = FakeRobot(spec)
    result = _run(robot, policy, LoopConfig(max_steps=40), time, inference=lambda policy, clock: Late(policy, time, late))
    assert result.statistics.holds == 1
    values = [round(float(command[1]) * 1e3) for command in robot.commands[:-1]]
    assert all(step - number <= 6 for step, number in enumerate(values, start=1))  # Of which question each command is.
    assert values[-1] == 36


def test_an_inline_loop_tells_of_its_holds_alone(tiny_spec: PolicySpec) -> None:
    """While it waits it commands nothing, so what is on its way is to stand still, for as long as the quickest answers of late took."""
    spec, time, told = told_spec(tiny_spec), VirtualTime(), []
    durations = iter([0.05] + [0.25] * 12 + [0.05] * 20)

    def answer(call: int, observation: Observation) -> ActionChunk:
        told.append(observation.committed)
        time.advance(next(durations))
        return policy.chunk(0.01)

    policy = FakePolicy(spec, answer)
    result = _run(FakeRobot(spec), policy, dataclasses.replace(INLINE, realtime=True, max_steps=60), time)
    assert result.statistics.holds == 0
    lengths = [0 if committed is None else len(committed) for committed in told]
    assert lengths[0] == lengths[1] == 0
    assert max(lengths) == 2
    for committed in told:
        if committed is not None:
            np.testing.assert_array_equal(committed, [[0, 0, 0, 1]] * len(committed))


def test_a_policy_that_is_not_told_hears_nothing(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """`committed` stays None without `committed_steps`."""
    heard = []
    policy = FakePolicy(tiny_spec, lambda call, observation: heard.append(observation.committed) or policy.chunk(0.01))
    _run(robot, policy)
    assert heard
    assert set(heard) == {None}
