"""PSFT: SFT's gradient at the old policy, and none once a token has gained enough."""

import dataclasses
import math

import pytest
import torch
from tests.objectives.batches import PROBABILITIES, gradient, gradient_at, random_tokens, tokens_of

from dftune.objectives import get_objective

psft = get_objective("psft")


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("ratio", [0.3, 0.9, 1.0, 1.2, 1.27])
def test_below_the_clip_the_gradient_is_minus_the_ratio(p, ratio):
    assert gradient_at(p, psft, old_logps=[math.log(p / ratio)]) == pytest.approx(-ratio, rel=1e-12)


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("ratio", [1.29, 3.0, 1e50])
def test_above_the_clip_there_is_no_gradient(p, ratio):
    assert gradient_at(p, psft, old_logps=[math.log(p) - math.log(ratio)]) == 0.0


def test_values_worked_by_hand_follow_the_papers_two_sided_formula():
    for ratio in (0.1, 0.72, 1.0, 1.1, 1.28, 5.0):
        clipped = min(max(ratio, 1 - 0.28), 1 + 0.28)
        paper = -min(ratio, clipped)
        found = psft(tokens_of([-1.0], old_logps=[-1.0 - math.log(ratio)])).total.item()
        assert found == pytest.approx(paper, rel=1e-12)


def test_without_an_inner_loop_it_has_the_gradient_of_sft():
    tokens = random_tokens(0)
    tokens = dataclasses.replace(tokens, old_logps=tokens.logps.clone())
    torch.testing.assert_close(gradient(psft, tokens), gradient(get_objective("sft"), tokens))
    assert psft(tokens).metrics["clipped_share"] == 0


def test_an_old_policy_that_shares_the_models_graph_is_held_fixed():
    """The check that fails without the stop-gradient: the ratio of a thing to itself does not change."""
    logps = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    tokens = dataclasses.replace(tokens_of([0.0, 0.0]), logps=logps, old_logps=logps)
    (found,) = torch.autograd.grad(psft(tokens).total, logps)
    assert found.tolist() == [-1.0, -1.0]
    (attached,) = torch.autograd.grad(-(logps - logps).exp().sum(), logps)
    assert attached.tolist() == [0.0, 0.0]


def test_the_share_of_clipped_tokens_is_logged():
    tokens = tokens_of([-1.0, -1.0, -1.0], old_logps=[-1.0, -2.0, -3.0])
    assert psft(tokens).metrics["clipped_share"].item() == 2
