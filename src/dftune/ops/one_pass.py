"""The one-pass route: the objective is evaluated on each block of rows, and the gradient formed at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dftune.ops.gradient import HeadGradients, Needs, Upstream
from dftune.ops.head import Head
from dftune.ops.matmul import Buffers
from dftune.ops.scoring import Scoring, TokenStats
from dftune.ops.stored import store

ChunkObjective = Callable[[TokenStats, slice], Tensor]
"""Gets the statistics of some rows and which rows they are; returns a scalar, a sum over these rows."""


class Rows(Protocol):
    """A scored block of rows, as :class:`dftune.ops.stored.StoredRows`."""

    def add_gradients(
        self, head: Head, gradients: HeadGradients, into: Tensor | None, upstream: Upstream, *, first: bool
    ) -> None:
        """Add the gradients of these rows; see there for the arguments."""


Store = Callable[[Head, Tensor, Scoring], tuple[Rows, TokenStats]]
"""Scores a block of rows, given scratch of rows times vocab, as :func:`dftune.ops.stored.store`."""


@dataclass(frozen=True)
class Pass:
    """An objective, and the blocks of rows it is evaluated on.

    Attributes:
        scoring: what is asked of every block.
        fn: the objective.
        edges: block i is rows ``edges[i]`` to ``edges[i + 1]``.
        differentiable: whether gradients are to be formed at all.
        store: scores a block of rows, and keeps what its gradients need.
    """

    scoring: Scoring
    fn: ChunkObjective
    edges: Sequence[int]
    differentiable: bool = True
    store: Store = store


def one_pass(hidden: Tensor, weight: Tensor, bias: Tensor | None, run: Pass) -> tuple[Tensor, TokenStats, Tensor]:
    """Evaluate a separable objective and its gradient in three matrix products, holding a block of rows at a time.

        total = sum_blocks fn(block),   d total / d logp = autograd of fn on the block's (rows,) vector

    Args:
        hidden: (tokens, hidden).
        weight: (vocab, hidden).
        bias: (vocab,) or None.
        run: the objective and the blocks.

    Returns:
        The total, a scalar, differentiable once; the statistics; d total / d logp (tokens,); both without gradient.
    """
    total, slopes, *found = _OnePass.apply(hidden, weight, bias, run)  # type: ignore[no-untyped-call]
    return total, TokenStats(*found), slopes


def blocks(num_tokens: int, rows: int, boundaries: Sequence[int] | None) -> list[int]:
    """Edges of blocks of at most ``rows`` rows, of about equal size where they may be cut anywhere.

    Args:
        num_tokens: rows in all.
        rows: of a block; exceeded by a group that alone is longer.
        boundaries: where a block may end, ascending, from 0 to ``num_tokens``; None is anywhere.
    """
    if boundaries is None:
        count = max(1, -(-num_tokens // rows))
        return [num_tokens * i // count for i in range(count + 1)]
    edges = [0]
    for start, end in pairwise(boundaries):
        if end - edges[-1] > rows and start > edges[-1]:
            edges.append(start)
    return [*edges, num_tokens]


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, run: Pass) -> tuple[Tensor | None, ...]:
        scoring = run.scoring
        needs = Needs(*(need and run.differentiable for need in ctx.needs_input_grad[:3]))
        operand = scoring.options.operand(hidden, weight)
        largest = max(end - start for start, end in pairwise(run.edges))
        totals, slopes, per_block = [], [], []
        with torch.autocast(hidden.device.type, enabled=False):
            gradients = HeadGradients(hidden, weight, bias, needs, operand=operand, summed=True)
            buffers = Buffers(hidden.device)
            values = torch.empty(largest * weight.shape[0], dtype=operand, device=hidden.device)
            for start, end in pairwise(run.edges):
                head = Head(hidden[start:end], weight, bias, scoring.options, buffers)
                rows, found = run.store(head, values, replace(scoring, targets=scoring.targets[start:end]))
                total, g, e = _differentiate(run.fn, found, slice(start, end))
                if needs.any:
                    into = None if gradients.hidden is None else gradients.hidden[start:end]
                    upstream = Upstream(scoring.options, found, g, e)
                    rows.add_gradients(head, gradients, into, upstream, first=start == 0)
                totals.append(total)
                slopes.append(g)
                per_block.append(found)
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        constant = (torch.cat(slopes), *_joined(per_block))
        ctx.mark_non_differentiable(*(value for value in constant if value is not None))
        return torch.stack(totals).sum(), *constant

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        # In place, because a second (vocab, hidden) tensor would double the peak. A second backward through a
        # retained graph then fails loudly: autograd sees that what it saved has changed.
        unit = not upstream.is_cuda and upstream.item() == 1.0
        found: list[Tensor | None] = [
            None if gradient is None else (gradient if unit else gradient.mul_(upstream)).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *found, None


def _differentiate(fn: ChunkObjective, found: TokenStats, rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
    """The objective on a block, and its gradients with respect to log-probabilities and entropy."""
    with torch.enable_grad():
        logps = found.logps.detach().requires_grad_()
        entropy = None if found.entropy is None else found.entropy.detach().requires_grad_()
        total = fn(replace(found, logps=logps, entropy=entropy), rows)
        if not total.requires_grad:
            return total, torch.zeros_like(logps), None
        inputs = [logps] if entropy is None else [logps, entropy]
        g, *e = torch.autograd.grad(total, inputs, allow_unused=True)
    return total.detach(), torch.zeros_like(logps) if g is None else g, e[0] if e else None


def _joined(per_block: list[TokenStats]) -> list[Tensor | None]:
    """The statistics of the blocks, one after another, in the order of the fields."""
    columns = [[getattr(block, field.name) for block in per_block] for field in fields(TokenStats)]
    return [None if column[0] is None else torch.cat(column) for column in columns]
