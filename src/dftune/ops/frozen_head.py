"""The frozen-head route: two matrix products for any objective, when the head itself is not trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dftune.ops.gradient import outputs
from dftune.ops.head import Head
from dftune.ops.matmul import Buffers, add_product
from dftune.ops.scoring import Scoring, TokenStats
from dftune.ops.stats import RunningSoftmax, tiles


def frozen_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, scoring: Scoring) -> TokenStats:
    """Score, and form the gradient's direction in the forward.

        d logp_t / d h_t = u_t = W[y_t] - sum_j p_j W_j = (1 - p_y) W[y_t] - sum_{j != y} p_j W_j

    u_t does not depend on what the log-probability is used for, so it is accumulated while the online softmax runs, as
    in attention with W as keys and values. The backward multiplies rows. The target's own term is left out of the sum:
    in bfloat16 the difference would lose everything where p_y is close to 1.

    The weight and the bias get no gradient, and ``entropy`` is a constant here. Arguments as for
    :func:`dftune.ops.recompute.recompute`.
    """
    return TokenStats(*_FrozenHead.apply(hidden, weight, bias, scoring))  # type: ignore[no-untyped-call]


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, scoring: Scoring
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        with torch.autocast(hidden.device.type, enabled=False):
            head = Head(hidden, weight, bias, scoring.options, Buffers(hidden.device))
            running = RunningSoftmax(head.num_rows, head.wide, head.buffers, scoring)
            others = torch.zeros(hidden.shape, dtype=head.wide, device=hidden.device)
            for tile in tiles(scoring.targets, weight.shape[0], scoring.width):
                values = head.logits(tile.start, tile.end)
                slope = head.slope(values)
                others.mul_(running.fold(values, tile).to(head.wide).unsqueeze(1))
                if slope is not None:
                    values.mul_(slope)
                add_product(others, head.narrow(values), head.columns(tile.start, tile.end), head.buffers)
            found, lse = running.finish()
            others.mul_((running.max - lse).exp().unsqueeze(1))
            ctx.save_for_backward(_direction(head, scoring.targets, running.own, found.logps, others))
        ctx.dtype = hidden.dtype
        return outputs(ctx, found, constant_entropy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        (direction,) = ctx.saved_tensors
        gradient = None if g is None else (direction * g.to(direction.dtype).unsqueeze(1)).to(ctx.dtype)
        return gradient, None, None, None


def _direction(head: Head, targets: Tensor, own: Tensor, logps: Tensor, others: Tensor) -> Tensor:
    """u_t (rows, hidden), in place of ``others``, the sum over the other vocabulary entries."""
    factor = -torch.expm1(logps).unsqueeze(1)
    slope = head.slope(own.unsqueeze(1))
    label = head.weight[targets].to(head.operand).to(head.wide)
    return others.neg_().addcmul_(label, factor if slope is None else factor * slope).mul_(head.options.gain)
