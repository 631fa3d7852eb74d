r"""Completions belong to the sampling: protocols share them, and a file grows without making anything twice."""

import json
from pathlib import Path

import pytest
from tests.chains import save_chain

from dftune.cli import main
from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.runner import evaluate
from dftune.report.load import read_run

BOX = r"\boxed{"
ALWAYS = {before: {after: 1.0} for before, after in zip("\n" + BOX + "7", BOX + "7}", strict=True)}
EITHER = {**ALWAYS, "{": {"7": 0.6, "8": 0.4}, "8": {"}": 1.0}}
ROWS = [
    {"id": f"q{index}", "problem": f"{index}?", "answer": "78"[index % 2], "level": index, "subject": "ab"[index % 2]}
    for index in range(4)
]
FOUR = EvaluateConfig(prompt_format="plain", max_tokens=12, batch_size=8, protocol=("avg@4", "maj@4", "pass@2"))


@pytest.fixture(scope="module")
def coins(tmp_path_factory):
    r"""A model that answers \boxed{7} or \boxed{8}, three times out of five the former."""
    return str(save_chain(tmp_path_factory.mktemp("models") / "coins", EITHER))


@pytest.fixture
def sums(tmp_path):
    path = tmp_path / "sums.jsonl"
    write(path, ROWS)
    return str(path)


def write(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def mark(path):
    """Change every stored completion in a way that making it anew would undo."""
    write(path, [{**row, "reason": "kept"} for row in read(path)])


def without_stats(rows):
    """The last digits of these depend on what else was in the batch."""
    return [{key: value for key, value in row.items() if not key.startswith("mean_")} for row in rows]


def test_protocols_read_one_file_and_asking_for_another_makes_nothing_anew(coins, sums, tmp_path):
    summaries = evaluate(coins, [sums], FOUR, tmp_path / "out", step=0)
    assert [summary.protocol for summary in summaries] == ["avg@4", "maj@4", "pass@2"]
    (path,) = {summary.completions for summary in summaries}
    assert path.name == "sums.sample.jsonl"
    mark(path)
    again = evaluate(coins, [sums], FOUR.model_copy(update={"protocol": "pass@4"}), tmp_path / "out", step=0)
    right = {row["id"] for row in read(path) if row["verdict"] == "correct"}
    assert again[0].accuracy == len(right) / 4
    assert again[0].tokens_per_s is None
    assert {row["reason"] for row in read(path)} == {"kept"}
    settings = json.loads(path.with_suffix(".json").read_text())
    assert settings["protocols"] == ["avg@4", "maj@4", "pass@2", "pass@4"]


def test_sixteen_samples_become_sixty_four_by_making_forty_eight_more(coins, sums, tmp_path):
    sixteen = FOUR.model_copy(update={"protocol": "avg@16"})
    (first,) = evaluate(coins, [sums], sixteen, tmp_path / "out", step=0)
    before = read(first.completions)
    mark(first.completions)
    more = FOUR.model_copy(update={"protocol": ("avg@64", "avg@16")})
    grown, still = evaluate(coins, [sums], more, tmp_path / "out", step=0)
    (at_once,) = evaluate(coins, [sums], FOUR.model_copy(update={"protocol": "avg@64"}), tmp_path / "whole", step=0)
    rows = read(grown.completions)
    assert [row["reason"] == "kept" for row in rows] == [row["sample"] < 16 for row in rows]
    assert (len(before), len(rows)) == (4 * 16, 4 * 64)
    assert [row["completion"] for row in rows] == [row["completion"] for row in read(at_once.completions)]
    assert [row["key"] for row in rows] == [row["key"] for row in read(at_once.completions)]
    assert len({row["key"] for row in rows}) == len(rows)
    assert (grown.accuracy, still.accuracy) == (at_once.accuracy, first.accuracy)


def test_the_first_problems_become_the_whole_benchmark_and_can_be_looked_at_alone_again(coins, sums, tmp_path):
    (part,) = evaluate(coins, [f"{sums}:2"], FOUR.model_copy(update={"protocol": "avg@4"}), tmp_path / "out", step=0)
    mark(part.completions)
    whole = evaluate(coins, [sums], FOUR, tmp_path / "out", step=0)[0]
    kept = [row["id"] for row in read(whole.completions) if row["reason"] == "kept"]
    assert (whole.num_problems, kept) == (4, ["q0"] * 4 + ["q1"] * 4)
    again = evaluate(coins, [f"{sums}:2"], FOUR, tmp_path / "out", step=0)[0]
    assert (again.num_problems, again.accuracy) == (2, part.accuracy)
    assert len(read(whole.completions)) == 16
    assert json.loads(whole.completions.with_suffix(".json").read_text())["num_problems"] == 4


def test_an_evaluation_killed_while_it_grew_continues(coins, sums, tmp_path):
    (whole,) = evaluate(coins, [sums], FOUR.model_copy(update={"protocol": "avg@8"}), tmp_path / "whole", step=0)
    evaluate(coins, [sums], FOUR, tmp_path / "out", step=0)
    eight = FOUR.model_copy(update={"protocol": "avg@8"})
    (grown,) = evaluate(coins, [sums], eight, tmp_path / "out", step=0)
    lines = grown.completions.read_bytes().splitlines(keepends=True)
    grown.completions.write_bytes(b"".join(lines[:21]) + lines[21][:30])
    (again,) = evaluate(coins, [sums], eight, tmp_path / "out", step=0)
    assert without_stats(read(again.completions)) == without_stats(read(whole.completions))


def test_greedy_and_sampled_protocols_run_in_one_go_into_their_own_files(coins, sums, tmp_path):
    config = FOUR.model_copy(update={"protocol": ("maj@4", "greedy")})
    found = {summary.protocol: summary for summary in evaluate(coins, [sums], config, tmp_path / "out", step=0)}
    assert {name: one.completions.name for name, one in found.items()} == {
        "greedy": "sums.greedy.jsonl",
        "maj@4": "sums.sample.jsonl",
    }
    assert found["greedy"].accuracy == 0.5  # always 7


def test_a_label_keeps_two_temperatures_side_by_side(coins, sums, tmp_path):
    evaluate(coins, [sums], FOUR, tmp_path / "out", step=0)
    cold = FOUR.model_copy(update={"temperature": 0.2})
    with pytest.raises(ValueError, match=r"sampling\.temperature: 1\.0 there, 0\.2 asked for(.|\n)*--label"):
        evaluate(coins, [sums], cold, tmp_path / "out", step=0)
    evaluate(coins, [sums], cold.model_copy(update={"label": "cold"}), tmp_path / "out", step=0)
    assert (tmp_path / "out/evals/step-0/sums.cold.jsonl").is_file()
    assert {one.protocol for one in read_run(tmp_path / "out").evaluations} == {
        *("avg@4", "maj@4", "pass@2"),
        *("avg@4.cold", "maj@4.cold", "pass@2.cold"),
    }


def test_the_report_sees_every_protocol_with_its_score(coins, sums, tmp_path):
    protocols = ("avg@4", "maj@4", "pass@2", "avg@2")
    config = FOUR.model_copy(update={"protocol": protocols})
    summaries = evaluate(coins, [sums], config, tmp_path / "out", step=0)
    found = {one.protocol: one for one in read_run(tmp_path / "out").evaluations}
    for summary in summaries:
        seen = found[summary.protocol]
        assert seen.complete
        assert sum(seen.scores.values()) / 4 == pytest.approx(summary.accuracy)
    assert {name: one.num_samples for name, one in found.items()} == {"avg@4": 4, "maj@4": 4, "pass@2": 4, "avg@2": 2}


def test_a_reward_model_chooses_among_completions_that_are_there(coins, sums, tmp_path):
    ranked = FOUR.model_copy(update={"protocol": "rm@4"})
    with pytest.raises(ValueError, match=r"lacks 16 of them. Make them first \(--protocol avg@4\)"):
        evaluate(coins, [sums], ranked, tmp_path / "out", step=0)
    (mean,) = evaluate(coins, [sums], FOUR.model_copy(update={"protocol": "avg@4"}), tmp_path / "out", step=0)
    with pytest.raises(ValueError, match=r"rm@4 needs --scores FILE"):
        evaluate(coins, [sums], ranked, tmp_path / "out", step=0)
    rows = read(mean.completions)
    scores = tmp_path / "scores.jsonl"
    rewards = {"correct": 0.9, "incorrect": 0.1}
    write(scores, [{"id": row["id"], "sample": row["sample"], "score": rewards[row["verdict"]]} for row in rows])
    (best,) = evaluate(coins, [sums], ranked, tmp_path / "out", step=0, scores=scores)
    assert best.accuracy == len({row["id"] for row in rows if row["verdict"] == "correct"}) / 4
    (again,) = evaluate(coins, [sums], ranked, tmp_path / "out", step=0)  # the scores have stayed with the completions
    assert again.accuracy == best.accuracy
    with pytest.raises(ValueError, match="goes with a protocol rm@N and a single benchmark"):
        evaluate(coins, [sums], FOUR, tmp_path / "out", step=0, scores=scores)


def test_a_corrected_reference_answer_regrades_what_is_there(coins, sums, tmp_path):
    (first,) = evaluate(coins, [sums], FOUR.model_copy(update={"protocol": "avg@4"}), tmp_path / "out", step=0)
    write(sums, [{**row, "answer": ["7", "8"]} for row in ROWS])
    (second,) = evaluate(coins, [sums], FOUR.model_copy(update={"protocol": "avg@4"}), tmp_path / "out", step=0)
    assert first.accuracy < second.accuracy == 1.0
    assert second.tokens_per_s is None


def test_references_that_cannot_be_graded_are_reported_and_recorded(coins, sums, tmp_path):
    write(sums, [*ROWS[:3], {**ROWS[3], "answer": r"\frac{"}])
    said = []
    config = FOUR.model_copy(update={"protocol": "greedy"})
    (summary,) = evaluate(coins, [sums], config, tmp_path / "out", step=0, say=said.append)
    assert any("1 of 4 reference answers of sums cannot be graded (q3; " in line for line in said)
    (problem,) = json.loads(summary.completions.with_suffix(".json").read_text())["gold_problems"]
    assert (problem["id"], problem["answer"]) == ("q3", r"\frac{")
    assert (summary.num_ungraded, summary.num_unscored) == (1, 1)


def test_a_stated_absolute_error_is_granted_and_survives_regrading(tmp_path, sums):
    model = save_chain(tmp_path / "model", {**ALWAYS, "{": {"7": 1.0}})
    plain = {"problem": "?", "answer": "7.1"}
    write(sums, [{"id": "a", **plain, "abs_error": "1e-1"}, {"id": "b", **plain}])
    config = FOUR.model_copy(update={"protocol": "greedy"})
    (summary,) = evaluate(str(model), [sums], config, tmp_path / "out", step=0)
    near, exact = read(summary.completions)
    assert (near["verdict"], near["stage"], near["tolerance"]) == ("correct", "tolerance", 0.1)
    assert (exact["verdict"], "tolerance" in exact) == ("incorrect", False)
    assert main(["grade", str(summary.completions), "--in-place"]) == 0
    assert [row["verdict"] for row in read(summary.completions)] == ["correct", "incorrect"]


def test_scores_are_broken_down_and_the_columns_recorded(coins, sums, tmp_path):
    config = FOUR.model_copy(update={"protocol": "greedy", "by": ("subject",)})
    (summary,) = evaluate(coins, [sums], config, tmp_path / "out", step=0)
    assert [(part.value, part.accuracy) for part in summary.parts] == [("a", 1.0), ("b", 0.0)]  # always 7
    assert json.loads(summary.completions.with_suffix(".json").read_text())["by"] == ["subject"]


def test_a_column_must_be_in_one_of_the_benchmarks(coins, sums, tmp_path):
    write(tmp_path / "bare.jsonl", [{"problem": "1?", "answer": "7"}])
    config = FOUR.model_copy(update={"protocol": "greedy", "by": ("level",)})
    with_level, without = evaluate(coins, [sums, str(tmp_path / "bare.jsonl")], config, tmp_path / "out", step=0)
    assert ([part.value for part in with_level.parts], without.parts) == (["0", "1", "2", "3"], ())
    with pytest.raises(ValueError, match="--by topic: none of the benchmarks has that column; there are level"):
        evaluate(coins, [sums], config.model_copy(update={"by": ("topic",)}), tmp_path / "other", step=0)
    assert not (tmp_path / "other").exists()


def test_what_the_engine_knows_of_a_completion_is_stored(coins, sums, tmp_path):
    (summary,) = evaluate(coins, [sums], FOUR.model_copy(update={"protocol": "greedy"}), tmp_path / "out", step=0)
    row = read(summary.completions)[0]
    assert row["stop_string"] == ""
    # Of the ten tokens one is drawn: -log 0.6 and the entropy of 0.6 against 0.4.
    assert row["mean_logp"] == pytest.approx(-0.510826 / 10, abs=1e-4)
    assert row["mean_entropy"] == pytest.approx(0.673012 / 10, abs=1e-4)
