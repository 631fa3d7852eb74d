"""Intervals, paired differences and tests: worked by hand, from published tables, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dftune.evaluate.metrics import (
    Spread,
    accuracy_estimate,
    detectable_difference,
    matched_differences,
    paired_difference,
    pool_spreads,
    seed_spread,
    sign_flip_p_value,
)
from dftune.evaluate.quantiles import student_t_quantile, wilson_interval


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_agrees_with_newcombes_table(correct: int, total: int, low: float, high: float) -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("probability", "degrees", "printed"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 5, 2.571),
        (0.975, 30, 2.042),
        (0.975, 120, 1.980),
        (0.95, 4, 2.132),
        (0.995, 10, 3.169),
        (0.975, 1e9, 1.960),
    ],
)
def test_student_t_quantile_agrees_with_printed_tables(probability: float, degrees: float, printed: float) -> None:
    assert student_t_quantile(probability, degrees) == pytest.approx(printed, abs=5.1e-4)
    assert student_t_quantile(1 - probability, degrees) == pytest.approx(-printed, abs=5.1e-4)


def test_student_t_quantile_with_fractional_degrees_inverts_the_integrated_density() -> None:
    degrees, probability = 2.42, 0.9
    t = student_t_quantile(probability, degrees)
    x = np.linspace(0, t, 200_001)
    front = math.gamma((degrees + 1) / 2) / math.sqrt(degrees * math.pi) / math.gamma(degrees / 2)
    density = front * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
    assert 0.5 + np.trapezoid(density, x) == pytest.approx(probability, abs=1e-8)


def test_one_seed_and_one_sample_give_wilsons_interval() -> None:
    estimate = accuracy_estimate([[1.0]] * 81 + [[0.0]] * 182)
    assert (estimate.low, estimate.high) == wilson_interval(81, 263)
    assert estimate.mean == 81 / 263


def test_without_a_seed_effect_the_interval_is_wilsons_at_the_effective_number_of_questions() -> None:
    # Question means 1, 1/2, 0, 1/2: variance 1/6, squared standard error 1/24; both seeds answer half, so no seed part.
    # 0.25 / (1/24) = 6 effective questions; t at 3 degrees is 3.18245;
    # 3.18245 sqrt(0.25/6 + 3.18245^2/144) / (1 + 3.18245^2/6) = 0.39622.
    estimate = accuracy_estimate([[1, 1], [1, 0], [0, 0], [0, 1]])
    assert estimate.mean == 0.5
    assert estimate.standard_error == pytest.approx(math.sqrt(1 / 24))
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - 0.39622, 0.5 + 0.39622), abs=1e-4)


def test_the_spread_between_seeds_adds_its_own_standard_error() -> None:
    # Question means 1/2, 1/2, 1, 0: 1/24 as above. Seed means 3/4 and 1/4: variance 1/8, over two seeds 1/16.
    estimate = accuracy_estimate([[1, 0], [1, 0], [1, 1], [0, 0]])
    assert estimate.standard_error == pytest.approx(math.sqrt(1 / 24 + 1 / 16))


def test_the_standard_error_is_that_of_a_bootstrap_that_draws_questions_and_seeds() -> None:
    generator = np.random.default_rng(5)
    num_questions, num_seeds, num_draws = 150, 30, 4000
    scores = simulate(generator, num_questions, num_seeds, 0.08)
    questions, seeds = (
        generator.multinomial(size, np.full(size, 1 / size), size=num_draws) / size
        for size in (num_questions, num_seeds)
    )
    drawn = np.einsum("dq,qs,ds->d", questions, scores, seeds, optimize=True)
    found = accuracy_estimate(scores.tolist()).standard_error
    assert found == pytest.approx(drawn.std(), rel=0.06)  # the chance of single answers counts twice here, there thrice
    of_questions = (scores.mean(axis=1).var(ddof=1) / num_questions) ** 0.5
    assert drawn.std() > 1.1 * of_questions  # so that seeds are not left out


def test_the_same_seed_twice_does_not_narrow_the_interval() -> None:
    once = accuracy_estimate([[1.0], [0.0]] * 50)
    twice = accuracy_estimate([[1.0, 1.0], [0.0, 0.0]] * 50)
    assert twice.high - twice.low >= once.high - once.low


def test_all_questions_right_leaves_room_for_error() -> None:
    estimate = accuracy_estimate([[1.0, 1.0]] * 20)
    assert estimate.high == 1.0
    # Wilson at 20 of 20 with Student's quantile: 1 / (1 + 2.093^2 / 20)
    assert estimate.low == pytest.approx(1 / (1 + 2.093024**2 / 20), abs=1e-6)


def test_no_question_is_an_error() -> None:
    with pytest.raises(ValueError, match="no graded question"):
        accuracy_estimate([])


def test_paired_difference_of_two_models_is_bonett_and_prices_interval() -> None:
    # 100 questions: 20 won, 8 lost, 72 equal.
    ours = [[1]] * 20 + [[0]] * 8 + [[1]] * 72
    theirs = [[0]] * 20 + [[1]] * 8 + [[1]] * 72
    found = paired_difference(ours, theirs, seeds_match=True)
    won, lost = 21 / 102, 9 / 102
    centre, variance = won - lost, (won + lost - (won - lost) ** 2) / 101
    reach = student_t_quantile(0.975, 101) * math.sqrt(variance)
    assert found.mean == pytest.approx(0.12)
    assert (found.low, found.high) == pytest.approx((centre - reach, centre + reach), abs=1e-12)


def test_matching_seeds_removes_what_both_sides_share() -> None:
    # Both sides are right on all questions of seed 0 and wrong on all of seed 1, but for one question.
    ours = [[1, 0]] * 19 + [[1, 1]]
    theirs = [[1, 0]] * 20
    matched = paired_difference(ours, theirs, seeds_match=True)
    unmatched = paired_difference(ours, theirs, seeds_match=False)
    assert matched.mean == unmatched.mean == pytest.approx(1 / 40)
    assert matched.standard_error < 0.1 < unmatched.standard_error


def test_a_fixed_reference_is_compared_with_every_seed() -> None:
    found = paired_difference([[1, 1], [0, 1], [1, 0], [1, 1]], [[0], [0], [1], [1]], seeds_match=True)
    assert found.mean == pytest.approx((1 + 0.5 - 0.5 + 0) / 4)
    assert found.num_seeds == 2


def test_a_difference_within_the_noise_has_no_sign_and_a_clear_one_has_its_own() -> None:
    clear = paired_difference([[1]] * 60, [[0]] * 30 + [[1]] * 30, seeds_match=True)
    reverse = paired_difference([[0]] * 30 + [[1]] * 30, [[1]] * 60, seeds_match=True)
    unclear = paired_difference([[1], [0]] * 30, [[0], [1]] * 29 + [[1], [0]], seeds_match=True)
    assert (clear.sign, reverse.sign, unclear.sign) == (1, -1, 0)


def test_different_numbers_of_questions_are_an_error() -> None:
    with pytest.raises(ValueError, match="found 2 and 1"):
        paired_difference([[1], [0]], [[1]], seeds_match=True)


@pytest.mark.parametrize(("won", "lost"), [(10, 2), (9, 5), (6, 0)])
def test_sign_flip_test_agrees_with_mcnemars_exact_test(won: int, lost: int) -> None:
    num = won + lost
    exact = min(1.0, 2 * sum(math.comb(num, k) for k in range(lost + 1)) / 2**num)
    found = sign_flip_p_value([1.0] * won + [-1.0] * lost + [0.0] * 50)
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 9999) + 1e-4)


def test_sign_flip_test_of_unequal_differences_agrees_with_enumeration() -> None:
    differences = [0.5, 0.5, 1.0, -0.25, 0.75, -0.5, 1.0, 0.25]
    sums = [abs(sum(d if bits >> i & 1 else -d for i, d in enumerate(differences))) for bits in range(2**8)]
    exact = sum(total >= abs(sum(differences)) - 1e-9 for total in sums) / 2**8
    assert sign_flip_p_value(differences) == pytest.approx(exact, abs=0.015)


def test_no_difference_at_all_has_p_one() -> None:
    assert sign_flip_p_value([0.0, 0.0]) == 1.0


def test_detectable_difference_is_the_textbook_sum_of_quantiles() -> None:
    # z_0.975 + z_0.8 = 1.95996 + 0.84162
    assert detectable_difference(0.02, 1e9) == pytest.approx(0.02 * 2.80158, abs=1e-6)


def simulate(generator: np.random.Generator, num_questions: int, num_seeds: int, seed_sd: float) -> np.ndarray:
    """Answers of one condition: questions from a Beta distribution with mean 0.6, seeds shifted by a normal."""
    easy = generator.beta(0.9, 0.6, size=(num_questions, 1))
    shifted = np.clip(easy + generator.normal(0, seed_sd, size=(1, num_seeds)), 0, 1)
    return (generator.random((num_questions, num_seeds)) < shifted).astype(float)


@pytest.mark.parametrize(
    ("num_seeds", "seed_sd", "least"),
    [(1, 0.0, 0.93), (2, 0.0, 0.93), (2, 0.02, 0.93), (2, 0.05, 0.86), (3, 0.05, 0.92)],
)
def test_accuracy_interval_covers_the_truth(num_seeds: int, seed_sd: float, least: float) -> None:
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(400):
        estimate = accuracy_estimate(simulate(generator, 100, num_seeds, seed_sd).tolist())
        covered += estimate.low <= 0.6 <= estimate.high
    assert covered / 400 >= least


def test_equal_conditions_are_rarely_called_different() -> None:
    generator = np.random.default_rng(11)
    called = 0
    for _ in range(300):
        easy = generator.beta(0.9, 0.6, size=(80, 1))
        sides = [
            (generator.random((80, 2)) < np.clip(easy + generator.normal(0, 0.02, (1, 2)), 0, 1)).astype(float).tolist()
            for _ in range(2)
        ]
        called += paired_difference(sides[0], sides[1], seeds_match=True).sign != 0
    assert called / 300 <= 0.05


def test_a_difference_of_the_detectable_size_is_found_about_four_times_in_five() -> None:
    generator = np.random.default_rng(3)
    found, sizes = 0, []
    for _ in range(200):
        ours = (generator.random((200, 1)) < 0.65).astype(float)
        theirs = (generator.random((200, 1)) < 0.515).astype(float)
        difference = paired_difference(ours.tolist(), theirs.tolist(), seeds_match=True)
        found += difference.sign == 1
        sizes.append(difference.detectable)
    assert np.mean(sizes) == pytest.approx(0.135, abs=0.005)  # sqrt((p q + p' q') / 200) * 2.8
    assert 0.7 <= found / 200 <= 0.88


# --- Seed variance pooled over conditions -----------------------------------------------------------


def test_pooling_weighs_variances_by_their_degrees_of_freedom() -> None:
    # Seed means 0, 1 and 0, 1/2, 1: variances 1/2 and 1/4 with 1 and 2 degrees, so (1/2 + 2/4) / 3.
    two, three = seed_spread([[0, 1], [0, 1]]), seed_spread([[0, 0, 1], [0, 1, 1]])
    assert two == Spread(0.5, 1)
    assert three == Spread(0.25, 2)
    pooled = pool_spreads([two, None, three])
    assert pooled is not None
    assert (pooled.variance, pooled.degrees, pooled.num_pooled) == pytest.approx((1 / 3, 3, 2))


def test_one_seed_has_no_spread_and_nothing_pools_to_nothing() -> None:
    assert seed_spread([[1], [0]]) is None
    assert pool_spreads([None]) is None


def test_degrees_of_comparisons_with_one_reference_match_their_simulated_variance() -> None:
    # A scaled chi-squared with mean m and variance v has 2 m^2 / v degrees of freedom.
    generator = np.random.default_rng(2)
    seeds = generator.normal(size=(100_000, 4, 2))
    variances = (seeds[:, 1:] - seeds[:, :1]).var(axis=2, ddof=1).mean(axis=1)
    pooled = pool_spreads([Spread(1.0, 1.0)] * 3, overlap=0.25)
    assert pooled is not None
    assert pooled.degrees == pytest.approx(2 * variances.mean() ** 2 / variances.var(), rel=0.05)


def test_a_calm_condition_takes_the_pooled_variance_and_a_restless_one_keeps_its_own() -> None:
    rows = [[1, 0], [1, 0], [1, 1], [0, 0]]  # 1/24 over questions, 1/8 between seeds (above)
    calm = accuracy_estimate(rows, pooled=Spread(0.5, 4))
    restless = accuracy_estimate(rows, pooled=Spread(0.01, 4))
    assert calm.standard_error == pytest.approx(math.sqrt(1 / 24 + 0.5 / 2))
    assert restless.standard_error == pytest.approx(math.sqrt(1 / 24 + 1 / 16))


def test_pooled_degrees_of_freedom_enter_satterthwaites_formula() -> None:
    # Every question is won by both seeds or lost by both: no variance over seeds but the pooled one.
    ours, theirs = [[1, 1]] * 3 + [[0, 0]] * 3, [[0, 0]] * 3 + [[1, 1]] * 3
    found = paired_difference(ours, theirs, seeds_match=True, pooled=Spread(0.2, 3))
    over_questions, over_seeds = 8 / 7 / 8, 0.1  # six questions and two pseudo-questions of -1 and 1
    degrees = (over_questions + over_seeds) ** 2 / (over_questions**2 / 7 + over_seeds**2 / 3)
    reach = student_t_quantile(0.975, degrees) * math.sqrt(over_questions + over_seeds)
    assert found.standard_error == pytest.approx(math.sqrt(over_questions + over_seeds))
    assert found.high == pytest.approx(min(1.0, reach))


def test_without_matching_seeds_both_sides_take_the_pooled_variance_as_one_part() -> None:
    ours, theirs = [[1, 1, 1], [0, 0, 0]] * 10, [[0, 0], [1, 1]] * 10
    found = paired_difference(ours, theirs, seeds_match=False, pooled=Spread(0.06, 3))
    over_questions = 22 / 21 / 22  # twenty questions and two pseudo-questions of -1 and 1
    assert found.standard_error == pytest.approx(math.sqrt(over_questions + 0.06 / 3 + 0.06 / 2))


@pytest.mark.parametrize(
    ("seed_sds", "least", "least_of_one"),
    [
        ((0.05, 0.05, 0.05, 0.05), 0.95, 0.94),
        ((0.02, 0.06, 0.02, 0.06), 0.94, 0.91),
        ((0.02, 0.02, 0.02, 0.06), 0.94, 0.88),
    ],
)
def test_pooled_intervals_cover_the_truth_with_equal_and_with_unequal_spreads(
    seed_sds: tuple[float, ...], least: float, least_of_one: float
) -> None:
    generator = np.random.default_rng(13)
    num, accuracy, differences = 120, np.zeros(4), np.zeros(2)
    for _ in range(num):
        easy = 0.2 + 0.6 * generator.beta(0.9, 0.6, size=(60, 1))  # mean 0.56; far from 0 and 1, so nothing is clipped
        shifts = [generator.normal(0, sd, (1, 2)) for sd in seed_sds]
        conditions = [(generator.random((60, 2)) < easy + shift).astype(float).tolist() for shift in shifts]
        pairs = [(conditions[0], conditions[1]), (conditions[2], conditions[3])]
        pooled = pool_spreads(seed_spread(one) for one in conditions)
        of_pairs = pool_spreads(seed_spread(matched_differences(*pair)) for pair in pairs)
        estimates = [accuracy_estimate(one, pooled=pooled) for one in conditions]
        found = [paired_difference(*pair, seeds_match=True, pooled=of_pairs) for pair in pairs]
        accuracy += [one.low <= 0.56 <= one.high for one in estimates]
        differences += [one.low <= 0 <= one.high for one in found]
    assert accuracy.mean() / num >= least
    assert accuracy.min() / num >= least_of_one
    assert differences.mean() / num >= least
    assert differences.min() / num >= least_of_one
