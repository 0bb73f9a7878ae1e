"""The flight recorder: what the loop told is in the file, whatever happens to disk and writer, or it is counted as lost."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actlet.errors import CallerError, MissingExtraError, RecordingError, StorageError
from actlet.protocols import ActionChunk, Observation
from actlet.specs import PolicySpec
from runtime import recorder_config as config_module
from runtime.failsafe import Cause, State, Verdict
from runtime.flight_recorder import FlightRecorder
from runtime.flight_records import Kind
from runtime.inference import Answer
from runtime.journal import NOT_ASKED
from runtime.recorder_config import RecorderConfig, recording_place
from runtime.recording import Recording, open_recording, recover

ROOT = Path(__file__).parent.parent
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


def _see(spec: PolicySpec, step: int) -> Observation:
    camera = spec.observation.cameras[0]
    rng = np.random.default_rng(step)
    frame = rng.integers(0, 256, (camera.height, camera.width, 3)).astype(np.uint8)
    return Observation({camera.name: frame}, np.array([step, -1.5, 0.25], np.float32), np.full((1, 4), step, np.float32), taken_s=step / 10)


def _chunk(step: int) -> ActionChunk:
    return ActionChunk(np.full((6, 4), step / 7, np.float32), np.linspace(0, 1, 6).astype(np.float32))


def _answer(step: int, chunk: ActionChunk | None, error: str = "") -> Answer:
    return Answer(observed_at=step, chunk=chunk, error=error, submitted_s=step / 10, finished_s=step / 10 + 0.004)


def _command(recorder: FlightRecorder, step: int) -> None:
    recorder.commanded(step, step, step / 10, [step, 0.1, 0.2, 0.3], np.array([step, 0.5, 0.25, 1.0], np.float32), step % 3)


def _wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def _require_exact(recorder: FlightRecorder, run: Recording) -> None:
    """The counters say what is in the file, and the loss is what was made less that, for every kind."""
    report = recorder.report
    for kind in Kind:
        assert report.made[kind.label] - report.lost[kind.label] == run.present[kind.label], kind


def _take_all_handles(taken: list[int]) -> None:
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))


@pytest.fixture
def recorder(tmp_path: Path, tiny_spec: PolicySpec) -> Iterator[FlightRecorder]:
    """Into run.mcap, a chunk every 20 ms."""
    with FlightRecorder(
        tmp_path / "run.mcap", tiny_spec, about={"instruction": "lift the cup"}, config=RecorderConfig(pictures="png", flush_s=0.02)
    ) as made:
        yield made


def test_what_was_told_is_read_back(recorder: FlightRecorder, tiny_spec: PolicySpec) -> None:
    """Every number, every pixel, every word, in the order of the steps."""
    for step in range(30):
        recorder.observed(step, step / 10, _see(tiny_spec, step), NOT_ASKED if step % 2 else "")
        recorder.answered(step, step / 10, dataclasses.replace(_answer(step, _chunk(step)), elsewhere=step == 7), "used", "")
        if step == 10:
            recorder.judged(step, 1.0, Verdict(State.HOLD, Cause.FROZEN_FRAME, 0.9), "camera 'front'")
        _command(recorder, step)
    recorder.note("a word")
    recorder.finish({"stopped_by": "steps", "message": "30 steps done", "success": None})
    recorder.close()
    run = open_recording(recorder.path)
    assert run.is_whole
    assert run.damage == []
    assert not any(run.lost.values())
    assert run.spec == tiny_spec
    assert run.instruction == "lift the cup"
    assert [row.step for row in run.commands] == list(range(30))
    row = run.commands[7]
    assert (row.tick, row.time_s, row.due, row.limited) == (7, 0.7, (7.0, 0.1, 0.2, 0.3), 1)
    assert row.sent == (7.0, 0.5, 0.25, 1.0)
    seen = run.observations[7]
    assert (seen.time_s, seen.taken_s, seen.refused) == (0.7, 0.7, NOT_ASKED)
    assert np.array_equal(seen.state, [7, -1.5, 0.25])
    assert np.array_equal(seen.committed, np.full((1, 4), 7))
    assert np.array_equal(run.pictures(7)["front"], _see(tiny_spec, 7).images["front"])
    answer = run.answers[7]
    assert (answer.observed_at, answer.verdict, answer.error) == (7, "used", "")
    assert [row.step for row in run.answers if row.elsewhere] == [7]
    assert np.array_equal(answer.actions, _chunk(7).actions)
    assert np.array_equal(answer.confidence, _chunk(7).confidence)
    judged = run.state_of(run.commands[10])
    assert judged is not None
    assert (judged.state, judged.cause, judged.words) == ("HOLD", "frozen frame", "camera 'front'")
    assert run.state_of(run.commands[9]) is None
    assert "a word" in [line.message for line in run.log]
    assert run.result is not None
    assert run.result["message"] == "30 steps done"
    assert str(recorder.report).endswith("lost: nothing")
    _require_exact(recorder, run)


def test_what_is_odd_is_recorded_as_far_as_it_goes(recorder: FlightRecorder) -> None:
    """A refused observation may be anything, a chunk may hold NaN or be none, nothing may be due; the file stays JSON."""
    odd = Observation({"front": np.zeros((2, 2, 3), np.uint8), "other": "no picture"}, "no state")  # type: ignore[dict-item, arg-type]
    recorder.observed(0, 0.0, odd, "camera 'front': got uint8 (2, 2, 3)")
    recorder.answered(0, 0.0, _answer(0, ActionChunk(np.full((6, 4), np.nan, np.float32), np.ones(6, np.float32))), "bad", "not finite")
    recorder.answered(1, 0.1, _answer(1, ActionChunk([["x"]], None)), "bad", "no numbers")  # type: ignore[arg-type]
    recorder.answered(2, 0.2, _answer(2, None, "died"), "bad", "died")
    recorder.commanded(0, 0, 0.0, None, [0.0, 0.0, 0.0, float("inf")], 0)
    recorder.close()
    run = open_recording(recorder.path)
    assert run.observations[0].refused.startswith("camera 'front'")
    assert run.observations[0].state.shape == (0,)
    assert run.pictures(0) == {}
    assert np.isnan(run.answers[0].actions).all()
    assert [row.actions.size for row in run.answers] == [24, 0, 0]
    assert run.commands[0].due is None
    assert run.commands[0].sent[3] == float("inf")
    from mcap.reader import make_reader

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    with recorder.path.open("rb") as file:
        messages = [json.loads(message.data, parse_constant=refuse) for _, _, message in make_reader(file).iter_messages()]
    assert len(messages) > 5


def test_a_command_that_is_none_raises_and_harms_nothing(recorder: FlightRecorder) -> None:
    """The loop counts it; what comes after is recorded."""
    with pytest.raises(Exception, match="pack"):
        recorder.commanded(0, 0, 0.0, None, [0.0], 0)
    _command(recorder, 1)
    recorder.close()
    run = open_recording(recorder.path)
    assert [row.step for row in run.commands] == [1]
    _require_exact(recorder, run)


def test_after_the_end_nothing_can_be_told(recorder: FlightRecorder) -> None:
    """Closing twice does nothing; what is told too late is refused, with the way to tell it in time."""
    recorder.close()
    recorder.close()
    with pytest.raises(CallerError, match=r"the recording is closed.*Journals\(recorder\)"):
        recorder.finish({"stopped_by": "steps"})


@pytest.mark.parametrize("pictures", ["jpeg", "png", "raw", "none"])
def test_foxglove_finds_what_it_knows(tmp_path: Path, tiny_spec: PolicySpec, pictures: str) -> None:
    """Well-known schemas by their names, JSON messages, base64 pictures, an index; and our own reader decodes them."""
    from mcap.reader import make_reader

    with FlightRecorder(tmp_path / "run.mcap", tiny_spec, config=RecorderConfig(pictures=pictures)) as recorder:  # type: ignore[arg-type]
        recorder.observed(0, 0.0, _see(tiny_spec, 0), "")
        recorder.judged(0, 0.0, Verdict(State.RUN, None, 0.0), "")
    with (tmp_path / "run.mcap").open("rb") as file:
        reader = make_reader(file)
        summary = reader.get_summary()
        assert summary is not None
        topics = {channel.topic: summary.schemas[channel.schema_id] for channel in summary.channels.values()}
        assert topics["/log"].name == "foxglove.Log"
        assert all(schema.encoding == "jsonschema" for schema in topics.values())
        assert all(channel.message_encoding == "json" for channel in summary.channels.values())
        found = [json.loads(message.data) for _, _, message in reader.iter_messages(topics=["/camera/front"])]
        times = [message.log_time for _, _, message in reader.iter_messages(topics=["/failsafe"])]
    assert abs(times[0] / 1e9 - time.time()) < 60  # A simulation's 0.0 is when the recording began.
    if pictures == "none":
        assert "/camera/front" not in topics
        assert found == []
        return
    assert topics["/camera/front"].name == ("foxglove.RawImage" if pictures == "raw" else "foxglove.CompressedImage")
    data, truth = base64.b64decode(found[0]["data"]), _see(tiny_spec, 0).images["front"]
    if pictures == "raw":
        assert (found[0]["encoding"], found[0]["step"], data) == ("rgb8", 24, truth.tobytes())
    else:
        assert found[0]["format"] == pictures
        assert Image.open(io.BytesIO(data)).format == pictures.upper()
    decoded = open_recording(tmp_path / "run.mcap").pictures(0)["front"]
    assert decoded.shape == truth.shape
    assert pictures == "jpeg" or np.array_equal(decoded, truth)


def test_times_are_the_loops_own_and_read_as_utc(recorder: FlightRecorder) -> None:
    """Monotonic times stay as they are in the records; MCAP's are so much later that they are UTC, whatever the wall clock does meanwhile."""
    from mcap.reader import make_reader

    begun_s, utc_s = time.monotonic(), time.time()
    for step in range(3):
        recorder.commanded(step, step, begun_s + 100 * step, None, [0.0] * 4, 0)
    recorder.close()
    with recorder.path.open("rb") as file:
        times = [message.log_time / 1e9 for _, _, message in make_reader(file).iter_messages(topics=["/command"])]
    assert times == pytest.approx([utc_s, utc_s + 100, utc_s + 200], abs=1.0)
    assert [row.time_s for row in open_recording(recorder.path).commands] == [begun_s, begun_s + 100, begun_s + 200]


def _recorded_in_chunks(tmp_path: Path, spec: PolicySpec, steps: int = 60) -> Path:
    config = RecorderConfig(pictures="raw", flush_s=0.01)
    with FlightRecorder(tmp_path / "run.mcap", spec, config=config) as recorder:
        for step in range(steps):
            recorder.observed(step, step / 10, _see(spec, step), "")
            _command(recorder, step)
            time.sleep(0.005)
    return tmp_path / "run.mcap"


def test_a_file_that_is_cut_anywhere_is_read_up_to_its_last_whole_chunk(tmp_path: Path, tiny_spec: PolicySpec) -> None:
    """Cut after every 61st byte: the commands are a beginning of all, never fewer for more bytes, and the cut is said."""
    path = _recorded_in_chunks(tmp_path, tiny_spec)
    whole, data = open_recording(path), path.read_bytes()
    cut, before, sizes, refused = tmp_path / "cut.mcap", 0, set(), []
    for length in range(0, len(data), 61):
        cut.write_bytes(data[:length])
        try:
            run = open_recording(cut)
        except RecordingError:
            refused.append(before)
            continue
        assert run.commands == whole.commands[: len(run.commands)]
        assert len(run.commands) >= before
        assert run.is_whole or run.damage
        assert all(np.array_equal(run.pictures(row.step)["front"], whole.pictures(row.step)["front"]) for row in run.observations[-1:])
        before = len(run.commands)
        sizes.add(before)
    assert before == 60
    assert len(sizes) > 8
    assert set(refused) == {0}


def test_a_cut_file_is_recovered(tmp_path: Path, tiny_spec: PolicySpec) -> None:
    """The new file has an index, which mcap's own reader needs, and every message of the whole chunks."""
    from mcap.reader import make_reader

    path = _recorded_in_chunks(tmp_path, tiny_spec)
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    run = recover(cut, tmp_path / "mended.mcap")
    assert 0 < len(run.commands) < 60
    mended = open_recording(tmp_path / "mended.mcap")
    assert mended.is_whole
    assert mended.commands == run.commands
    with (tmp_path / "mended.mcap").open("rb") as file:
        assert len(list(make_reader(file).iter_messages(topics=["/command"]))) == len(run.commands)
    with pytest.raises(StorageError, match=r"mended.mcap exists already"):
        recover(cut, tmp_path / "mended.mcap")


def test_a_damaged_chunk_is_left_out_and_said(tmp_path: Path, tiny_spec: PolicySpec) -> None:
    """The chunks after it are read."""
    path = _recorded_in_chunks(tmp_path, tiny_spec)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)
    run = open_recording(path)
    assert run.commands[-1].step == 59
    assert len(run.commands) < 60 or run.damage == []
    if run.damage:
        assert "is damaged" in run.damage[0]
        assert run.lost["commands"] == 60 - len(run.commands)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "is no MCAP file"), (b"\x89PNG\r\n\x1a\n" * 9, "is no MCAP file"), (b"\x89MCAP0\r\n", "ends at byte 8")],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    """In words that name the file."""
    path = tmp_path / "a.mcap"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordingError, match=message) as error:
        open_recording(path)
    assert "a.mcap" in str(error.value)


@linux
def test_a_full_disk_is_waited_for(recorder: FlightRecorder, tiny_spec: PolicySpec) -> None:
    """While it is full nothing is lost that the ring has room for; when there is space again it goes on, and the refused writes are said."""
    soft, hard = resource.prlimit(recorder.writer_pid, resource.RLIMIT_FSIZE)
    _command(recorder, 0)
    _wait_for(lambda: recorder.report.lost["commands"] == 0)
    resource.prlimit(recorder.writer_pid, resource.RLIMIT_FSIZE, (recorder.path.stat().st_size + 10, hard))
    for step in range(1, 200):
        _command(recorder, step)
    _wait_for(lambda: recorder.report.failures > 1)
    assert not recorder.is_writing
    resource.prlimit(recorder.writer_pid, resource.RLIMIT_FSIZE, (soft, hard))
    recorder.close()
    report, run = recorder.report, open_recording(recorder.path)
    assert report.failures > 1
    assert "File too large" in report.error
    assert report.is_whole
    assert run.is_whole
    assert not any(report.lost.values())
    assert len(run.commands) == 200


@linux
def test_a_disk_that_stays_full_costs_records_that_are_counted(tmp_path: Path, tiny_spec: PolicySpec) -> None:
    """More than the ring has room for: the file is whole up to the last chunk, and the counters are what is missing in it."""
    with FlightRecorder(tmp_path / "run.mcap", tiny_spec, config=RecorderConfig(flush_s=0.02, close_s=0.5)) as recorder:
        resource.prlimit(recorder.writer_pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
        for step in range(30_000):
            _command(recorder, step)
            if step % 50 == 0:
                recorder.observed(step, step / 10, _see(tiny_spec, step), "")
        _wait_for(lambda: recorder.report.failures > 0)
    report, run = recorder.report, open_recording(recorder.path)
    assert not report.is_whole
    assert report.dropped["commands"] > 0
    assert report.lost["commands"] > report.dropped["commands"]
    assert "lost: " in str(report)
    assert "File too large" in str(report)
    assert recorder.path.stat().st_size <= 20_000
    _require_exact(recorder, run)


@linux
def test_a_file_system_of_a_megabyte_fills_up(tmp_path: Path, tiny_spec: PolicySpec) -> None:
    """A real one: ENOSPC in the middle of pictures that do not compress."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        with FlightRecorder(place / "run.mcap", tiny_spec, config=RecorderConfig(pictures="raw", flush_s=0.02, close_s=1.0)) as recorder:
            for step in range(20_000):
                recorder.observed(step, step / 10, _see(tiny_spec, step), "")
                _command(recorder, step)
            _wait_for(lambda: recorder.report.failures > 0)
        run = open_recording(recorder.path)
        assert "No space left on device" in recorder.report.error
        assert 0 < len(run.commands) < 20_000
        _require_exact(recorder, run)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_writer_that_is_killed_costs_what_was_not_on_the_disk(recorder: FlightRecorder) -> None:
    """The loop's calls go on as if nothing was; the count is exact, and how it ended is said."""
    for step in range(500):
        _command(recorder, step)
        if step == 200:
            _wait_for(lambda: recorder.report.lost["commands"] == 0)
    os.kill(recorder.writer_pid, signal.SIGKILL)
    for step in range(500, 40_000):
        _command(recorder, step)
    assert not recorder.is_writing
    recorder.close()
    run = open_recording(recorder.path)
    assert not run.is_whole
    assert 201 <= len(run.commands) <= 500
    assert recorder.report.dropped["commands"] > 0
    assert "SIGKILL" in str(recorder.report)
    _require_exact(recorder, run)


@pytest.mark.parametrize("seed", range(5))
def test_the_count_is_exact_whenever_the_writer_is_killed(tmp_path: Path, tiny_spec: PolicySpec, seed: int) -> None:
    """Between any two of its writes."""
    rng = np.random.default_rng(seed)
    with FlightRecorder(tmp_path / "run.mcap", tiny_spec, config=RecorderConfig(pictures="raw", flush_s=0.01)) as recorder:
        end = time.monotonic() + rng.uniform(0.05, 0.4)
        step = 0
        while time.monotonic() < end:
            _command(recorder, step)
            recorder.observed(step, step / 10, _see(tiny_spec, step), "")
            step += 1
        os.kill(recorder.writer_pid, signal.SIGKILL)
    _require_exact(recorder, open_recording(recorder.path))


def test_a_slow_disk_costs_what_has_no_room_and_pictures_take_no_commands_place(tmp_path: Path, tiny_spec: PolicySpec) -> None:
    """A writer that stands still, then goes on: lost is what was dropped, and that is pictures alone."""
    config = RecorderConfig(pictures="raw", pictures_bytes=0, flush_s=0.02)
    with FlightRecorder(tmp_path / "run.mcap", tiny_spec, config=config) as recorder:
        os.kill(recorder.writer_pid, signal.SIGSTOP)
        for step in range(1000):
            recorder.observed(step, step / 10, _see(tiny_spec, step), "")
            _command(recorder, step)
        assert recorder.dropped > 900
        os.kill(recorder.writer_pid, signal.SIGCONT)
    report, run = recorder.report, open_recording(recorder.path)
    assert report.lost == report.dropped
    assert {kind for kind, count in report.lost.items() if count} == {"pictures"}
    assert run.lost == report.lost
    assert report.is_whole
    _require_exact(recorder, run)


@linux
def test_no_file_handle_is_needed_after_the_start(recorder: FlightRecorder, tiny_spec: PolicySpec) -> None:
    """Not by the writer, which may open none here, nor by the loop."""
    resource.prlimit(recorder.writer_pid, resource.RLIMIT_NOFILE, (0, 0))
    taken = []
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limit[1]))
    try:
        _take_all_handles(taken)
        for step in range(50):
            recorder.observed(step, step / 10, _see(tiny_spec, step), "")
            _command(recorder, step)
        recorder.close()
    finally:
        for handle in taken:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert recorder.report.is_whole
    assert not any(recorder.report.lost.values())


@linux
def test_without_file_handles_it_does_not_begin(tmp_path: Path, tiny_spec: PolicySpec) -> None:
    """And leaves nothing behind."""
    taken = []
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limit[1]))
    try:
        _take_all_handles(taken)
        os.close(taken.pop())
        os.close(taken.pop())
        with pytest.raises(StorageError, match="Too many open files"):
            FlightRecorder(tmp_path / "run.mcap", tiny_spec)
    finally:
        for handle in taken:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_finished_when_the_control_process_dies(tmp_path: Path, tiny_spec: PolicySpec) -> None:
    """Killed without a word: all that it told is there, and the index too."""
    code = f"""
import json, os, signal
from pathlib import Path
from actlet.specs import PolicySpec
from runtime.flight_recorder import FlightRecorder
recorder = FlightRecorder({str(tmp_path / "run.mcap")!r}, PolicySpec.from_dict(json.loads({json.dumps(tiny_spec.to_dict())!r})))
for step in range(3000):
    recorder.commanded(step, step, step / 10, None, [0.0] * 4, 0)
print(recorder.writer_pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    _wait_for(
        lambda: (
            not Path(f"/proc/{done.stdout.strip()}/status").exists() or "zombie" in Path(f"/proc/{done.stdout.strip()}/status").read_text()
        )
    )
    run = open_recording(tmp_path / "run.mcap")
    assert run.is_whole
    assert len(run.commands) == 3000


@linux
def test_the_writer_is_nice_and_ordinary_whatever_the_loop_is(tmp_path: Path, tiny_spec: PolicySpec) -> None:
    """Also where the loop has a real-time priority already."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    except PermissionError:
        pytest.skip("a real-time priority is not permitted here")
    try:
        with FlightRecorder(tmp_path / "run.mcap", tiny_spec) as recorder:
            assert os.sched_getscheduler(recorder.writer_pid) == os.SCHED_OTHER
            assert os.getpriority(os.PRIO_PROCESS, recorder.writer_pid) >= 10
    finally:
        os.sched_setscheduler(0, *before)


def test_a_recording_is_never_written_over(tmp_path: Path, tiny_spec: PolicySpec) -> None:
    """A file that is named must not exist; in a folder every run has its own, named after the time."""
    (tmp_path / "run.mcap").write_text("mine")
    with pytest.raises(StorageError, match=r"run.mcap exists already, and a recording is never written over"):
        FlightRecorder(tmp_path / "run.mcap", tiny_spec)
    assert (tmp_path / "run.mcap").read_text() == "mine"
    places = set()
    for _ in range(3):
        with FlightRecorder(tmp_path / "runs", tiny_spec) as recorder:
            places.add(recorder.path)
    assert len(places) == 3
    assert all(place.parent == tmp_path / "runs" and place.stem[:2] == "20" for place in places)
    assert recording_place(tmp_path / "b.mcap") == tmp_path / "b.mcap"


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, tiny_spec: PolicySpec) -> None:
    """Before anything moves."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot record into .*run.mcap: "):
        FlightRecorder(tmp_path / "file" / "run.mcap", tiny_spec)


def test_missing_packages_are_named(tmp_path: Path, tiny_spec: PolicySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra; without Pillow pictures are kept raw."""
    find = importlib.util.find_spec
    missing = {"mcap"}
    monkeypatch.setattr(config_module.importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    with pytest.raises(MissingExtraError, match=r"recording a run needs the package 'mcap'.*actlet\[record\]"):
        FlightRecorder(tmp_path / "run.mcap", tiny_spec)
    missing = {"PIL"}
    with pytest.raises(MissingExtraError, match="recording pictures as png needs the package 'pillow'"):
        FlightRecorder(tmp_path / "run.mcap", tiny_spec, config=RecorderConfig(pictures="png"))
    with FlightRecorder(tmp_path / "run.mcap", tiny_spec) as recorder:
        pass
    assert open_recording(recorder.path).about["pictures"] == "raw"


@pytest.mark.parametrize("wrong", [{"pictures": "gif"}, {"quality": 0}, {"flush_s": 5.0}, {"close_s": 0.0}, {"pictures_bytes": -1}])
def test_a_configuration_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    """With what was expected."""
    with pytest.raises(CallerError, match=r"recorder: .*expected"):
        RecorderConfig(**wrong)  # type: ignore[arg-type]
