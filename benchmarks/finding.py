"""What `actlet doctor` says of one thing: whether it is there and works, and what to do where not."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Literal

__all__ = ["GROUPS", "Finding", "Group", "Verdict", "as_text"]

Verdict = Literal["ok", "missing", "warning", "problem"]
Group = Literal["machine", "backends", "packages", "bundles"]
GROUPS: tuple[Group, ...] = ("machine", "backends", "packages", "bundles")
"""In the order in which they are printed."""
_MARKS = {"ok": "ok", "missing": "missing", "warning": "warning", "problem": "PROBLEM"}
_NAME_WIDTH = 22


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and the line to run where it can be better."""

    verdict: Verdict
    what: str
    how: str
    fix: str = ""
    group: Group = "machine"

    def to_dict(self) -> dict[str, str]:
        """Plain JSON."""
        return dataclasses.asdict(self)

    def lines(self, width: int | None = None) -> list[str]:
        """For people, in columns; wrapped to a width, None for none."""
        head = f"{_MARKS[self.verdict]:<7}  {self.what:<{_NAME_WIDTH}} "
        rest = " " * (9 + _NAME_WIDTH + 1)
        if width is None or len(head) + len(self.how) <= width:
            lines = [head + self.how]
        else:
            lines = textwrap.wrap(
                self.how, max(width, 80), initial_indent=head, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
            )
        return lines + ([f"{rest}run: {self.fix}"] if self.fix else [])  # In one piece, to be copied.


def as_text(findings: list[Finding], width: int | None = None) -> str:
    """All of them by groups, one empty line between two groups."""
    blocks = [[line for finding in findings if finding.group == group for line in finding.lines(width)] for group in GROUPS]
    return "\n\n".join("\n".join(block) for block in blocks if block)
