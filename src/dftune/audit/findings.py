"""What an audit finds, and how it is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Severity = Literal["error", "warning", "note"]
"""error: the table or a sentence cannot be right. warning: it may be, and needs an explanation. note: worth knowing."""


@dataclass(frozen=True)
class Finding:
    """One thing that does not fit.

    Attributes:
        severity: how much it says against the table.
        check: ``average``, ``gain``, ``granularity``, ``claim``, ``bold``, ``repeat`` or ``noise``.
        where: table, row and column, or the sentence.
        printed: what stands there.
        recomputed: what should stand there.
        why: one sentence.
        source: the file.
        line: of the file, from 1.
    """

    severity: Severity
    check: str
    where: str
    printed: str
    recomputed: str
    why: str
    source: str
    line: int


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """Errors first, then by place; the same complaint about the same place once."""
    ranks = {severity: rank for rank, severity in enumerate(get_args(Severity))}
    return sorted(dict.fromkeys(findings), key=lambda found: (ranks[found.severity], found.source, found.line))


def listing(findings: Sequence[Finding]) -> str:
    """A readable list: severity, place, printed, recomputed, why."""
    lines = []
    for found in ordered(findings):
        lines.append(f"{found.severity:<7}  {found.source}:{found.line}  {found.where}  [{found.check}]")
        if found.printed:
            lines.append(f"         printed {found.printed}; recomputed {found.recomputed}")
        lines.append(f"         {found.why}")
    return "\n".join([*lines, summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """How many of each severity."""
    counts = Counter(found.severity for found in ordered(findings))
    shown = [f"{counts[name]} {name}{'' if counts[name] == 1 else 's'}" for name in get_args(Severity)]
    return ", ".join(shown)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The same for programs."""
    return {"findings": [asdict(found) for found in ordered(findings)], "summary": summary(findings)}
