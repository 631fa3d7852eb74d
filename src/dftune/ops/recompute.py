"""The recompute route: no logits are kept; the backward makes them again, vocabulary outermost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dftune.ops.gradient import HeadGradients, Needs, ScaledRows, Upstream, outputs
from dftune.ops.head import Head
from dftune.ops.matmul import Buffers, add_product
from dftune.ops.scoring import Scoring, TokenStats
from dftune.ops.stats import RunningSoftmax, Tile, tiles


def recompute(hidden: Tensor, weight: Tensor, bias: Tensor | None, scoring: Scoring) -> TokenStats:
    """Score with an online log-sum-exp; four matrix products, any upstream gradient, differentiable entropy.

    The backward goes through the vocabulary once. For each slice it makes the logits of all tokens again, so a slice's
    rows of dW come from one product over all tokens, are accumulated in float32 inside it, and are written once: there
    is no float32 (vocab, hidden) accumulator. Only dH, (tokens, hidden), is summed over slices.

    Args:
        hidden: (tokens, hidden).
        weight: (vocab, hidden).
        bias: (vocab,) or None.
        scoring: what is asked.
    """
    return TokenStats(*_Recompute.apply(hidden, weight, bias, scoring))  # type: ignore[no-untyped-call]


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, scoring: Scoring
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        with torch.autocast(hidden.device.type, enabled=False):
            head = Head(hidden, weight, bias, scoring.options, Buffers(hidden.device))
            running = RunningSoftmax(head.num_rows, head.wide, head.buffers, scoring)
            for tile in tiles(scoring.targets, weight.shape[0], scoring.width):
                running.fold(head.logits(tile.start, tile.end), tile)
            found, lse = running.finish()
        ctx.save_for_backward(hidden, weight, bias, lse, found.logps, found.entropy)
        ctx.scoring = scoring
        return outputs(ctx, found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor | None, e: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, lse, logps, entropy = ctx.saved_tensors
        scoring: Scoring = ctx.scoring
        with torch.autocast(hidden.device.type, enabled=False):
            head = Head(hidden, weight, bias, scoring.options, Buffers(hidden.device))
            needs = Needs(*ctx.needs_input_grad[:3])
            gradients = HeadGradients(hidden, weight, bias, needs, operand=head.operand, summed=False)
            upstream = Upstream(scoring.options, TokenStats(logps, entropy), g, e)
            _add_gradients(head, gradients, upstream, tiles(scoring.targets, weight.shape[0], scoring.width), lse)
            return *gradients.cast(), None


def _add_gradients(head: Head, gradients: HeadGradients, upstream: Upstream, slices: list[Tile], lse: Tensor) -> None:
    rows = ScaledRows(head, upstream.scale)
    for tile in slices:
        logits = head.logits(tile.start, tile.end)
        slope = head.slope(logits)
        values = upstream.values(head, logits.sub_(lse.unsqueeze(1)), slope, tile)
        if gradients.hidden is not None:
            add_product(gradients.hidden, values, head.columns(tile.start, tile.end), head.buffers)
        gradients.add_to_head(head, tile, values, rows, first=True)
    if gradients.hidden is not None:
        gradients.hidden.mul_(upstream.scale.unsqueeze(1))
