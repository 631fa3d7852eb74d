"""What the check of the training rows against the benchmarks found stands in the report."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dftune.files import write_text
from dftune.report.document import read
from dftune.report.html import render_html

from .conftest import make_recipe, verdict_rows, write_evaluation, write_manifest

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


def write_trained(folder: Path, name: str, objective: str, verdicts: str, data: dict[str, Any]) -> None:
    recipe = make_recipe(name, {"name": objective}, 0)
    write_text(folder / name / "recipe.yaml", yaml.safe_dump(recipe))
    write_manifest(folder / name, "train", 0, {"name": objective}, data=data)
    write_evaluation(folder / name, 10, verdict_rows(verdicts))


def test_a_benchmark_that_was_trained_on_is_shown_with_and_without_these_questions(tmp_path: Path) -> None:
    found = {"arith": {"rows": 10, "matched": ["q0", "q2", "q99"], "training_rows": 3}}
    flagged = {"num_train": 9, "contamination": {"action": "report", "benchmarks": found}}
    write_trained(tmp_path, "s0", "sft", "1110000000", flagged)
    write_trained(tmp_path, "d0", "dynamic_ft", "0100000001", {"num_train": 9})
    report = read([tmp_path])
    whole, clean = report.table.columns
    assert [report.table.name(one) for one in (whole, clean)] == [
        "arith.greedy",
        "arith.greedy without 2 flagged questions",
    ]
    means = {
        (row.label, column): estimate.mean
        for row in report.table.conditions
        for column in (whole, clean)
        if (estimate := report.table.cell(row, column).estimate)
    }
    # Of the eight questions that remain sft has q1 right, dynamic_ft q1 and q9.
    assert means == {
        ("sft", whole): 0.3,
        ("sft", clean): 1 / 8,
        ("dynamic_ft", whole): 0.2,
        ("dynamic_ft", clean): 2 / 8,
    }
    assert "On arith without 2 flagged questions (8 questions)" in report.verdict
    page = render_html(report.title, report.verdict, report.table, report.notes, report.method)
    assert page.count("<h3>How the completions ended") == 1


def test_a_benchmark_of_which_nothing_would_remain_has_no_second_column(tmp_path: Path) -> None:
    found = {"arith": {"rows": 2, "matched": ["q0", "q1"], "training_rows": 2}}
    write_trained(tmp_path, "s0", "sft", "10", {"contamination": {"action": "report", "benchmarks": found}})
    assert len(read([tmp_path]).table.columns) == 1


def test_removed_questions_stay_in_the_score(tmp_path: Path) -> None:
    found = {"arith": {"rows": 4, "matched": ["q0"], "training_rows": 1}}
    write_trained(tmp_path, "s0", "sft", "1000", {"contamination": {"action": "remove", "benchmarks": found}})
    assert len(read([tmp_path]).table.columns) == 1
