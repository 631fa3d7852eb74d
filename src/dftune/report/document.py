"""From run folders to report.html, report.md, report.csv and report.tex."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dftune.files import read_json, write_text
from dftune.report.export import render_csv, render_latex
from dftune.report.html import render_html
from dftune.report.load import Run, find_runs, read_run
from dftune.report.markdown import render_markdown, summary_table
from dftune.report.method import Method, build_method
from dftune.report.notes import notes
from dftune.report.tables import ResultTable, build_table
from dftune.report.tuning import Tuning, read_tuning
from dftune.report.verdict import verdict
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
        tuning: how learning rates were chosen, in a study that tried several.
        swept: what the charts over learning rate and batch size are drawn from where that is another table.
    """

    title: str
    verdict: str
    table: ResultTable
    notes: tuple[str, ...]
    method: Method
    tuning: Tuning | None = None
    swept: ResultTable | None = None

    def write(self, output: Path) -> ReportPaths:
        """Write the report and its tables into ``output``, each file all or nothing."""
        paths = ReportPaths(*(output / f"report.{ending}" for ending in ("html", "md", "csv", "tex")))
        parts = (self.title, self.verdict, self.table, self.notes, self.method)
        write_text(paths.html, render_html(*parts, tuning=self.tuning, swept=self.swept))
        write_text(paths.markdown, render_markdown(*parts, tuning=self.tuning))
        write_text(paths.csv, render_csv(self.table))
        write_text(paths.latex, render_latex(self.table))
        return paths

    def summary(self) -> str:
        """The verdict and the result table, for a terminal."""
        return f"{self.verdict}\n\n{summary_table(self.table)}" if self.table.columns else self.verdict


def read(
    runs: Sequence[Path],
    title: str | None = None,
    *,
    selection: Mapping[str, Any] | None = None,
    swept: Sequence[Path] = (),
) -> Report:
    """Read run folders and work out everything the report says.

    Args:
        runs: run folders, or folders that hold run folders.
        title: heading; default, the names of what is compared.
        selection: how a study chose its learning rates; default, what lies in the folder of a study.
        swept: further run folders, with other learning rates or batch sizes: they show how much these matter, and are
            compared with nothing.

    Raises:
        ValueError: a folder is missing or no run folder, or a file in it is damaged.
    """
    found = [read_run(path) for path in find_runs(runs)]
    others = [read_run(path) for path in find_runs(swept)]
    table = build_table(found)
    heading = one_line(title) if title else _title(table, found)
    with_others = build_table([*found, *others]) if others else None
    tuning = _tuning(runs, selection, with_others)
    said = (*notes(table, found), *(tuning.notes(table) if tuning else ()))
    words, method = one_line(verdict(table, tuning), 10_000), build_method(table, found)
    return Report(heading, words, table, said, method, tuning, with_others)


def _tuning(runs: Sequence[Path], selection: Mapping[str, Any] | None, wider: ResultTable | None) -> Tuning | None:
    files = [path / "selection.json" for path in runs]
    there = [file for file in files if file.is_file()]
    if selection is None and len(there) == 1:
        selection = read_json(there[0])
    tuning = read_tuning(selection, wider) if selection else None
    return tuning if tuning is not None and tuning.tried else None


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
