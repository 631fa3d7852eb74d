"""Holm's correction: worked by hand, and the chance of a false finding by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from dftune.evaluate.family import correct, holm
from dftune.evaluate.metrics import Difference, paired_difference


@pytest.mark.parametrize(
    ("p_values", "by_hand"),
    [
        # 4 * 0.005, 3 * 0.01, 2 * 0.03 and then no smaller than the one before: 0.04 < 0.06
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.02], [0.02]),
        ([0.5, 0.6, 0.9], [1.0, 1.0, 1.0]),
        ([0.01, 0.01], [0.02, 0.02]),
        ([], []),
    ],
)
def test_holm_gives_the_values_worked_by_hand(p_values: list[float], by_hand: list[float]) -> None:
    assert holm(p_values) == pytest.approx(by_hand)


def won(number: int, total: int = 100) -> Difference:
    """One side answers ``number`` questions that the other does not."""
    scores = [[1.0]] * number + [[0.0]] * (total - number)
    return paired_difference(scores, [[0.0]] * total, seeds_match=True)


def test_a_difference_that_is_clear_alone_can_be_noise_among_many() -> None:
    clear, others = won(8), [won(1)] * 19
    assert 0.05 / 20 < clear.p < 0.05
    assert clear.sign == 1
    corrected = correct([clear, *others])
    assert [one.sign for one in corrected] == [0] * 20
    assert corrected[0].word == "cannot tell"
    assert (corrected[0].low, corrected[0].high) == (clear.low, clear.high)


def test_one_comparison_stays_what_it_is() -> None:
    (alone,) = correct([won(8)])
    assert alone.p_adjusted == won(8).p
    assert alone.detectable == pytest.approx(won(8).detectable)


def test_what_can_be_detected_grows_with_the_family() -> None:
    # Bonett and Price: 8 of 100 won and one pseudo-question each way; normal quantiles within 2 % of Student's at 101
    alone, among_ten = won(8), correct([won(8)] * 10)[0]
    ratio = (2.8070 + 0.8416) / (1.9600 + 0.8416)
    assert among_ten.detectable / alone.detectable == pytest.approx(ratio, rel=0.02)


def test_p_is_under_five_percent_exactly_where_interval_and_permutation_exclude_zero() -> None:
    for number in range(12):
        difference = won(number)
        assert (difference.p_interval < 0.05) == (difference.low > 0)
        assert (difference.sign != 0) == (difference.p < 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [1, 3])
def test_a_family_without_differences_has_a_false_finding_in_at_most_five_percent(num_seeds: int) -> None:
    """Six conditions against one reference on 100 questions, seeds with a standard deviation of 3 points."""
    generator = np.random.default_rng(7)
    num_studies, alone, together = 400, 0, 0
    for _ in range(num_studies):
        hardness = generator.uniform(0.1, 0.9, (100, 1))
        seeds = generator.normal(0, 0.03, (7, 1, num_seeds)) if num_seeds > 1 else np.zeros((7, 1, 1))
        answers = (generator.random((7, 100, num_seeds)) < hardness + seeds).astype(float)
        reference, *others = (one.tolist() for one in answers)
        found = [paired_difference(one, reference, seeds_match=True) for one in others]
        alone += any(one.sign for one in found)
        together += any(one.sign for one in correct(found))
    # 5 % and two standard errors of a share of 5 % in 400 studies
    assert together / num_studies <= 0.05 + 2 * (0.05 * 0.95 / num_studies) ** 0.5
    assert alone > together
