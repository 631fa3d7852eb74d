"""ASFT: a weighted likelihood and a divergence from the base, each with its own gradient."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from tests.objectives.batches import PROBABILITIES, gradient_at, random_tokens, tokens_of

from dftune.objectives import LossSum, get_objective


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("q", [0.05, 0.5])
@pytest.mark.parametrize(("base", "weight"), [("dynamic", lambda p: p), ("nll", lambda p: 1)])
def test_the_gradient_with_k3_is_minus_the_weight_plus_lambda_times_1_minus_q_over_p(p, q, base, weight):
    objective = get_objective("asft", base=base, kl="k3", kl_weight=0.2)
    found = gradient_at(p, objective, ref_logps=[math.log(q)])
    assert found == pytest.approx(-weight(p) + 0.2 * (1 - q / p), rel=1e-12)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_check_above_fails_when_the_stop_gradient_is_removed(p):
    def attached(tokens):
        log_ratio = tokens.ref_logps - tokens.logps
        return LossSum((-tokens.logps.exp() * tokens.logps + 0.2 * (log_ratio.exp() - 1 - log_ratio)).sum())

    wrong = gradient_at(p, attached, ref_logps=[math.log(0.5)])
    right = -p + 0.2 * (1 - 0.5 / p)
    assert wrong == pytest.approx(right - p * math.log(p))  # by hand
    assert abs(wrong - right) > 0.04


def test_values_worked_by_hand():
    # p = 1/2, q = 1/4: k3 = 1/2 - 1 + ln 2; the full divergence is given
    tokens = tokens_of([math.log(0.5)], ref_logps=[math.log(0.25)], ref_kl=[0.3])
    for options, total in (
        ({"kl": "k3", "kl_weight": 1.0}, 0.5 * math.log(2) + math.log(2) - 0.5),
        ({"kl": "full", "kl_weight": 1.0}, 0.5 * math.log(2) + 0.3),
        ({"kl": "full", "kl_weight": 0.1, "base": "nll"}, math.log(2) + 0.03),
    ):
        assert get_objective("asft", **options)(tokens).total.item() == pytest.approx(total)


def test_the_full_divergence_carries_its_gradient_to_the_logits():
    """Against the released formula: kl_div(log_softmax(logits), softmax(base logits)), summed over the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    base_logits, targets = torch.randn(4, 9, generator=generator, dtype=torch.float64), torch.tensor([1, 5, 0, 8])
    log_p, log_q = logits.log_softmax(-1), base_logits.log_softmax(-1)
    tokens = dataclasses.replace(
        tokens_of([0.0] * 4), logps=log_p[range(4), targets], ref_kl=(log_q.exp() * (log_q - log_p)).sum(-1)
    )
    (found,) = torch.autograd.grad(get_objective("asft", kl_weight=0.3)(tokens).total, logits, retain_graph=True)
    nll = F.cross_entropy(logits, targets, reduction="none")
    released = nll * log_p[range(4), targets].exp().detach() + 0.3 * F.kl_div(
        log_p, base_logits.softmax(-1), reduction="none"
    ).sum(-1)
    (expected,) = torch.autograd.grad(released.sum(), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("base", "name"), [("dynamic", "dynamic_ft"), ("nll", "sft")])
@pytest.mark.parametrize("kl", ["full", "k3"])
def test_without_the_penalty_it_is_what_it_anchors(base, name, kl):
    tokens = random_tokens(0)
    total = get_objective("asft", base=base, kl=kl, kl_weight=0.0)(tokens).total
    torch.testing.assert_close(total, get_objective(name)(tokens).total)


def test_the_divergence_is_logged_without_its_weight():
    tokens = tokens_of([-1.0, -1.0], ref_kl=[0.25, 0.5])
    assert get_objective("asft", kl_weight=0.01)(tokens).metrics["kl"].item() == 0.75
