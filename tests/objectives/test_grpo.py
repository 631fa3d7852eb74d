"""GRPO's policy term over completions, with ratios of tokens or of sequences."""

import dataclasses
import math

import pytest
import torch
from tests.objectives.batches import PROBABILITIES, gradient, gradient_at, random_tokens, tokens_of

from dftune.objectives import get_objective

grpo = get_objective("grpo")
gspo = get_objective("grpo", ratio="sequence")


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("objective", [grpo, gspo])
@pytest.mark.parametrize(("ratio", "advantage", "slope"), [(1.1, 2.0, -2.2), (1.3, 2.0, 0.0), (0.5, -2.0, 0.0)])
def test_the_gradient_is_minus_the_ratio_times_the_advantage_or_nothing_where_clipped(
    p, objective, ratio, advantage, slope
):
    found = gradient_at(p, objective, old_logps=[math.log(p) - math.log(ratio)], advantages=[advantage])
    assert found == pytest.approx(slope, rel=1e-12)


@pytest.mark.parametrize("objective", [grpo, gspo])
def test_every_completion_counts_the_same_whatever_its_length(objective):
    tokens = tokens_of([-1.0] * 5, [1, 4], old_logps=[-1.0] * 5, advantages=[1.0, 1.0])
    assert gradient(objective, tokens).tolist() == pytest.approx([-1.0, *[-0.25] * 4])
    assert objective(tokens).total.item() == pytest.approx(-2.0)
    assert objective.unit == "sequence"


def test_a_sequence_ratio_is_the_geometric_mean_of_its_tokens_ratios():
    # log-ratios 0.3 and -0.1: the mean 0.1 is below the clip at 1.2 though the first token is above it
    tokens = tokens_of([-1.0, -1.0], old_logps=[-1.3, -0.9], advantages=[1.0])
    assert gspo(tokens).total.item() == pytest.approx(-math.exp(0.1))
    assert gradient(gspo, tokens).tolist() == pytest.approx([-math.exp(0.1) / 2] * 2)
    assert grpo(tokens).total.item() == pytest.approx(-(1.2 + math.exp(-0.1)) / 2)
    assert gradient(grpo, tokens).tolist() == pytest.approx([0.0, -math.exp(-0.1) / 2])
    assert grpo(tokens).metrics["clipped_share"].item() == 0.5


@pytest.mark.parametrize("options", [{}, {"ratio": "sequence"}])
def test_no_advantage_is_no_gradient(options):
    tokens = random_tokens(1)
    tokens = dataclasses.replace(tokens, advantages=torch.zeros_like(tokens.advantages))
    assert not gradient(get_objective("grpo", **options), tokens).any()


def test_an_old_policy_that_shares_the_models_graph_is_held_fixed():
    """The check that fails without the stop-gradient: the ratio of a thing to itself does not change."""
    logps = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    tokens = dataclasses.replace(tokens_of([0.0, 0.0], advantages=[3.0]), logps=logps, old_logps=logps)
    (found,) = torch.autograd.grad(grpo(tokens).total, logps)
    (attached,) = torch.autograd.grad(-3.0 * (logps - logps).exp().mean(), logps)
    assert found.tolist() == [-1.5, -1.5]
    assert attached.tolist() == [0.0, 0.0]


def test_the_divergence_is_a_mean_over_the_completion_too():
    objective = get_objective("grpo", kl_weight=0.5)
    tokens = tokens_of(
        [math.log(0.5)] * 2, old_logps=[math.log(0.5)] * 2, ref_logps=[math.log(0.25)] * 2, advantages=[0.0]
    )
    divergence = math.log(2) - 0.5  # q/p - 1 - log(q/p), by hand
    assert objective(tokens).total.item() == pytest.approx(0.5 * divergence)
    assert objective(tokens).metrics["kl"].item() == pytest.approx(divergence)
    assert gradient(objective, tokens).tolist() == pytest.approx([0.5 * (1 - 0.5) / 2] * 2)
