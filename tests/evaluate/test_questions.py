"""Counting by question, and where the variance of a mean comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dftune.evaluate.metrics import accuracy_estimate, paired_difference, variance_of_mean
from dftune.evaluate.quantiles import wilson_interval
from dftune.evaluate.questions import QuestionTally, variance_components


def row(name: str | None, verdict: str, finish: str = "stop", **more: Any) -> dict[str, Any]:
    return {"id": name, "verdict": verdict, "finish_reason": finish, **more}


def test_samples_are_averaged_by_question_and_ungraded_ones_left_out() -> None:
    verdicts = [("a", "correct"), ("b", "correct"), ("a", "incorrect"), ("a", "ungraded"), ("c", "ungraded")]
    tally = QuestionTally.of(row(name, verdict) for name, verdict in verdicts)
    assert tally.shares() == {"a": 0.5, "b": 1.0}
    estimate = tally.estimate()
    assert estimate is not None
    assert (estimate.mean, estimate.num_questions, len(tally)) == (0.75, 2, 3)


def test_rows_without_an_id_are_questions_of_their_own() -> None:
    estimate = QuestionTally.of(row(None, verdict) for verdict in ["correct"] * 3 + ["incorrect"]).estimate()
    assert estimate is not None
    assert (estimate.low, estimate.high) == wilson_interval(3, 4)


def test_a_row_without_a_verdict_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"row 2 has verdict None.*dftune grade"):
        QuestionTally.of([row("a", "correct"), {"id": "b"}])


def test_accuracy_among_finished_and_the_bounds_are_worked_by_hand() -> None:
    rows = [
        *(row("a", "correct"), row("a", "incorrect", "length")),
        *(row("b", "incorrect"), row("b", "incorrect")),
        *(row("c", "correct", "length"), row("c", "ungraded", "length")),
        *(row("d", "incorrect", "length"), row("d", "ungraded")),
    ]
    tally = QuestionTally.of(rows)
    # Finished and graded: a 1 of 1, b 0 of 2; c and d have none.
    assert tally.shares("finished_correct", "finished") == {"a": 1.0, "b": 0.0}
    # All cut ones wrong: a 1/2, b 0, c 1/2, d 0 of 1; all right: a 1, b 0, c 1, d 1.
    assert tally.bounds() == (0.25, 0.75)


def test_the_parts_of_the_variance_are_worked_by_hand() -> None:
    # Shares 1, 1/2, 0, 1/2 of two samples: variance over questions 1/6, squared standard error 1/24.
    # Within a question 2 y (1 - y): 0, 1/2, 0, 1/2, over two samples and sixteen: (1/4 + 1/4) / 16 = 1/32.
    parts = variance_components([2, 1, 0, 1], [2, 2, 2, 2])
    assert parts.sampling == pytest.approx(1 / 32)
    assert parts.between == pytest.approx(1 / 24 - 1 / 32)
    assert parts.total == pytest.approx(1 / 24)


def test_a_question_with_one_sample_takes_the_typical_variance_of_the_others() -> None:
    # Within: 1/2 for the first, so 1/2 for the second too: (1/2 / 2 + 1/2) / 4.
    assert variance_components([1, 1], [2, 1]).sampling == pytest.approx((1 / 4 + 1 / 2) / 4)
    assert variance_components([1, 0], [1, 1]).sampling is None


def test_the_parts_are_unbiased() -> None:
    generator = np.random.default_rng(0)
    between, sampling = [], []
    for _ in range(1500):
        chances = generator.beta(2, 1, 20)
        counts = generator.binomial(4, chances)
        parts = variance_components([int(count) for count in counts], [4] * 20)
        between.append(parts.total - (parts.sampling or 0))
        sampling.append(parts.sampling)
    # Beta(2, 1): variance 1/18; E[p (1 - p)] = 2/3 - 1/2 = 1/6. Over 20 questions and 4 samples.
    assert np.mean(between) == pytest.approx(1 / 18 / 20, rel=0.04)
    assert np.mean(sampling) == pytest.approx(1 / 6 / 20 / 4, rel=0.02)


def test_clusters_of_single_questions_change_no_variance() -> None:
    values = [1.0, 0.0, 0.5, 0.25, 1.0]
    plain, clustered = variance_of_mean(values), variance_of_mean(values, ["a", "b", "c", "d", "e"])
    assert clustered == pytest.approx(plain)


def test_the_cluster_robust_variance_is_worked_by_hand() -> None:
    # Mean 1/2. Clusters a: 1, 1 (residual 1), b: 0 (-1/2), c: 0 (-1/2); 1 - n_g / 4 is 1/2, 3/4, 3/4.
    variance, degrees = variance_of_mean([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "c"])
    assert variance == pytest.approx((1 / 0.5 + 0.25 / 0.75 + 0.25 / 0.75) / 16)
    assert degrees == pytest.approx(max((4 + 1 + 1) ** 2 / (16 + 1 + 1) - 1, 1))


def test_clusters_that_answer_as_one_are_worth_one_question_each() -> None:
    ten = accuracy_estimate([[1.0]] * 6 + [[0.0]] * 4, clusters=list("abcdefghij"))
    hundred = accuracy_estimate(
        [[1.0]] * 60 + [[0.0]] * 40, clusters=[name for name in "abcdefghij" for _ in range(10)]
    )
    assert hundred.standard_error == pytest.approx(ten.standard_error)
    assert (hundred.low, hundred.high) == pytest.approx((ten.low, ten.high))


def test_the_difference_by_clusters_is_wider_where_clusters_go_together() -> None:
    ours, theirs = [[1]] * 30 + [[0]] * 10, [[0]] * 10 + [[1]] * 10 + [[0]] * 20
    names = [index // 5 for index in range(40)]
    plain = paired_difference(ours, theirs, seeds_match=True)
    clustered = paired_difference(ours, theirs, seeds_match=True, clusters=names)
    assert clustered.mean == plain.mean
    assert clustered.standard_error > 1.5 * plain.standard_error
    assert clustered.p_value > plain.p_value


def test_one_cluster_says_next_to_nothing() -> None:
    estimate = accuracy_estimate([[1.0], [1.0], [0.0], [0.0]] * 25, clusters=["a"] * 100)
    assert estimate.high - estimate.low > 0.98


def test_a_cluster_column_is_used_and_a_question_without_one_stands_alone() -> None:
    rows = [row(str(index), "correct" if index < 6 else "incorrect", cluster="x") for index in range(10)]
    rows += [row("alone", "correct"), row("other", "incorrect")]
    tally = QuestionTally.of(rows)
    named = ["x"] * 10 + ["alone", "other"]
    expected = accuracy_estimate([[float(one["verdict"] == "correct")] for one in rows], clusters=named)
    assert tally.estimate() == expected


def test_memory_grows_with_the_questions_and_not_with_the_rows() -> None:
    def rows(num: int) -> Any:
        return (row(str(index % 50), "correct" if index % 3 else "incorrect") for index in range(num))

    tally = QuestionTally.of(rows(20_000))
    assert (len(tally), tally.num_rows) == (50, 20_000)
    assert {len(numbers) for numbers in tally.counts.values()} == {50}
