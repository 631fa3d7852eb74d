"""DEFT's exponent follows the concentration, and is held fixed in the gradient."""

import math

import pytest
import torch
from tests.objectives.batches import PROBABILITIES, gradient, gradient_at, random_tokens, tokens_of

from dftune.objectives import LossSum, get_objective

deft = get_objective("deft")
cayley = get_objective("deft", exponent="cayley")


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("concentration", [0.02, 0.3, 1.0])
def test_the_gradient_is_minus_p_to_the_concentration(p, concentration):
    assert gradient_at(p, deft, sum_sq_probs=[concentration]) == pytest.approx(-(p**concentration), rel=1e-12)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_gradient_of_the_cayley_form_is_minus_p_to_its_exponent(p):
    # alone in its batch, mean(p) = p: a = p/2 + (1 - p/2) p / (2 - p) = p/2 + p/2 = p
    assert gradient_at(p, cayley) == pytest.approx(-(p**p), rel=1e-12)


def attached(tokens):
    p = tokens.logps.exp()
    floor = p.mean() / 2
    a = floor + (1 - floor) * p / (2 - p)
    return LossSum(((1 - p**a) / a).sum())


@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_check_above_fails_when_the_stop_gradient_is_removed(p):
    # alone in its batch a = p, so the total is (1 - p^p) / p; by hand, d/d(log p) of it is
    wrong = p * (-(p**p) * (math.log(p) + 1) / p - (1 - p**p) / p**2)
    assert gradient_at(p, attached) == pytest.approx(wrong, rel=1e-9)
    assert wrong != pytest.approx(-(p**p), rel=1e-3)


def test_values_worked_by_hand():
    # C = 1/2, p = 1/4: (1 - 1/2) / (1/2) = 1;  C = 1, p = 1/4: 3/4
    assert deft(tokens_of([math.log(0.25)] * 2, sum_sq_probs=[0.5, 1.0])).total.item() == pytest.approx(1.75)


def test_the_cayley_exponent_worked_by_hand():
    # p = 0.2, 0.8: mean 0.5, a_0 = 0.25; p/(2-p) = 1/9, 2/3; a = 0.25 + 0.75/9 = 1/3 and 0.25 + 0.5 = 3/4
    found = gradient(cayley, tokens_of([math.log(0.2), math.log(0.8)]))
    torch.testing.assert_close(found, -torch.tensor([0.2 ** (1 / 3), 0.8**0.75], dtype=torch.float64))


def test_a_full_concentration_has_the_gradient_of_dynamic_ft():
    tokens = random_tokens(0)
    tokens = tokens_of(tokens.logps, sum_sq_probs=torch.ones_like(tokens.logps))
    torch.testing.assert_close(gradient(deft, tokens), gradient(get_objective("dynamic_ft"), tokens))


def test_hardly_any_concentration_is_sft():
    tokens = tokens_of([-1.0, -0.1], sum_sq_probs=[1e-6, 1e-6])
    torch.testing.assert_close(gradient(deft, tokens), torch.full((2,), -1.0, dtype=torch.float64), rtol=1e-5, atol=0)
