"""Findings about an installation, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]
MARKS: dict[Level, str] = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}


@dataclass(frozen=True)
class Finding:
    """One fact about this installation.

    Args:
        level: "ok", "warning" (works, but worse than it could) or "problem" (something needed is broken).
        topic: what was looked at.
        what: what was found.
        fix: what to do about it, a command where there is one.
    """

    level: Level
    topic: str
    what: str
    fix: str = ""


def is_broken(findings: Iterable[Finding]) -> bool:
    """Whether something that is needed does not work."""
    return any(finding.level == "problem" for finding in findings)


def to_text(findings: Sequence[Finding]) -> str:
    """Aligned lines: level, topic, what was found; the fix on a line of its own below."""
    width = max((len(finding.topic) for finding in findings), default=0)
    mark = max(map(len, MARKS.values()))
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.level]:<{mark}}  {finding.topic:<{width}}  {finding.what}")
        if finding.fix:
            lines.append(f"{'':<{mark}}  {'fix':>{width}}  {finding.fix}")
    count = sum(finding.level == "problem" for finding in findings)
    lines.append("everything that is needed works" if not count else f"{count} problem{'s' * (count > 1)}")
    return "\n".join(lines)


def to_json(findings: Sequence[Finding]) -> str:
    """A list of objects with level, topic, what, fix."""
    return json.dumps([asdict(finding) for finding in findings], indent=2)
