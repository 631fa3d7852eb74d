"""What was published for a recipe, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dftune.evaluate.metrics import Estimate
from dftune.report.conditions import Condition
from dftune.report.load import Row
from dftune.report.tables import ResultTable
from dftune.report.wording import one_line


@dataclass(frozen=True)
class PublishedRow:
    """One published score.

    Attributes:
        condition: what was trained, or ``base``.
        column: benchmark and protocol.
        published: share of right answers.
        measured: the same here; None where it was not measured.
    """

    condition: str
    column: str
    published: float
    measured: Estimate | None

    @property
    def difference(self) -> float | None:
        """Measured less published."""
        return None if self.measured is None else self.measured.mean - self.published

    @property
    def word(self) -> str:
        """Where the published score lies: ``inside`` the 95 % interval of the measured one, ``above`` or ``below``."""
        if self.measured is None:
            return "not measured"
        rounding = 5e-5  # half of the last digit that is printed
        if self.measured.low - rounding <= self.published <= self.measured.high + rounding:
            return "inside"
        return "above" if self.published > self.measured.high else "below"


@dataclass(frozen=True)
class Published:
    """Everything that the recipes of a report say was published.

    Attributes:
        rows: score by score.
        sources: where each condition's come from.
        notes: what differs from the published runs.
    """

    rows: tuple[PublishedRow, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def build_published(table: ResultTable) -> Published:
    """Collect it from the recipes of the trained conditions, the bases' scores first."""
    found = [(row, published) for row in table.trained for published in _of(row)]
    bases: dict[PublishedRow, None] = {}
    rows: dict[PublishedRow, None] = {}
    for condition, published in found:
        base = _base(table, condition)
        bases |= dict.fromkeys(_rows(table, base, base.label if base else "base", published.get("base")))
        rows |= dict.fromkeys(_rows(table, condition, condition.label, published.get("scores")))
    sources = [(condition.label, one_line(str(published.get("source", "")), 500)) for condition, published in found]
    notes = [one_line(str(note), 500) for _, published in found for note in published.get("notes") or ()]
    return Published((*bases, *rows), tuple(dict.fromkeys(sources)), tuple(dict.fromkeys(notes)))


def _base(table: ResultTable, condition: Condition) -> Condition | None:
    """What a condition started from; with one base model it is that."""
    bases = [row for row in table.conditions if row.kind == "base"]
    found = (base for column in table.columns if (base := table.base_of(condition, column)) is not None)
    return bases[0] if len(bases) == 1 else next(found, None)


def _of(condition: Condition) -> Iterator[Row]:
    """The distinct ``published`` sections of a condition's runs."""
    seen = []
    for run in condition.runs:
        published = run.recipe.get("published")
        if isinstance(published, dict) and published not in seen:
            seen.append(published)
            yield published


def _rows(table: ResultTable, condition: Condition | None, label: str, scores: object) -> Iterator[PublishedRow]:
    for name, value in scores.items() if isinstance(scores, dict) else ():
        columns = [column for column in table.columns if column.label == name]
        cells = [table.cell(condition, column) for column in columns] if condition else []
        estimates: list[Estimate | None] = [cell.estimate for cell in cells if cell.estimate is not None]
        for estimate in estimates or [None]:
            yield PublishedRow(label, str(name), float(value) / 100, estimate)
