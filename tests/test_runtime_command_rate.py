"""The control loop with more commands than policy steps, in virtual time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from actlet.errors import SpecError
from actlet.protocols import ActionChunk, Observation, Policy
from actlet.specs import ActionSpec, MotionLimits, PolicySpec
from runtime.control_loop import LoopConfig, LoopResult, drive
from runtime.failsafe import FailsafeConfig, State, StopButtons
from runtime.inference import Answer, Inference

MOTION = MotionLimits(velocity=1.0, acceleration=8.0, jerk=400.0)
COMMAND_HZ = 200.0


def arm_spec(tiny_spec: PolicySpec, *, limited: bool = True) -> PolicySpec:
    """Two joint positions, a displacement and a gripper, at 10 steps in a second."""
    action = ActionSpec(
        names=("shoulder", "elbow", "dz", "gripper"),
        units=("rad", "rad", "m", "1"),
        kinds=("continuous", "continuous", "continuous", "binary"),
        low=(-2.0, -2.0, -0.05, 0.0),
        high=(2.0, 2.0, 0.05, 1.0),
        frame="joint",
        hold=("last", "last", "zero", "last"),
        motion=(MOTION, MOTION, dataclasses.replace(MOTION, velocity=0.4), None) if limited else None,
    )
    return dataclasses.replace(tiny_spec, action=action)


class Clock:
    """Only sleep and `advance` move it."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


class Arm:
    """Takes 200 commands in a second or more, and notes each with its time."""

    instruction = "press the button"

    def __init__(self, spec: PolicySpec, clock: Clock, hz: float = COMMAND_HZ) -> None:
        self.observation_spec, self.action_spec, self.rate_hz = spec.observation, spec.action, spec.timing.rate_hz
        self.command_rate_hz, self.clock = hz, clock
        self.commands: list[np.ndarray] = []
        self.times: list[float] = []
        self.seen = 0
        self.emergencies = 0
        self.on_command: Callable[[int], None] = lambda count: None

    def connect(self) -> None: ...

    def present_action(self) -> list[float]:
        return [0.5, -0.5, 0.0, 0.0]

    def get_observation(self) -> Observation:
        self.seen += 1
        return Observation({"front": np.full((6, 8, 3), self.seen % 251, np.uint8)}, np.zeros(3, np.float32))

    def send_action(self, action: np.ndarray) -> None:
        assert action.dtype == np.float64
        self.commands.append(action)
        self.times.append(self.clock())
        self.on_command(len(self.commands))

    def emergency_stop(self) -> None:
        self.emergencies += 1

    def disconnect(self) -> None: ...


class Script:
    """A policy that answers with `answer(call)`, float (H, A)."""

    def __init__(
        self, spec: PolicySpec, answer: Callable[[int], np.ndarray], confidence: Callable[[int], float] = lambda call: 1.0
    ) -> None:
        self.spec, self.calls, self._answer, self._confidence = spec, 0, answer, confidence

    def predict(self, observations: list[Observation], instructions: list[str]) -> list[ActionChunk]:
        self.calls += 1
        sure = np.full(self.spec.timing.horizon, self._confidence(self.calls), np.float32)
        return [ActionChunk(np.asarray(self._answer(self.calls)), sure)]


class After:
    """Answers so many seconds after it was asked, in virtual time."""

    def __init__(self, policy: Policy, clock: Callable[[], float], delay_s: float) -> None:
        self._policy, self._clock, self._delay_s = policy, clock, delay_s
        self._ready: Answer | None = None

    def submit(self, observation: Observation, instruction: str, step: int) -> bool:
        if self._ready is not None:
            return False
        now, chunk, error = self._clock(), None, ""
        try:
            (chunk,) = self._policy.predict([observation], [instruction])
        except Exception as failure:
            error = str(failure)
        self._ready = Answer(observed_at=step, chunk=chunk, error=error, submitted_s=now, finished_s=now + self._delay_s)
        return True

    def poll(self) -> Answer | None:
        ready = self._ready
        if ready is None or self._clock() < ready.finished_s:
            return None
        self._ready = None
        return ready

    def close(self) -> None: ...


def run(arm: Arm, policy: Script, config: LoopConfig, delay_s: float = 0.012, **options: object) -> LoopResult:
    def where(policy: Policy, clock: Callable[[], float]) -> Inference:
        return After(policy, clock, delay_s)

    return drive(arm, policy, None, config, clock=arm.clock, sleep=arm.clock.sleep, inference=where, **options)


def reach(value: float) -> Callable[[int], np.ndarray]:
    """Chunks that say: both joints to `value`, 1 cm a step, closed."""
    return lambda call: np.tile(np.array([value, -value, 0.01, 1.0], np.float32), (6, 1))


def assert_safe(arm: Arm) -> None:
    """Finite, in range, whole flags, and speeds as the specification allows, from where the arm stood to its last command."""
    sent = np.array(arm.commands)
    spec = arm.action_spec
    assert np.isfinite(sent).all()
    assert set(sent[:, 3]) <= {0.0, 1.0}
    start = np.tile([*arm.present_action()[:2], 0.0], (4, 1))
    positions = np.concatenate([start, np.stack([sent[:, 0], sent[:, 1], np.cumsum(sent[:, 2])], 1)])
    assert np.abs(positions[:, :2]).max() <= 2.0
    assert spec.motion is not None
    for order, name in enumerate(("velocity", "acceleration", "jerk"), start=1):
        found = np.abs(np.diff(positions, order, axis=0)).max(0) * arm.command_rate_hz**order
        most = np.array([getattr(limits, name) for limits in spec.motion[:3] if limits is not None])
        assert (found <= most * (1 + 1e-6) + 1e-14 * arm.command_rate_hz**order).all(), (name, found, most)


def test_each_period_has_its_command(tiny_spec: PolicySpec) -> None:
    """Twenty for each step, five thousandths of a second apart; what the arm adds up is what the policy said; the policy is asked at its own rate."""
    clock = Clock()
    arm, policy = Arm(arm_spec(tiny_spec, limited=False), clock), Script(arm_spec(tiny_spec, limited=False), reach(0.8))
    result = run(arm, policy, LoopConfig(max_steps=30))
    assert result.stopped_by == "steps"
    counted = result.statistics
    assert (counted.ticks, counted.commands, counted.missed_commands) == (30, 600, 0)
    assert policy.calls == 10
    assert counted.sent == 580  # Nothing is due before the first answer, which comes within the first step.
    np.testing.assert_allclose(np.diff(arm.times[:580]), 1 / COMMAND_HZ, atol=1e-9)
    np.testing.assert_allclose(sum(command[2] for command in arm.commands[:580]), 29 * 0.01, rtol=1e-6)
    np.testing.assert_allclose(arm.commands[-1], [0.8, -0.8, 0.0, 1.0], rtol=1e-6)


def test_a_new_chunk_is_used_from_the_next_command_on(tiny_spec: PolicySpec) -> None:
    """It comes 12 ms after its observation, in the middle of a step of 100 ms, and the third command after it is made of it."""
    clock = Clock()
    spec = arm_spec(tiny_spec, limited=False)
    arm = Arm(spec, clock)
    policy = Script(spec, lambda call: reach(0.1 * call)(call))
    result = run(arm, policy, LoopConfig(max_steps=9, schedule=dataclasses.replace(LoopConfig().schedule, blend_steps=0)))
    reactions = list(result.statistics.reactions_s)
    assert reactions[0] == pytest.approx(0.1)  # The first chunk leads from HOLD to RUN, which is a matter of whole steps.
    np.testing.assert_allclose(reactions[1:], 0.015, atol=1e-9)


def test_limits_hold_from_the_first_command_to_the_last(tiny_spec: PolicySpec) -> None:
    """From where the arm stands, through targets far away, to rest at the end of the run."""
    clock = Clock()
    arm = Arm(arm_spec(tiny_spec), clock)
    run(arm, Script(arm_spec(tiny_spec), lambda call: reach(1.9 * (-1) ** call)(call)), LoopConfig(max_steps=40))
    assert_safe(arm)
    assert np.ptp(np.array(arm.commands)[:, 0]) > 0.2
    np.testing.assert_allclose(arm.commands[-1][2], 0.0, atol=1e-12)


@pytest.mark.parametrize("hz", [200.0, 1000.0])
@pytest.mark.parametrize("seed", range(4))
def test_no_answer_makes_an_unsafe_command(tiny_spec: PolicySpec, seed: int, hz: float) -> None:
    """Chunks that are not finite, of another shape, huge or late, failing observations and lost answers: every command keeps every limit."""
    rng = np.random.default_rng(seed)
    clock = Clock()
    spec = arm_spec(tiny_spec)
    arm = Arm(spec, clock, hz)

    def answer(call: int) -> np.ndarray:
        chunk = rng.uniform(-3, 3, (6, 4)).astype(np.float32)
        what = rng.integers(0, 8)
        if what == 0:
            chunk[rng.integers(0, 6), rng.integers(0, 4)] = rng.choice([math.nan, math.inf, -math.inf, 1e30])
        elif what == 1:
            return chunk[:3]
        elif what == 2:
            raise RuntimeError("no")
        return chunk

    config = LoopConfig(max_steps=250, failsafe=FailsafeConfig(hold_s=60, wait_s=60, clamp_share=1.0))
    result = run(arm, Script(spec, answer), config, delay_s=float(rng.choice([0.002, 0.03, 0.25])))
    assert result.stopped_by == "steps", result.message
    assert result.statistics.holds > 0
    assert result.statistics.state_ticks["RUN"] > 20
    assert_safe(arm)


def test_short_periods_have_their_command_before_anything_else(tiny_spec: PolicySpec) -> None:
    """At 1 kHz a robot is looked at after its command is out, a new chunk is used one command later, and what is sent is the same."""
    story, sent = [], {}
    for hz in (200.0, 1000.0):
        clock = Clock()
        spec = arm_spec(tiny_spec, limited=False)
        arm = Arm(spec, clock, hz)
        if hz > 500:
            arm.on_command = lambda count: story.append("send")
            look = arm.get_observation
            arm.get_observation = lambda look=look: (story.append("look"), look())[1]
        result = run(arm, Script(spec, lambda call: reach(0.01 * call)(call)), LoopConfig(max_steps=30))
        sent[hz] = sum(command[2] for command in arm.commands)
        assert result.statistics.missed_commands == 0
    assert story.index("look") == 0
    looks = [i for i, what in enumerate(story) if what == "look"][1:]
    assert looks
    assert all(story[i - 1] == "send" for i in looks)
    assert sent[1000.0] == pytest.approx(sent[200.0])


@pytest.mark.parametrize("hz", [200.0, 1000.0])
def test_an_emergency_stop_does_not_wait_for_the_next_step(tiny_spec: PolicySpec, hz: float) -> None:
    """Pressed after a command in mid-step, it slows the next one; the run ends at rest, and the robot was told once."""
    clock, buttons = Clock(), StopButtons()
    arm = Arm(arm_spec(tiny_spec), clock, hz)
    pressed = int(0.65 * hz)  # Half a second after the first command, which is sent 0.1 s after the beginning.
    arm.on_command = lambda count: buttons.emergency_stop() if count == pressed else None
    result = run(arm, Script(arm_spec(tiny_spec), reach(1.9)), LoopConfig(max_steps=100), buttons=buttons)
    assert (result.stopped_by, result.verdict.state, arm.emergencies) == ("emergency", State.ESTOP, 1)
    assert_safe(arm)
    speed = np.diff(np.array(arm.commands)[:, 0]) * hz
    assert speed[pressed - 2] > 0.5
    assert speed[pressed + int(0.1 * hz)] < speed[pressed - 2]
    assert abs(speed[-1]) < 1e-9
    assert len(arm.commands) < pressed + 0.45 * hz


def test_an_operators_stop_comes_to_rest(tiny_spec: PolicySpec) -> None:
    """Within the limits, at the latest a step after it was pressed."""
    clock, buttons = Clock(), StopButtons()
    arm = Arm(arm_spec(tiny_spec), clock)
    arm.on_command = lambda count: buttons.stop() if count == 130 else None
    result = run(arm, Script(arm_spec(tiny_spec), reach(1.9)), LoopConfig(max_steps=100), buttons=buttons)
    assert result.stopped_by == "interrupted"
    assert_safe(arm)
    np.testing.assert_array_equal(arm.commands[-1], arm.commands[-2])


def test_periods_that_are_over_are_skipped_and_counted(tiny_spec: PolicySpec) -> None:
    """A send that takes 32 ms costs six commands, and the steps go on where they should."""
    clock = Clock()
    spec = arm_spec(tiny_spec, limited=False)
    arm = Arm(spec, clock)
    arm.on_command = lambda count: clock.sleep(0.032) if count == 105 else None
    result = run(arm, Script(spec, reach(0.5)), LoopConfig(max_steps=30))
    assert result.statistics.missed_commands == 6
    assert result.statistics.commands == 594
    assert result.statistics.missed_deadlines == 0
    assert arm.times[-2] < 50.0 + 3.0


def test_an_unsure_policy_slows_down_or_holds(tiny_spec: PolicySpec) -> None:
    """Below the least confidence: half of every displacement, or HOLD with its own cause; above it nothing changes."""
    spec = arm_spec(tiny_spec, limited=False)
    moved = {}
    for unsure in ("ignore", "slow"):
        arm = Arm(spec, Clock())
        result = run(arm, Script(spec, reach(0.8), lambda call: 0.3), LoopConfig(max_steps=20, unsure=unsure, least_confidence=0.5))
        moved[unsure] = sum(command[2] for command in arm.commands)
        assert result.statistics.unsure == 19
    assert moved["slow"] == pytest.approx(moved["ignore"] / 2)
    arm = Arm(spec, Clock())
    policy = Script(spec, reach(0.8), lambda call: 0.3 if call in (4, 5) else 0.9)
    result = run(arm, policy, LoopConfig(max_steps=40, unsure="hold", least_confidence=0.5))
    assert result.stopped_by == "steps"
    assert result.statistics.causes["policy unsure"] == 1
    assert result.statistics.state_ticks["HOLD"] > 2
    result = run(
        Arm(spec, Clock()), Script(spec, reach(0.8), lambda call: 0.1), LoopConfig(max_steps=40, unsure="hold", least_confidence=0.5)
    )
    assert result.stopped_by == "hold"
    assert "confidence 0.10, at least 0.5 is wanted" in result.message


def test_what_does_not_fit_moves_nothing(tiny_spec: PolicySpec) -> None:
    """Another rate than the robot's; displacements for a robot that does not say that it adds them up; limits without knowing where it stands."""
    spec = arm_spec(tiny_spec)
    arm = Arm(spec, Clock())
    with pytest.raises(SpecError, match="wants 200 commands in a second, asked for are 100"):
        run(arm, Script(spec, reach(0.1)), LoopConfig(command_rate_hz=100))
    del arm.command_rate_hz
    with pytest.raises(SpecError, match=r"\['dz'\] are displacements: .* command_rate_hz = 100"):
        run(arm, Script(spec, reach(0.1)), LoopConfig(command_rate_hz=100))
    with pytest.raises(SpecError, match="max_change limits the change from one step to the next"):
        run(Arm(spec, Clock()), Script(spec, reach(0.1)), LoopConfig(max_change=(1.0, 1.0, 1.0, 1.0)))
    with pytest.raises(SpecError, match=r"and ActionSpec\.motion does so too"):
        run(Arm(spec, Clock(), 10.0), Script(spec, reach(0.1)), LoopConfig(max_steps=9, max_change=(1.0, 1.0, 1.0, 1.0)))
    arm = Arm(spec, Clock())
    arm.present_action = None
    with pytest.raises(SpecError, match=r"give the robot a method present_action"):
        run(arm, Script(spec, reach(0.1)), LoopConfig())
    assert arm.commands == []
