"""runtime.inference_process: real processes that are killed and stopped, and a control process that does not notice."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from actlet.command_line import main
from actlet.errors import CallerError, ObservationError
from actlet.protocols import ActionChunk, Observation
from benchmarks.failing_policy import TRIGGERS
from runtime.inference import Answer
from runtime.inference_process import InferenceProcess
from runtime.inference_worker import WorkerConfig
from runtime.mailbox import Mailbox, shared_memory
from runtime.messages import Question, pack_answer, pack_question, unpack_answer, unpack_question
from runtime.policy import BundlePolicy
from runtime.real_time import RealTime, take_real_time
from runtime.supervisor import SupervisorConfig

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pidfd and eventfd are Linux's")
PATIENT = SupervisorConfig(hang_s=20.0)
"""For machines on which a process may not run for seconds."""


def observed(policy: BundlePolicy, row: int = 0) -> Observation:
    golden = policy.bundle.golden
    return Observation({name: frames[row] for name, frames in golden.images.items()}, golden.state[row])


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def answer(inference: InferenceProcess, seen: Observation, words: str, step: int = 0) -> Answer:
    found: list[Answer] = []
    until(lambda: inference.submit(seen, words, step))
    until(lambda: bool(found.extend(a for a in (inference.poll(),) if a is not None) or found))
    return found[0]


@pytest.fixture
def policy(tiny_bundle: Path) -> BundlePolicy:
    return BundlePolicy(tiny_bundle)


@contextlib.contextmanager
def opened(bundle: Path, config: SupervisorConfig = PATIENT, **worker: object) -> Iterator[InferenceProcess]:
    inference = InferenceProcess(bundle, supervisor=config, worker=WorkerConfig(policy="", **worker))  # type: ignore[arg-type]
    try:
        yield inference
    finally:
        inference.close()


def test_it_answers_as_the_policy_does(policy: BundlePolicy) -> None:
    """Bit for bit, with step and times; as a policy as well as a place of inference."""
    with opened(policy.bundle.path) as inference:
        assert inference.spec == policy.spec
        inference.prepare("put the cup on the plate")
        for row, words in ((0, "put the cup"), (1, "lift the cup"), (0, "lift the cup")):
            expected = policy.predict([observed(policy, row)], [words])[0]
            got = answer(inference, observed(policy, row), words, step=row + 7)
            assert (got.observed_at, got.error) == (row + 7, "")
            assert got.chunk is not None
            np.testing.assert_array_equal(got.chunk.actions, expected.actions)
            np.testing.assert_array_equal(got.chunk.confidence, expected.confidence)
            assert 0 < got.submitted_s <= got.finished_s <= time.monotonic()
            np.testing.assert_array_equal(inference.predict([observed(policy, row)], [words])[0].actions, expected.actions)


def test_one_question_at_a_time(policy: BundlePolicy) -> None:
    """The second is not taken while the first is being answered."""
    with opened(policy.bundle.path) as inference:
        os.kill(inference.status.pids[0], signal.SIGSTOP)
        assert inference.submit(observed(policy), "put the cup", 0)
        assert not inference.submit(observed(policy), "put the cup", 1)
        assert inference.poll() is None
        os.kill(inference.status.pids[0], signal.SIGCONT)
        until(lambda: inference.poll() is not None)
        assert inference.submit(observed(policy), "put the cup", 2)


def test_a_standby_answers_what_a_killed_worker_was_asked(policy: BundlePolicy) -> None:
    """And a new standby comes; several times."""
    with opened(policy.bundle.path, SupervisorConfig(hang_s=20.0, first_wait_s=0.01, longest_wait_s=0.02)) as inference:
        expected = policy.predict([observed(policy)], ["put the cup"])[0]
        for kill in range(3):
            until(lambda: inference.status.ready == 2)
            os.kill(inference.status.pids[0], signal.SIGSTOP)  # It has the question, and will never answer.
            assert inference.submit(observed(policy), "put the cup", kill)
            os.kill(inference.status.pids[0], signal.SIGKILL)
            found: list[Answer] = []
            until(lambda found=found: bool(found.extend(a for a in (inference.poll(),) if a is not None) or found))
            assert (found[0].observed_at, found[0].error) == (kill, "")
            assert found[0].chunk is not None
            np.testing.assert_array_equal(found[0].chunk.actions, expected.actions)
        status = inference.status
        assert (status.deaths, status.takeovers, status.hangs) == (3, 3, 0)
        assert "SIGKILL" in status.error


def test_a_worker_that_hangs_is_killed(policy: BundlePolicy) -> None:
    """Stopped, not even busy: what counts is the question that waits."""
    with opened(policy.bundle.path, SupervisorConfig(hang_s=0.3)) as inference:
        until(lambda: inference.status.ready == 2)
        hanging = inference.status.pids[0]
        os.kill(hanging, signal.SIGSTOP)
        assert answer(inference, observed(policy), "put the cup", 5).error == ""
        until(lambda: inference.status.hangs >= 1)
        assert hanging not in inference.status.pids


def test_a_policy_that_fails_is_an_answer(policy: BundlePolicy) -> None:
    """What it says; the process lives on."""
    with opened(policy.bundle.path) as inference:
        words = " ".join(["cup"] * 40)  # More than its encoder reads.
        got = answer(inference, observed(policy), words)
        assert got.chunk is None
        assert "ObservationError" in got.error
        with pytest.raises(CallerError, match=r"instruction .*ObservationError"):
            inference.prepare(words)
        assert answer(inference, observed(policy), "put the cup").error == ""
        assert inference.status.deaths == 0
        with pytest.raises(ObservationError, match="instruction of 5000 bytes, expected at most 4096"):
            inference.submit(observed(policy), "x" * 5000, 0)
        with pytest.raises(ObservationError, match="front"):
            inference.submit(Observation({}, observed(policy).state), "put the cup", 0)


def test_a_worker_without_memory_ends_and_another_takes_over(policy: BundlePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it may have is limited; the standby answers what it was asked, and the reason is said."""
    (tmp_path / "triggers").mkdir()
    monkeypatch.setenv(TRIGGERS, str(tmp_path / "triggers"))
    quick = SupervisorConfig(hang_s=20.0, first_wait_s=0.01, longest_wait_s=0.02)
    with opened(policy.bundle.path, quick, opener="benchmarks.failing_policy:open_failing", memory_bytes=1 << 30) as inference:
        until(lambda: inference.status.ready == 2)
        limits = [Path(f"/proc/{pid}/limits").read_text() for pid in inference.status.pids]
        assert all(re.search(r"Max data size +1073741824 ", text) for text in limits)
        (tmp_path / "triggers" / "memory").touch()
        assert answer(inference, observed(policy), "put the cup", 3).error == ""
        until(lambda: inference.status.deaths == 1)
        assert (inference.status.takeovers, inference.status.hangs) == (1, 0)
        assert "exit code 4: no memory left of what it may have, see WorkerConfig.memory_bytes" in inference.status.error


def test_a_worker_goes_first_when_the_machine_has_no_memory(policy: BundlePolicy) -> None:
    """The kernel's order: workers before what commands the robot; the limit of memory that nobody named follows the bundle's size."""
    own = int(Path("/proc/self/oom_score_adj").read_text())
    with opened(policy.bundle.path) as inference:
        until(lambda: inference.status.ready == 2)
        scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in inference.status.pids]
        assert scores == [500, 500]
        assert int(Path(f"/proc/{inference._supervisor.pid}/oom_score_adj").read_text()) <= own
        size = sum(min(file.stat().st_size, 512 * file.stat().st_blocks) for file in policy.bundle.path.iterdir())
        for pid in inference.status.pids:
            assert f" {(2 << 30) + 8 * size} " in Path(f"/proc/{pid}/limits").read_text()
    with opened(policy.bundle.path, memory_bytes=0) as inference:
        assert re.search(r"Max data size +unlimited", Path(f"/proc/{inference.status.pids[0]}/limits").read_text())
    with pytest.raises(CallerError, match="memory of -1 bytes, expected a positive number, or 0"):
        InferenceProcess(policy.bundle.path, worker=WorkerConfig(policy="", memory_bytes=-1))


def test_what_cannot_be_opened_says_why(tmp_path: Path, policy: BundlePolicy) -> None:
    """At once, with the words of the process that tried; no process is left behind."""
    with pytest.raises(CallerError, match="nothing: it does not exist"):
        InferenceProcess(tmp_path / "nothing")
    with pytest.raises(CallerError, match="session: 0 threads"):
        InferenceProcess(policy.bundle.path, worker=WorkerConfig(policy="", threads=0))
    (policy.bundle.path / "policy.onnx").write_bytes(b"no")
    with pytest.raises(CallerError, match=r"policy\.onnx: 2 bytes, expected"):
        InferenceProcess(policy.bundle.path)


def test_a_policy_that_dies_again_and_again_is_given_up(policy: BundlePolicy) -> None:
    """The loop hears of it as of any failure."""
    config = SupervisorConfig(hang_s=20.0, standby=False, first_wait_s=0.01, longest_wait_s=0.02, most_deaths=1)
    with opened(policy.bundle.path, config) as inference:
        for _ in range(2):
            until(lambda: inference.status.state == "ready")
            os.kill(inference.status.pids[0], signal.SIGKILL)
            until(lambda: inference.status.state != "ready")
        until(lambda: inference.status.state == "gone")
        assert inference.submit(observed(policy), "put the cup", 0)
        got = inference.poll()
        assert got is not None
        assert re.search(r"the policy was given up: .*SIGKILL", got.error)


def _is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def _own(bundle: str, said: object) -> None:
    inference = InferenceProcess(bundle, supervisor=PATIENT)
    until(lambda: inference.status.ready == 2)
    said.send([inference._supervisor.pid, *inference.status.pids])  # type: ignore[attr-defined]
    time.sleep(600)


def test_no_process_outlives_the_control_process(policy: BundlePolicy) -> None:
    """Closed in order, or killed."""
    with opened(policy.bundle.path) as inference:
        until(lambda: inference.status.ready == 2)
        pids = [inference._supervisor.pid, *inference.status.pids]
    until(lambda: not any(map(_is_alive, pids)))
    here, there = multiprocessing.get_context("spawn").Pipe()
    control = multiprocessing.get_context("spawn").Process(target=_own, args=(str(policy.bundle.path), there))
    control.start()
    assert here.poll(60)
    pids = here.recv()
    assert all(map(_is_alive, pids))
    control.kill()
    control.join()
    until(lambda: not any(map(_is_alive, pids)))


def test_actlet_run_drives_with_processes(
    tmp_path: Path, make_tiny_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In real time, from the command line; with a thread on request."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from point_reach import SPEC

    bundle = make_tiny_bundle(tmp_path / "bundle", spec=SPEC)
    for where in ("process", "thread"):
        arguments = [
            "run",
            str(bundle),
            "--suite",
            "point_reach:make_suite",
            "--task",
            "red",
            "--steps",
            "8",
            "--realtime",
            "--inference",
            where,
        ]
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert re.search(r"stopped by +steps", out)
        assert int(re.search(r"decisions +(\d+)", out)[1]) >= 1  # type: ignore[index]


# --- messages and mailbox


def test_messages_come_back_as_they_went(policy: BundlePolicy) -> None:
    """Questions and answers; one of another size is an answer that says so."""
    seen = observed(policy)
    back = unpack_question(policy.spec, b"".join(pack_question(policy.spec, -3, 1.5, seen, "put the cup on the plate ü")))
    assert (back.step, back.submitted_s, back.instruction) == (-3, 1.5, "put the cup on the plate ü")
    np.testing.assert_array_equal(back.observation.images["front"], seen.images["front"])
    np.testing.assert_array_equal(back.observation.state, seen.state)
    chunk = ActionChunk(np.arange(24, dtype=np.float32).reshape(6, 4), np.linspace(0, 1, 6, dtype=np.float32))
    content = b"".join(pack_answer(9, Question(2, 1.0, seen, ""), 1.25, chunk))
    number, found = unpack_answer(policy.spec, content)
    assert (number, found.observed_at, found.submitted_s, found.finished_s, found.error) == (9, 2, 1.0, 1.25, "")
    np.testing.assert_array_equal(found.chunk.actions, chunk.actions)  # type: ignore[union-attr]
    number, found = unpack_answer(policy.spec, content[:-4])
    assert found.chunk is None
    assert re.search(r"an answer of \d+ bytes, expected 120: 6 actions of 4 values", found.error)


def _write(handle: int, size: int, count: int) -> None:
    box = Mailbox(handle, size)
    for i in range(count):
        box.write([struct.pack("<Q", i), bytes([i % 251]) * (size - 8)])


def test_nothing_that_is_read_is_torn() -> None:
    """Against a writer that never rests; numbers only grow."""
    size = 20_000
    handle = shared_memory(Mailbox.size_of(size))
    box = Mailbox(handle, size)
    assert box.read() is None
    writer = multiprocessing.get_context("fork").Process(target=_write, args=(handle, size, 20_000))
    writer.start()
    last, read = 0, 0
    while writer.is_alive():
        if (got := box.read(last)) is not None:
            number, content = got
            assert number > last
            i = struct.unpack_from("<Q", content)[0]
            assert (i, content[8:]) == (number - 1, bytes([i % 251]) * (size - 8))
            last, read = number, read + 1
    writer.join()
    assert read > 0
    assert box.newest == 20_000
    os.close(handle)


def test_a_message_that_was_not_finished_is_not_read() -> None:
    """A writer that dies in the middle; the one after it goes on."""
    handle = shared_memory(Mailbox.size_of(64))
    box, writer = Mailbox(handle, 64), Mailbox(handle, 64)
    writer.write([b"whole"])
    start = writer._start(2)
    writer._memory[start : start + 8] = struct.pack("<Q", 3)  # Odd: being written.
    assert box.read() == (1, b"whole")
    struct.pack_into("<Q", writer._memory, 0, 2)  # As another processor might see it.
    assert box.read() is None
    assert writer.write([b"after"]) == 3
    assert box.read(1) == (3, b"after")
    writer._memory[writer._start(3) + 17] ^= 1
    assert box.read(1) is None
    with pytest.raises(CallerError, match="message of 65 bytes, at most 64 fit"):
        writer.write([b"x" * 65])
    os.close(handle)


# --- real time


def _take(said: object) -> None:
    refused = take_real_time(RealTime(priority=1, quiet_collector=True, out_of_memory_score=-800))
    import gc

    score = int(Path("/proc/self/oom_score_adj").read_text())
    said.send((refused, os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK, gc.isenabled(), score))  # type: ignore[attr-defined]


def test_real_time_is_taken_or_refused_in_words() -> None:
    """Whatever this machine permits: either it is so, or a line says what to run."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_take, args=(there,))
    process.start()
    refused, policy, collects, score = here.recv()
    process.join()
    assert not collects
    assert (policy == os.SCHED_FIFO) == (not any("real-time priority" in line for line in refused))
    assert (score == -800) == (not any("when memory runs out" in line for line in refused))
    assert all(re.search(r"Run: (echo .*limits\.d|sudo choom -n -900)", line) for line in refused)
