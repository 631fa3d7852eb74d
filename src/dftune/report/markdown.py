"""The report as Markdown: the verdict and the tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from dftune.report.conditions import Column
from dftune.report.cost import build_cost, knows_energy
from dftune.report.learning import LearningRow, build_learning
from dftune.report.method import Method
from dftune.report.published import Published, build_published
from dftune.report.tables import Cell, ResultTable
from dftune.report.tuning import Tuning, grid_of
from dftune.report.wording import count, detectable, doubt, interval, one_line, p_value, percent, signed

_DASH = "—"


def render_markdown(
    title: str,
    verdict: str,
    table: ResultTable,
    notes: Sequence[str],
    method: Method,
    *,
    tuning: Tuning | None = None,
) -> str:
    """The whole file."""
    parts = [f"# {plain(title)}", plain(verdict)]
    if table.columns:
        parts.append(summary_table(table))
    if notes:
        parts.append("\n".join(f"- {plain(note)}" for note in notes))
    for column in table.columns:
        parts.append(f"## {plain(table.name(column))}\n\n{detail_table(table, column)}")
        if not column.without and any(table.cell(row, column).diagnosis for row in table.conditions):
            parts.append(endings_table(table, column))
    published = build_published(table)
    if published.sources:
        parts.append(f"## Published against measured\n\n{published_table(published)}")
    if tuning:
        rows = [[row.name, row.chosen, grid_of(row)] for row in tuning.rows]
        head = ["objective", "chosen", f"{tuning.metric}, by rate"]
        parts.append(f"## Choice of learning rates\n\n{grid(head, rows)}")
    learning = build_learning(table)
    if learning:
        parts.append(f"## Speed of learning\n\n{learning_table(learning)}")
    if table.trained:
        parts.append(f"## Cost\n\n{cost_table(table)}")
    if method.runs:
        parts.append(f"## Runs\n\n{_runs(method)}")
    return "\n\n".join(parts) + "\n"


def summary_table(table: ResultTable) -> str:
    """A row a condition, a column a benchmark: accuracy in per cent with its 95 % interval.

    Where there are few benchmarks, the difference to the reference condition stands beside the accuracy.
    """
    header, rows = ["condition"], [[row.label] for row in table.conditions]
    for column in table.columns:
        header.append(f"{table.name(column)}, %")
        for cells, row in zip(rows, table.conditions, strict=True):
            cells.append(_score(table.cell(row, column)))
        references = table.references(column)
        if len(table.columns) <= 2 and references:
            header.append(f"against {references[0]}" if len(references) == 1 else "paired difference")
            for cells, row in zip(rows, table.conditions, strict=True):
                cells.append(_versus(table.cell(row, column), name=len(references) > 1))
    return grid(header, rows)


def _versus(cell: Cell, *, name: bool) -> str:
    if cell.versus is None:
        return _DASH
    noise = f", {doubt(cell.versus)}" if doubt(cell.versus) else ""
    against = f" against {cell.reference}" if name else ""
    return f"{signed(cell.versus.mean)} ({interval(cell.versus.low, cell.versus.high)}){against}{noise}"


def _score(cell: Cell) -> str:
    short = ", ".join(shortfall.counts for shortfall in cell.incomplete)
    if cell.estimate is None:
        return f"incomplete: {short}" if short else _DASH
    marks = [f"{len(cell.incomplete)} left out: {short}"] if short else []
    marks += ["other prompt format than in training"] if cell.format_differs else []
    shown = f"{percent(cell.estimate.mean)} ({interval(cell.estimate.low, cell.estimate.high)})"
    return f"{shown}{''.join(f', {mark}' for mark in marks)}"


def detail_table(table: ResultTable, column: Column) -> str:
    """One benchmark: accuracy, gain, paired difference with test and power, and what was counted."""
    references = table.references(column)
    versus = f"against {references[0]}" if len(references) == 1 else "paired difference"
    header = [
        *("condition", "accuracy %", "95 % interval", versus, "95 % interval", "p", "p, Holm", "detectable"),
        "gain over base",
        *("questions", "seeds", "samples", "ungraded", "truncated"),
    ]
    rows = []
    for row in table.conditions:
        cell = table.cell(row, column)
        rows.append([row.label, *_details(cell, many_references=len(references) > 1)])
    return grid(header, rows)


def _details(cell: Cell, *, many_references: bool) -> list[str]:
    estimate, gain, versus = cell.estimate, cell.gain, cell.versus
    if estimate is None:
        return [_score(cell), *[_DASH] * 12]
    to = f" against {cell.reference}" if many_references and versus else ""
    return [
        percent(estimate.mean),
        interval(estimate.low, estimate.high),
        f"{signed(versus.mean)}{to}" if versus else _DASH,
        interval(versus.low, versus.high) if versus else _DASH,
        p_value(versus.p) if versus else _DASH,
        p_value(versus.p_adjusted) if versus and versus.p_adjusted is not None else _DASH,
        detectable(versus) if versus else _DASH,
        f"{signed(gain.mean)} ({interval(gain.low, gain.high)})" if gain else _DASH,
        count(estimate.num_questions),
        count(estimate.num_seeds),
        count(cell.num_samples),
        count(cell.num_ungraded),
        count(cell.num_truncated),
    ]


def endings_table(table: ResultTable, column: Column) -> str:
    """How the completions on one benchmark ended: shares of the categories, reasons, median lengths."""
    rows = []
    for row in table.conditions:
        diagnosis = table.cell(row, column).diagnosis
        for name, stats in diagnosis.categories.items() if diagnosis else ():
            reasons = ", ".join(f"{reason} {count(amount)}" for reason, amount in stats.reasons.items())
            median = count(stats.tokens[0.5]) if stats.tokens else _DASH
            rows.append([row.label, name, percent(stats.share), count(stats.count), median, reasons])
    return grid(["condition", "ended", "share %", "completions", "median tokens", "reasons"], rows)


def published_table(published: Published) -> str:
    """Published scores beside measured ones, with their sources and what differs."""
    rows = []
    for row in published.rows:
        shown = [_DASH, _DASH]
        if row.measured is not None and row.difference is not None:
            measured = f"{percent(row.measured.mean)} ({interval(row.measured.low, row.measured.high)})"
            shown = [measured, signed(row.difference)]
        rows.append([row.condition, row.column, percent(row.published), *shown, row.word])
    header = ["condition", "benchmark", "published %", "measured %", "difference", "published lies"]
    said = [f"{label}: {source}" for label, source in published.sources] + list(published.notes)
    listed = "\n".join(f"- {plain(text)}" for text in said)
    return f"{grid(header, rows)}\n\n{listed}" if rows else listed


def learning_table(learning: Sequence[LearningRow]) -> str:
    """Steps to the final value of the first condition, and the mean over the training."""
    header = ["condition", "curve", "target", "steps to it", "mean over training"]
    return grid(header, [[row.condition, row.curve, row.target, row.steps, row.mean] for row in learning])


def cost_table(table: ResultTable) -> str:
    """Tokens, time, memory and, where known, energy of every condition."""
    header = ["condition", "runs", "tokens", "training", "relative speed", "generation", "peak memory"]
    cost = build_cost(table)
    rows = [
        [row.condition, row.runs, row.tokens, row.training, row.relative, row.evaluation, row.memory] for row in cost
    ]
    if knows_energy(cost):
        header.append("energy")
        rows = [[*cells, row.energy] for cells, row in zip(rows, cost, strict=True)]
    return grid(header, rows)


def _runs(method: Method) -> str:
    header = ["run", "condition", "seed", "status", "steps", "tokens", "time", "tokens/s", "peak memory"]
    rows = [
        [run.name, run.condition, run.seed, run.status, run.steps, run.tokens, run.time, run.speed, run.memory]
        for run in method.runs
    ]
    return grid(header, rows)


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose source lines up, so that it reads well in a terminal too."""
    cells = [[plain(text) for text in row] for row in (header, *rows)]
    widths = [max(_width(text) for text in column) for column in zip(*cells, strict=True)]
    numeric = [index > 0 and all(_looks_numeric(row[index]) for row in cells[1:]) for index in range(len(header))]
    lines = [
        f"| {' | '.join(_pad(text, width, right) for text, width, right in zip(row, widths, numeric, strict=True))} |"
        for row in cells
    ]
    rule = [f"{'-' * (width - 1)}:" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def plain(text: str) -> str:
    """Text that Markdown shows as it is: one line, nothing that opens a tag, a link, a cell or an emphasis."""
    return re.sub(r"([\\`*\[\]<>|#]|(?<!\w)_|_(?!\w))", r"\\\1", one_line(text, 5000))


def _looks_numeric(text: str) -> bool:
    return bool(re.match(r"[+−<]?\s*\d|—$", text))


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space
