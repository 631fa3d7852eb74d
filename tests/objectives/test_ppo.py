"""PPO's policy term over tokens."""

import dataclasses
import math

import pytest
import torch
from tests.objectives.batches import PROBABILITIES, gradient, gradient_at, random_tokens, tokens_of

from dftune.objectives import get_objective

ppo = get_objective("ppo")


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize(("ratio", "advantage"), [(1.1, 2.0), (1.1, -2.0), (0.3, 2.0), (3.0, -1.0)])
def test_where_the_clip_does_not_act_the_gradient_is_minus_the_ratio_times_the_advantage(p, ratio, advantage):
    found = gradient_at(p, ppo, old_logps=[math.log(p) - math.log(ratio)], advantages=[advantage])
    assert found == pytest.approx(-ratio * advantage, rel=1e-12)


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize(("ratio", "advantage"), [(1.3, 2.0), (0.5, -2.0)])
def test_where_it_acts_there_is_no_gradient(p, ratio, advantage):
    assert gradient_at(p, ppo, old_logps=[math.log(p) - math.log(ratio)], advantages=[advantage]) == 0


@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_divergence_adds_its_weight_times_1_minus_q_over_p(p):
    objective = get_objective("ppo", kl_weight=0.3)
    found = gradient_at(p, objective, old_logps=[math.log(p)], ref_logps=[math.log(0.2)], advantages=[0.0])
    assert found == pytest.approx(0.3 * (1 - 0.2 / p), rel=1e-12)


def test_an_old_policy_that_shares_the_models_graph_is_held_fixed():
    """The check that fails without the stop-gradient: the ratio of a thing to itself does not change."""
    logps = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    tokens = dataclasses.replace(tokens_of([0.0], advantages=[2.0]), logps=logps, old_logps=logps)
    (found,) = torch.autograd.grad(ppo(tokens).total, logps)
    (attached,) = torch.autograd.grad(-2.0 * (logps - logps).exp().sum(), logps)
    assert (found.item(), attached.item()) == (-2.0, 0.0)


def test_advantages_of_1_and_no_lower_clip_are_psft():
    tokens = random_tokens(0)
    tokens = dataclasses.replace(tokens, advantages=torch.ones_like(tokens.advantages))
    objective = get_objective("ppo", clip_low=1.0, clip_high=0.28)
    torch.testing.assert_close(objective(tokens).total, get_objective("psft")(tokens).total)
    torch.testing.assert_close(gradient(objective, tokens), gradient(get_objective("psft"), tokens))


def test_a_sequence_counts_by_its_tokens():
    tokens = tokens_of([-1.0] * 4, [1, 3], old_logps=[-1.0] * 4, advantages=[1.0, 2.0])
    assert ppo(tokens).total.item() == -(1 + 3 * 2)
    assert ppo.unit == "token"


def test_no_advantage_is_no_gradient():
    tokens = random_tokens(1)
    tokens = dataclasses.replace(tokens, advantages=torch.zeros_like(tokens.advantages))
    assert not gradient(ppo, tokens).any()
