"""A recorded run step by step: what was seen, answered, judged and commanded, put together."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from runtime.journal import NOT_ASKED
from runtime.recording import Recording
from runtime.recording_rows import AnswerRow, CommandRow, JudgedRow, ObservedRow

__all__ = ["Step", "moments", "steps_of", "summary_rows", "table_lines"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One control step."""

    step: int
    time_s: float
    """Seconds since the first record of a step."""
    state: JudgedRow | None
    """The verdict at its end, None where none was recorded."""
    judged: tuple[JudgedRow, ...]
    """What has changed in it."""
    observed: ObservedRow | None
    answers: tuple[AnswerRow, ...]
    commands: tuple[CommandRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; numbers that are not finite as text."""
        data: dict[str, Any] = {"step": self.step, "time_s": self.time_s}
        data |= {"state": self.state.state if self.state else None, "cause": self.state.cause if self.state else None}
        data["events"] = [dataclasses.asdict(row) for row in self.judged]
        data["observed"] = None if self.observed is None else _plain(dataclasses.asdict(self.observed))
        data["answers"] = [_plain(dataclasses.asdict(row)) for row in self.answers]
        data["commands"] = [_plain(dataclasses.asdict(row)) for row in self.commands]
        return data


def steps_of(run: Recording) -> list[Step]:
    """All steps that anything is known of, in order."""
    observed = {row.step: row for row in run.observations}
    answers, commands, judged = (collections.defaultdict(list) for _ in range(3))
    for answer in run.answers:
        answers[answer.step].append(answer)
    for command in run.commands:
        commands[command.step].append(command)
    for verdict in run.verdicts:
        judged[verdict.step].append(verdict)
    found, state, result = sorted(observed.keys() | answers.keys() | commands.keys() | judged.keys()), None, []
    rows: list[Any] = [*run.observations, *run.answers, *run.commands, *run.verdicts]
    start = min((row.time_s for row in rows), default=0.0)
    for step in found:
        state = judged[step][-1] if judged[step] else state
        here: list[Any] = [*([observed[step]] if step in observed else []), *answers[step], *commands[step], *judged[step]]
        result.append(
            Step(
                step=step,
                time_s=min(row.time_s for row in here) - start,
                state=state,
                judged=tuple(judged[step]),
                observed=observed.get(step),
                answers=tuple(answers[step]),
                commands=tuple(commands[step]),
            )
        )
    return result


def moments(run: Recording) -> list[float]:
    """For each command the second of the run that it belongs to, by its step and its place among the step's commands: a simulation that keeps
    no clock has these too."""
    rate_hz = run.spec.timing.rate_hz
    counts = collections.Counter(command.step for command in run.commands)
    before: collections.Counter[int] = collections.Counter()
    result = []
    for command in run.commands:
        result.append((command.step + before[command.step] / counts[command.step]) / rate_hz)
        before[command.step] += 1
    return result


def summary_rows(run: Recording) -> list[tuple[str, str]]:
    """What is to be said of the whole run, label and value."""
    about, timing = run.about["about"], run.spec.timing
    verdicts = collections.Counter(answer.verdict + (" from elsewhere" if answer.elsewhere else "") for answer in run.answers)
    result = run.result or {}
    steps = {row.step for row in run.commands} | {row.step for row in run.observations}
    success = {True: ", success", False: ", no success", None: ""}[result.get("success")]
    lost = ", ".join(f"{count} {kind}" for kind, count in run.lost.items() if count)
    known = {key: value for key, value in about.items() if key != "instruction" and value is not None}
    words = [str(value) if key == "policy" else f"{key} {value}" for key, value in known.items()]
    cameras = ", ".join(f"{camera.name} {camera.width}x{camera.height}" for camera in run.spec.observation.cameras)
    rows = [
        ("run", f"{run.path}, begun {run.about['created']}"),
        ("instruction", run.instruction or "none"),
        ("policy", "  ".join(words) or "not said"),
        ("steps", f"{len(steps)} at {timing.rate_hz:g} Hz, {len(run.commands)} commands, {len(run.observations)} observations"),
        ("answers", ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()) or "none"),
        ("cameras", f"{cameras}; {run.about['pictures']}, of {len(run.pictured_steps)} steps"),
        ("stopped by", f"{result['stopped_by']} ({result['message']}){success}" if result else "the recording does not say"),
        ("lost", lost or "nothing"),
    ]
    return rows + [("damage", words) for words in run.damage]


def table_lines(run: Recording, steps: list[Step]) -> list[str]:
    """A table for the terminal: one line a command, and below it what was due, where that is something else."""
    names = run.spec.action.names
    widths = [max(9, len(name)) for name in names]
    answers = max([16, *(len(_answered(step)) for step in steps)])
    head = f"{'step':>6}  {'time [s]':>9}  {'state':<9}  {'seen':<7}  {'answer':<{answers}}  {'':<4}"
    lines = [head + "".join(f" {name:>{width}}" for name, width in zip(names, widths, strict=True)) + "  limited"]
    for step in steps:
        first = f"{step.step:>6}  {step.time_s:>9.3f}  {step.state.state if step.state else '?':<9}  {_seen(step):<7}  {_answered(step):<{answers}}"
        if not step.commands:
            lines.append(f"{first}  no command")
        for command in step.commands:
            sent = "".join(f" {value:>{width}.5f}" for value, width in zip(command.sent, widths, strict=True))
            lines.append(f"{first}  sent{sent}  {command.limited or ''}".rstrip())
            if command.due is not None and any(abs(a - b) > 1e-6 for a, b in zip(command.due, command.sent, strict=True)):
                due = "".join(
                    f" {value:>{width}.5f}" if abs(value - sent) > 1e-6 else f" {'':>{width}}"
                    for value, sent, width in zip(command.due, command.sent, widths, strict=True)
                )
                lines.append(f"{'':<{len(first)}}  due {due}".rstrip())
            first = f"{'':<{len(first)}}"
        lines += [f"{'':>6}  └ {words}" for words in _words(step)]
    return lines


def _seen(step: Step) -> str:
    if step.observed is None:
        return ""
    return {"": "asked", NOT_ASKED: "looked"}.get(step.observed.refused, "refused")


def _answered(step: Step) -> str:
    """The verdict, whose it is, how long the answer took, and how many steps before this one that was seen which it answers."""
    return ", ".join(
        f"{row.verdict}{' from elsewhere' if row.elsewhere else ''} {1e3 * (row.finished_s - row.submitted_s):.1f} ms"
        + (f" -{step.step - row.observed_at}" if row.observed_at != step.step else "")
        for row in step.answers
    )


def _words(step: Step) -> list[str]:
    words = [f"{row.state}{f', {row.cause}' if row.cause else ''}{f': {row.words}' if row.words else ''}" for row in step.judged]
    words += [f"answer {row.verdict}: {row.error}" for row in step.answers if row.error]
    if step.observed is not None and _seen(step) == "refused":
        words.append(f"observation: {step.observed.refused}")
    return words


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value
