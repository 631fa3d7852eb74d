"""From run folders to report.html, report.md, report.csv and report.tex."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dftune.files import write_text
from dftune.report.export import render_csv, render_latex
from dftune.report.html import render_html
from dftune.report.load import Run, find_runs, read_run
from dftune.report.markdown import render_markdown, summary_table
from dftune.report.method import Method, build_method
from dftune.report.tables import ResultTable, build_table
from dftune.report.verdict import notes, verdict
from dftune.report.wording import listed, one_line


@dataclass(frozen=True)
class ReportPaths:
    """Where a report was written."""

    html: Path
    markdown: Path
    csv: Path
    latex: Path


@dataclass(frozen=True)
class Report:
    """A report before it is written.

    Attributes:
        title: its heading.
        verdict: the paragraph at the top.
        table: every score.
        notes: what to know before trusting a number.
        method: how the numbers came about.
        swept: what the charts over learning rate and batch size are drawn from where that is another table.
    """

    title: str
    verdict: str
    table: ResultTable
    notes: tuple[str, ...]
    method: Method
    swept: ResultTable | None = None

    def write(self, output: Path) -> ReportPaths:
        """Write the report and its tables into ``output``, each file all or nothing."""
        paths = ReportPaths(*(output / f"report.{ending}" for ending in ("html", "md", "csv", "tex")))
        parts = (self.title, self.verdict, self.table, self.notes, self.method)
        write_text(paths.html, render_html(*parts, swept=self.swept))
        write_text(paths.markdown, render_markdown(*parts))
        write_text(paths.csv, render_csv(self.table))
        write_text(paths.latex, render_latex(self.table))
        return paths

    def summary(self) -> str:
        """The verdict and the result table, for a terminal."""
        return f"{self.verdict}\n\n{summary_table(self.table)}" if self.table.columns else self.verdict


def read(runs: Sequence[Path], title: str | None = None, *, swept: Sequence[Path] = ()) -> Report:
    """Read run folders and work out everything the report says.

    Args:
        runs: run folders, or folders that hold run folders.
        title: heading; default, the names of what is compared.
        swept: further run folders, with other learning rates or batch sizes, for the charts over these alone.

    Raises:
        ValueError: a folder is missing or no run folder, or a file in it is damaged.
    """
    found = [read_run(path) for path in find_runs(runs)]
    others = [read_run(path) for path in find_runs(swept)]
    table = build_table(found)
    heading = one_line(title) if title else _title(table, found)
    said, method = one_line(verdict(table), 10_000), build_method(table, found)
    with_others = build_table([*found, *others]) if others else None
    return Report(heading, said, table, notes(table, found), method, with_others)


def build(runs: Sequence[Path], output: Path, title: str | None = None) -> ReportPaths:
    """Compare runs: write ``report.html``, ``.md``, ``.csv`` and ``.tex`` into ``output``.

    Args:
        runs: run folders, or folders that hold run folders.
        output: folder of the report; made if it is missing.
        title: heading; default, the names of what is compared.

    Raises:
        ValueError: a folder is missing or no run folder, or a file in it is damaged.
    """
    return read(runs, title).write(output)


def _title(table: ResultTable, runs: Sequence[Run]) -> str:
    objectives = list(dict.fromkeys(row.group.objective for row in table.trained if row.group and row.group.objective))
    if len(objectives) > 1:
        return f"{listed([*objectives[1:]])} against {objectives[0]}"
    return objectives[0] if objectives else listed([run.name for run in runs])
