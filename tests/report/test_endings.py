"""How completions ended, and how long they were: bars, lengths and the table in Markdown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dftune import report
from dftune.evaluate.classify import CATEGORIES
from dftune.evaluate.diagnose import DIAGNOSIS_SUFFIX, diagnose
from dftune.files import write_json
from dftune.report.load import read_run
from dftune.report.markdown import endings_table
from tests.report.conftest import verdict_rows, write_evaluation, write_manifest

ENDINGS: list[dict[str, Any]] = [
    {},
    {"verdict": "incorrect", "answer": "2"},
    {"verdict": "incorrect", "answer": None},
    {"verdict": "incorrect", "answer": None, "finish_reason": "length"},
    {"verdict": "incorrect", "answer": "7", "completion": "It is 7. " * 30, "finish_reason": "length"},
    {"verdict": "incorrect", "answer": None, "completion": " "},
    {"verdict": "scored", "score": 0.5, "answer": None},
    {"verdict": "ungraded", "answer": None, "reason": "operation budget spent"},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One completion of every category."""
    folder = tmp_path / "every"
    rows = [row | ending for row, ending in zip(verdict_rows("1" * len(ENDINGS)), ENDINGS, strict=True)]
    write_manifest(folder, "evaluate", None, None)
    write_evaluation(folder, 0, rows, benchmark="sums")
    return folder


def test_every_category_has_its_part_of_the_bar_its_key_and_its_colour(run: Path, tmp_path: Path) -> None:
    html = report.build([run], tmp_path / "out").html.read_text()
    classes = [f"o-{name.replace(' ', '-')}" for name in CATEGORIES]
    assert re.findall(r'<rect class="bar (o-[\w-]+)"', html) == classes
    assert re.findall(r'<span class="key (o-[\w-]+)"></span>', html) == classes
    style = html.partition("<style>")[2].partition("</style>")[0]
    for name in classes:
        assert all(f"{kind}.{name} {{" in style for kind in (".bar", ".key", ".chip"))


def test_parts_of_the_bar_tell_their_reasons(run: Path, tmp_path: Path) -> None:
    html = report.build([run], tmp_path / "out").html.read_text()
    assert "<title>repetition loop: 1 of 8 (cut off 1)</title>" in html
    assert "<title>format failure: 1 of 8 (no answer 1)</title>" in html


def test_the_table_of_endings_holds_what_the_diagnosis_counts(run: Path) -> None:
    table = report.read([run]).table
    (column,) = table.columns
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in endings_table(table, column).splitlines()[2:]]
    (evaluation,) = read_run(run).evaluations
    expected = diagnose(evaluation.completions)
    assert [line[1] for line in lines] == list(CATEGORIES) == list(expected.categories)
    assert {line[3] for line in lines} == {"1"}
    assert lines[1][5] == "other number 1"


def test_lengths_are_drawn_for_correct_and_wrong_completions(study: Path, tmp_path: Path) -> None:
    html = report.build([study], tmp_path / "out").html.read_text()
    assert "Length by verdict" in html
    assert "sft: correct: " in html
    assert "dynamic_ft: wrong: " in html


def test_a_stored_diagnosis_is_not_taken_for_an_evaluation(run: Path) -> None:
    (before,) = read_run(run).evaluations
    write_json(run / "evals/step-0" / f"sums.greedy{DIAGNOSIS_SUFFIX}", {"num_questions": 7})
    (after,) = read_run(run).evaluations
    assert after.settings == before.settings
