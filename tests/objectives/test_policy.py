"""The clipped surrogate and the k3 estimate of a divergence."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dftune.objectives.policy import clipped_surrogate, k3


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # clips at 0.8 and 1.3; the slope by log r is -r A where the clip does not act
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.6, 0.0),  # gained enough
        (0.5, 2.0, -1.0, -1.0),  # has lost, and may win back
        (1.5, -2.0, 3.0, 3.0),  # has gained, and may be pushed back
        (0.5, -2.0, 1.6, 0.0),  # lost enough
        (1.2, 0.0, 0.0, 0.0),
    ],
)
def test_values_and_slopes_worked_by_hand(ratio, advantage, loss, slope):
    log_ratio = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    losses, clipped = clipped_surrogate(log_ratio, torch.tensor([advantage], dtype=torch.float64), 0.2, 0.3)
    (found,) = torch.autograd.grad(losses.sum(), log_ratio)
    assert losses.item() == pytest.approx(loss)
    assert found.item() == pytest.approx(slope)
    assert clipped.item() == (slope == 0 and advantage != 0)


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative_and_0_at_the_reference_alone(logp, ref_logp):
    found = k3(torch.tensor(logp, dtype=torch.float64), torch.tensor(ref_logp, dtype=torch.float64)).item()
    assert found >= 0
    assert (found < 1e-12) == (abs(logp - ref_logp) < 1.5e-6)


def test_k3_averages_to_the_divergence_over_the_models_own_tokens():
    p, q = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    torch.testing.assert_close((p * k3(p.log(), q.log())).sum(), (p * (p.log() - q.log())).sum())


def test_k3_keeps_its_digits_near_the_reference():
    logps = torch.tensor([-1.0])
    assert k3(logps, logps + 1e-3).item() == pytest.approx(5e-7, rel=1e-2)  # x^2 / 2
