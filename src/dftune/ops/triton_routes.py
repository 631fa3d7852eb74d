"""The recompute, stored and one-pass routes with Triton kernels in place of passes over tiles of logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dftune.ops.gradient import HeadGradients, Needs, Upstream, outputs
from dftune.ops.head import Head
from dftune.ops.matmul import Buffers
from dftune.ops.one_pass import Pass, one_pass
from dftune.ops.scoring import Scoring, TokenStats
from dftune.ops.triton_head import TritonRows, triton_forward, triton_store


def triton_recompute(hidden: Tensor, weight: Tensor, bias: Tensor | None, scoring: Scoring) -> TokenStats:
    """Score without keeping logits; four matrix products, any upstream gradient, differentiable entropy.

    The forward is one kernel. In the backward another writes the gradient of a slice of the logits of all tokens, and
    two matrix products read it; dW is written once. Arguments as for :func:`dftune.ops.recompute.recompute`.
    """
    return TokenStats(*_Score.apply(hidden, weight, bias, scoring, False))  # type: ignore[no-untyped-call]


def triton_stored(hidden: Tensor, weight: Tensor, bias: Tensor | None, scoring: Scoring) -> TokenStats:
    """As :func:`triton_recompute`, with the probabilities kept in the operand dtype: three matrix products."""
    return TokenStats(*_Score.apply(hidden, weight, bias, scoring, True))  # type: ignore[no-untyped-call]


def triton_one_pass(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, run: Pass
) -> tuple[Tensor, TokenStats, Tensor]:
    """:func:`dftune.ops.one_pass.one_pass` with kernels; three matrix products."""
    return one_pass(hidden, weight, bias, replace(run, store=triton_store))


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  (autograd takes no keywords)
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, scoring: Scoring, keep: bool
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        with torch.autocast(hidden.device.type, enabled=False):
            head = Head(hidden, weight, bias, scoring.options, Buffers(hidden.device))
            size = head.num_rows * weight.shape[0]
            values = torch.empty(size, dtype=head.operand, device=hidden.device) if keep else None
            rows, found = triton_forward(head, scoring, values)
        saved = (rows.targets, rows.lse, values, rows.references)
        ctx.save_for_backward(hidden, weight, bias, found.logps, found.entropy, *saved)
        ctx.scoring, ctx.tiling = scoring, rows.tiling
        return outputs(ctx, found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor | None, e: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, logps, entropy, targets, lse, values, references = ctx.saved_tensors
        scoring: Scoring = ctx.scoring
        with torch.autocast(hidden.device.type, enabled=False):
            head = Head(hidden, weight, bias, scoring.options, Buffers(hidden.device))
            needs = Needs(*ctx.needs_input_grad[:3])
            gradients = HeadGradients(hidden, weight, bias, needs, operand=head.operand, summed=False)
            rows = TritonRows(targets, scoring.width, ctx.tiling, lse, logps, values, references)
            upstream = Upstream(scoring.options, TokenStats(logps, entropy), g, e)
            rows.add_gradients(head, gradients, gradients.hidden, upstream, first=True)
            return *gradients.cast(), None, None
