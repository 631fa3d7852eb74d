"""EAFT weighs by the model's indecision, and not by how the indecision changes."""

import dataclasses
import math

import pytest
import torch
from tests.objectives.batches import PROBABILITIES, gradient, gradient_at, random_tokens, tokens_of

from dftune.objectives import LossSum, get_objective

eaft = get_objective("eaft")


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize(("alpha", "entropy"), [(1.0, 0.7), (2.0, 0.7), (0.5, 2.9)])
def test_the_gradient_is_minus_the_normalised_entropy_to_the_alpha(p, alpha, entropy):
    found = gradient_at(p, get_objective("eaft", alpha=alpha), top_k_entropy=[entropy])
    assert found == pytest.approx(-((entropy / math.log(20)) ** alpha), rel=1e-12)


def test_values_worked_by_hand():
    # twenty equal tokens have weight 1, two equal ones ln 2 / ln 20 = 0.2314, one has none
    tokens = tokens_of([math.log(0.5)] * 3, top_k_entropy=[math.log(20), math.log(2), 0.0])
    assert eaft(tokens).total.item() == pytest.approx(math.log(2) * (1 + 0.231378), rel=1e-5)


def attached(tokens):
    return LossSum(-(tokens.top_k_entropy / math.log(20) * tokens.logps).sum())


def test_the_entropy_has_no_gradient_and_without_the_stop_gradient_it_would():
    tokens = random_tokens(0)
    for objective, expected in ((eaft, torch.zeros_like(tokens.logps)), (attached, -tokens.logps / math.log(20))):
        entropy = tokens.top_k_entropy.clone().requires_grad_()
        logps = tokens.logps.clone().requires_grad_()
        total = objective(dataclasses.replace(tokens, logps=logps, top_k_entropy=entropy)).total
        (found,) = torch.autograd.grad(total, entropy, allow_unused=True)
        torch.testing.assert_close(torch.zeros_like(expected) if found is None else found, expected)


def test_alpha_0_is_sft():
    tokens = random_tokens(1)
    assert torch.equal(gradient(get_objective("eaft", alpha=0), tokens), torch.full_like(tokens.logps, -1))
