"""A diagnosis in words and small tables, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dftune.evaluate.diagnose import SMALL_CELL, CategoryStats, Diagnosis, diagnose
from dftune.evaluate.metrics import Estimate

_CELL_WIDTH = 24


def describe(rows: Iterable[Mapping[str, Any]]) -> str:
    """The diagnosis of completions with verdicts as text (`dftune.evaluate.diagnose.diagnose`, in one pass)."""
    return format_diagnosis(diagnose(rows))


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """Accuracy and its error, accuracy among finished, categories with reasons and lengths, subjects and levels."""
    lines = [*_accuracy(diagnosis), "", *_categories(diagnosis)]
    for column, cells in diagnosis.cells.items():
        lines += ["", *_cells(column, cells)]
    return "\n".join(lines)


def _accuracy(diagnosis: Diagnosis) -> list[str]:
    num, completions = diagnosis.num_questions, diagnosis.num_completions
    if diagnosis.accuracy is None or diagnosis.components is None:
        return [f"no accuracy: none of {completions:,} completions was graded"]
    graded = diagnosis.accuracy.num_questions
    counts = f"{num:,} questions" if graded == num else f"{graded:,} of {num:,} questions"
    counts += "" if num == completions else f", {completions:,} completions"
    lines = [f"accuracy        {_interval(diagnosis.accuracy)}, {counts}"]
    error = f"standard error  {100 * diagnosis.accuracy.standard_error:.1f} points"
    if diagnosis.components.sampling is not None:
        between, sampling = (math.sqrt(x) for x in (diagnosis.components.between, diagnosis.components.sampling))
        error += (
            f": {100 * between:.1f} from the choice of questions, "
            f"{100 * min(sampling, diagnosis.accuracy.standard_error):.1f} from sampling "
            "(what asking these questions again would change)"
        )
    lines.append(error)
    if diagnosis.num_cut and diagnosis.bounds is not None:
        low, high = (100 * bound for bound in diagnosis.bounds)
        among = "none was graded" if diagnosis.finished is None else _interval(diagnosis.finished)
        lines += [
            f"among finished  {among}",
            f"cut off         {diagnosis.num_cut:,} of {completions:,}; "
            f"were those without a correct answer all wrong {low:.1f} %, all right {high:.1f} %",
        ]
    return lines


def _interval(estimate: Estimate) -> str:
    return f"{100 * estimate.mean:.1f} % ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _categories(diagnosis: Diagnosis) -> list[str]:
    with_entropy = diagnosis.overall.mean_entropy is not None
    with_logp = diagnosis.overall.mean_logp is not None
    head = ["category", "share", "count", "tokens: median", "10 %", "90 %"]
    rows = [[*head, *(["entropy"] if with_entropy else []), *(["log-prob"] if with_logp else [])]]

    def measured(stats: CategoryStats) -> list[str]:
        tokens = [f"{stats.tokens[q]:,}" if stats.tokens else "-" for q in (0.5, 0.1, 0.9)]
        means = [(with_entropy, stats.mean_entropy), (with_logp, stats.mean_logp)]
        return [*tokens, *("-" if mean is None else f"{mean:.3f}" for wanted, mean in means if wanted)]

    for name, stats in [*diagnosis.categories.items(), ("all", diagnosis.overall)]:
        rows.append([name, f"{100 * stats.share:.1f} %", f"{stats.count:,}", *measured(stats)])
        if name != "all" and list(stats.reasons) != ["finished"]:
            rows += [[f"  {reason[:40]}", "", f"{count:,}"] for reason, count in stats.reasons.items()]
    return aligned(rows)


def _cells(column: str, cells: Mapping[str, Estimate]) -> list[str]:
    rows = [[column, "accuracy", "95 % interval", "questions"]]
    for value, estimate in cells.items():
        small = " *" if estimate.num_questions < SMALL_CELL else ""
        shown = value if len(value) <= _CELL_WIDTH else f"{value[: _CELL_WIDTH - 1]}…"
        ends = f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
        rows.append([shown, f"{100 * estimate.mean:.1f} %", ends, f"{estimate.num_questions:,}{small or '  '}"])
    lines = aligned(rows)
    few = any(estimate.num_questions < SMALL_CELL for estimate in cells.values())
    return [*lines, f"  * fewer than {SMALL_CELL} questions: read nothing into it"] if few else lines


def aligned(rows: Sequence[Sequence[str]], text_columns: int = 1) -> list[str]:
    """Rows as lines of columns, texts to the left and numbers to the right; short rows end early."""
    num_columns = max(map(len, rows))
    widths = [max(len(row[index]) for row in rows if index < len(row)) for index in range(num_columns)]
    return [
        "  ".join(
            cell.ljust(width) if index < text_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]
