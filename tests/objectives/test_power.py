"""The power family meets its two ends and its closed form."""

import math

import pytest
import torch
from tests.objectives.test_dynamic_ft import gradient_at
from tests.objectives.test_sft import batch_of

from dftune.objectives import get_objective


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_gradient_is_minus_p_to_the_alpha(alpha, p):
    assert gradient_at(p, get_objective("power", alpha=alpha)) == pytest.approx(-(p**alpha), rel=1e-9)


def test_a_value_worked_by_hand():
    # alpha = 1/2, p = 1/4: (1 - 1/2) / (1/2) = 1
    total = get_objective("power", alpha=0.5)(batch_of(torch.tensor([math.log(0.25)]))).total
    assert total.item() == pytest.approx(1.0, abs=1e-6)


def test_a_small_alpha_is_sft_without_cancellation():
    logps = torch.tensor([-3.0, -0.5, -20.0])
    total = get_objective("power", alpha=1e-6)(batch_of(logps)).total
    torch.testing.assert_close(total, get_objective("sft")(batch_of(logps)).total, rtol=1e-4, atol=0)


def test_alpha_1_has_the_gradient_of_dynamic_ft():
    for p in (0.02, 0.4, 0.99):
        assert gradient_at(p, get_objective("power", alpha=1.0)) == pytest.approx(gradient_at(p), rel=1e-12)
