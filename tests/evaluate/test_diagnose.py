"""What a diagnosis counts, measures and stores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dftune.evaluate.describe import describe, format_diagnosis
from dftune.evaluate.diagnose import QUANTILES, diagnose, length_quantiles
from dftune.evaluate.metrics import accuracy_estimate

LOOP = "So the answer is 7. " * 12


def row(name: str, verdict: str = "correct", **more: Any) -> dict[str, Any]:
    answer = "8" if verdict == "correct" else "7"
    told = {"completion": f"It is \\boxed{{{answer}}}.", "answer": answer, "target": "8", "rule": "box"}
    return {"id": name, "sample": 0, "verdict": verdict, "finish_reason": "stop", "num_tokens": 10, **told, **more}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Ten questions: six right, one wrong, one cut off, one loop, one ungraded."""
    return [
        *(row(f"q{index}", num_tokens=10 + index, mean_entropy=0.5, mean_logp=-0.25) for index in range(6)),
        row("wrong", "incorrect", num_tokens=40, mean_entropy=1.5, mean_logp=-1.0),
        row("cut", "incorrect", completion="First we", answer=None, finish_reason="length", num_tokens=64),
        row("loop", "incorrect", completion=LOOP, finish_reason="length", num_tokens=64),
        row("odd", "ungraded", reason="operation budget spent", num_tokens=30),
    ]


def test_categories_exclude_each_other_and_their_reasons_add_up(rows: list[dict[str, Any]]) -> None:
    found = diagnose(rows)
    counts = {name: stats.count for name, stats in found.categories.items()}
    assert counts == {"correct": 6, "wrong": 1, "truncated": 1, "repetition loop": 1, "ungraded": 1}
    assert sum(counts.values()) == found.num_completions == found.overall.count == 10
    assert found.overall.reasons == counts
    assert all(sum(stats.reasons.values()) == stats.count for stats in found.categories.values())
    assert sum(stats.share for stats in found.categories.values()) == pytest.approx(1.0)


def test_lengths_entropies_and_log_probabilities_are_by_category(rows: list[dict[str, Any]]) -> None:
    found = diagnose(rows)
    correct, wrong, cut = (found.categories[name] for name in ("correct", "wrong", "truncated"))
    assert (correct.tokens[0.5], correct.tokens[0.1], correct.tokens[0.9]) == (12, 10, 15)
    assert (correct.mean_tokens, wrong.mean_tokens) == (12.5, 40)
    assert (correct.mean_entropy, wrong.mean_entropy, cut.mean_entropy) == (0.5, 1.5, None)
    assert (correct.mean_logp, wrong.mean_logp, cut.mean_logp) == (-0.25, -1.0, None)
    assert found.overall.mean_entropy == pytest.approx((6 * 0.5 + 1.5) / 7)


def test_quantiles_are_those_of_numpy_by_the_inverted_distribution() -> None:
    values = [int(value) for value in np.random.default_rng(0).geometric(0.02, 997)]
    counts = {value: values.count(value) for value in values}
    expected = np.quantile(values, QUANTILES, method="inverted_cdf")
    assert list(length_quantiles(counts).values()) == list(expected)


def test_the_accuracy_among_finished_stands_between_the_bounds(rows: list[dict[str, Any]]) -> None:
    found = diagnose(rows)
    assert found.accuracy is not None
    assert found.finished is not None
    assert (found.accuracy.mean, found.finished.mean) == (6 / 9, 6 / 7)
    assert found.bounds == (6 / 9, 8 / 9)
    assert found.num_cut == 2


def test_subjects_and_levels_have_intervals_and_small_ones_are_marked() -> None:
    many = [
        row(f"a{index}", "correct" if index < 15 else "incorrect", subject="Algebra", level=10) for index in range(20)
    ]
    few = [row(f"s{index}", subject="Sets", level=2) for index in range(3)]
    found = diagnose(many + few)
    assert list(found.cells["subject"]) == ["Algebra", "Sets"]
    assert list(found.cells["level"]) == ["2", "10"]
    assert found.cells["subject"]["Algebra"] == accuracy_estimate([[1.0]] * 15 + [[0.0]] * 5)
    text = format_diagnosis(found)
    marked = [line for line in text.splitlines() if line.endswith("*")]
    assert [line.split()[0] for line in marked] == ["2", "Sets"] or [line.split()[0] for line in marked] == [
        "Sets",
        "2",
    ]


def test_a_column_of_many_values_is_no_breakdown() -> None:
    assert diagnose(row(f"q{index}", subject=f"s{index}") for index in range(50)).cells == {}


def test_rows_are_read_once_and_one_by_one(rows: list[dict[str, Any]]) -> None:
    alive = 0

    def stream() -> Iterator[dict[str, Any]]:
        nonlocal alive
        for one in rows:
            alive += 1
            yield dict(one)

    assert describe(stream()) == format_diagnosis(diagnose(rows))
    assert alive == len(rows)


def test_several_samples_tell_the_parts_of_the_standard_error_apart() -> None:
    sampled = [row(f"q{q}", "correct" if (q + s) % 4 else "incorrect", sample=s) for q in range(30) for s in range(3)]
    found = diagnose(sampled)
    assert found.components is not None
    assert found.components.sampling is not None
    assert "from the choice of questions" in format_diagnosis(found)
    assert "from the choice" not in format_diagnosis(diagnose(row(f"q{q}") for q in range(5)))


def test_the_text_shows_what_was_counted(rows: list[dict[str, Any]]) -> None:
    lines = [line.split() for line in describe(rows).splitlines()]
    assert ["accuracy", "66.7", "%", "(35.4", "to", "87.9),", "9", "of", "10", "questions"] in lines  # Wilson, 6 of 9
    assert ["correct", "60.0", "%", "6", "12", "10", "15", "0.500", "-0.250"] in lines
    assert ["no", "answer", "yet", "1"] in lines
    assert ["all", "100.0", "%", "10", "14", "10", "64", "0.643", "-0.357"] in lines


def test_a_diagnosis_is_stored_beside_its_completions(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    found = diagnose(rows)
    stored = found.write(tmp_path / "math.greedy.jsonl", grader="3")
    assert stored == tmp_path / "math.greedy.diagnosis.json"
    read = json.loads(stored.read_text())
    assert (read["completions"], read["grader"]) == ("math.greedy.jsonl", "3")
    assert read["accuracy"]["mean"] == pytest.approx(6 / 9)
    assert read["bounds"] == pytest.approx([6 / 9, 8 / 9])
    assert read["categories"]["correct"]["tokens"] == {
        **{"q10": 10, "q25": 11, "q50": 12, "q75": 14, "q90": 15},
        "mean": 12.5,
    }
    assert read["standard_error"]["sampling"] is None


def test_without_a_graded_completion_there_is_no_accuracy_and_no_failure() -> None:
    found = diagnose([row("a", "ungraded", reason="operation budget spent")])
    assert (found.accuracy, found.finished, found.components) == (None, None, None)
    assert "no accuracy" in format_diagnosis(found)
    assert found.to_json()["accuracy"] is None


def test_no_completion_is_an_error() -> None:
    with pytest.raises(ValueError, match="no completion to diagnose"):
        diagnose([])
