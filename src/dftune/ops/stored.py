"""The stored route: probabilities of all rows are kept from the forward; three matrix products."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dftune.ops.gradient import HeadGradients, Needs, ScaledRows, Upstream, outputs
from dftune.ops.head import Head
from dftune.ops.matmul import Buffers, set_product
from dftune.ops.scoring import Scoring, TokenStats
from dftune.ops.stats import LOG2_E, RunningSoftmax, Tile, tiles

_SMALLEST_SCALE = 2.0**-60
"""Probabilities are kept relative to the largest logit known when their tile was made. Where that was far too small,
all of them are below this, and taking them for this much changes no sum; the target's entry stays representable."""


def stored(hidden: Tensor, weight: Tensor, bias: Tensor | None, scoring: Scoring) -> TokenStats:
    """Score, and keep the (tokens, vocab) probabilities in the operand dtype for the backward.

    Any upstream gradient, differentiable entropy; the fastest route where the probabilities fit the budget. Arguments
    as for :func:`dftune.ops.recompute.recompute`.
    """
    return TokenStats(*_Stored.apply(hidden, weight, bias, scoring))  # type: ignore[no-untyped-call]


class _Stored(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, scoring: Scoring
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        with torch.autocast(hidden.device.type, enabled=False):
            head = Head(hidden, weight, bias, scoring.options, Buffers(hidden.device))
            values = torch.empty(head.num_rows * weight.shape[0], dtype=head.operand, device=hidden.device)
            rows, found = store(head, values, scoring)
        ctx.save_for_backward(hidden, weight, bias, values, rows.references, rows.lse, found.logps, found.entropy)
        ctx.options, ctx.slices = scoring.options, rows.slices
        return outputs(ctx, found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor | None, e: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, values, references, lse, logps, entropy = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            head = Head(hidden, weight, bias, ctx.options, Buffers(hidden.device))
            needs = Needs(*ctx.needs_input_grad[:3])
            gradients = HeadGradients(hidden, weight, bias, needs, operand=head.operand, summed=False)
            rows = StoredRows(ctx.slices, values, references, lse, logps)
            upstream = Upstream(ctx.options, TokenStats(logps, entropy), g, e)
            rows.add_gradients(head, gradients, gradients.hidden, upstream, first=True)
            return *gradients.cast(), None


@dataclass(frozen=True)
class StoredRows:
    """The probabilities of a block of rows, as exp(z - reference) with one reference a row and tile.

    Nothing but these is needed for the gradient, and scales go into the small factors of the matrix products, so that
    no further pass over the tiles is made unless there is a soft-cap or a gradient of the entropy.

    Attributes:
        slices: of the vocabulary.
        values: flat, one (rows, width) tile after another, in the operand dtype; p_y - 1 at the targets.
        references: (tiles, rows).
        lse: (rows,).
        logps: (rows,).
    """

    slices: list[Tile]
    values: Tensor
    references: Tensor
    lse: Tensor
    logps: Tensor

    def of(self, tile: Tile) -> Tensor:
        """(rows, width) the values of a tile."""
        num_rows = len(self.lse)
        return self.values[tile.start * num_rows : tile.end * num_rows].view(num_rows, tile.end - tile.start)

    def scale(self, i: int) -> Tensor:
        """(rows,) what the values of tile i are to be multiplied with to be probabilities."""
        return (self.references[i] - self.lse).exp().clamp(min=_SMALLEST_SCALE)

    def add_gradients(
        self, head: Head, gradients: HeadGradients, into: Tensor | None, upstream: Upstream, *, first: bool
    ) -> None:
        """Add the gradients of these rows.

        Args:
            head: the same rows.
            gradients: its weight and bias are added to.
            into: (rows, hidden) these rows' part of the gradient of hidden, or None.
            upstream: of these rows.
            first: whether the gradients of weight and bias are still unwritten.
        """
        as_stored = upstream.plain and head.options.softcap is None
        rows = ScaledRows(head, upstream.scale)
        for i, tile in enumerate(self.slices):
            values = self.of(tile)
            if as_stored:
                rows = ScaledRows(head, upstream.scale * self.scale(i))
            else:
                values = upstream.values(head, *self._log_probs(head, i, tile), tile)
            if into is not None:
                product = head.buffers.take("hidden", into.shape, into.dtype)
                set_product(product, values, head.columns(tile.start, tile.end), head.buffers)
                into.addcmul_(product, rows.factor.unsqueeze(1))
            gradients.add_to_head(head, tile, values, rows, first=first)

    def _log_probs(self, head: Head, i: int, tile: Tile) -> tuple[Tensor, Tensor | None]:
        """log p of a tile, and the slope of the soft-cap there."""
        kept = self.of(tile)
        out = head.buffers.take("tile", kept.shape, head.wide).copy_(kept)
        out.clamp_(min=torch.finfo(head.wide).tiny).log2_().mul_(1 / LOG2_E)
        out.add_((self.references[i] - self.lse).unsqueeze(1))
        if head.options.softcap is None:
            return out, None
        out[tile.rows, tile.columns] = self.logps[tile.rows]  # the targets' own are not among the values
        logits = head.buffers.take("shifted", kept.shape, head.wide)
        return out, head.slope(torch.add(out, self.lse.unsqueeze(1), out=logits))


def store(head: Head, values: Tensor, scoring: Scoring) -> tuple[StoredRows, TokenStats]:
    """Compute the probabilities of a block of rows into ``values`` (flat, rows times vocab), and their statistics.

    Args:
        head: the rows.
        values: overwritten.
        scoring: its targets are those of these rows.
    """
    running = RunningSoftmax(head.num_rows, head.wide, head.buffers, scoring)
    slices = tiles(scoring.targets, head.weight.shape[0], scoring.width)
    rows = StoredRows(slices, values, *[running.max] * 3)  # what it is made of is not known yet
    references = []
    for tile in slices:
        kept = rows.of(tile)
        out = head.logits(tile.start, tile.end, kept if kept.dtype == head.wide else None)
        running.fold(out, tile)
        references.append(running.max)
        if out is not kept:
            kept.copy_(out)
    found, lse = running.finish()
    rows = replace(rows, references=torch.stack(references), lse=lse, logps=found.logps)
    label = torch.expm1(found.logps)
    for i, tile in enumerate(slices):
        rows.of(tile)[tile.rows, tile.columns] = (label / rows.scale(i))[tile.rows].to(values.dtype)
    return rows, found
