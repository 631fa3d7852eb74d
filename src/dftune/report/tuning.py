"""How the learning rates of a study were chosen, as its ``selection.json`` has it (docs/study.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from dftune.report.tables import ResultTable
from dftune.report.wording import listed, one_line, plural

_DASH = "\N{EM DASH}"
_MOST_NAMES = 6


@dataclass(frozen=True)
class TuningRow:
    """The choice for one objective, in one model and data condition.

    Attributes:
        name: model, condition and objective.
        chosen: the rate.
        grid: every rate with its value, mean over seeds.
        edge: ``smallest`` or ``largest`` where the chosen rate is an end of its grid, else empty.
    """

    name: str
    chosen: str
    grid: tuple[tuple[str, str], ...]
    edge: str


@dataclass(frozen=True)
class Tuning:
    """All choices of a study.

    Attributes:
        metric: what they go by, in words.
        rows: in the order of the recipe.
        wider: the result table of all runs, those of other rates too; None without these runs.
    """

    metric: str
    rows: tuple[TuningRow, ...]
    wider: ResultTable | None = None

    @property
    def tried(self) -> bool:
        """Whether there was more than one rate to choose from."""
        return any(len(row.grid) > 1 for row in self.rows)

    def notes(self) -> Iterator[str]:
        """Choices that ask for a wider grid, and objectives for which nothing could be chosen."""
        for row in self.rows:
            if row.chosen == _DASH:
                yield f"No learning rate of {row.name} was trained to the end with every seed: it has no result here."
        for edge in ("smallest", "largest"):
            names = [row.name for row in self.rows if row.edge == edge]
            if names:
                rest = [plural(len(names) - _MOST_NAMES, "other")] if len(names) > _MOST_NAMES else []
                yield (
                    f"The {edge} learning rate of its grid was the best for {listed(names[:_MOST_NAMES] + rest)}: "
                    "a better one may lie beyond."
                )


def read_tuning(selection: Mapping[str, Any], wider: ResultTable | None = None) -> Tuning:
    """The choices in words and numbers.

    Args:
        selection: what ``selection.json`` holds.
        wider: see `Tuning`.
    """
    source = selection.get("benchmark")
    where = "held-out rows" if source is None else PurePosixPath(str(source)).stem
    rows = tuple(_row(choice) for choice in selection["choices"])
    return Tuning(f"{selection['metric']} on {one_line(where)}", rows, wider)


def _row(choice: Mapping[str, Any]) -> TuningRow:
    parts = (str(choice[key]) for key in ("model", "condition", "objective"))
    return TuningRow(
        name=one_line(" ".join(part for part in parts if part)),
        chosen=_DASH if choice["lr"] is None else f"{choice['lr']:g}",
        grid=tuple(
            (f"{one['lr']:g}", "failed" if one["value"] is None else f"{one['value']:.3f}") for one in choice["grid"]
        ),
        edge=str(choice.get("at_edge") or ""),
    )


def grid_of(row: TuningRow) -> str:
    """``1e-4: 0.520, 3e-4: 0.610``."""
    return ", ".join(f"{rate}: {value}" for rate, value in row.grid)
