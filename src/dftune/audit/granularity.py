"""Whether a score can be a number of right answers divided by a number of questions and samples.

A benchmark of n questions, answered s times each, has scores that are multiples of 1 / (n s). A printed score that none
of them rounds to was computed in another way, on other questions, or mistyped.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import floor

from dftune.audit.findings import Finding
from dftune.audit.names import sizes_of
from dftune.audit.numbers import Printed, show
from dftune.audit.read import Document
from dftune.audit.table import Row, Table, is_derived

SAMPLES = (1, 4, 8, 16, 32, 64)
"""Tried where nothing says how many samples there were."""
READINGS = ("rounded", "columns rounded", "cut off", "columns cut off")
"""How a possible score can have been printed, the usual way first. Columns: the accuracy of each sample was rounded to
0.1 % before the samples were averaged."""

_AVERAGED = re.compile(r"\b(?:avg|average|mean|acc(?:uracy)?)\s*@\s*(\d+)\b", re.IGNORECASE)
_ONCE = re.compile(
    r"\bgreedy\b|\bpass@1\b|\bsingle[- ]pass\b|\btemperature\s*(?:=|of|:)?\s*0(?:\.0+)?(?![.\d])"
    r"|\bmaj(?:ority)?\b|\bmaj@\d+|\bbest[- ]of\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Score:
    """A printed score on a benchmark of known size.

    Attributes:
        table: where it stands.
        row: of the table.
        column: of the table.
        printed: what stands there.
        scale: 100 where scores are per cent, 1 where they are shares.
        sizes: numbers of questions the benchmark may have.
        samples: numbers of samples a question that are possible.
        known: whether the document says how many samples there were.
    """

    table: Table
    row: Row
    column: int
    printed: Printed
    scale: int
    sizes: tuple[int, ...]
    samples: tuple[int, ...]
    known: bool

    @property
    def readings(self) -> tuple[str, ...]:
        """The ways in which it can have come about, the usual way first."""
        found = {
            reading
            for size in self.sizes
            for samples in self.samples
            for reading in _readings(self.printed, self.scale, size, samples, self.known)
        }
        return tuple(reading for reading in READINGS if reading in found)


def samples_of(table: Table, document: Document) -> tuple[int, ...]:
    """Samples a question, as the text around the table says, or one sentence of the document; empty where none does."""
    if _ONCE.search(table.context):
        return (1,)
    near = {int(number) for number in _AVERAGED.findall(table.context)}
    texts = [line.text for line in document.lines]
    anywhere = {int(number) for text in texts for number in _AVERAGED.findall(text)}
    found = near or anywhere
    return tuple(found) if len(found) == 1 else ()


def scores_of(
    document: Document, samples: Sequence[int] = (), questions: Mapping[str, int] | None = None
) -> Iterator[Score]:
    """Every score whose benchmark's number of questions is known.

    Args:
        document: with its tables.
        samples: samples a question; empty: what the document says, else `SAMPLES`.
        questions: numbers of questions of further benchmarks.
    """
    for table in document.tables:
        said = tuple(samples) or samples_of(table, document)
        sizes = {column: sizes_of(table.header[column], questions or {}) for column in table.scores}
        cells = [
            (row, column, printed)
            for row in table.rows
            for column in table.scores
            if sizes[column] and not is_derived(row) and (printed := row.cells[column].printed) is not None
        ]
        shares = bool(cells) and all(0 <= printed.value <= 1 and not printed.percent for _, _, printed in cells)
        for row, column, printed in cells:
            scale = 1 if shares and any(cell.decimals for _, _, cell in cells) else 100
            if printed.total is None and printed.value >= 0:
                known = bool(said)
                yield Score(table, row, column, printed, scale, sizes[column], said or SAMPLES, known)


def check_granularity(scores: Sequence[Score], source: str) -> Iterator[Finding]:
    """Impossible scores, those that were cut off where others are rounded, and columns rounded before averaging."""
    columns: dict[tuple[str, tuple[int, ...], tuple[int, ...]], list[Score]] = defaultdict(list)
    for score in scores:
        columns[score.table.header[score.column], score.sizes, score.samples].append(score)
    for (benchmark, _, _), cells in columns.items():
        yield from _column(benchmark, cells, source)
    for score in scores:
        readings = score.readings
        if not readings:
            yield _impossible(score, source)
        elif readings[0].endswith("cut off"):
            yield _cut(score, readings[0], source)


def _column(benchmark: str, cells: Sequence[Score], source: str) -> Iterator[Finding]:
    """Whether a benchmark's scores look like means of rounded accuracies."""
    means = [score for score in cells if "rounded" in score.readings]
    rounded = [score for score in cells if "columns rounded" in score.readings]
    if len(rounded) <= len(means):
        return
    first = cells[0]
    step = f"1 / ({first.sizes[0]} x {first.samples[0]})"
    tables = ", ".join(dict.fromkeys(score.table.name for score in cells))
    why = (
        f"{len(means)} of {len(cells)} scores are multiples of {step}; {len(rounded)} are means of {first.samples[0]} "
        "accuracies that were each rounded to 0.1 % before: an error of up to 0.05 points in every score"
    )
    yield Finding("note", "granularity", f"{tables}, {benchmark}", "", "", why, source, first.table.line)


def _impossible(score: Score, source: str) -> Finding:
    size, samples = score.sizes[0], ", ".join(map(str, score.samples))
    what = f"{samples} samples" if len(score.samples) > 1 or score.samples[0] > 1 else "one answer"
    below, above = nearest(score.printed, score.scale, size, max(score.samples))
    why = f"no number of right answers to {size} questions with {what} each gives it, however rounded"
    where = score.table.where(score.row, score.column)
    recomputed = f"{below} or {above}"
    return Finding("error", "granularity", where, score.printed.text, recomputed, why, source, score.row.line)


def _cut(score: Score, reading: str, source: str) -> Finding:
    _, above = nearest(score.printed, score.scale, score.sizes[0], max(score.samples))
    if reading.startswith("columns"):
        above = "another last digit"
    why = "possible only if digits were cut off (or half rounded to even) where other cells are rounded"
    where = score.table.where(score.row, score.column)
    return Finding("warning", "granularity", where, score.printed.text, above, why, source, score.row.line)


def nearest(printed: Printed, scale: int, size: int, samples: int) -> tuple[str, str]:
    """The possible scores next to a printed one, with as many decimals."""
    step = Fraction(scale, size * samples)
    below = floor(printed.exact / step)
    return tuple(show(count * step, printed.decimals) for count in (below, below + 1))  # type: ignore[return-value]


def _readings(printed: Printed, scale: int, size: int, samples: int, known: bool) -> Iterator[str]:
    step = Fraction(scale, size * samples)
    count = floor(printed.exact / step)
    near = [other * step for other in (count - 1, count, count + 1, count + 2) if 0 <= other <= size * samples]
    yield from _printed_as(printed, near, "")
    if known and samples > 1 and scale == 100:
        start = floor(printed.exact * 10 * samples)
        sums = rounded_sums(size, samples)
        there = [total for total in range(max(0, start - 2), start + 4) if sums >> total & 1]
        yield from _printed_as(printed, [Fraction(total, 10 * samples) for total in there], "columns ")


def _printed_as(printed: Printed, values: Sequence[Fraction], what: str) -> Iterator[str]:
    target = int(printed.exact * 10**printed.decimals)
    for value in values:
        scaled = value * 10**printed.decimals
        # Half up, or the double as C and Python print it: those two differ where a half is not exact in binary.
        half_up = floor(scaled + Fraction(1, 2)) == target
        if half_up or round(Fraction(float(value)) * 10**printed.decimals) == target:
            yield f"{what}rounded"
        elif floor(scaled) == target:
            yield f"{what}cut off"


@lru_cache(maxsize=64)
def rounded_sums(size: int, samples: int) -> int:
    """The sums of ``samples`` accuracies on ``size`` questions, each rounded to 0.1 %: bit t is set for t tenths."""
    tenths = set()
    for count in range(size + 1):
        share = Fraction(1000 * count, size)
        tenths |= {floor(share + Fraction(1, 2)), round(share)}  # a half may go either way
    sums = 1
    for _ in range(samples):
        following = 0
        for value in tenths:
            following |= sums << value
        sums = following
    return sums
