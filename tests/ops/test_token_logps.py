"""The scorer against float64 and against hand-worked values."""

import math

import pytest
import torch
from torch.nn import functional as F

from dftune.ops.token_logps import token_logps


def _inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64).to(dtype)
    return hidden, weight, torch.randint(11, (7,), generator=generator)


def test_a_uniform_head_gives_minus_log_vocab():
    logps = token_logps(torch.ones(3, 4), torch.zeros(8, 4), torch.tensor([0, 3, 7]))
    torch.testing.assert_close(logps, torch.full((3,), -math.log(8)))


def test_two_logits_worked_by_hand():
    # logits 2 and 0: p = e^2 / (e^2 + 1)
    logps = token_logps(torch.tensor([[1.0]]), torch.tensor([[2.0], [0.0]]), torch.tensor([0]))
    assert logps.item() == pytest.approx(2 - math.log(math.exp(2) + 1), abs=1e-7)


def test_float32_is_within_1e_6_of_float64():
    hidden, weight, targets = _inputs()
    exact = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    assert (token_logps(hidden, weight, targets).double() - exact).abs().max() < 1e-6


def test_bias_scale_softcap_and_temperature_act_in_that_order():
    hidden, weight, targets = _inputs()
    bias = torch.linspace(-1, 1, 11)
    found = token_logps(hidden, weight, targets, bias=bias, logit_scale=0.5, softcap=2.0, temperature=0.7)
    logits = 2.0 * torch.tanh((hidden @ weight.T + bias) * 0.5 / 2.0) / 0.7
    torch.testing.assert_close(found, -F.cross_entropy(logits, targets, reduction="none"))


def test_the_gradient_for_any_upstream_is_that_of_log_softmax():
    hidden, weight, targets = _inputs()
    upstream = torch.randn(7, generator=torch.Generator().manual_seed(1))
    grads = []
    for double in (False, True):
        h, w = ((x.double() if double else x).detach().requires_grad_() for x in (hidden, weight))
        logps = -F.cross_entropy(h @ w.T, targets, reduction="none") if double else token_logps(h, w, targets)
        grads.append(torch.autograd.grad(logps, (h, w), upstream.to(logps.dtype)))
    for ours, exact in zip(*grads, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)


def test_bfloat16_inputs_are_scored_in_float32():
    hidden, weight, targets = _inputs(torch.bfloat16)
    found = token_logps(hidden, weight, targets)
    assert found.dtype == torch.float32
    exact = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    assert (found.double() - exact).abs().max() < 1e-6


def test_autocast_does_not_lower_the_precision():
    hidden, weight, targets = _inputs()
    plain = token_logps(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(token_logps(hidden, weight, targets), plain)


@pytest.mark.parametrize(
    ("shape", "options"), [((7, 6), {}), ((7, 5), {"temperature": 0.0}), ((7, 5), {"softcap": -1.0})]
)
def test_wrong_shapes_and_options_are_refused_by_value(shape, options):
    _, weight, targets = _inputs()
    with pytest.raises(ValueError, match=r"6|0\.0|-1\.0"):
        token_logps(torch.zeros(shape), weight, targets, **options)
