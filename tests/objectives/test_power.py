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


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_thresholds_keep_the_gradient_on_one_side_and_drop_it_on_the_other(alpha, p):
    above = get_objective("power", alpha=alpha, p_min=0.1000001)
    below = get_objective("power", alpha=alpha, p_max=0.1000001)
    assert gradient_at(p, above) == pytest.approx(-(p**alpha) if p > 0.1 else 0.0)
    assert gradient_at(p, below) == pytest.approx(-(p**alpha) if p <= 0.1 else 0.0)


def test_thresholded_values_worked_by_hand():
    batch = batch_of(torch.tensor([math.log(0.25), math.log(0.5)], dtype=torch.float64))
    for options, total in (
        ({"alpha": 0.0, "p_min": 0.4}, math.log(2)),  # NLL of 1/2
        ({"alpha": 1.0, "p_min": 0.4}, 0.5),  # 1 - 1/2
        ({"alpha": 1.0, "p_max": 0.4}, 0.75),  # 1 - 1/4
        ({"alpha": 1.0, "p_min": 0.6}, 0.0),
    ):
        loss = get_objective("power", **options)(batch)
        assert loss.total.item() == pytest.approx(total)
        assert loss.metrics["kept_share"].item() == (total > 0)


def test_alpha_0_is_sft_to_the_bit():
    logps = torch.tensor([-3.0, -0.5, -20.0])
    assert torch.equal(
        get_objective("power", alpha=0)(batch_of(logps)).total, get_objective("sft")(batch_of(logps)).total
    )


def test_thresholds_that_leave_no_token_are_refused():
    with pytest.raises(ValueError, match=r"p_min 0\.6 to p_max 0\.4"):
        get_objective("power", p_min=0.6, p_max=0.4)
