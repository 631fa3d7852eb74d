"""Scores of a file of completions under a protocol, and the table that `dftune evaluate` prints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dftune.evaluate.metrics import Estimate, estimate_scores
from dftune.evaluate.protocols import Protocol
from dftune.evaluate.questions import QuestionTally
from dftune.evaluate.results import Results

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """The problems that share a value of a column.

    Attributes:
        column: such as ``subject``.
        value: such as ``Algebra``; ``-`` for problems without one.
        num_problems: problems with a score.
        accuracy: mean score; None without any.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    column: str
    value: str
    num_problems: int
    accuracy: float | None
    low: float
    high: float


@dataclass(frozen=True)
class EvalSummary:
    """One line of the table that `dftune evaluate` prints.

    Attributes:
        benchmark: name of the benchmark.
        protocol: such as ``greedy`` or ``maj@16``.
        step: optimizer steps of the model.
        num_problems: problems asked for.
        num_samples: completions a problem that the score rests on.
        accuracy: mean score over problems; None without any.
        low: lower end of its 95 % interval.
        high: upper end.
        num_ungraded: completions that could not be graded; docs/evaluation.md says what a protocol makes of them.
        truncated_share: completions cut off at the token limit, whatever their verdict.
        mean_tokens: tokens a completion.
        tokens_per_s: generated tokens a second in this session; None when nothing was generated.
        completions: the file that holds them.
        num_unscored: problems without a score, which are not part of the accuracy.
        parts: the same by subject, level, ..., where it was asked for.
    """

    benchmark: str
    protocol: str
    step: int
    num_problems: int
    num_samples: int
    accuracy: float | None
    low: float
    high: float
    num_ungraded: int
    truncated_share: float
    mean_tokens: float
    tokens_per_s: float | None
    completions: Path
    num_unscored: int = 0
    parts: tuple[Part, ...] = ()


def summarize(
    results: Results,
    protocol: Protocol,
    ids: Collection[str],
    *,
    by: Sequence[str] = (),
    tokens_per_s: float | None = None,
) -> EvalSummary:
    """Score completions.

    Where every problem scores 0 or 1 (one sample, a vote) the interval is Wilson's; otherwise it is taken over the
    scores of the problems, since samples of one problem are not independent
    (`dftune.evaluate.metrics.accuracy_estimate`).

    Args:
        results: completions, complete for these problems.
        protocol: how they become scores.
        ids: of the problems to count.
        by: columns to break the scores down by.
        tokens_per_s: for the table.
    """
    wanted = set(ids)
    rows = protocol.used(row for row in results.rows.values() if row["id"] in wanted)
    scores = protocol.scores(rows)
    estimate = _estimate(scores, rows)
    return EvalSummary(
        benchmark=results.settings["benchmark"],
        protocol=protocol.name,
        step=results.settings["step"],
        num_problems=len(wanted),
        num_samples=len(rows) // len(wanted),
        accuracy=estimate.mean if estimate else None,
        low=estimate.low if estimate else 0.0,
        high=estimate.high if estimate else 1.0,
        num_ungraded=sum(row["verdict"] == "ungraded" for row in rows),
        truncated_share=sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        mean_tokens=sum(row["num_tokens"] for row in rows) / len(rows),
        tokens_per_s=tokens_per_s,
        completions=results.path,
        num_unscored=len(wanted) - len(scores),
        parts=tuple(part for column in by for part in break_down(rows, protocol, column)),
    )


def _estimate(scores: Mapping[str, float], rows: Sequence[Row]) -> Estimate | None:
    num_graded = sum(row["verdict"] != "ungraded" for row in rows)
    return estimate_scores(scores.values(), num_graded, QuestionTally.of(rows).clusters_of(scores))


def break_down(rows: Iterable[Row], protocol: Protocol, column: str) -> list[Part]:
    """Scores by the values of a column that the benchmark carried over, in the order of the values.

    Args:
        rows: completions.
        protocol: how they become scores.
        column: such as ``subject`` or ``level``.

    Raises:
        ValueError: no completion has the column.
    """
    by_value: dict[str, list[Row]] = defaultdict(list)
    rows = list(rows)
    for row in rows:
        by_value[str(row.get(column, "-"))].append(row)
    if rows and set(by_value) == {"-"}:
        known = [key for key, value in rows[0].items() if isinstance(value, str | int) and not isinstance(value, bool)]
        raise ValueError(f"no completion has the column {column!r}; there are {', '.join(known)}.")
    parts = []
    for value in sorted(by_value, key=_natural):
        members = by_value[value]
        scores = protocol.scores(members)
        estimate = _estimate(scores, members)
        ends = (estimate.mean, estimate.low, estimate.high) if estimate else (None, 0.0, 1.0)
        parts.append(Part(column, value, len(scores), *ends))
    return parts


def _natural(value: str) -> tuple[bool, float, str]:
    """Numbers by size and before words; what has no value comes last."""
    number = value.removeprefix("-").isdecimal()
    return (not number, float(value) if number else float(value == "-"), value)


def table(summaries: Sequence[EvalSummary]) -> str:
    """Accuracy with its interval, one line a benchmark and protocol, and where the completions are."""
    steps = {summary.step for summary in summaries}
    several = len(steps) > 1
    head = [*(["step"] if several else []), "benchmark", "protocol", "accuracy", "95 % interval", "n"]
    rows = [[*head, "samples", "truncated", "ungraded", "tokens", "tokens/s"]]
    for item in summaries:
        rows.append(
            [
                *([str(item.step)] if several else []),
                item.benchmark,
                item.protocol,
                *_figures(item.accuracy, item.low, item.high),
                str(item.num_problems - item.num_unscored),
                str(item.num_samples),
                f"{100 * item.truncated_share:.1f} %",
                str(item.num_ungraded),
                f"{item.mean_tokens:.0f}",
                "-" if item.tokens_per_s is None else f"{item.tokens_per_s:,.0f}",
            ]
        )
    parts = [_parts(item, several) for item in summaries if item.parts]
    files = list(dict.fromkeys(item.completions for item in summaries))
    lines = lay_out(rows, num_names=len(head) - 3)
    return "\n".join([*lines, "", *parts, "completions:", *(f"  {path}" for path in files)])


def _parts(item: EvalSummary, several: bool) -> str:
    step = f" at step {item.step}" if several else ""
    rows = [["by", "", "accuracy", "95 % interval", "n"]]
    for part in item.parts:
        rows.append([part.column, part.value, *_figures(part.accuracy, part.low, part.high), str(part.num_problems)])
    return "\n".join([f"{item.benchmark} {item.protocol}{step}", *lay_out(rows, num_names=2), ""])


def _figures(accuracy: float | None, low: float, high: float) -> tuple[str, str]:
    if accuracy is None:
        return "-", "-"
    return f"{100 * accuracy:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}"


def lay_out(rows: Sequence[Sequence[str]], num_names: int) -> list[str]:
    """Lines of a table: the first row is its head; the first ``num_names`` columns stand to the left, numbers right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index < num_names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
