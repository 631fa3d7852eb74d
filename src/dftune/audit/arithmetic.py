"""Averages and differences, recomputed from the cells that they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import permutations

from dftune.audit.findings import Finding
from dftune.audit.numbers import Interval, Printed, mean
from dftune.audit.table import Row, Table, is_average_row, is_change_row, is_derived

Place = tuple[Table, Row, int]


def check_averages(table: Table, source: str) -> Iterator[Finding]:
    """Columns and rows of averages.

    A printed mean is wrong if no values that round to the printed cells have a mean that rounds to it. Cells without a
    number are left out of the mean.
    """
    for row in table.rows:
        for column in table.averages:
            printed = row.cells[column].printed
            runs = list(_averaged(table, row, column))
            fits = printed is None or is_derived(row) or any(_fits_mean(printed, parts) for parts in runs)
            if printed is not None and runs and not fits:
                yield _wrong_mean((table, row, column), printed, runs[0], "columns", source)
    above: list[Row] = []
    for row in table.rows:
        if not is_average_row(row):
            above += [] if is_derived(row) else [row]
            continue
        for column in (*table.scores, *table.averages):
            printed = row.cells[column].printed
            parts = [cell for other in above if (cell := other.cells[column].printed) is not None]
            if printed is not None and len(parts) > 1 and not _fits_mean(printed, parts):
                yield _wrong_mean((table, row, column), printed, parts, "rows above", source)
        above = []


def _averaged(table: Table, row: Row, column: int) -> Iterator[list[Printed]]:
    """What a column of averages can be the mean of, the likeliest first.

    All scores since the average before it, or after it where it comes first; then shorter runs up to it (a column of
    steps or of sizes is no score), then all scores.
    """
    start = max((other for other in table.averages if other < column), default=-1)
    before = [other for other in table.scores if start < other < column]
    end = min((other for other in table.averages if other > column), default=len(table.header))
    after = [other for other in table.scores if column < other < end]
    runs = [before[first:] for first in range(len(before) - 1)] if before else [after]
    for columns in (*runs, list(table.scores)):
        parts = [cell for other in columns if (cell := row.cells[other].printed) is not None]
        if len(parts) > 1:
            yield parts


def _fits_mean(printed: Printed, parts: Sequence[Printed]) -> bool:
    return printed.interval.meets(mean(part.interval for part in parts))


def _wrong_mean(place: Place, printed: Printed, parts: Sequence[Printed], of: str, source: str) -> Finding:
    table, row, column = place
    exact = sum((part.exact for part in parts), Fraction()) / len(parts)
    why = f"the mean of the {len(parts)} {of} is {float(exact):.4f}"
    where = table.where(row, column)
    return Finding("error", "average", where, printed.text, printed.like(exact), why, source, row.line)


def check_changes(table: Table, source: str) -> Iterator[Finding]:
    """Columns and rows of differences, and differences that stand beside a score.

    A printed difference is right if it is that of some two cells it can be meant to compare, absolute or relative.
    """
    for row in table.rows:
        for column in table.changes:
            values = [cell for other in table.scores if (cell := row.cells[other].printed) is not None]
            printed = row.cells[column].printed
            if printed is not None and len(values) > 1:
                yield from _wrong_change((table, row, column), printed, values[-1:], values[:-1], source)
        if is_change_row(row):
            yield from _change_row(table, row, source)
    for group in table.groups():
        for row in group:
            for column in (*table.scores, *table.averages):
                own = row.cells[column].printed
                others = [cell for other in group if other is not row and (cell := other.cells[column].printed)]
                if own is not None and own.gain is not None and others:
                    yield from _wrong_change((table, row, column), own.gain, [own], others, source)


def _change_row(table: Table, row: Row, source: str) -> Iterator[Finding]:
    others = [other for other in table.rows if other.line < row.line and not is_derived(other)]
    inside = [other for other in others if other.group == row.group] or others
    for column in (*table.scores, *table.averages):
        printed = row.cells[column].printed
        values = [cell for other in inside if (cell := other.cells[column].printed) is not None]
        if printed is not None and len(values) > 1:
            yield from _wrong_change((table, row, column), printed, values[-1:], values[:-1], source)


def _wrong_change(
    place: Place, printed: Printed, after: Sequence[Printed], before: Sequence[Printed], source: str
) -> Iterator[Finding]:
    if any(fits_change(printed, new, old) for new in after for old in before):
        return
    if any(fits_change(printed, new, old) for new, old in permutations((*after, *before), 2)):
        return
    table, row, column = place
    exact = after[0].exact - before[-1].exact
    why = f"{after[0].text} less {before[-1].text}; no other pair of cells differs by {printed.text} either"
    yield Finding(
        "error", "gain", table.where(row, column), printed.text, printed.like(exact, signed=True), why, source, row.line
    )


def fits_change(printed: Printed, new: Printed, old: Printed) -> bool:
    """Whether a printed change can be ``new - old``, or in per cent of ``old``, given how all three are rounded."""
    difference = _unrounded(new) - _unrounded(old)
    if printed.interval.meets(difference):
        return True
    relative = difference.over(_unrounded(old))
    if relative is None or not printed.percent:
        return False
    return printed.interval.meets(Interval(100 * relative.low, 100 * relative.high))


def _unrounded(printed: Printed) -> Interval:
    """Counts are exact."""
    return Interval(printed.exact, printed.exact) if printed.total is not None else printed.interval
