"""What the check of the training rows against the benchmarks found stands in the report."""

from pathlib import Path
from typing import Any

import pytest

from dftune.report.document import read
from dftune.report.html import render_html

from .conftest import write_manifest

OBJECTIVE = {"name": "sft", "options": {}, "unit": "token"}


def report_of(folder: Path, action: str, matched: list[str]) -> tuple[str, Any]:
    found = {"math500": {"rows": 500, "matched": matched, "training_rows": len(matched)}}
    checked = {} if action == "skip" else found
    data = {"num_train": 100, "contamination": {"action": action, "benchmarks": checked}}
    write_manifest(folder / "run", "train", 0, OBJECTIVE, data=data)
    report = read([folder])
    return render_html(report.title, report.verdict, report.table, report.notes, report.method), report.notes


@pytest.mark.parametrize(
    ("action", "matched", "said"),
    [
        ("remove", ["7", "9"], "checked against math500; removed from them: 2 of 500 problems of math500"),
        ("report", ["7"], "checked against math500; left in them: 1 of 500 problems of math500"),
        ("remove", [], "checked against math500; none is a problem of these"),
        ("skip", [], "training rows were not checked against the benchmarks"),
    ],
)
def test_the_method_says_what_was_done(tmp_path: Path, action: str, matched: list[str], said: str) -> None:
    assert said in report_of(tmp_path, action, matched)[0]


def test_a_run_that_was_trained_on_a_benchmark_is_marked(tmp_path: Path) -> None:
    _, notes = report_of(tmp_path, "report", ["7", "9"])
    assert "run was trained on 2 of the 500 problems of math500: its score there is partly memory." in notes


def test_removed_rows_are_no_reason_for_a_mark(tmp_path: Path) -> None:
    assert not any("trained on" in note for note in report_of(tmp_path, "remove", ["7"])[1])
