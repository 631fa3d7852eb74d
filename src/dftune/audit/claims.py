"""Claims about the cells of tables, and whether the cells bear them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dftune.audit.arithmetic import fits_change
from dftune.audit.findings import Finding, Severity
from dftune.audit.names import AVERAGE, squeezed
from dftune.audit.numbers import Interval, Printed, show
from dftune.audit.read import Document
from dftune.audit.table import BASE, Row, Table, is_derived

_FEW = 0.2
"""A lead that fails on no larger share of the benchmarks is hardly inconsistent."""


@dataclass(frozen=True)
class Found:
    """A cell that a claim speaks of."""

    table: Table
    row: Row
    column: int
    printed: Printed


class Cells:
    """The cells of a document by model, method and benchmark."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def find(self, model: str, method: str, benchmark: str) -> list[Found]:
        """Every cell of that name; an empty model stands for any, where tables name but one or none."""
        found = []
        for table in self.document.tables:
            columns = table.averages if benchmark == AVERAGE else range(len(table.header))
            for column in columns:
                if benchmark != AVERAGE and squeezed(table.header[column]) != squeezed(benchmark):
                    continue
                for row in table.rows:
                    same = squeezed(row.method) == squeezed(method) and squeezed(row.model) in (squeezed(model), "")
                    printed = row.cells[column].printed
                    if same and printed is not None and not is_derived(row):
                        found.append(Found(table, row, column, printed))
        return found

    def pairs(self, model: str, method: str, over: str, benchmark: str) -> list[tuple[Found, Found]]:
        """Cells of two methods in one column: of one table where one has both, else of different ones."""
        ours, theirs = self.find(model, method, benchmark), self.find(model, over, benchmark)
        every = [(one, other) for one in ours for other in theirs]
        together = [(one, other) for one, other in every if one.table.number == other.table.number]
        return together or every


@dataclass(frozen=True)
class Place:
    """Where a claim stands.

    Attributes:
        source: the file.
        line: of it.
        text: the sentence.
    """

    source: str
    line: int
    text: str

    def finding(self, printed: str, recomputed: str, why: str, severity: Severity = "error") -> Finding:
        """That the claim is wrong."""
        short = self.text if len(self.text) <= 100 else f"{self.text[:99]}…"
        return Finding(severity, "claim", f"“{short}”", printed, recomputed, why, self.source, self.line)


@dataclass(frozen=True)
class Value:
    """A method scores this on a benchmark."""

    model: str
    method: str
    benchmark: str
    printed: Printed

    def check(self, cells: Cells, place: Place) -> Iterator[Finding]:
        """Against every cell of that name."""
        found = cells.find(self.model, self.method, self.benchmark)
        if not found or any(cell.printed.interval.meets(self.printed.interval) for cell in found):
            return
        why = f"{_name(self.model, self.method, self.benchmark)} is {found[0].printed.text} in {found[0].table.name}"
        owner = _owner(cells, found[0], self.printed)
        why += f"; {self.printed.text} is {owner}'s" if owner else ""
        yield place.finding(self.printed.text, found[0].printed.text, why)


@dataclass(frozen=True)
class Gain:
    """A method scores so many points more than another."""

    model: str
    method: str
    over: str
    benchmark: str
    printed: Printed

    def check(self, cells: Cells, place: Place) -> Iterator[Finding]:
        """Against every pair of cells."""
        pairs = cells.pairs(self.model, self.method, self.over, self.benchmark)
        if not pairs or any(fits_change(self.printed, one.printed, other.printed) for one, other in pairs):
            return
        one, other = pairs[0]
        exact = one.printed.exact - other.printed.exact
        decimals = max(one.printed.decimals, other.printed.decimals)
        what = "" if exact * self.printed.exact > 0 else ": a drop, not a gain" if exact < 0 else ": a gain, not a drop"
        why = (
            f"{_name(self.model, self.method, self.benchmark)} is {one.printed.text}, {self.over} "
            f"{other.printed.text} ({one.table.name}){what}"
        )
        yield place.finding(self.printed.text, show(exact, decimals, signed=True), why)


@dataclass(frozen=True)
class Change:
    """A value has become another, which is so much more, in points or in per cent of the old one."""

    old: Printed
    new: Printed
    printed: Printed
    relative: bool

    def check(self, cells: Cells, place: Place) -> Iterator[Finding]:
        """By subtraction and division."""
        difference = self.new.interval - self.old.interval
        relative = difference.over(self.old.interval)
        exact = self.new.exact - self.old.exact
        if self.relative and relative is not None:
            difference, exact = Interval(100 * relative.low, 100 * relative.high), 100 * exact / self.old.exact
        if not self.printed.interval.meets(difference):
            shown = self.printed.like(exact, signed=True)
            why = f"from {self.old.text} to {self.new.text}{', relative' if self.relative else ''}"
            yield place.finding(self.printed.text, shown, why)


@dataclass(frozen=True)
class Ratio:
    """One gain is so many times another, both as printed in the sentence."""

    printed: Printed
    larger: Printed
    smaller: Printed

    def check(self, cells: Cells, place: Place) -> Iterator[Finding]:
        """By division; rounding of both gains is allowed for."""
        ratio = self.larger.interval.over(self.smaller.interval)
        if ratio is None or self.printed.interval.meets(ratio):
            return
        exact = self.larger.exact / self.smaller.exact
        why = f"{self.larger.text} / {self.smaller.text} = {show(exact, 2)}"
        yield place.finding(f"{self.printed.text}x", f"{show(exact, 2)}x", why)


@dataclass(frozen=True)
class Times:
    """A method's gain over the base is so many times that of another, by the cells."""

    model: str
    method: str
    over: str
    benchmark: str
    printed: Printed

    def check(self, cells: Cells, place: Place) -> Iterator[Finding]:
        """Against the gains in every table."""
        ours = cells.pairs(self.model, self.method, BASE, self.benchmark)
        theirs = cells.pairs(self.model, self.over, BASE, self.benchmark)
        gains = [one.printed.interval - base.printed.interval for one, base in ours]
        others = [one.printed.interval - base.printed.interval for one, base in theirs]
        ratios = [ratio for gain in gains for other in others if (ratio := gain.over(other)) is not None]
        if not ratios or any(self.printed.interval.meets(ratio) for ratio in ratios):
            return
        (one, base), (other, other_base) = ours[0], theirs[0]
        gain, smaller = one.printed.exact - base.printed.exact, other.printed.exact - other_base.printed.exact
        shown = show(gain / smaller, 2)
        why = f"the gains are {show(gain, 2, signed=True)} and {show(smaller, 2, signed=True)}"
        yield place.finding(f"{self.printed.text}x", f"{shown}x", why)


@dataclass(frozen=True)
class RatioRange:
    """The gains of a document are between so many and so many times another's."""

    low: Printed
    high: Printed
    ratios: tuple[Ratio, ...]

    def check(self, cells: Cells, place: Place) -> Iterator[Finding]:
        """Against the smallest and the largest ratio of gains that the document names."""
        exact = [ratio.larger.exact / ratio.smaller.exact for ratio in self.ratios if ratio.smaller.value]
        if len(exact) < 2:
            return
        ends = ((self.low, min(exact)), (self.high, max(exact)))
        if all(printed.interval.meets(Interval(value, value)) for printed, value in ends):
            return
        shown = f"{show(min(exact), 2)}x to {show(max(exact), 2)}x"
        why = f"the {len(exact)} ratios of gains in this document go from {shown}"
        yield place.finding(f"{self.low.text}x to {self.high.text}x", shown, why)


@dataclass(frozen=True)
class Order:
    """A method is better (or worse) than another on one benchmark of one model."""

    model: str
    method: str
    over: str
    benchmark: str
    better: bool = True

    def check(self, cells: Cells, place: Place) -> Iterator[Finding]:
        """Against every pair of cells."""
        pairs = cells.pairs(self.model, self.method, self.over, self.benchmark)
        right = [(one.printed.exact > other.printed.exact) == self.better for one, other in pairs]
        if not pairs or any(right):
            return
        one, other = pairs[0]
        said = "better" if self.better else "worse"
        scores = f"is {one.printed.text} and {self.over} {other.printed.text}"
        why = f"{_name(self.model, self.method, self.benchmark)} {scores}: not {said}"
        yield place.finding(said, f"not {said}", why)


@dataclass(frozen=True)
class Everywhere:
    """A method is better than others on every benchmark, or every model, of a document."""

    method: str
    over: tuple[str, ...]
    benchmarks: tuple[str, ...]
    models: tuple[str, ...]

    def check(self, cells: Cells, place: Place) -> Iterator[Finding]:
        """Cell by cell; one finding with all exceptions."""
        exceptions = []
        total = 0
        for model in self.models:
            for over in self.over:
                for benchmark in self.benchmarks:
                    pairs = cells.pairs(model, self.method, over, benchmark)
                    total += bool(pairs)
                    if pairs and not any(one.printed.exact > other.printed.exact for one, other in pairs):
                        one, other = pairs[0]
                        where = _name(model, "", benchmark)
                        exceptions.append(f"{where} ({one.printed.text} against {over}'s {other.printed.text})")
        if exceptions:
            listed = "; ".join(exceptions[:5]) + (f"; and {len(exceptions) - 5} more" if len(exceptions) > 5 else "")
            yield place.finding("all", f"{total - len(exceptions)} of {total}", f"not on {listed}")


@dataclass(frozen=True)
class Mixed:
    """A method's lead over another on a model is called inconsistent across benchmarks."""

    method: str
    over: str
    benchmarks: tuple[str, ...]
    model: str

    def check(self, cells: Cells, place: Place) -> Iterator[Finding]:
        """Against the benchmarks it leads on: a word, so a lead on four of five or more is a note and no error."""
        pairs = {
            name: found[0]
            for name in self.benchmarks
            if (found := cells.pairs(self.model, self.method, self.over, name))
        }
        behind = [name for name, (one, other) in pairs.items() if one.printed.exact <= other.printed.exact]
        if not pairs or len(behind) > _FEW * len(pairs):
            return
        shown = f"better on {len(pairs) - len(behind)} of {len(pairs)}"
        why = f"{self.model} {self.method} has more than {self.over} on all benchmarks".lstrip()
        why += f" but {', '.join(behind)}" if behind else ""
        yield place.finding("inconsistent", shown, why, "note")


@dataclass(frozen=True)
class Best:
    """A score is the best of its column."""

    printed: Printed

    def check(self, cells: Cells, place: Place) -> Iterator[Finding]:
        """Against every column that holds it; a number that no table has is not looked at."""
        holding = []
        for table in cells.document.tables:
            for column in (*table.scores, *table.averages):
                values = [cell for row in table.rows if (cell := row.cells[column].printed) and not is_derived(row)]
                if any(cell.exact == self.printed.exact for cell in values):
                    holding.append((table, column, max(cell.exact for cell in values)))
        if not holding or any(best == self.printed.exact for _, _, best in holding):
            return
        table, column, best = holding[0]
        shown = self.printed.like(best)
        why = f"{table.name} has {shown} under {table.header[column]}"
        yield place.finding(self.printed.text, shown, why)


Claim = Value | Gain | Change | Ratio | Times | RatioRange | Order | Everywhere | Mixed | Best


def _owner(cells: Cells, expected: Found, printed: Printed) -> str:
    """Whose number it is that stands in the place of another, in the same column."""
    for row in expected.table.rows:
        other = row.cells[expected.column].printed
        if other is not None and other.exact == printed.exact:
            return row.name
    return ""


def _name(model: str, method: str, benchmark: str) -> str:
    what = " ".join(part for part in (model, method) if part)
    where = "the average" if benchmark == AVERAGE else benchmark
    return f"{what} on {where}" if what else where


def check_claims(claims: Sequence[tuple[Claim, Place]], document: Document) -> Iterator[Finding]:
    """All of them."""
    cells = Cells(document)
    for claim, place in claims:
        yield from claim.check(cells, place)
