"""PriFT's weights are the frozen base's, and do not move with the model."""

import dataclasses
import math

import pytest
import torch
from tests.objectives.batches import PROBABILITIES, gradient, gradient_at, random_tokens, tokens_of

from dftune.objectives import get_objective

prior_ft = get_objective("prior_ft")


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("q", PROBABILITIES)
def test_the_gradient_is_minus_q_to_the_alpha_whatever_p(p, q):
    ref = [math.log(q)]
    assert gradient_at(p, prior_ft, ref_logps=ref) == pytest.approx(-q, rel=1e-12)
    assert gradient_at(p, get_objective("prior_ft", alpha=0.5), ref_logps=ref) == pytest.approx(-(q**0.5), rel=1e-12)
    bounded = get_objective("prior_ft", floor=0.2, clip=0.6)
    assert gradient_at(p, bounded, ref_logps=ref) == pytest.approx(-min(max(q, 0.2), 0.6), rel=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_at_the_base_it_has_the_gradient_of_the_rule_with_p(alpha):
    tokens = random_tokens(0)
    tokens = dataclasses.replace(tokens, ref_logps=tokens.logps.clone())
    found = gradient(get_objective("prior_ft", alpha=alpha), tokens)
    torch.testing.assert_close(found, gradient(get_objective("power", alpha=alpha), tokens))


def test_weights_from_the_model_itself_stay_without_a_gradient():
    """The check that fails without a stop-gradient: a reference that shares the model's graph."""
    logps = torch.tensor([math.log(0.1)], dtype=torch.float64, requires_grad=True)
    tokens = dataclasses.replace(tokens_of([0.0]), logps=logps, ref_logps=logps)
    (found,) = torch.autograd.grad(prior_ft(tokens).total, logps)
    (attached,) = torch.autograd.grad(-(logps.exp() * logps).sum(), logps)
    assert found.item() == pytest.approx(-0.1)
    assert attached.item() == pytest.approx(-0.1 * (1 + math.log(0.1)))  # of the wrong sign


def test_a_value_worked_by_hand():
    assert prior_ft(tokens_of([-2.0], ref_logps=[math.log(0.25)])).total.item() == pytest.approx(0.5)
