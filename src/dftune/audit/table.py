"""A table that knows which of its columns are names, scores, averages and differences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dftune.audit.numbers import Printed, is_bold, parse, strip_markup

_AVERAGE = re.compile(r"(macro[- ]?|overall )?(avg|average|mean)\.?( score| accuracy| acc\.?)?", re.IGNORECASE)
_CHANGE = re.compile(r"(Δ|∆|delta|gain|change|improvement|diff(erence)?)\b.*|\\Delta.*", re.IGNORECASE)
_LOWER = re.compile(r"wrong|fail|error|loss|perplex|ppl|length|latency|time|memory|↓|cost|entropy", re.IGNORECASE)
_METHOD = re.compile(r"method|objective|approach|training|algorithm|loss|strategy", re.IGNORECASE)
_BOTH = re.compile(r"(?P<model>.+?)\s+(?:w/|with|\+)\s*(?P<method>\S.*)")
BASE = "Base"


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: without markup.
        printed: its number, where it is one.
        bold: set in bold as a whole.
    """

    text: str
    printed: Printed | None
    bold: bool

    @classmethod
    def of(cls, text: str) -> Cell:
        """From its source."""
        return cls(strip_markup(text), parse(text), is_bold(text))


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        line: of the file.
        cells: one a column; short rows are filled up.
        model: what was trained; empty where the table does not say.
        method: how; empty where the table does not say.
        setting: its other labels.
        group: number of the group of rows that compete with it.
    """

    line: int
    cells: tuple[Cell, ...]
    model: str = ""
    method: str = ""
    setting: str = ""
    group: int = 0

    @property
    def name(self) -> str:
        """What it is called in a finding."""
        parts = dict.fromkeys(part for part in (self.model, self.method, self.setting) if part)
        return ", ".join(parts)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: its caption, or the heading above it.
        number: its number in the file, from 1.
        line: of its header.
        header: names of the columns, without markup.
        rows: with model, method and group.
        context: caption, headings and the paragraph above, in which the protocol is looked for.
    """

    title: str
    number: int
    line: int
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    context: str = ""
    labels: tuple[int, ...] = field(default=(0,))

    @property
    def name(self) -> str:
        """What it is called in a finding."""
        return self.title.partition(":")[0] if re.match(r"Table \d+", self.title) else f"table {self.number}"

    @cached_property
    def averages(self) -> tuple[int, ...]:
        """Columns that average the others of their row."""
        return tuple(index for index in self._values if _AVERAGE.fullmatch(self.header[index]))

    @cached_property
    def changes(self) -> tuple[int, ...]:
        """Columns that hold a difference of others."""
        return tuple(index for index in self._values if _CHANGE.fullmatch(self.header[index]))

    @cached_property
    def scores(self) -> tuple[int, ...]:
        """The other columns of numbers."""
        return tuple(index for index in self._values if index not in (*self.averages, *self.changes))

    @property
    def _values(self) -> tuple[int, ...]:
        return tuple(index for index in range(len(self.header)) if index not in self.labels)

    def lower_is_better(self, row: Row, column: int) -> bool:
        """Whether a small number is a good one, as far as the names tell."""
        return bool(_LOWER.search(self.header[column]) or _LOWER.search(row.name))

    def where(self, row: Row, column: int) -> str:
        """A cell's place, in words."""
        return f"{self.name}, {row.name}, {self.header[column]}"

    def groups(self) -> Iterator[list[Row]]:
        """Rows that compete with one another; rows of averages and changes are left out."""
        for group in sorted({row.group for row in self.rows}):
            yield [row for row in self.rows if row.group == group and not is_derived(row)]


def is_derived(row: Row) -> bool:
    """Whether a row holds averages or differences of other rows."""
    return is_average_row(row) or is_change_row(row)


def is_average_row(row: Row) -> bool:
    """Whether a row averages those above it."""
    return any(_AVERAGE.fullmatch(name) for name in (row.method, row.model) if name)


def is_change_row(row: Row) -> bool:
    """Whether a row is the difference of two others."""
    return any(_CHANGE.fullmatch(name) for name in (row.method, row.model) if name)


def build_table(
    header: Sequence[str],
    rows: Sequence[tuple[int, Sequence[str]]],
    *,
    title: str,
    number: int,
    line: int,
    context: str,
) -> Table:
    """A table from the source of its cells.

    The first column is a label; so is every other without a number in it. Blank labels repeat the one above, and rows
    that share a first label in this way form a group; without blanks all rows do.
    """
    width = len(header)
    names = tuple(strip_markup(name) for name in header)
    cells = [(at, [Cell.of(text) for text in [*texts, *[""] * width][:width]]) for at, texts in rows]
    labels = tuple(
        index for index in range(width) if index == 0 or not any(row[index].printed is not None for _, row in cells)
    )
    grouped = any(not row[0].text for _, row in cells)
    built: list[Row] = []
    group, last = -1, ""
    for at, row in cells:
        if row[0].text or not built:
            group, last = group + 1, row[0].text
        texts = [last, *(row[index].text for index in labels[1:])]
        model, method, setting = _entities([names[index] for index in labels], texts)
        built.append(Row(at, tuple(row), model, method, setting, group if grouped else 0))
    return Table(title, number, line, names, tuple(built), context, labels)


def _entities(headers: Sequence[str], texts: Sequence[str]) -> tuple[str, str, str]:
    """Model, method and the other labels of a row."""
    place = next((index for index in range(1, len(headers)) if _METHOD.search(headers[index])), None)
    first = headers[0].lower()
    if place is not None:
        others = [text for index, text in enumerate(texts) if index not in (0, place)]
        return texts[0], texts[place], ", ".join(filter(None, others))
    both = _BOTH.fullmatch(texts[0]) if "model" in first else None
    rest = ", ".join(filter(None, texts[1:]))
    if both:
        return both["model"], both["method"], rest
    if "model" in first and rest:
        return texts[0], BASE if rest.lower() == "base" else rest, ""
    return ("", texts[0], rest) if "model" not in first else (texts[0], "", rest)
