"""TALR's temperature is the median of the sequences' mean NLL, and a constant to the gradient."""

import math

import pytest
import torch
from tests.objectives.batches import PROBABILITIES, gradient, gradient_at, random_tokens, tokens_of

from dftune.objectives import LossSum, get_objective

talr = get_objective("talr")


@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_gradient_of_a_token_alone_in_its_batch_is_minus_1_over_e(p):
    assert gradient_at(p, talr) == pytest.approx(-1 / math.e, rel=1e-9)  # tau is its own NLL: p^(1 / -log p) = 1/e


@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_gradient_is_minus_p_to_the_1_over_tau(p):
    # sequence NLLs 1, 2 and that of p in a sequence of three, made up to a mean of 4: the median is 2
    rest = (12 + math.log(p)) / 2
    tokens = tokens_of([-1.0, -2.0, math.log(p), -rest, -rest], [1, 1, 3])
    found = gradient(talr, tokens)
    assert found[2].item() == pytest.approx(-(p**0.5), rel=1e-12)
    assert found[0].item() == pytest.approx(-math.exp(-0.5), rel=1e-12)


def attached(tokens):
    tau = (-tokens.sequence_sums(tokens.logps) / tokens.sequence_lengths()).quantile(0.5)
    return LossSum(-((tokens.logps / tau).exp().clamp(min=0.01) * tokens.logps).sum())


def test_the_check_above_fails_when_the_stop_gradient_is_removed():
    tokens = random_tokens(0)
    assert (gradient(attached, tokens) - gradient(talr, tokens)).abs().max() > 0.05


def test_the_floor_holds():
    tokens = tokens_of([-1.0, -1.0, -1.0, -99.0], [1, 1, 1, 1])
    assert gradient(talr, tokens)[3].item() == pytest.approx(-0.01)
    assert gradient(get_objective("talr", floor=0.3), tokens)[3].item() == pytest.approx(-0.3)


def test_the_median_of_an_even_number_of_sequences_is_the_mean_of_the_middle_two():
    loss = talr(tokens_of([-1.0, -2.0, -4.0, -9.0], [1, 1, 1, 1]))
    assert loss.metrics["tau"].item() / 4 == pytest.approx(3.0)


def test_a_batch_known_by_heart_weighs_1_and_is_no_nan():
    tokens = tokens_of([0.0, 0.0, -0.5], [1, 1, 1])
    assert gradient(talr, tokens).tolist() == pytest.approx([-1.0, -1.0, -0.01])


def test_a_longer_sequence_does_not_pull_the_temperature_harder():
    short = talr(tokens_of([-1.0, -3.0], [1, 1])).metrics["tau"] / 2
    long = talr(tokens_of([-1.0, *[-3.0] * 6], [1, 6])).metrics["tau"] / 7
    assert torch.isclose(short, long)
