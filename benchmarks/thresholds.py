"""What a run must reach to count as a success, whether it did, and what it would take where it did not.

Behaviour first: success on the same episodes, then language, then speed and size. A margin on success is a difference of
point estimates; its interval stands beside it in the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["Threshold", "judge"]

TEACHER_SUCCEEDS = 0.85
LARGEST_LOSS = {"student-float": 0.03, "student-int8": 0.02, "student-int4": 0.05}  # Of success, against the one it was made from.
SPEED_UP_OVER_TEACHER = 50.0  # Of the int8 student: from the few answers a second of a large model to what a servo loop takes.
SPEED_UP_OF_INT8 = 1.2  # ModelOpt keeps a quantized layer that wins 1.02x; less than this a user would not notice.
SIZE_OF_INT8 = 0.30  # 8 of 32 bits, and room for scales, biases and what stays in float.
SIZE_OF_INT4 = 0.22
DEADLINE_MS = 20.0  # One period at 50 Hz.
LISTENS = 0.10


@dataclasses.dataclass(frozen=True)
class Threshold:
    """One line of the verdict."""

    claim: str
    asked: str
    got: str
    reached: bool
    advice: str
    """What it would take; empty where it was reached."""


def judge(results: Mapping[str, Any]) -> list[Threshold]:
    """Every threshold for which the document has the figures; none for a quick run, whose figures say nothing about quality."""
    if results.get("quick"):
        return []
    policies = {policy["name"]: policy for policy in results["policies"]}
    verdicts: list[Threshold] = []
    if "teacher" in policies:
        verdicts.append(_teacher_succeeds(policies["teacher"]))
    for name, policy in policies.items():
        if "compared" in policy:
            verdicts.append(_success_kept(name, policy))
    for name, policy in policies.items():
        if policy["success_wrong_instruction"] is not None:
            verdicts.append(_listens(name, policy))
    teacher, parent = policies.get("teacher"), policies.get("student-float")
    for name, policy in policies.items():
        if name == "teacher":
            continue
        if teacher is not None and name == "student-int8":
            verdicts.append(_faster_than_teacher(name, policy, teacher))
        verdicts.append(_in_time(name, policy))
    if parent is not None and "student-int8" in policies:
        verdicts.append(_int8_pays(policies["student-int8"], parent))
    for name, limit in (("student-int8", SIZE_OF_INT8), ("student-int4", SIZE_OF_INT4)):
        if parent is not None and name in policies:
            verdicts.append(_smaller(name, policies[name], parent, limit))
    return verdicts


def _threshold(claim: str, asked: str, got: str, reached: bool, advice: str) -> Threshold:
    return Threshold(claim, asked, got, reached, "" if reached else advice)


def _teacher_succeeds(policy: Mapping[str, Any]) -> Threshold:
    return _threshold(
        "the teacher can do it",
        f"succeeds in at least {100 * TEACHER_SUCCEEDS:.0f} %",
        f"{100 * policy['success']:.1f} % of {policy['episodes']} episodes",
        policy["success"] >= TEACHER_SUCCEEDS,
        "more demonstrations or longer training of the teacher",
    )


def _success_kept(name: str, policy: Mapping[str, Any]) -> Threshold:
    pairs = policy["compared"]
    lost, parent, allowed = -pairs["difference"], pairs["parent"], LARGEST_LOSS.get(name, 0.05)
    advice = {
        "student-float": "more demonstrations or longer training: the student has not yet learned what its teacher shows",
        "student-int8": "leave the layers that lose most in float (the certificate names them), or calibrate on more frames",
        "student-int4": "smaller groups, more layers left in 8 bits, or quantization-aware training",
    }.get(name, "find the stage that lost it: compare with every ancestor")
    return _threshold(
        f"{name} keeps the success of {parent}",
        f"loses at most {100 * allowed:.0f} points",
        f"{100 * pairs['difference']:+.1f} points over {pairs['episodes']} episodes (McNemar p = {pairs['mcnemar_p']:.2f})",
        lost <= allowed and policy["success"] > 0,
        advice,
    )


def _listens(name: str, policy: Mapping[str, Any]) -> Threshold:
    rate = policy["success_wrong_instruction"]
    return _threshold(
        f"{name} listens",
        f"succeeds in at most {100 * LISTENS:.0f} % when told something else",
        f"{100 * rate:.1f} % of {policy.get('episodes_wrong_instruction', '?')} episodes",
        rate <= LISTENS and policy["success"] > rate,  # A policy that does nothing does not listen either.
        "demonstrations in which the same scene has several instructions, more often",
    )


def _faster_than_teacher(name: str, policy: Mapping[str, Any], teacher: Mapping[str, Any]) -> Threshold:
    gain = policy["decision_rate_hz"] / teacher["decision_rate_hz"]
    return _threshold(
        f"{name} decides more often than the teacher",
        f"at least {SPEED_UP_OVER_TEACHER:.0f} times",
        f"{gain:.0f} times ({policy['decision_rate_hz']:.0f} against {teacher['decision_rate_hz']:.1f} a second)",
        gain >= SPEED_UP_OVER_TEACHER,
        "a smaller student: narrower or fewer blocks, or smaller frames",
    )


def _in_time(name: str, policy: Mapping[str, Any]) -> Threshold:
    p99 = policy["latency_ms"]["p99"]
    return _threshold(
        f"{name} decides within a period of 50 Hz",
        f"p99 at most {DEADLINE_MS:.0f} ms",
        f"{p99:.1f} ms",
        p99 <= DEADLINE_MS,
        "an idle core for the policy (CPU time beside wall time shows what the machine's load costs), or a smaller student",
    )


def _int8_pays(policy: Mapping[str, Any], parent: Mapping[str, Any]) -> Threshold:
    gain = parent["latency_ms"]["p50"] / policy["latency_ms"]["p50"]
    return _threshold(
        "student-int8 is faster than student-float",
        f"at least {SPEED_UP_OF_INT8:.1f} times",
        f"{gain:.2f} times",
        gain >= SPEED_UP_OF_INT8,
        "a wider student: in a small network the arithmetic that int8 speeds up is not what takes the time",
    )


def _smaller(name: str, policy: Mapping[str, Any], parent: Mapping[str, Any], limit: float) -> Threshold:
    share = policy["size_bytes"] / parent["size_bytes"]
    return _threshold(
        f"{name} is smaller than student-float",
        f"at most {100 * limit:.0f} % of its weights' bytes",
        f"{100 * share:.0f} %",
        share <= limit,
        "quantize the layers that are still in float; the bundle's manifest lists them with their bytes",
    )
