"""Published scores stand beside measured ones."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dftune.report.document import Report, read
from dftune.report.html import render_html
from dftune.report.markdown import render_markdown
from dftune.report.published import build_published

from .conftest import verdict_rows, write_base_run, write_evaluation, write_training_run

PUBLISHED = {
    "source": "A <paper>, table 1",
    "scores": {"arith.greedy": 80.0, "other.avg@16": 12.34},
    "base": {"arith.greedy": 5.0},
    "notes": ["trained on something else"],
}


def publish(run: Path, published: dict[str, Any] | None) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "published": published}))


def report_of(folder: Path, score: float) -> Report:
    """One run that answers 75 of 100, whose recipe says that ``score`` was published."""
    run = write_training_run(folder, "sft", 0, 0.5, num_questions=20)
    write_evaluation(run, 200, verdict_rows("1" * 75 + "0" * 25))
    for file in (run / "evals" / "step-100").iterdir():
        file.unlink()
    publish(run, {**PUBLISHED, "scores": {**PUBLISHED["scores"], "arith.greedy": score}})
    return read([folder])


@pytest.mark.parametrize(("score", "word"), [(80.0, "inside"), (82.45, "inside"), (90.0, "above"), (60.0, "below")])
def test_a_published_score_lies_inside_or_outside_the_interval(tmp_path, score, word):
    # Wilson's 95 % interval of 75 of 100 is 65.7 to 82.5 (Brown, Cai and DasGupta 2001 have its formula)
    rows = {row.column: row for row in build_published(report_of(tmp_path, score).table).rows if row.condition == "sft"}
    assert rows["arith.greedy"].word == word
    assert rows["arith.greedy"].difference == pytest.approx(0.75 - score / 100)
    assert rows["other.avg@16"].word == "not measured"


def test_html_and_markdown_show_it_with_the_source_and_the_notes(tmp_path):
    write_base_run(tmp_path, num_questions=20)
    report = report_of(tmp_path, 80.0)
    parts = (report.title, report.verdict, report.table, report.notes, report.method)
    html, markdown = render_html(*parts), render_markdown(*parts)
    assert "A &lt;paper&gt;, table 1" in html
    assert '<section id="published">' in html
    for text in (html, markdown):
        assert "Published against measured" in text
        assert "trained on something else" in text
    lines = [line for line in markdown.splitlines() if "arith.greedy" in line and "inside" in line]
    assert len(lines) == 1
    assert "80.0" in lines[0] and "75.0" in lines[0]
    assert [row.condition for row in build_published(report.table).rows] == ["base", "sft", "sft"]


def test_what_was_published_does_not_part_replicates(tmp_path):
    runs = [write_training_run(tmp_path, "sft", seed, 0.5, num_questions=20) for seed in (0, 1)]
    publish(runs[0], PUBLISHED)
    publish(runs[1], None)
    table = read([tmp_path]).table
    assert [len(row.runs) for row in table.trained] == [2]


def test_without_published_scores_there_is_no_such_section(tmp_path):
    write_training_run(tmp_path, "sft", 0, 0.5, num_questions=20)
    report = read([tmp_path])
    parts = (report.title, report.verdict, report.table, report.notes, report.method)
    assert "ublished against measured" not in render_html(*parts) + render_markdown(*parts)
