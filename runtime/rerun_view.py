"""A recorded run in Rerun's viewer (rerun.io): pictures, state, what was due and sent, the failsafe, and the log, on one time line."""

from __future__ import annotations

from pathlib import Path

from actlet.errors import MissingExtraError
from runtime.failsafe import State
from runtime.recording import Recording
from runtime.replay_steps import moments, steps_of

__all__ = ["show_in_rerun"]


def show_in_rerun(run: Recording, out: Path | None = None) -> None:
    """Open the viewer on a run, or write a file that it opens.

    Args:
        run: What to show.
        out: A file that ends in .rrd; None to start the viewer.

    Raises:
        MissingExtraError: rerun-sdk is not installed.
    """
    try:
        import rerun as rr
    except ModuleNotFoundError as error:
        raise MissingExtraError("rerun-sdk", "viz", "showing a recording in Rerun") from error
    stream = rr.RecordingStream("actlet", recording_id=run.path.stem)
    if out is None:
        stream.spawn()
    else:
        stream.save(out)
    rate_hz, spec, pictured = run.spec.timing.rate_hz, run.spec, set(run.pictured_steps)
    stream.log("instruction", rr.TextDocument(run.instruction), static=True)
    for step in steps_of(run):
        stream.set_time("run", duration=step.step / rate_hz)
        stream.set_time("step", sequence=step.step)
        for row in step.judged:
            stream.log("failsafe/state", rr.Scalars(float(State[row.state])))
            level = "INFO" if row.state == "RUN" else "WARN" if row.state == "HOLD" else "ERROR"
            stream.log("log", rr.TextLog(f"{row.state} {row.cause}: {row.words}", level=level))
        if step.observed is not None:
            for name, value in zip(spec.observation.state_names, step.observed.state.tolist(), strict=False):
                stream.log(f"state/{name}", rr.Scalars(value))
            if step.step in pictured:
                for name, frame in run.pictures(step.step).items():
                    stream.log(f"camera/{name}", rr.Image(frame).compress(jpeg_quality=90))
        for answer in step.answers:
            stream.log("decision_ms", rr.Scalars(1e3 * (answer.finished_s - answer.submitted_s)))
            if answer.error:
                stream.log("log", rr.TextLog(f"answer {answer.verdict}: {answer.error}", level="WARN"))
    for command, moment in zip(run.commands, moments(run), strict=True):
        stream.set_time("run", duration=moment)
        stream.set_time("step", sequence=command.step)
        for i, name in enumerate(spec.action.names):
            stream.log(f"action/{name}/sent", rr.Scalars(command.sent[i]))
            if command.due is not None:
                stream.log(f"action/{name}/due", rr.Scalars(command.due[i]))
    stream.flush()
