"""What went wrong in an evaluation: categories, lengths, truncation, subjects; from rows streamed one by one."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dftune.evaluate.classify import CATEGORIES, Category, classify
from dftune.evaluate.metrics import Estimate
from dftune.evaluate.questions import Components, QuestionTally
from dftune.files import write_json

Row = Mapping[str, Any]
COLUMNS = ("subject", "level")
"""Columns of a benchmark by which the accuracy is given."""
SMALL_CELL = 20
"""Fewer questions than this are marked: such an interval is over 40 points wide in the middle."""
MOST_CELLS = 40
"""A column with more values is no breakdown (a free text, an id) and is left out."""
DIAGNOSIS_SUFFIX = ".diagnosis.json"
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class CategoryStats:
    """The completions of one category.

    Attributes:
        count: how many.
        share: of all completions.
        reasons: how many for each reason; they add up to ``count``.
        tokens: lengths by quantile (`QUANTILES`); empty where no row has ``num_tokens``.
        mean_tokens: mean length; None likewise.
        mean_entropy: mean over completions of ``mean_entropy``, the entropy of the next-token distribution averaged
            over the tokens of a completion, in nats; None where no row has it.
        mean_logp: mean over completions of ``mean_logp``, the log-probability of a sampled token, in nats.
    """

    count: int
    share: float
    reasons: Mapping[str, int]
    tokens: Mapping[float, int]
    mean_tokens: float | None
    mean_entropy: float | None
    mean_logp: float | None


@dataclass(frozen=True)
class Diagnosis:
    """Everything that can be said of one evaluation without another one beside it.

    Attributes:
        num_questions: distinct ids.
        num_completions: rows.
        accuracy: over graded completions, as `dftune evaluate` prints it; None where nothing was graded.
        components: where the variance of that accuracy comes from.
        categories: by name, in the order of `CATEGORIES`; those without a completion are left out.
        overall: all completions as if they were one category; its reasons are the categories.
        num_cut: completions cut off at the token limit, whatever their verdict.
        finished: accuracy among graded completions that were not cut off. Those are not a random part of the
            questions: what is cut off is mostly hard.
        bounds: accuracy if all that were cut off and are not correct were wrong, and if all were right.
        cells: accuracy by column (`COLUMNS`) and value.
    """

    num_questions: int
    num_completions: int
    accuracy: Estimate | None
    components: Components | None
    categories: Mapping[Category, CategoryStats]
    overall: CategoryStats
    num_cut: int
    finished: Estimate | None
    bounds: tuple[float, float] | None
    cells: Mapping[str, Mapping[str, Estimate]]

    def to_json(self) -> dict[str, Any]:
        """As docs/run-folder.md lists it."""
        return {
            "num_questions": self.num_questions,
            "num_completions": self.num_completions,
            "num_cut": self.num_cut,
            "accuracy": estimate_to_json(self.accuracy),
            "standard_error": None
            if self.accuracy is None or self.components is None
            else {
                "total": self.accuracy.standard_error,
                "between_questions": math.sqrt(self.components.between),
                "sampling": None if self.components.sampling is None else math.sqrt(self.components.sampling),
            },
            "finished": estimate_to_json(self.finished),
            "bounds": None if self.bounds is None else list(self.bounds),
            "categories": {name: _stats_to_json(stats) for name, stats in self.categories.items()},
            "overall": _stats_to_json(self.overall),
            "cells": {
                column: {value: estimate_to_json(estimate) for value, estimate in cells.items()}
                for column, cells in self.cells.items()
            },
        }

    def write(self, completions: Path, grader: str | None) -> Path:
        """Store it beside the completions, as ``BENCHMARK.PROTOCOL.diagnosis.json``; returns that path.

        Args:
            completions: the file that was diagnosed.
            grader: version of the rules behind its verdicts, so that a diagnosis of older ones can be told.
        """
        path = completions.with_suffix(DIAGNOSIS_SUFFIX)
        write_json(path, {"completions": completions.name, "grader": grader, **self.to_json()})
        return path


def diagnose(rows: Iterable[Row]) -> Diagnosis:
    """Diagnose completions with verdicts, in one pass; memory grows with the questions and distinct lengths only.

    Args:
        rows: as docs/run-folder.md lists them; only ``verdict`` is required, see `classify`.

    Raises:
        ValueError: there is no row, or one has no verdict.
    """
    gathered = _Gathered()
    for row in rows:
        gathered.add(row)
    return gathered.diagnosis()


@dataclass
class _Sums:
    """Running sums of one category."""

    reasons: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    means: dict[str, list[float]] = field(default_factory=lambda: {"mean_entropy": [0.0, 0], "mean_logp": [0.0, 0]})

    def add(self, row: Row, reason: str) -> None:
        self.reasons[reason] += 1
        if row.get("num_tokens") is not None:
            self.lengths[int(row["num_tokens"])] += 1
        for name, sums in self.means.items():
            if row.get(name) is not None:
                sums[0] += row[name]
                sums[1] += 1

    def stats(self, num_completions: int) -> CategoryStats:
        count, num_lengths = self.reasons.total(), self.lengths.total()
        mean = {name: total / num if num else None for name, (total, num) in self.means.items()}
        return CategoryStats(
            count=count,
            share=count / num_completions,
            reasons=dict(self.reasons.most_common()),
            tokens=length_quantiles(self.lengths),
            mean_tokens=sum(n * times for n, times in self.lengths.items()) / num_lengths if num_lengths else None,
            mean_entropy=mean["mean_entropy"],
            mean_logp=mean["mean_logp"],
        )


class _Gathered:
    def __init__(self) -> None:
        self.tally = QuestionTally(COLUMNS)
        self.sums: dict[Category, _Sums] = {}
        self.overall = _Sums()
        self.num_cut = 0

    def add(self, row: Row) -> None:
        self.tally.add(row)
        finding = classify(row)
        self.sums.setdefault(finding.category, _Sums()).add(row, finding.reason)
        self.overall.add(row, finding.category)
        self.num_cut += row.get("finish_reason") == "length"

    def diagnosis(self) -> Diagnosis:
        num = self.tally.num_rows
        if not num:
            raise ValueError("There is no completion to diagnose. Evaluate first, or pass a file that holds some.")
        return Diagnosis(
            num_questions=len(self.tally),
            num_completions=num,
            accuracy=self.tally.estimate(),
            components=self.tally.components(),
            categories={name: self.sums[name].stats(num) for name in CATEGORIES if name in self.sums},
            overall=self.overall.stats(num),
            num_cut=self.num_cut,
            finished=self.tally.estimate("finished_correct", "finished"),
            bounds=self.tally.bounds(),
            cells={column: cells for column in COLUMNS if (cells := self._cells(column))},
        )

    def _cells(self, column: str) -> dict[str, Estimate]:
        places: dict[str, list[int]] = defaultdict(list)
        for place, value in enumerate(self.tally.columns[column]):
            if value is not None:
                places[str(value)].append(place)
        if len(places) > MOST_CELLS:
            return {}
        found = {value: self.tally.estimate(places=places[value]) for value in sorted(places, key=_natural)}
        return {value: estimate for value, estimate in found.items() if estimate is not None}


def length_quantiles(lengths: Mapping[int, int]) -> dict[float, int]:
    """Lengths at `QUANTILES`: the smallest that at least this share of the completions does not exceed.

    Args:
        lengths: completions by their number of tokens.
    """
    total, seen = sum(lengths.values()), 0
    found: dict[float, int] = {}
    for length in sorted(lengths):
        seen += lengths[length]
        for quantile in QUANTILES[len(found) :]:
            if seen < quantile * total - 1e-9:
                break
            found[quantile] = length
    return found


def estimate_to_json(estimate: Estimate | None) -> dict[str, Any] | None:
    """An estimate as an object; None stays None."""
    if estimate is None:
        return None
    names = ("mean", "low", "high", "standard_error", "num_questions")
    return {name: getattr(estimate, name) for name in names}


def _stats_to_json(stats: CategoryStats) -> dict[str, Any]:
    tokens = {f"q{round(100 * quantile)}": length for quantile, length in stats.tokens.items()}
    return {
        "count": stats.count,
        "share": stats.share,
        "reasons": dict(stats.reasons),
        "tokens": {**tokens, "mean": stats.mean_tokens} if tokens else None,
        "mean_entropy": stats.mean_entropy,
        "mean_logp": stats.mean_logp,
    }


def _natural(value: str) -> tuple[int, float, str]:
    """Numbers by size, and before words."""
    digits = value.removeprefix("Level ")
    return (0, float(digits), value) if digits.replace(".", "", 1).isdigit() else (1, 0.0, value)
