"""The values and gradients of liger-kernel's own losses, where it is installed; its kernels run interpreted."""

import os
import subprocess
import sys

import pytest
import torch

from dftune.objectives import TokenBatch, get_objective
from dftune.ops.route import has_liger, has_triton
from dftune.ops.token_logps import token_logps

pytestmark = pytest.mark.skipif(not has_liger(), reason="the package liger-kernel is not installed")

FUSED = """
import torch
from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

from dftune.objectives import TokenBatch, get_objective
from dftune.ops.token_logps import token_logps

torch.manual_seed(0)
hidden, weight = torch.randn(13, 6, requires_grad=True), torch.randn(29, 6, requires_grad=True)
targets = torch.randint(29, (13,))
for name, scaled in (("sft", False), ("dynamic_ft", True)):
    options = dict(reduction="sum", accum_dtype=torch.float32, use_token_scaling=scaled)
    names = "bias ce_weight ignore_index lse_square_scale label_smoothing reduction softcap return_z_loss accum_dtype"
    defaults = dict(ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0, return_z_loss=False) | options
    rest = [defaults.get(key) for key in (names + " use_token_scaling").split()]
    theirs = LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, targets, *rest)[0]
    logps = token_logps(hidden, weight, targets)
    tokens = TokenBatch(logps=logps, sequence_ids=torch.zeros(13, dtype=torch.int64), num_sequences=1)
    ours = get_objective(name)(tokens).total
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for a, b in zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    print(name, "agrees")
"""


@pytest.mark.slow
@pytest.mark.skipif(not has_triton(), reason="the package triton is not installed")
def test_the_fused_cross_entropy_is_sft_and_scaled_by_the_token_s_probability_it_is_dynamic_ft():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", FUSED], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:2] == ["sft agrees", "dynamic_ft agrees"]


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("sigmoid", {"beta": 0.3}),
        ("sigmoid", {"beta": 2.0}),
        ("hinge", {"beta": 0.5}),
        ("robust", {"beta": 0.5, "label_smoothing": 0.2}),
    ],
)
def test_the_fused_dpo_loss(loss, options):
    function = pytest.importorskip("liger_kernel.chunked_loss.dpo_loss").LigerFusedLinearDPOFunction
    generator = torch.Generator().manual_seed(0)
    num_pairs, length, vocab = 3, 5, 29
    hidden, ref_hidden = (torch.randn(2 * num_pairs, length, 6, generator=generator) for _ in range(2))
    weight, ref_weight = (torch.randn(vocab, 6, generator=generator) for _ in range(2))
    hidden.requires_grad_(), weight.requires_grad_()
    labels = torch.randint(vocab, (2 * num_pairs, length), generator=generator)
    labels[0, 3:] = labels[4, 1:] = -100
    arguments = {
        "ref_input": ref_hidden,
        "ref_weight": ref_weight,
        "ref_bias": None,
        "ignore_index": -100,
        "beta": options["beta"],
        "compute_nll_loss": False,
        "compiled": False,
        "use_ref_model": True,
        "average_log_prob": False,
        "chunk_size": 1,
        "loss_type": loss,
        "label_smoothing": options.get("label_smoothing", 0.0),
    }  # in the order of its signature: an autograd function takes no keywords
    theirs = function.apply(hidden, weight, labels, None, *arguments.values())[0]
    kept = labels != -100
    tokens = TokenBatch(
        logps=token_logps(hidden[kept], weight, labels[kept]),
        ref_logps=token_logps(ref_hidden[kept], ref_weight, labels[kept]),
        sequence_ids=kept.nonzero()[:, 0],
        num_sequences=2 * num_pairs,
        group_ids=torch.arange(num_pairs).repeat(2),  # all chosen, then all rejected
        num_groups=num_pairs,
        is_chosen=torch.arange(2 * num_pairs) < num_pairs,
    )
    ours = get_objective("dpo", loss=loss, **options)(tokens).total / num_pairs
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for a, b in zip(*(torch.autograd.grad(one, (hidden, weight)) for one in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
