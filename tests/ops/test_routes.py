"""Every route computes the same values and gradients as float64 full logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests.ops.scorer_inputs import HEADS, STATS, Inputs, make_inputs, reference, relative_error
from torch import Tensor

from dftune.ops.frozen_head import frozen_head
from dftune.ops.one_pass import Pass, one_pass
from dftune.ops.plain import plain
from dftune.ops.recompute import recompute
from dftune.ops.scoring import HeadOptions, Scoring, TokenStats
from dftune.ops.stored import stored

TRAINED_HEAD = {"plain": plain, "stored": stored, "recompute": recompute}
ALL = {**TRAINED_HEAD, "frozen_head": frozen_head}
WIDTHS = (1, 7, 29, 64)  # of a vocabulary of 29: one column, a width that does not divide, one tile, and wider than it


def _score(
    route: Callable[..., TokenStats], inputs: Inputs, width: int, stats: frozenset[str] = frozenset()
) -> TokenStats:
    options = HeadOptions(**inputs.options)
    scoring = Scoring(inputs.targets, options, stats, top_k=5, width=width)
    return route(inputs.hidden, inputs.weight, inputs.bias, scoring)


def _loss(inputs: Inputs, logps: Tensor, entropy: Tensor | None) -> Tensor:
    loss = (inputs.upstream.to(logps.dtype) * logps).sum()
    return loss if entropy is None else loss + (inputs.entropy_upstream.to(logps.dtype) * entropy).sum()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("route", ALL)
def test_float32_values_are_those_of_float64_full_logits(route: str, head: str, width: int) -> None:
    inputs = make_inputs(head)
    if route == "frozen_head":
        inputs.weight.requires_grad_(False)
    found = _score(ALL[route], inputs, width, STATS)
    for name, exact in reference(inputs.double(), top_k=5).items():
        value = getattr(found, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(
            value.double(), exact, rtol=5e-7, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("route", TRAINED_HEAD)
def test_float32_gradients_for_a_random_upstream_are_those_of_float64(route: str, head: str, width: int) -> None:
    inputs = make_inputs(head)
    exact = inputs.double()
    found = torch.autograd.grad(_loss(inputs, _score(TRAINED_HEAD[route], inputs, width).logps, None), inputs.leaves)
    wanted = torch.autograd.grad(_loss(exact, reference(exact)["logps"], None), exact.leaves)
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative_error(ours, theirs) < 1e-6


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("route", TRAINED_HEAD)
def test_the_entropy_is_differentiable_beside_the_log_probability(route: str, head: str, width: int) -> None:
    inputs = make_inputs(head)
    exact = inputs.double()
    stats = _score(TRAINED_HEAD[route], inputs, width, frozenset({"entropy"}))
    found = torch.autograd.grad(_loss(inputs, stats.logps, stats.entropy), inputs.leaves)
    values = reference(exact)
    wanted = torch.autograd.grad(_loss(exact, values["logps"], values["entropy"]), exact.leaves)
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative_error(ours, theirs) < 2e-6


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("head", HEADS)
def test_a_frozen_head_passes_the_same_gradient_to_hidden(head: str, width: int) -> None:
    inputs = make_inputs(head)
    exact = inputs.double()
    inputs.weight.requires_grad_(False)
    (found,) = torch.autograd.grad(_loss(inputs, _score(frozen_head, inputs, width).logps, None), inputs.hidden)
    (wanted,) = torch.autograd.grad(_loss(exact, reference(exact)["logps"], None), exact.hidden)
    assert relative_error(found, wanted) < 1e-6


@pytest.mark.parametrize("head", ["bare", "all"])
@pytest.mark.parametrize("route", TRAINED_HEAD)
def test_gradcheck_of_log_probabilities_and_entropy(route: str, head: str) -> None:
    inputs = make_inputs(head, tokens=4, hidden=3, vocab=11).double()

    def scored(*leaves: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden, weight, bias = (*leaves, None)[:3]
        options = HeadOptions(**inputs.options)
        scoring = Scoring(inputs.targets, options, frozenset({"entropy"}), width=4)
        found = TRAINED_HEAD[route](hidden, weight, bias, scoring)
        return found.logps, found.entropy

    assert torch.autograd.gradcheck(scored, inputs.leaves)


@pytest.mark.parametrize("head", ["bare", "all"])
def test_gradcheck_of_the_frozen_head(head: str) -> None:
    inputs = make_inputs(head, tokens=4, hidden=3, vocab=11).double()
    scoring = Scoring(inputs.targets, HeadOptions(**inputs.options), width=4)
    weight, bias = inputs.weight.detach(), None if inputs.bias is None else inputs.bias.detach()
    assert torch.autograd.gradcheck(lambda hidden: frozen_head(hidden, weight, bias, scoring).logps, [inputs.hidden])


@pytest.mark.parametrize("head", ["bare", "all"])
def test_gradcheck_of_one_pass_with_an_objective_of_log_probability_and_entropy(head: str) -> None:
    inputs = make_inputs(head, tokens=5, hidden=3, vocab=11).double()

    def total(*leaves: Tensor) -> Tensor:
        hidden, weight, bias = (*leaves, None)[:3]
        scoring = Scoring(inputs.targets, HeadOptions(**inputs.options), frozenset({"entropy"}), width=4)

        def fn(chunk: TokenStats, rows: slice) -> Tensor:
            assert chunk.entropy is not None
            return (inputs.upstream[rows] * chunk.logps.exp() + chunk.logps * chunk.entropy).sum()

        return one_pass(hidden, weight, bias, Pass(scoring, fn, [0, 2, 5]))[0]

    assert torch.autograd.gradcheck(total, inputs.leaves)


@pytest.mark.parametrize("head", ["bare", "all"])
@pytest.mark.parametrize("route", ALL)
def test_bfloat16_operands_give_float32_log_probabilities_and_gradients_within_rounding(route: str, head: str) -> None:
    inputs = make_inputs(head, torch.bfloat16, tokens=64, hidden=16, vocab=101)
    leaves = inputs.leaves
    if route == "frozen_head":
        inputs.weight.requires_grad_(False)
        if inputs.bias is not None:
            inputs.bias.requires_grad_(False)
        leaves = [inputs.hidden]
    exact = inputs.double()
    logps = _score(ALL[route], inputs, 40).logps
    wanted = reference(exact)["logps"]
    assert logps.dtype == torch.float32
    assert (logps.double() - wanted).abs().max() < 5e-6
    found = torch.autograd.grad(_loss(inputs, logps, None), leaves)
    for ours, theirs in zip(found, torch.autograd.grad(_loss(exact, wanted, None), exact.leaves), strict=False):
        assert ours.dtype == torch.bfloat16
        assert relative_error(ours, theirs) < 6e-3  # one rounding to bfloat16 is 2^-9 = 2e-3 at worst


@pytest.mark.parametrize("route", ["stored", "recompute"])
def test_the_bfloat16_entropy_gradient_is_within_rounding(route: str) -> None:
    inputs = make_inputs("all", torch.bfloat16, tokens=64, hidden=16, vocab=101)
    exact = inputs.double()
    stats = _score(ALL[route], inputs, 40, frozenset({"entropy"}))
    found = torch.autograd.grad(_loss(inputs, stats.logps, stats.entropy), inputs.leaves)
    values = reference(exact)
    wanted = torch.autograd.grad(_loss(exact, values["logps"], values["entropy"]), exact.leaves)
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative_error(ours, theirs) < 8e-3


@pytest.mark.parametrize("route", ALL)
def test_bfloat16_logits_are_those_of_a_bfloat16_linear_layer(route: str) -> None:
    inputs = make_inputs("bare", torch.bfloat16, tokens=32, hidden=16, vocab=101)
    inputs.weight.requires_grad_(False)
    scoring = Scoring(inputs.targets, HeadOptions(logits_dtype=torch.bfloat16), width=40)
    found = ALL[route](inputs.hidden, inputs.weight, None, scoring).logps
    logits = torch.nn.functional.linear(inputs.hidden, inputs.weight).double()
    exact = logits.log_softmax(1).gather(1, inputs.targets[:, None]).squeeze(1)
    assert (found.double() - exact).abs().max() < 5e-6


@pytest.mark.parametrize("route", TRAINED_HEAD)
def test_a_gradient_of_the_entropy_alone_is_enough(route: str) -> None:
    inputs = make_inputs()
    exact = inputs.double()
    entropy = _score(TRAINED_HEAD[route], inputs, 7, frozenset({"entropy"})).entropy
    assert entropy is not None
    found = torch.autograd.grad(entropy.sum(), inputs.leaves)
    wanted = torch.autograd.grad(reference(exact)["entropy"].sum(), exact.leaves)
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative_error(ours, theirs) < 2e-6


@pytest.mark.parametrize("route", ["stored", "recompute", "frozen_head"])
def test_logits_of_a_thousand_do_not_overflow(route: str) -> None:
    inputs = make_inputs()
    with torch.no_grad():
        inputs.hidden.mul_(300)
    inputs.weight.requires_grad_(False)
    exact = inputs.double()
    logps = _score(ALL[route], inputs, 7).logps
    wanted = reference(exact)["logps"]
    torch.testing.assert_close(logps.double(), wanted, rtol=1e-6, atol=1e-3)
    (found,) = torch.autograd.grad(_loss(inputs, logps, None), inputs.hidden)
    assert relative_error(found, torch.autograd.grad(_loss(exact, wanted, None), exact.hidden)[0]) < 1e-4


@pytest.mark.parametrize("state", [13.8125, 27.625])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("route", ["stored", "recompute", "frozen_head"])
def test_a_nearly_certain_token_keeps_its_small_gradient(route: str, dtype: torch.dtype, state: float) -> None:
    """1 - p is about 1e-6 or 1e-12: a difference of two bfloat16 numbers near 1 would be 0 or 4e-3."""
    hidden = torch.tensor([[state]], dtype=dtype, requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-0.25]], dtype=dtype)
    found = ALL[route](hidden, weight, None, Scoring(torch.tensor([0]), width=2)).logps
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    e1, e2 = math.exp(-state), math.exp(-1.25 * state)
    assert found.item() == pytest.approx(-math.log1p(e1 + e2), rel=1e-6, abs=0)
    # d logp / d h = sum_j p_j (w_y - w_j)
    assert gradient.item() == pytest.approx((e1 + 1.25 * e2) / (1 + e1 + e2), rel=8e-3, abs=0)


@pytest.mark.parametrize("route", ["stored", "recompute", "frozen_head"])
def test_a_wide_softcap_passes_gradients_where_probabilities_underflow(route: str) -> None:
    inputs = make_inputs()
    inputs.options = {"softcap": 100.0}
    inputs.weight.requires_grad_(False)
    with torch.no_grad():
        inputs.hidden.mul_(20)
    exact = inputs.double()
    (found,) = torch.autograd.grad(_loss(inputs, _score(ALL[route], inputs, 7).logps, None), inputs.hidden)
    (wanted,) = torch.autograd.grad(_loss(exact, reference(exact)["logps"], None), exact.hidden)
    assert relative_error(found, wanted) < 1e-4


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("route", ["stored", "recompute"])
def test_the_entropy_gradient_survives_probabilities_of_zero(route: str, masked: bool) -> None:
    inputs = make_inputs()
    with torch.no_grad():
        inputs.hidden.mul_(1 if masked else 300)
    bias = torch.zeros(29)
    bias[28] = -torch.inf if masked else 0.0
    targets = inputs.targets.clamp(max=27)
    exact = inputs.double()
    scoring = Scoring(targets, stats=frozenset({"entropy"}), width=7)
    stats = ALL[route](inputs.hidden, inputs.weight, bias, scoring)
    found = torch.autograd.grad(_loss(inputs, stats.logps, stats.entropy), inputs.leaves)
    logits = (exact.hidden @ exact.weight.T)[:, : 28 if masked else 29]
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    logps = logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    wanted = torch.autograd.grad(_loss(exact, logps, entropy), exact.leaves)
    for ours, theirs in zip(found, wanted, strict=True):
        assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("route", ["stored", "recompute", "frozen_head"])
def test_a_vocabulary_entry_masked_with_minus_infinity_has_no_part(route: str) -> None:
    inputs = make_inputs(vocab=12)
    inputs.weight.requires_grad_(False)
    bias = torch.zeros(12)
    bias[7] = -torch.inf
    targets = inputs.targets.where(inputs.targets != 7, 3)
    stats = frozenset({"entropy", "sum_sq_probs"})
    found = ALL[route](inputs.hidden, inputs.weight, bias, Scoring(targets, stats=stats, width=5))
    (gradient,) = torch.autograd.grad(found.logps.sum(), inputs.hidden)
    kept = [i for i in range(12) if i != 7]
    exact = inputs.double()
    exact.weight, exact.targets = exact.weight[kept], torch.tensor([kept.index(int(y)) for y in targets])
    wanted = reference(exact, top_k=5)
    for name in ("logps", "entropy", "sum_sq_probs"):
        torch.testing.assert_close(getattr(found, name).double(), wanted[name], rtol=1e-5, atol=1e-6)
    (wanted_gradient,) = torch.autograd.grad(wanted["logps"].sum(), exact.hidden)
    assert relative_error(gradient, wanted_gradient) < 1e-5


@pytest.mark.parametrize("route", ALL)
def test_a_non_finite_hidden_state_shows_in_its_own_token_only(route: str) -> None:
    inputs = make_inputs()
    inputs.weight.requires_grad_(False)
    with torch.no_grad():
        inputs.hidden[3, 2] = torch.nan
    logps = _score(ALL[route], inputs, 7).logps
    assert logps.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("route", ["stored", "recompute"])
def test_only_the_gradients_that_are_needed_are_made(route: str) -> None:
    inputs = make_inputs("bias")
    inputs.hidden.requires_grad_(False)
    _score(ALL[route], inputs, 7).logps.sum().backward()
    assert inputs.hidden.grad is None
    exact = inputs.double()
    reference(exact)["logps"].sum().backward()
    assert inputs.bias is not None
    assert exact.bias is not None
    assert relative_error(inputs.weight.grad, exact.weight.grad) < 1e-6
    assert relative_error(inputs.bias.grad, exact.bias.grad) < 1e-6


@pytest.mark.parametrize("route", ["stored", "recompute", "frozen_head"])
def test_a_second_derivative_is_refused_rather_than_wrong(route: str) -> None:
    inputs = make_inputs()
    inputs.weight.requires_grad_(False)
    logps = _score(ALL[route], inputs, 7).logps
    (gradient,) = torch.autograd.grad(logps.square().sum(), inputs.hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
