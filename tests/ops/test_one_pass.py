"""Objectives evaluated while the scorer runs: the same total and gradients as on log-probabilities of all tokens."""

from __future__ import annotations

import pytest
import torch
from tests.ops.scorer_inputs import HEADS, STATS, Inputs, make_inputs, reference, relative_error
from torch import Tensor

from dftune.ops.one_pass import blocks
from dftune.ops.token_logps import TokenStats, token_objective

ROW = 29 * 4
"""Bytes of a row of float32 probabilities of the test's vocabulary."""


def _dynamic_ft(chunk: TokenStats, rows: slice) -> Tensor:
    return -(chunk.logps.detach().exp() * chunk.logps).sum()


def _clipped_ratio(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Old log-probabilities and advantages, per token."""
    return reference(inputs.double())["logps"].detach() + 0.3 * inputs.upstream, inputs.entropy_upstream


def _run(inputs: Inputs, fn, **options):
    return token_objective(
        inputs.hidden, inputs.weight, inputs.targets, fn, bias=inputs.bias, **inputs.options, **options
    )


@pytest.mark.parametrize("rows", [1, 4, 13, 100])
@pytest.mark.parametrize("head", HEADS)
def test_dynamic_ft_has_the_total_and_gradients_of_float64_full_logits(head, rows):
    inputs = make_inputs(head)
    exact = inputs.double()
    total, stats, slopes = _run(inputs, _dynamic_ft, route="one_pass", budget_bytes=rows * ROW)
    total.backward()
    logps = reference(exact)["logps"]
    wanted = _dynamic_ft(TokenStats(logps), slice(None))
    wanted.backward()
    torch.testing.assert_close(total.detach().double(), wanted.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(stats.logps.double(), logps.detach(), rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(slopes.double(), -logps.detach().exp(), rtol=1e-5, atol=1e-7)
    for ours, theirs in zip(inputs.leaves, exact.leaves, strict=True):
        assert relative_error(ours.grad, theirs.grad) < 2e-6


@pytest.mark.parametrize("route", ["plain", "stored", "recompute", "one_pass"])
def test_a_clipped_ratio_with_side_inputs_is_the_same_on_every_route(route):
    inputs = make_inputs("all")
    exact = inputs.double()
    old, advantages = _clipped_ratio(inputs)

    def fn(chunk, rows):
        ratio = (chunk.logps - old[rows].to(chunk.logps.dtype)).exp()
        return -torch.minimum(ratio * advantages[rows], ratio.clamp(0.8, 1.2) * advantages[rows]).sum()

    total, _, slopes = _run(inputs, fn, route=route, budget_bytes=5 * ROW)
    (total / 7).backward()
    logps = reference(exact)["logps"].detach().requires_grad_()
    wanted = fn(TokenStats(logps), slice(0, 13))
    (wanted_slopes,) = torch.autograd.grad(wanted, logps)
    reference(exact)["logps"].backward(wanted_slopes / 7)
    assert (wanted_slopes == 0).any()  # some tokens are clipped
    assert (wanted_slopes != 0).any()
    torch.testing.assert_close(slopes.double(), wanted_slopes, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(inputs.leaves, exact.leaves, strict=True):
        assert relative_error(ours.grad, theirs.grad) < 2e-6


@pytest.mark.parametrize("rows", [1, 5, 13])
def test_statistics_come_block_by_block_and_joined(rows):
    inputs = make_inputs("softcap")
    seen = []

    def fn(chunk, rows):
        seen.append((rows.start, rows.stop))
        assert {name: len(getattr(chunk, name)) for name in STATS} == dict.fromkeys(STATS, rows.stop - rows.start)
        return (chunk.logps * chunk.top_k_entropy).sum()

    _, stats, _ = _run(inputs, fn, stats=STATS, top_k=5, route="one_pass", budget_bytes=rows * ROW)
    assert [row for start, stop in seen for row in range(start, stop)] == list(range(13))
    for name, exact in reference(inputs.double(), top_k=5).items():
        torch.testing.assert_close(getattr(stats, name).double(), exact.detach(), rtol=1e-6, atol=2e-6)
        assert not getattr(stats, name).requires_grad


@pytest.mark.parametrize("head", HEADS)
def test_an_entropy_bonus_gets_its_gradient(head):
    inputs = make_inputs(head)
    exact = inputs.double()

    def fn(chunk, rows):
        return (inputs.upstream[rows] * chunk.logps + 0.5 * chunk.entropy * chunk.entropy).sum()

    total, _, _ = _run(inputs, fn, stats=frozenset({"entropy"}), route="one_pass", budget_bytes=4 * ROW)
    total.backward()
    values = reference(exact)
    fn(TokenStats(values["logps"], values["entropy"]), slice(0, 13)).backward()
    for ours, theirs in zip(inputs.leaves, exact.leaves, strict=True):
        assert relative_error(ours.grad, theirs.grad) < 2e-6


def test_a_sequence_objective_sees_whole_sequences():
    inputs = make_inputs()
    exact = inputs.double()
    boundaries = [0, 3, 3, 8, 10, 13]  # one sequence has no supervised token

    def fn(chunk, rows):
        starts = [edge - rows.start for edge in boundaries if rows.start <= edge <= rows.stop]
        sums = torch.stack([part.sum() for part in chunk.logps.tensor_split(starts) if len(part)])
        return sums.exp().sqrt().sum()  # not separable by token

    total, _, _ = _run(inputs, fn, boundaries=boundaries, route="one_pass", budget_bytes=6 * ROW)
    total.backward()
    wanted = fn(TokenStats(reference(exact)["logps"]), slice(0, 13))
    wanted.backward()
    torch.testing.assert_close(total.detach().double(), wanted.detach(), rtol=1e-5, atol=1e-9)
    for ours, theirs in zip(inputs.leaves, exact.leaves, strict=True):
        assert relative_error(ours.grad, theirs.grad) < 1e-5


@pytest.mark.parametrize(
    ("rows", "boundaries", "edges"),
    [
        (5, None, [0, 4, 8, 13]),
        (13, None, [0, 13]),
        (6, [0, 3, 3, 8, 10, 13], [0, 3, 8, 13]),
        (2, [0, 3, 8, 13], [0, 3, 8, 13]),  # a group longer than a block is a block
        (100, [0, 3, 8, 13], [0, 13]),
        (1, [0, 13], [0, 13]),
    ],
)
def test_blocks_are_cut_at_boundaries_only(rows, boundaries, edges):
    assert blocks(13, rows, boundaries) == edges


def test_no_tokens_give_a_differentiable_zero():
    inputs = make_inputs("bias", tokens=0)
    total, stats, slopes = _run(inputs, _dynamic_ft)
    total.backward()
    assert total.item() == 0
    assert stats.logps.shape == slopes.shape == (0,)
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in inputs.leaves)


@pytest.mark.parametrize("route", ["plain", "stored", "recompute", "one_pass"])
def test_an_objective_without_gradient_gives_zero_slopes(route):
    inputs = make_inputs()
    total, _, slopes = _run(inputs, lambda chunk, rows: chunk.logps.detach().sum(), route=route)
    assert total.item() == pytest.approx(reference(inputs.double())["logps"].sum().item(), rel=1e-5)
    assert not slopes.any()


@pytest.mark.parametrize("boundaries", [[0, 5], [1, 13], [0, 8, 5, 13], [13]])
def test_boundaries_that_do_not_cover_the_tokens_are_refused(boundaries):
    with pytest.raises(ValueError, match="boundaries must ascend from 0 to the number of tokens, 13"):
        _run(make_inputs(), _dynamic_ft, boundaries=boundaries)


def test_a_second_backward_fails_rather_than_scaling_twice():
    inputs = make_inputs()
    total, _, _ = _run(inputs, _dynamic_ft, route="one_pass")
    (total * 0.5).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (total * 0.5).backward()


def test_without_gradients_the_total_is_the_same_and_nothing_requires_grad():
    inputs = make_inputs()
    trained, _, _ = _run(inputs, _dynamic_ft, route="one_pass")
    with torch.no_grad():
        for route in ("auto", "one_pass"):
            total, _, _ = _run(inputs, _dynamic_ft, route=route)
            assert not total.requires_grad
            torch.testing.assert_close(total, trained.detach(), rtol=1e-6, atol=0)


def test_bfloat16_weights_get_a_gradient_summed_in_float32_over_blocks():
    inputs = make_inputs(dtype=torch.bfloat16, tokens=256, hidden=16, vocab=29)
    exact = inputs.double()
    with torch.no_grad():  # every token asks for the same rows: a bfloat16 sum over blocks would stall
        inputs.targets.zero_()
    total, _, _ = _run(inputs, lambda chunk, rows: -chunk.logps.sum(), route="one_pass", budget_bytes=29 * 2)
    total.backward()
    exact.targets = inputs.targets
    (-reference(exact)["logps"].sum()).backward()
    assert inputs.weight.grad.dtype == torch.bfloat16
    assert relative_error(inputs.weight.grad, exact.weight.grad) < 4e-3
