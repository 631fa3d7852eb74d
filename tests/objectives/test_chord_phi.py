"""CHORD's phi peaks where the model is in two minds."""

import math

import pytest
from tests.objectives.batches import PROBABILITIES, gradient_at, tokens_of

from dftune.objectives import LossSum, get_objective

chord_phi = get_objective("chord_phi")


@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_gradient_is_minus_p_times_1_minus_p(p):
    assert gradient_at(p, chord_phi) == pytest.approx(-p * (1 - p), rel=1e-12)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_check_above_fails_when_the_stop_gradient_is_removed(p):
    def attached(tokens):
        p = tokens.logps.exp()
        return LossSum(-(p * (1 - p) * tokens.logps).sum())

    wrong = gradient_at(p, attached)
    assert wrong == pytest.approx(-p * (1 - p) - p * (1 - 2 * p) * math.log(p))  # by hand
    if p != 0.5:  # where phi is flat the two agree
        assert abs(wrong + p * (1 - p)) > 0.05 * p * (1 - p)
    assert (wrong > 0) == (p < 0.2)


def test_a_value_worked_by_hand():
    assert chord_phi(tokens_of([math.log(0.5)])).total.item() == pytest.approx(0.25 * math.log(2))


def test_certainty_keeps_its_digits():
    """1 - p would be 0 in float32 below p = 1 - 6e-8."""
    tokens = tokens_of([-1e-9])
    tokens = type(tokens)(logps=tokens.logps.float(), sequence_ids=tokens.sequence_ids, num_sequences=1)
    assert chord_phi(tokens).total.item() == pytest.approx(1e-18, rel=1e-5)
