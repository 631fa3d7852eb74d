"""Many conditions in several charts: those under the same circumstances together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from dftune.report.conditions import MOST_LINES, Condition
from dftune.report.groups import LEARNING_RATE

MOST_PANELS = 6
"""More charts of one metric beside one another are no picture any more."""


@dataclass(frozen=True)
class Panel:
    """Conditions in one chart: all of them, or of many those under the same circumstances.

    Attributes:
        rows: the conditions.
        circumstances: what they share and others do not; None where all conditions are in one chart.
        but: key of the recipe that no label names, since the chart is over it.
    """

    rows: tuple[Condition, ...]
    circumstances: str | None = None
    but: str = ""

    @property
    def title(self) -> str:
        """End of the chart's title."""
        return f": {self.circumstances}" if self.circumstances else ""

    def label(self, row: Condition) -> str:
        """Of a line: without what the title says; learning rates are in the tables then."""
        if self.circumstances is not None:
            return row.method
        details = [shown for key, shown in (row.group.details if row.group else ()) if key != self.but]
        return f"{row.name} ({', '.join(details)})" if details else row.name


def panels(rows: Sequence[Condition], but: str = "") -> list[Panel]:
    """One chart, or several where one would hold more lines than there are colours.

    What was trained under other circumstances, on other data above all, often cannot be compared either: other data
    have other held-out rows.

    Args:
        rows: conditions, a line each.
        but: key of the recipe that the chart is over.
    """
    if len(rows) > MOST_LINES:
        for left_out in ((LEARNING_RATE, but), (but,)):
            grouped: dict[str, list[Condition]] = defaultdict(list)
            for row in rows:
                grouped[_circumstances(row, left_out)].append(row)
            alike = all(len({row.method for row in group}) == len(group) for group in grouped.values())
            if alike and 1 < len(grouped) <= MOST_PANELS:
                return [Panel(tuple(group), shared, but) for shared, group in grouped.items()]
    return [Panel(tuple(rows), None, but)]


def _circumstances(row: Condition, left_out: Sequence[str]) -> str:
    details = row.group.details if row.group else ()
    return ", ".join(shown for key, shown in details if not key.startswith("objective.") and key not in left_out)
