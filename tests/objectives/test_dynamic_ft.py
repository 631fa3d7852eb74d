"""Dynamic FT's stop-gradient: its value alone cannot tell a right implementation from a wrong one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.objectives.test_sft import batch_of
from tests.tiny import make_examples, make_scored

from dftune.data.batches import micro_batches
from dftune.objectives import get_objective
from dftune.train.step import accumulate_gradient

dynamic_ft = get_objective("dynamic_ft")


def gradient_at(p: float, objective=dynamic_ft) -> float:
    logps = torch.tensor([math.log(p)], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(batch_of(logps)).total, logps)
    return gradient.item()


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_gradient_is_the_sft_gradient_times_the_token_probability(p):
    assert gradient_at(p) == pytest.approx(-p, rel=1e-12)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_check_above_fails_when_the_stop_gradient_is_removed(p):
    def attached(tokens):
        return type(dynamic_ft(tokens))(-(tokens.logps.exp() * tokens.logps).sum())

    wrong = gradient_at(p, attached)
    assert wrong == pytest.approx(-p * (1 + math.log(p)))  # d(-p log p)/d(log p) by hand
    assert abs(wrong + p) > 0.05 * p
    assert (wrong > 0) == (p < 1 / math.e)  # the wrong sign where the model is unsure


@pytest.mark.parametrize(("p", "value"), [(1.0, 0.0), (0.5, 0.5 * math.log(2)), (1 / math.e, 1 / math.e)])
def test_values_worked_by_hand(p, value):
    assert dynamic_ft(batch_of(torch.tensor([math.log(p)]))).total.item() == pytest.approx(value, abs=1e-7)


@given(st.lists(st.floats(-80, 0), min_size=1, max_size=30))
def test_the_loss_lies_between_0_and_1_over_e_a_token(logps):
    total = dynamic_ft(batch_of(torch.tensor(logps, dtype=torch.float64))).total.item()
    assert -1e-12 <= total <= len(logps) / math.e + 1e-12


def test_the_model_gradient_is_that_of_minus_the_sum_of_probabilities():
    batches = micro_batches(make_examples(6), max_tokens=100)
    scored, reference = make_scored(), make_scored()
    accumulate_gradient(scored, dynamic_ft, batches)
    num_tokens = sum(len(batch.targets) for batch in batches)
    for batch in batches:
        (-reference(batch).exp().sum() / num_tokens).backward()
    for ours, expected in zip(scored.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"floor": 0.1}, [0.1, 0.1, 0.5, 0.9]),
        ({"clip": 0.5}, [0.01, 0.1, 0.5, 0.5]),
        ({"floor": 0.05, "clip": 0.6}, [0.05, 0.1, 0.5, 0.6]),
    ],
)
def test_floor_and_clip_bound_the_weight_and_leave_it_without_a_gradient(options, weights):
    bounded = get_objective("dynamic_ft", **options)
    for p, weight in zip([0.01, 0.1, 0.5, 0.9], weights, strict=True):
        assert gradient_at(p, bounded) == pytest.approx(-weight, rel=1e-9)


def test_a_floor_of_1_is_sft():
    assert gradient_at(0.03, get_objective("dynamic_ft", floor=1.0)) == -1.0


def test_a_floor_above_the_clip_is_refused():
    with pytest.raises(ValueError, match=r"floor 0\.5 is above clip 0\.2"):
        get_objective("dynamic_ft", floor=0.5, clip=0.2)
