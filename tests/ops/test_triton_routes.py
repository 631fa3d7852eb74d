"""Scoring by Triton kernels has the values and gradients of float64 full logits."""

from __future__ import annotations

import math

import pytest
import torch
from tests.ops.scorer_inputs import HEADS, Inputs, make_inputs, reference, relative_error
from tests.ops.triton_device import DEVICES, place, require
from torch import Tensor

from dftune.ops.scoring import HeadOptions, Scoring, TokenStats
from dftune.ops.token_logps import token_logps, token_objective, token_stats
from dftune.ops.triton_routes import triton_recompute, triton_stored

ROUTES = {"recompute": triton_recompute, "stored": triton_stored}
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 8e-3}
"""Relative, of gradients: bfloat16 operands round the gradient of the logits, as on every route."""
STATS = frozenset({"entropy", "sum_sq_probs", "top1_hit"})
SIZES = [(1, 5, 29), (13, 6, 29), (70, 39, 331), (150, 64, 640)]
"""Tokens, hidden, vocab: one row; one that no tile divides; several blocks of rows and splits; whole tiles."""

pytestmark = [pytest.mark.parametrize("device", DEVICES)]


@pytest.fixture(autouse=True)
def _on_this_machine(device: str) -> None:
    require(device)


def _score(route: str, inputs: Inputs, stats: frozenset[str] = frozenset(), width: int = 100, **options) -> TokenStats:
    scoring = Scoring(inputs.targets, HeadOptions(**inputs.options, **options), stats, width=width)
    return ROUTES[route](inputs.hidden, inputs.weight, inputs.bias, scoring)


def _loss(inputs: Inputs, logps: Tensor, entropy: Tensor | None = None) -> Tensor:
    loss = (inputs.upstream.to(logps) * logps).sum()
    return loss if entropy is None else loss + (inputs.entropy_upstream.to(logps) * entropy).sum()


def _errors(inputs: Inputs, ours: Tensor, exact: Inputs, theirs: Tensor) -> list[float]:
    """Of the gradients of a loss, one for each leaf."""
    found = torch.autograd.grad(ours, inputs.leaves)
    wanted = torch.autograd.grad(theirs, exact.leaves)
    return [relative_error(a.cpu(), b) for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("route", ROUTES)
def test_statistics_are_those_of_float64_full_logits(device, route, head, dtype):
    cpu = make_inputs(head, dtype, tokens=70, hidden=39, vocab=331)
    found = _score(route, place(cpu, torch.device(device)), STATS)
    exact = reference(cpu.double())
    for name in ("logps", *STATS):
        value = getattr(found, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double().cpu(), exact[name], rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("head", ["bare", "all"])
@pytest.mark.parametrize("route", ROUTES)
def test_gradients_for_a_random_upstream_are_those_of_float64(device, route, head, size, dtype):
    tokens, hidden, vocab = size
    cpu = make_inputs(head, dtype, tokens=tokens, hidden=hidden, vocab=vocab)
    inputs, exact = place(cpu, torch.device(device)), cpu.double()
    logps = _score(route, inputs).logps
    wanted = reference(exact, top_k=1)["logps"]
    torch.testing.assert_close(logps.double().cpu(), wanted, rtol=1e-6, atol=3e-6)
    errors = _errors(inputs, _loss(inputs, logps), exact, _loss(exact, wanted))
    assert max(errors) < TOLERANCE[dtype]


@pytest.mark.parametrize("head", ["bias", "temperature", "softcap", "scale", "all"])
@pytest.mark.parametrize("route", ROUTES)
def test_the_entropy_is_differentiable_beside_the_log_probability(device, route, head):
    cpu = make_inputs(head, tokens=70, hidden=39, vocab=331)
    inputs, exact = place(cpu, torch.device(device)), cpu.double()
    found, wanted = _score(route, inputs, frozenset({"entropy"})), reference(exact)
    ours, theirs = _loss(inputs, found.logps, found.entropy), _loss(exact, wanted["logps"], wanted["entropy"])
    assert max(_errors(inputs, ours, exact, theirs)) < 3e-6


@pytest.mark.parametrize("width", [1, 64, 130, 1000])
@pytest.mark.parametrize("route", ROUTES)
def test_the_width_of_a_slice_changes_nothing(device, route, width):
    cpu = make_inputs("all", tokens=13, vocab=331)
    inputs, exact = place(cpu, torch.device(device)), cpu.double()
    ours = _loss(inputs, _score(route, inputs, width=width).logps)
    assert max(_errors(inputs, ours, exact, _loss(exact, reference(exact)["logps"]))) < 3e-6


@pytest.mark.parametrize("route", ROUTES)
def test_the_gradient_keeps_its_digits_where_p_is_close_to_1_and_to_0(device, route):
    # logits 25 and 0: 1 - p is 1.4e-11 for the first target, and p is for the second
    hidden = torch.ones(2, 1, device=device, requires_grad=True)
    weight = torch.tensor([[25.0], [0.0]], device=device, requires_grad=True)
    scoring = Scoring(torch.tensor([0, 1], device=device))
    logps = ROUTES[route](hidden, weight, None, scoring).logps
    assert logps.tolist() == pytest.approx([-math.log1p(math.exp(-25)), -25 - math.log1p(math.exp(-25))], rel=1e-6)
    small = 1 / (1 + math.exp(25))
    of_hidden, of_weight = torch.autograd.grad(logps, (hidden, weight), torch.tensor([1.0, 1e-6], device=device))
    assert of_hidden.flatten().tolist() == pytest.approx([25 * small, -25e-6 * (1 - small)], rel=2e-6)
    assert of_weight.flatten().tolist() == pytest.approx([small - 1e-6, 1e-6 - small], rel=2e-6)


@pytest.mark.parametrize("route", ROUTES)
def test_float32_weights_are_read_as_bfloat16_and_get_a_float32_gradient(device, route):
    cpu = make_inputs("bias", tokens=70, hidden=39, vocab=331)
    rounded = make_inputs("bias", tokens=70, hidden=39, vocab=331)
    with torch.no_grad():
        for leaf in (rounded.hidden, rounded.weight):
            leaf.copy_(leaf.bfloat16())
    inputs, exact = place(cpu, torch.device(device)), rounded.double()
    logps = _score(route, inputs, operand_dtype=torch.bfloat16).logps
    wanted = reference(exact)["logps"]
    torch.testing.assert_close(logps.double().cpu(), wanted, rtol=1e-6, atol=3e-6)
    assert max(_errors(inputs, _loss(inputs, logps), exact, _loss(exact, wanted))) < 8e-3


@pytest.mark.parametrize("route", ROUTES)
def test_rounded_logits_are_those_of_a_bfloat16_model(device, route):
    cpu = make_inputs(dtype=torch.bfloat16, tokens=70, hidden=39, vocab=331)
    found = _score(route, place(cpu, torch.device(device)), logits_dtype=torch.bfloat16).logps
    logits = (cpu.hidden.double() @ cpu.weight.double().T).float().bfloat16().double()
    wanted = logits.log_softmax(1).gather(1, cpu.targets[:, None]).squeeze(1)
    # a sum that falls between two bfloat16 numbers may round either way
    assert ((found.double().cpu() - wanted).abs() < 3e-6).double().mean() > 0.9
    torch.testing.assert_close(found.double().cpu(), wanted, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("route", ROUTES)
def test_a_masked_vocabulary_entry_has_no_part(device, route):
    cpu = make_inputs(vocab=12)
    cpu.targets[:] = cpu.targets.where(cpu.targets != 7, 3)
    inputs = place(cpu, torch.device(device))
    bias = torch.zeros(12, device=device)
    bias[7] = -torch.inf
    scoring = Scoring(inputs.targets, stats=frozenset({"entropy"}))
    found = ROUTES[route](inputs.hidden, inputs.weight, bias, scoring)
    ours = torch.autograd.grad(_loss(inputs, found.logps, found.entropy), inputs.leaves)
    exact = cpu.double()
    logits = (exact.hidden @ exact.weight.T)[:, [i for i in range(12) if i != 7]]
    rows = torch.distributions.Categorical(logits=logits)
    logps = rows.log_prob(cpu.targets - (cpu.targets > 7).long())
    wanted = torch.autograd.grad(_loss(exact, logps, rows.entropy()), exact.leaves)
    for a, b in zip(ours, wanted, strict=True):
        assert relative_error(a.cpu(), b) < 3e-6


@pytest.mark.parametrize("route", ROUTES)
def test_a_non_finite_hidden_state_shows_in_its_own_token_only(device, route):
    inputs = place(make_inputs(), torch.device(device))
    with torch.no_grad():
        inputs.hidden[3, 2] = torch.nan
    assert _score(route, inputs).logps.isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("route", ROUTES)
def test_a_vocabulary_of_one_entry_is_certain(device, route):
    inputs = place(make_inputs(vocab=1), torch.device(device))
    logps = _score(route, inputs).logps
    logps.sum().backward()
    assert not logps.any()
    assert not inputs.hidden.grad.any()


@pytest.mark.parametrize("route", ROUTES)
def test_no_tokens_give_a_differentiable_zero(device, route):
    inputs = place(make_inputs("bias", tokens=0), torch.device(device))
    _score(route, inputs, STATS).logps.sum().backward()
    assert inputs.hidden.grad.shape == (0, 6)
    assert not inputs.weight.grad.any()
    assert not inputs.bias.grad.any()


@pytest.mark.parametrize("route", ROUTES)
def test_transposed_weights_and_strided_hidden_states_and_targets_are_scored(device, route):
    cpu = make_inputs("bias", tokens=13, hidden=6, vocab=331)
    inputs, exact = place(cpu, torch.device(device)), cpu.double()
    inputs.weight = inputs.weight.detach().T.contiguous().T.requires_grad_()
    inputs.hidden = torch.stack([inputs.hidden.detach()] * 2, 2)[:, :, 0].requires_grad_()
    inputs.targets = torch.stack([inputs.targets] * 2, 1)[:, 0]
    ours = _loss(inputs, _score(route, inputs).logps)
    assert max(_errors(inputs, ours, exact, _loss(exact, reference(exact)["logps"]))) < 3e-6


@pytest.mark.parametrize("route", ROUTES)
def test_a_retained_graph_gives_the_same_gradient_twice(device, route):
    inputs = place(make_inputs("all"), torch.device(device))
    logps = _score(route, inputs).logps
    first, second = (torch.autograd.grad(logps.sum(), inputs.leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("route", ROUTES)
def test_a_second_derivative_is_refused_rather_than_wrong(device, route):
    inputs = place(make_inputs(), torch.device(device))
    logps = _score(route, inputs).logps
    (gradient,) = torch.autograd.grad(logps.square().sum(), inputs.hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
@pytest.mark.parametrize("route", ROUTES)
def test_only_the_gradients_that_are_needed_are_made(device, route, frozen):
    cpu = make_inputs()
    inputs, exact = place(cpu, torch.device(device)), cpu.double()
    getattr(inputs, frozen).requires_grad_(False)
    _score(route, inputs).logps.sum().backward()
    reference(exact)["logps"].sum().backward()
    assert getattr(inputs, frozen).grad is None
    other = "weight" if frozen == "hidden" else "hidden"
    assert relative_error(getattr(inputs, other).grad.cpu(), getattr(exact, other).grad) < 3e-6


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [20, 1000])
@pytest.mark.parametrize("head", ["bare", "all"])
def test_one_pass_forms_the_gradient_of_a_clipped_ratio(device, head, rows, dtype):
    cpu = make_inputs(head, dtype, tokens=70, hidden=39, vocab=331)
    inputs, exact = place(cpu, torch.device(device)), cpu.double()
    old, advantages = reference(cpu.double())["logps"].detach() + 0.3 * cpu.upstream, cpu.entropy_upstream

    def clipped(chunk: TokenStats, rows: slice) -> Tensor:
        ratio = (chunk.logps - old[rows].to(chunk.logps)).exp()
        weights = advantages[rows].to(chunk.logps)
        return -torch.minimum(ratio * weights, ratio.clamp(0.8, 1.2) * weights).sum()

    total, stats, slopes = token_objective(
        inputs.hidden, inputs.weight, inputs.targets, clipped, bias=inputs.bias, route="triton",
        budget_bytes=rows * 331 * dtype.itemsize, **inputs.options,
    )  # fmt: skip
    logps = reference(exact)["logps"]
    wanted = clipped(TokenStats(logps), slice(0, 70))
    (wanted_slopes,) = torch.autograd.grad(wanted, logps, retain_graph=True)
    assert total.item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(stats.logps.double().cpu(), logps.detach(), rtol=1e-6, atol=3e-6)
    torch.testing.assert_close(slopes.double().cpu(), wanted_slopes, rtol=1e-5, atol=1e-6)
    assert max(_errors(inputs, total / 7, exact, wanted / 7)) < TOLERANCE[dtype]


def test_one_pass_gives_an_entropy_bonus_its_gradient(device):
    cpu = make_inputs("all", tokens=70, hidden=39, vocab=331)
    inputs, exact = place(cpu, torch.device(device)), cpu.double()

    def fn(chunk: TokenStats, rows: slice) -> Tensor:
        return (cpu.upstream[rows].to(chunk.logps) * chunk.logps + 0.5 * chunk.entropy * chunk.entropy).sum()

    total, _, _ = token_objective(
        inputs.hidden, inputs.weight, inputs.targets, fn, stats=frozenset({"entropy"}), bias=inputs.bias,
        route="triton", budget_bytes=20 * 331 * 4, **inputs.options,
    )  # fmt: skip
    values = reference(exact)
    wanted = fn(TokenStats(values["logps"], values["entropy"]), slice(0, 70))
    assert max(_errors(inputs, total, exact, wanted)) < 3e-6


def test_one_pass_sums_the_gradient_of_bfloat16_weights_in_float32(device):
    cpu = make_inputs(dtype=torch.bfloat16, tokens=256, hidden=16, vocab=29)
    cpu.targets.zero_()  # every token asks for the same row: a bfloat16 sum over blocks would stall
    inputs, exact = place(cpu, torch.device(device)), cpu.double()
    total, _, _ = token_objective(
        inputs.hidden, inputs.weight, inputs.targets, lambda chunk, rows: -chunk.logps.sum(), route="triton",
        budget_bytes=16 * 29 * 2,
    )  # fmt: skip
    assert max(_errors(inputs, total, exact, -reference(exact)["logps"].sum())) < 8e-3


def test_autocast_and_inference_mode_change_nothing(device):
    inputs = place(make_inputs(tokens=13, vocab=331), torch.device(device))
    arguments = (inputs.hidden, inputs.weight, inputs.targets)
    wanted = token_logps(*arguments, route="triton")
    with torch.autocast(device, torch.bfloat16), torch.inference_mode():
        assert torch.equal(token_logps(*arguments, route="triton"), wanted)


@pytest.mark.parametrize("kept", [True, False])
def test_the_forced_route_agrees_with_plain(device, kept):
    inputs = place(make_inputs("all", tokens=70, hidden=39, vocab=5000), torch.device(device))
    arguments = {"bias": inputs.bias, **inputs.options}
    found = [
        token_stats(inputs.hidden, inputs.weight, inputs.targets, route=route, budget_bytes=budget, **arguments).logps
        for route, budget in [("triton", 2**30 if kept else 2**10), ("plain", None)]
    ]
    torch.testing.assert_close(*found, rtol=1e-6, atol=3e-6)
    ours, theirs = (torch.autograd.grad(_loss(inputs, logps), inputs.leaves) for logps in found)
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b) < 5e-6


def test_what_the_kernels_cannot_do_is_refused(device):
    inputs = place(make_inputs(), torch.device(device))
    arguments = (inputs.hidden, inputs.weight, inputs.targets)
    with pytest.raises(ValueError, match=r"do not gather .'top_k_entropy'"):
        token_stats(*arguments, stats=frozenset({"top_k_entropy"}), route="triton")
    with pytest.raises(ValueError, match=r"float32 or bfloat16 operands; found torch.float64"):
        token_stats(*arguments, operand_dtype=torch.float64, route="triton")


@pytest.mark.parametrize("route", ROUTES)
def test_a_target_outside_the_vocabulary_is_refused(device, route):
    inputs = place(make_inputs(), torch.device(device))
    if device == "cuda":
        pytest.skip("a device assertion, after which this process could not use the device")
    inputs.targets[2] = 29
    with pytest.raises(ValueError, match=r"targets must lie in 0\.\.28.*29"):
        _score(route, inputs)
