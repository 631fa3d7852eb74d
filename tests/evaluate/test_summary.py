from pathlib import Path

import pytest

from dftune.evaluate.protocols import get_protocol
from dftune.evaluate.results import Results
from dftune.evaluate.summary import EvalSummary, Part, break_down, summarize, table


def row(name, verdict="correct", sample=0, *, finish_reason="stop", num_tokens=10, answer="1", **extra):
    return {
        "id": name,
        "sample": sample,
        "verdict": verdict,
        "answer": answer,
        "finish_reason": finish_reason,
        "num_tokens": num_tokens,
        **extra,
    }


def summed(rows, protocol="greedy", ids=None, by=()):
    results = Results(Path("folder"), "sums", "sample")
    results.settings = {"benchmark": "sums", "step": 3}
    results.rows = {(one["id"], one["sample"]): one for one in rows}
    ids = ids or list(dict.fromkeys(one["id"] for one in rows))
    return summarize(results, get_protocol(protocol), ids, by=by)


def test_one_sample_a_problem_has_a_wilson_interval():
    summary = summed([row("a"), row("b"), row("c"), row("d", "incorrect", finish_reason="length", num_tokens=30)])
    assert summary.accuracy == 0.75
    # Wilson, 3 of 4, z = 1.959964: (0.75 + z^2/8 -+ z sqrt(0.1875/4 + z^2/64)) / (1 + z^2/4)
    assert (summary.low, summary.high) == pytest.approx((0.30064, 0.95441), abs=1e-5)
    assert (summary.truncated_share, summary.mean_tokens, summary.num_ungraded) == (0.25, 15.0, 0)
    assert (summary.step, summary.num_problems, summary.num_samples) == (3, 4, 1)


def test_ungraded_completions_are_counted_beside_the_accuracy():
    summary = summed([row("a"), row("b", "ungraded"), row("c", "incorrect"), row("d", "ungraded")])
    assert (summary.accuracy, summary.num_ungraded, summary.num_unscored) == (0.5, 2, 2)


def test_several_samples_are_averaged_by_problem_first():
    rows = [row("a", "correct", sample) for sample in range(4)]
    rows += [
        row("b", verdict, sample) for sample, verdict in enumerate(["incorrect", "ungraded", "ungraded", "correct"])
    ]
    summary = summed(rows, "avg@4")
    assert summary.accuracy == 0.75  # of 1 and 1/2, and not 5 of 6
    assert summary.high - summary.low > 0.7  # two problems say little, however many samples


def test_a_vote_is_one_answer_a_problem_for_the_interval():
    rows = [row(name, "correct", sample) for name in "abc" for sample in range(5)]
    rows += [row("d", "incorrect", sample) for sample in range(5)]
    summary = summed(rows, "maj@5")
    assert (summary.accuracy, summary.num_samples) == (0.75, 5)
    assert (summary.low, summary.high) == pytest.approx((0.30064, 0.95441), abs=1e-5)


def test_protocols_read_the_same_completions_differently():
    verdicts = [("correct", "7"), ("incorrect", "3"), ("incorrect", "3"), ("incorrect", None)]
    rows = [row("a", verdict, sample, answer=answer) for sample, (verdict, answer) in enumerate(verdicts)]
    assert summed(rows, "avg@4").accuracy == 0.25
    assert summed(rows, "maj@4").accuracy == 0.0
    assert summed(rows, "maj@2").accuracy == 0.5
    assert summed(rows, "pass@4").accuracy == 1.0
    assert summed(rows, "avg@1").accuracy == 1.0


def test_only_the_problems_asked_for_count():
    assert summed([row("a"), row("b", "incorrect"), row("c", "incorrect")], ids=["a", "b"]).accuracy == 0.5


def test_without_a_verdict_there_is_no_accuracy():
    summary = summed([row("a", "ungraded")])
    assert (summary.accuracy, summary.low, summary.high) == (None, 0.0, 1.0)


def test_scores_are_broken_down_by_columns_numbers_in_their_order():
    levels = {"a": 10, "b": 2, "c": 2, "d": None}
    rows = [
        row(name, "correct" if name in "ab" else "incorrect", subject="Sums", **({"level": level} if level else {}))
        for name, level in levels.items()
    ]
    parts = break_down(rows, get_protocol("greedy"), "level")
    assert [(part.value, part.num_problems, part.accuracy) for part in parts] == [
        ("2", 2, 0.5),
        ("10", 1, 1),
        ("-", 1, 0),
    ]
    assert [part.value for part in summed(rows, by=("subject", "level")).parts] == ["Sums", "2", "10", "-"]
    with pytest.raises(ValueError, match=r"no completion has the column 'topic'; there are id, .*level"):
        break_down(rows, get_protocol("greedy"), "topic")


def summary(**changes):
    values = {
        "benchmark": "math500",
        "protocol": "greedy",
        "step": 10,
        "num_problems": 500,
        "num_samples": 1,
        "accuracy": 0.31415,
        "low": 0.275,
        "high": 0.356,
        "num_ungraded": 2,
        "truncated_share": 0.04,
        "mean_tokens": 321.4,
        "tokens_per_s": 12345.6,
        "completions": Path("runs/a/evals/step-10/math500.greedy.jsonl"),
    }
    return EvalSummary(**{**values, **changes})


def test_the_table_shows_accuracy_with_interval_n_and_where_the_completions_are():
    assert table([summary(num_unscored=2)]) == (
        "benchmark  protocol  accuracy  95 % interval    n  samples  truncated  ungraded  tokens  tokens/s\n"
        "-------------------------------------------------------------------------------------------------\n"
        "math500    greedy      31.4 %   27.5 to 35.6  498        1      4.0 %         2     321    12,346\n"
        "\n"
        "completions:\n"
        "  runs/a/evals/step-10/math500.greedy.jsonl"
    )


def test_the_table_shows_steps_where_they_differ_and_a_dash_for_what_is_not_known():
    text = table([summary(), summary(step=20, accuracy=None, tokens_per_s=None, protocol="maj@8", num_samples=8)])
    first, _, second, third = text.splitlines()[:4]
    assert first.split()[0] == "step"
    assert second.split()[:3] == ["10", "math500", "greedy"]
    assert third.split() == ["20", "math500", "maj@8", "-", "-", "500", "8", "4.0", "%", "2", "321", "-"]
    assert text.count("math500.greedy.jsonl") == 1  # two protocols of one file


def test_the_table_shows_the_breakdown_under_it():
    parts = (Part("subject", "Algebra", 120, 0.5, 0.41, 0.59), Part("level", "1", 3, None, 0.0, 1.0))
    lines = table([summary(parts=parts)]).splitlines()
    assert lines[4] == "math500 greedy"
    assert [line.split() for line in lines[5:9]] == [
        ["by", "accuracy", "95", "%", "interval", "n"],
        ["-" * len(lines[6])],
        ["subject", "Algebra", "50.0", "%", "41.0", "to", "59.0", "120"],
        ["level", "1", "-", "-", "3"],
    ]
