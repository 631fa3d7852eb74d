import json
from pathlib import Path

import pytest

from dftune.evaluate.results import EvalSummary, Results, summarize, table

SETTINGS = {
    "benchmark": "sums",
    "protocol": "greedy",
    "benchmark_path": "data/sums.jsonl",
    "num_problems": 4,
    "num_samples": 1,
    "model": "runs/a/model",
    "step": 3,
    "prompt_format": {"name": "plain", "fingerprint": "f1"},
    "trained_prompt_format": None,
    "sampling": {"temperature": 0.0, "stop": []},
    "grader": "1",
}


def row(name, verdict="correct", sample=0, finish_reason="stop", num_tokens=10):
    return {
        "id": name,
        "sample": sample,
        "verdict": verdict,
        "finish_reason": finish_reason,
        "num_tokens": num_tokens,
    }


def regraded(row):
    return {**row, "verdict": "ungraded"}


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path, "sums", "greedy")


def reopen(results, **changes):
    again = Results(results.path.parent, "sums", "greedy")
    again.open({**SETTINGS, **changes}, regraded)
    return again


def test_settings_are_there_before_the_first_completion(results):
    results.open(SETTINGS, regraded)
    assert json.loads(results.settings_path.read_text()) == {**SETTINGS, "seconds": 0.0}
    assert not results.path.exists()


def test_completions_and_seconds_are_taken_up_again(results):
    results.open(SETTINGS, regraded)
    results.append([row("a"), row("b")])
    results.add_seconds(2.5)
    again = reopen(results)
    assert list(again.rows) == [("a", 0), ("b", 0)]
    again.add_seconds(1.0)
    assert json.loads(results.settings_path.read_text())["seconds"] == 3.5


def test_a_line_cut_off_by_a_kill_is_forgotten_and_the_next_one_is_whole(results):
    results.open(SETTINGS, regraded)
    results.append([row("a"), row("b")])
    results.path.write_bytes(results.path.read_bytes()[:-7])
    again = reopen(results)
    assert list(again.rows) == [("a", 0)]
    again.append([row("b", "incorrect")])
    assert [json.loads(line)["id"] for line in results.path.read_text().splitlines()] == ["a", "b"]


def test_other_settings_are_refused_and_each_is_named(results):
    results.open(SETTINGS, regraded)
    results.append([row("a")])
    with pytest.raises(ValueError) as error:
        reopen(results, num_samples=2, sampling={"temperature": 0.7, "stop": []})
    message = str(error.value)
    assert "num_samples: 1 there, 2 asked for" in message
    assert "sampling.temperature: 0.0 there, 0.7 asked for" in message
    assert "step" not in message
    assert "--overwrite" in message
    assert list(reopen(results).rows) == [("a", 0)]  # nothing was lost


def test_a_model_or_benchmark_that_was_moved_is_the_same(results):
    results.open(SETTINGS, regraded)
    results.append([row("a")])
    assert len(reopen(results, model="elsewhere", benchmark_path="elsewhere").rows) == 1


def test_completions_graded_by_another_version_are_graded_again(results):
    results.open(SETTINGS, regraded)
    results.append([row("a")])
    again = reopen(results, grader="2")
    assert again.rows["a", 0]["verdict"] == "ungraded"
    assert json.loads(results.path.read_text())["verdict"] == "ungraded"
    assert json.loads(results.settings_path.read_text())["grader"] == "2"


def test_completions_without_their_settings_are_refused(results):
    results.path.write_text("")
    with pytest.raises(ValueError, match="how it was made is not known"):
        results.open(SETTINGS, regraded)


def test_deleting_starts_afresh(results):
    results.open(SETTINGS, regraded)
    results.append([row("a")])
    results.delete()
    assert not reopen(results, num_samples=2).rows


def test_finished_completions_stand_in_the_order_of_the_benchmark(results):
    results.open(SETTINGS, regraded)
    results.append([row("b"), row("a", sample=1), row("c"), row("a", sample=0), row("b", "incorrect")])
    results.finish(["c", "a", "b"])
    saved = [json.loads(line) for line in results.path.read_text().splitlines()]
    assert [(line["id"], line["sample"]) for line in saved] == [("c", 0), ("a", 0), ("a", 1), ("b", 0)]
    assert saved[-1]["verdict"] == "incorrect"  # of a line that stands twice the last counts


def test_one_sample_a_problem_has_a_wilson_interval(results):
    results.open(SETTINGS, regraded)
    results.append([row("a"), row("b"), row("c"), row("d", "incorrect", finish_reason="length", num_tokens=30)])
    summary = summarize(results)
    assert summary.accuracy == 0.75
    # Wilson, 3 of 4, z = 1.959964: (0.75 + z^2/8 -+ z sqrt(0.1875/4 + z^2/64)) / (1 + z^2/4)
    assert (summary.low, summary.high) == pytest.approx((0.30064, 0.95441), abs=1e-5)
    assert (summary.truncated_share, summary.mean_tokens, summary.num_ungraded) == (0.25, 15.0, 0)
    assert summary.step == 3


def test_ungraded_completions_are_counted_beside_the_accuracy(results):
    results.open(SETTINGS, regraded)
    results.append([row("a"), row("b", "ungraded"), row("c", "incorrect"), row("d", "ungraded")])
    summary = summarize(results)
    assert (summary.accuracy, summary.num_ungraded) == (0.5, 2)


def test_several_samples_are_averaged_by_problem_first(results):
    results.open({**SETTINGS, "num_samples": 4, "num_problems": 2}, regraded)
    rows = [row("a", "correct", sample) for sample in range(4)]
    rows += [
        row("b", verdict, sample) for sample, verdict in enumerate(["incorrect", "ungraded", "ungraded", "correct"])
    ]
    results.append(rows)
    summary = summarize(results)
    assert summary.accuracy == 0.75  # of 1 and 1/2, and not 5 of 6
    assert summary.high - summary.low > 0.7  # two problems say little, however many samples


def test_without_a_verdict_there_is_no_accuracy(results):
    results.open(SETTINGS, regraded)
    results.append([row("a", "ungraded")])
    summary = summarize(results)
    assert (summary.accuracy, summary.low, summary.high) == (None, 0.0, 1.0)


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
    assert table([summary()]) == (
        "benchmark  protocol  accuracy  95 % interval    n  truncated  ungraded  tokens  tokens/s\n"
        "----------------------------------------------------------------------------------------\n"
        "math500    greedy      31.4 %   27.5 to 35.6  500      4.0 %         2     321    12,346\n"
        "\n"
        "completions:\n"
        "  runs/a/evals/step-10/math500.greedy.jsonl"
    )


def test_the_table_shows_steps_where_they_differ_and_a_dash_for_what_is_not_known():
    text = table([summary(), summary(step=20, accuracy=None, tokens_per_s=None, protocol="sample", num_samples=8)])
    first, _, second, third = text.splitlines()[:4]
    assert first.split()[0] == "step"
    assert second.split()[:3] == ["10", "math500", "greedy"]
    assert third.split() == ["20", "math500", "sample", "x8", "-", "-", "500", "4.0", "%", "2", "321", "-"]
