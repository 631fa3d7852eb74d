"""The result table as CSV, a line a condition and benchmark, and as LaTeX."""

from __future__ import annotations

import csv
import io
import re

from dftune.report.conditions import Column, Condition
from dftune.report.tables import Cell, ResultTable
from dftune.report.wording import doubt, interval, one_line, percent, signed

FIELDS = (
    *("condition", "objective", "num_seeds", "benchmark", "protocol", "without_flagged", "num_questions"),
    *("num_samples", "estimate", "low", "high", "reference", "difference", "difference_low", "difference_high"),
    *("p", "p_holm", "finding", "gain", "gain_low", "gain_high"),
)
"""Columns of ``report.csv``; scores in per cent, differences in points."""

_SPECIAL = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{MINUS SIGN}": "$-$",
    "\N{EM DASH}": "---",
}


def render_csv(table: ResultTable) -> str:
    """One line a condition and column of the table that has a score; a value that there is not is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for column in table.columns:
        for row in table.conditions:
            cell = table.cell(row, column)
            if cell.estimate is not None:
                writer.writerow(_line(row, column, cell))
    return text.getvalue()


def _line(row: Condition, column: Column, cell: Cell) -> list[str | int]:
    estimate, versus, gain = cell.estimate, cell.versus, cell.gain
    assert estimate is not None
    return [
        *(one_line(row.label), one_line(row.group.objective) if row.group else "", estimate.num_seeds),
        *(one_line(column.benchmark), column.protocol, len(column.without), estimate.num_questions, cell.num_samples),
        *(_hundredfold(value) for value in (estimate.mean, estimate.low, estimate.high)),
        one_line(cell.reference),
        *((_hundredfold(value) for value in (versus.mean, versus.low, versus.high)) if versus else [""] * 3),
        *((f"{versus.p:.6g}", f"{versus.p_adjusted:.6g}", versus.word) if versus else [""] * 3),
        *((_hundredfold(value) for value in (gain.mean, gain.low, gain.high)) if gain else [""] * 3),
    ]


def _hundredfold(share: float) -> str:
    return f"{100 * share:.4f}"


def render_latex(table: ResultTable) -> str:
    """A booktabs table: a row a condition, a column a benchmark, with intervals; differences on a line below.

    Bold is a condition that is better than its reference after Holm's correction, and nothing inside the noise.
    """
    header = " & ".join(["condition", *(latex(table.name(column)) for column in table.columns)])
    lines = [
        "% needs \\usepackage{booktabs}",
        "% accuracy in per cent with its 95 % interval; below it the paired difference in points",
        "% bold: better than the reference (Holm-corrected p < 0.05)",
        f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        "\\toprule",
        f"{header} \\\\",
        "\\midrule",
    ]
    for row in table.conditions:
        cells = [table.cell(row, column) for column in table.columns]
        lines.append(f"{' & '.join([latex(row.label), *map(_score, cells)])} \\\\")
        if any(cell.versus for cell in cells):
            lines.append(f"{' & '.join(['', *map(_difference, cells)])} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _score(cell: Cell) -> str:
    if cell.estimate is None:
        return "---"
    shown = percent(cell.estimate.mean)
    shown = f"\\textbf{{{shown}}}" if cell.versus and cell.versus.sign > 0 else shown
    return f"{shown} {{\\small ({latex(interval(cell.estimate.low, cell.estimate.high))})}}"


def _difference(cell: Cell) -> str:
    versus = cell.versus
    if versus is None:
        return ""
    noise = f", {doubt(versus)}" if doubt(versus) else ""
    return latex(f"{signed(versus.mean)} ({interval(versus.low, versus.high)}) against {cell.reference}{noise}")


def latex(text: str) -> str:
    """Text that LaTeX sets as it is: one line, nothing that is a command."""
    return re.sub(r"[&%$#_{}\\~^<>|\u2212\u2014]", lambda match: _SPECIAL[match[0]], one_line(text, 500))
