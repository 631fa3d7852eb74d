"""iw-SFT: one weight a sequence (or a token), 1 at the reference, bounded, and a constant to the gradient."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.objectives.batches import PROBABILITIES, gradient, gradient_at, random_tokens, tokens_of

from dftune.objectives import LossSum, get_objective

iw_sft = get_objective("iw_sft")
token_form = get_objective("iw_sft", form="token")


@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_gradient_of_a_token_alone_is_minus_its_clipped_ratio(p):
    ref = [math.log(0.25)]
    assert gradient_at(p, iw_sft, ref_logps=ref) == pytest.approx(-4 * p, rel=1e-12)
    assert gradient_at(p, token_form, ref_logps=ref) == pytest.approx(-min(max(4 * p, 0.2), 1.8), rel=1e-12)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_the_check_above_fails_when_the_stop_gradient_is_removed(p):
    def attached(tokens):
        return LossSum(-((tokens.logps - tokens.ref_logps).exp() * tokens.logps).sum())

    wrong = gradient_at(p, attached, ref_logps=[math.log(0.25)])
    assert wrong == pytest.approx(-4 * p * (1 + math.log(p)))  # by hand
    assert abs(wrong + 4 * p) > 0.05 * 4 * p


def test_several_sequences_in_a_batch_have_a_weight_each_whatever_their_lengths():
    """The released code multiplies (sequences, 1) into (sequences, tokens, 1), which is right for one sequence only."""
    # mean log-ratios log 2 and -log 2, worked by hand
    tokens = tokens_of([-1.0, -2.0, -3.0], [2, 1], ref_logps=[-1.5, -1.5 - 2 * math.log(2), -3 + math.log(2)])
    torch.testing.assert_close(gradient(iw_sft, tokens), -torch.tensor([2.0, 2.0, 0.5], dtype=torch.float64))
    assert iw_sft(tokens).total.item() == pytest.approx(2 * 3 + 0.5 * 3)


@pytest.mark.parametrize("objective", [iw_sft, token_form])
def test_at_the_reference_it_is_sft(objective):
    tokens = random_tokens(0)
    tokens = dataclasses.replace(tokens, ref_logps=tokens.logps.clone())
    assert objective(tokens).total == get_objective("sft")(tokens).total
    assert torch.equal(gradient(objective, tokens), torch.full_like(tokens.logps, -1))
    assert objective(tokens).metrics["clipped_share"] == 0


@given(st.lists(st.tuples(st.floats(-90, 0), st.floats(-90, 0)), min_size=1, max_size=12), st.integers(1, 4))
def test_weights_lie_between_0_and_16_and_in_the_token_form_between_0_2_and_1_8(pairs, length):
    logps, ref = (list(values) for values in zip(*pairs, strict=True))
    lengths = [length] * (len(logps) // length) + [len(logps) % length] * (len(logps) % length > 0)
    tokens = tokens_of(logps, lengths, ref_logps=ref)
    weights = -gradient(iw_sft, tokens)
    assert (weights >= 0).all()
    assert (weights <= 16).all()
    assert all(len(weights[tokens.sequence_ids == i].unique()) == 1 for i in range(len(lengths)))
    weights = -gradient(token_form, tokens)
    assert (weights >= 0.2).all()
    assert (weights <= 1.8).all()


def test_the_temperature_multiplies_the_log_ratio():
    assert gradient_at(0.5, get_objective("iw_sft", temperature=2.0), ref_logps=[math.log(0.25)]) == pytest.approx(-4)


def test_the_share_of_tokens_at_a_bound_is_logged():
    tokens = tokens_of([0.0, 0.0, -1.0], [2, 1], ref_logps=[-5.0, -5.0, -1.0])
    assert iw_sft(tokens).metrics["clipped_share"].item() == 2


def test_bounds_follow_the_form_and_may_be_given():
    assert (iw_sft.options["w_min"], iw_sft.options["w_max"]) == (0.0, 16.0)
    assert (token_form.options["w_min"], token_form.options["w_max"]) == (0.2, 1.8)
    assert get_objective("iw_sft", w_max=2.0).options["w_max"] == 2.0
    with pytest.raises(ValueError, match=r"w_min 3\.0 is above w_max 2\.0"):
        get_objective("iw_sft", w_min=3.0, w_max=2.0)


def test_the_form_decides_over_what_it_adds_up():
    assert (iw_sft.separable, token_form.separable) == ("sequence", "token")
