"""Cells of a table against one another: bold ones that are not the best, rows that stand twice, noise."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from dftune.audit.findings import Finding
from dftune.audit.granularity import Score
from dftune.audit.names import squeezed
from dftune.audit.read import Document
from dftune.audit.table import Row, Table, is_derived
from dftune.evaluate.quantiles import wilson_at

_Z = 1.959964


def check_bold(table: Table, source: str) -> Iterator[Finding]:
    """Bold scores that another row of their group exceeds."""
    for group in table.groups():
        for column in (*table.scores, *table.averages):
            cells = [(row, printed) for row in group if (printed := row.cells[column].printed) is not None]
            bold = [(row, printed) for row, printed in cells if row.cells[column].bold]
            if not bold or len(bold) == len(cells) or any(table.lower_is_better(row, column) for row, _ in cells):
                continue
            best_row, best = max(cells, key=lambda cell: cell[1].exact)
            for row, printed in bold:
                if printed.exact < best.exact:
                    why = f"bold, and {best_row.name} has {best.text}"
                    where = table.where(row, column)
                    yield Finding("error", "bold", where, printed.text, best.text, why, source, row.line)


def check_repeats(document: Document) -> Iterator[Finding]:
    """Rows of one model and method whose scores differ from table to table: two runs under one name."""
    seen: dict[tuple[str, str], list[tuple[Table, Row]]] = defaultdict(list)
    for table in document.tables:
        for row in table.rows:
            if row.model and row.method and not is_derived(row):
                seen[squeezed(row.model), squeezed(row.method)].append((table, row))
    for entries in seen.values():
        first_table, first = entries[0]
        for number in dict.fromkeys(table.number for table, _ in entries if table.number != first_table.number):
            found = [(other, row) for other, row in entries if other.number == number]
            differing = [_differences(first_table, first, other, row) for other, row in found]
            if all(differing):
                other, row = found[0]
                benchmark, ours, theirs = differing[0][0]
                why = (
                    f"{first_table.name} has {ours} for this model and method on {benchmark}, and "
                    f"{len(differing[0])} scores differ: two runs, or two settings that the tables do not tell apart"
                )
                where = f"{other.name}, {row.name}"
                yield Finding("warning", "repeat", where, theirs, ours, why, document.name, row.line)


def _differences(table: Table, row: Row, other: Table, twin: Row) -> list[tuple[str, str, str]]:
    columns = {squeezed(other.header[column]): column for column in (*other.scores, *other.averages)}
    found = []
    for column in (*table.scores, *table.averages):
        place = columns.get(squeezed(table.header[column]))
        ours = row.cells[column].printed
        theirs = twin.cells[place].printed if place is not None else None
        if ours is not None and theirs is not None and not ours.interval.meets(theirs.interval):
            found.append((table.header[column], ours.text, theirs.text))
    return found


def check_noise(scores: Sequence[Score], source: str) -> Iterator[Finding]:
    """Groups whose best score cannot be told from the second best, by the number of questions alone."""
    columns: dict[tuple[int, int], list[Score]] = defaultdict(list)
    for score in scores:
        columns[score.table.number, score.column].append(score)
    for cells in columns.values():
        groups: dict[int, list[Score]] = defaultdict(list)
        for score in cells:
            groups[score.row.group].append(score)
        contested = [sorted(group, key=lambda score: -score.printed.exact) for group in groups.values()]
        contested = [group for group in contested if len(group) > 1]
        close = [group[:2] for group in contested if not told_apart(group[0], group[1])]
        if close:
            yield _noise(cells[0], close, len(contested), source)


def _noise(first: Score, close: Sequence[Sequence[Score]], total: int, source: str) -> Finding:
    shown = [
        f"{best.row.name} {best.printed.text} and {second.row.name} {second.printed.text}" for best, second in close
    ]
    listed = "; ".join(shown[:3]) + (f"; and {len(shown) - 3} more" if len(shown) > 3 else "")
    groups = f"in {len(close)} of {total} groups " if total > 1 else ""
    why = (
        f"with {first.sizes[0]} questions the best and the second best {groups}are not distinguishable (the 95 % "
        f"interval of the unpaired difference holds 0): {listed}"
    )
    where = f"{first.table.name}, {first.table.header[first.column]}"
    return Finding("note", "noise", where, "", "", why, source, first.table.line)


def told_apart(one: Score, other: Score) -> bool:
    """Whether the 95 % interval of the difference of two scores on n questions excludes 0.

    Newcombe's hybrid of two Wilson intervals (1998, method 10), with questions as the unit: more samples a question
    make a score less noisy than this, and so does pairing, about which a table says nothing.
    """
    size = one.sizes[0]
    p, q = (min(float(score.printed.exact) / score.scale, 1.0) for score in (one, other))
    (p_low, p_high), (q_low, q_high) = wilson_at(p, size, _Z), wilson_at(q, size, _Z)
    below = math.hypot(p - p_low, q_high - q)
    above = math.hypot(p_high - p, q - q_low)
    return p - q > below or q - p > above
