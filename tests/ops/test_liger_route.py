"""Scoring by liger-kernel: on CPU its fallback in torch, which shares the contract of its Hopper kernels."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from tests.ops.scorer_inputs import make_inputs, reference, relative_error

from dftune.ops.liger_route import on_hopper, refusals
from dftune.ops.route import has_liger
from dftune.ops.scoring import HeadOptions
from dftune.ops.token_logps import TokenStats, token_logps, token_objective, token_stats

BF16 = torch.bfloat16
needs_liger = pytest.mark.skipif(not has_liger(), reason="the package liger-kernel is not installed")
gpu = pytest.mark.gpu


@needs_liger
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"logit_scale": 0.25, "temperature": 0.5}])
@pytest.mark.parametrize("tokens", [1, 13, 600])  # 600: more than one of Liger's blocks
def test_values_and_gradients_for_a_random_upstream_are_those_of_float64_full_logits(options, tokens):
    inputs = make_inputs(tokens=tokens, hidden=6, vocab=29)
    inputs.options = options
    exact = inputs.double()
    logps = token_logps(inputs.hidden, inputs.weight, inputs.targets, route="liger", **options)
    wanted = reference(exact)["logps"]
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps.double(), wanted, rtol=1e-6, atol=3e-6)
    found = torch.autograd.grad(logps, inputs.leaves, inputs.upstream.float())
    for ours, theirs in zip(found, torch.autograd.grad(wanted, exact.leaves, inputs.upstream), strict=True):
        assert relative_error(ours, theirs) < 2e-6


@needs_liger
def test_an_objective_has_the_total_and_gradient_of_the_plain_route():
    inputs = make_inputs(tokens=64, hidden=6, vocab=29)

    def fn(chunk: TokenStats, rows: slice) -> torch.Tensor:
        return -(chunk.logps.detach().exp() * chunk.logps * inputs.upstream[rows].float()).sum()

    found = {}
    for route in ("plain", "liger"):
        total, stats, slopes = token_objective(inputs.hidden, inputs.weight, inputs.targets, fn, route=route)
        found[route] = (total, stats.logps, slopes, *torch.autograd.grad(total, inputs.leaves))
    for ours, plain in zip(found["liger"], found["plain"], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@needs_liger
def test_statistics_beside_the_log_probabilities_are_those_of_the_plain_route():
    inputs = make_inputs(tokens=64, hidden=6, vocab=29)
    names = frozenset({"top_k_entropy", "sum_sq_probs", "top1_hit"})
    found, plain = (
        token_stats(inputs.hidden, inputs.weight, inputs.targets, stats=names, top_k=5, route=route)
        for route in ("liger", "plain")
    )
    for name in ("logps", *names):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=1e-5, atol=1e-6)
    assert found.logps.requires_grad


@needs_liger
def test_bfloat16_logits_are_taken_where_the_caller_accepts_them():
    inputs = make_inputs(dtype=BF16, tokens=64, hidden=16, vocab=101)
    exact = inputs.double()
    logps = token_logps(inputs.hidden, inputs.weight, inputs.targets, route="liger", logits_dtype=BF16)
    wanted = reference(exact)["logps"]
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps.double(), wanted, rtol=2**-7, atol=2**-5)
    found = torch.autograd.grad(logps, inputs.leaves, inputs.upstream.float())
    for ours, theirs in zip(found, torch.autograd.grad(wanted, exact.leaves, inputs.upstream), strict=True):
        assert relative_error(ours, theirs) < 2e-2


@needs_liger
def test_float32_master_weights_are_read_as_bfloat16_and_get_a_float32_gradient():
    inputs = make_inputs(tokens=64, hidden=16, vocab=101)
    kept = {"operand_dtype": BF16, "logits_dtype": BF16}
    grads = {}
    for route in ("plain", "liger"):
        logps = token_logps(inputs.hidden, inputs.weight, inputs.targets, route=route, **kept)
        grads[route] = torch.autograd.grad(logps, inputs.leaves, inputs.upstream.float())
    for ours, plain in zip(grads["liger"], grads["plain"], strict=True):
        assert ours.dtype == torch.float32
        assert relative_error(ours, plain.double()) < 1e-2


@needs_liger
@pytest.mark.parametrize("bad", [-100, 29])
def test_liger_s_ignore_index_is_no_target_here(bad):
    """Liger would leave -100 out without a word."""
    inputs = make_inputs(tokens=5, vocab=29)
    inputs.targets[2] = bad
    with pytest.raises(ValueError, match=rf"targets must lie in 0\.\.28.*{bad}"):
        token_logps(inputs.hidden, inputs.weight, inputs.targets, route="liger")


@needs_liger
def test_no_tokens_give_a_differentiable_zero():
    hidden, weight = torch.zeros(0, 5, requires_grad=True), torch.ones(11, 5, requires_grad=True)
    token_logps(hidden, weight, torch.zeros(0, dtype=torch.int64), route="liger").sum().backward()
    assert not weight.grad.any()


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ({"has_bias": True}, "the head has a bias"),
        ({"options": HeadOptions(softcap=30.0)}, "the head has a soft-cap"),
        ({"options": HeadOptions(logit_scale=-1.0)}, "logit_scale is -1.0, and must be positive"),
        ({"options": HeadOptions(logit_scale=0.0)}, "logit_scale is 0.0, and must be positive"),
        ({"entropy_gradient": True}, "it gives the entropy no gradient"),
        ({"operand": torch.float64}, "it computes in float32, not torch.float64"),
        ({"operand": BF16}, "off Hopper it rounds logits to bfloat16 (logits_dtype=torch.bfloat16 accepts that)"),
        ({"hopper": True}, "its kernels read bfloat16, not torch.float32"),
    ],
)
def test_what_liger_would_compute_otherwise_is_refused_for_that_reason_alone(case, said):
    call = {"options": HeadOptions(), "operand": torch.float32, "hopper": False, "has_bias": False}
    assert refusals(**{**call, "entropy_gradient": False, **case}) == [said]


@pytest.mark.parametrize("options", [HeadOptions(), HeadOptions(logits_dtype=BF16), HeadOptions(0.7, None, 0.5)])
def test_bfloat16_on_hopper_is_what_it_is_for(options):
    assert refusals(options, BF16, hopper=True, has_bias=False, entropy_gradient=False) == []


def test_a_refusal_names_every_reason_and_the_way_out():
    inputs = make_inputs("bias")
    with pytest.raises(ValueError, match=r"a bias; the head has a soft-cap\. Use route='auto'"):
        token_logps(inputs.hidden, inputs.weight, inputs.targets, bias=inputs.bias, softcap=3.0, route="liger")


def test_a_cpu_is_no_hopper():
    assert not on_hopper(torch.device("cpu"))


def test_without_liger_the_package_is_named_and_auto_never_looks_for_it():
    """In a process where liger-kernel cannot be imported."""
    code = """if True:
        import sys, torch
        sys.modules["liger_kernel"] = None
        from dftune.ops.token_logps import token_logps
        inputs = torch.ones(2, 4), torch.ones(5, 4), torch.tensor([0, 1])
        token_logps(*inputs)
        try:
            token_logps(*inputs, route="liger")
        except ValueError as error:
            print(error)
    """
    run = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, check=True)
    assert "route='liger' needs liger-kernel 0.8.5 or later" in run.stdout
    assert "pip install 'liger-kernel>=0.8.5'" in run.stdout


@gpu
@needs_liger
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(importlib.util.find_spec("cutlass") is None, reason="the package nvidia-cutlass-dsl is missing")
@pytest.mark.parametrize("tokens", [100, 2500])  # 2500: dW is added up over three of its blocks
def test_the_hopper_kernels_have_the_values_and_gradients_of_float64(tokens):
    if not on_hopper(torch.device("cuda")):
        pytest.skip("the device is not a Hopper")
    cpu = make_inputs(dtype=BF16, tokens=tokens, hidden=128, vocab=1000)
    exact = cpu.double()
    hidden, weight = (leaf.detach().cuda().requires_grad_() for leaf in (cpu.hidden, cpu.weight))
    logps = token_logps(hidden, weight, cpu.targets.cuda(), route="liger")
    wanted = reference(exact)["logps"]
    torch.testing.assert_close(logps.double().cpu(), wanted, rtol=2**-10, atol=2**-7)
    found = torch.autograd.grad(logps, (hidden, weight), cpu.upstream.float().cuda())
    for ours, theirs in zip(found, torch.autograd.grad(wanted, exact.leaves, cpu.upstream), strict=True):
        assert relative_error(ours.cpu(), theirs) < 2e-2
