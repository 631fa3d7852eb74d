"""Statistics of rows of logits, gathered while the logits pass by in tiles."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dftune.ops.matmul import Buffers
from dftune.ops.scoring import Scoring, TokenStats

LOG2_E = 1.4426950408889634
"""exp is computed as 2^(x log2 e): torch's exp2 is 2.7 times faster than its exp on CPU, and as exact."""

FLOOR = -1e30
"""Below every finite logit; unlike minus infinity, a difference with it is a number."""


@dataclass(frozen=True)
class Tile:
    """A slice of the vocabulary, and where in it the targets are.

    Attributes:
        start: first vocabulary entry.
        end: one past the last.
        rows: (n,) the rows whose target is in the slice.
        columns: (n,) the target's column within it.
    """

    start: int
    end: int
    rows: Tensor
    columns: Tensor


def tiles(targets: Tensor, vocab_size: int, width: int) -> list[Tile]:
    """The vocabulary in slices of ``width``.

    Raises:
        ValueError: a target outside the vocabulary.
    """
    edges = [*range(0, vocab_size, width), vocab_size]
    ordered, order = targets.sort()
    bounds = torch.searchsorted(ordered, torch.tensor(edges, device=targets.device)).tolist()
    if bounds[0] != 0 or bounds[-1] != len(targets):
        raise _outside(targets, vocab_size)
    return [
        Tile(start, end, order[first:last], ordered[first:last] - start)
        for (start, end), (first, last) in zip(pairwise(edges), pairwise(bounds), strict=True)
    ]


def check_targets(targets: Tensor, vocab_size: int) -> None:
    """Refuse a target outside the vocabulary; on CUDA by an assertion on the device, without waiting for it.

    Raises:
        ValueError: there is one, on CPU.
    """
    if targets.is_cuda:
        torch._assert_async(((targets >= 0) & (targets < vocab_size)).all(), "a target lies outside the vocabulary")
    if targets.device.type == "cpu" and len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < vocab_size:
        raise _outside(targets, vocab_size)


def _outside(targets: Tensor, vocab_size: int) -> ValueError:
    return ValueError(
        f"targets must lie in 0..{vocab_size - 1}; found {int(targets.min())}..{int(targets.max())}. "
        "Pass supervised positions only: there is no ignore index."
    )


class RunningSoftmax:
    """Online softmax of rows whose logits arrive in tiles, the target's own logit kept apart.

    Sums leave the target out: 1 - p = rest / (rest + own) then has no cancellation where p is close to 1.

    Attributes:
        max: (rows,) largest logit so far, targets excluded.
        rest: (rows,) float64, sum of exp(z - max) so far, targets excluded.
        own: (rows,) the target's logit.
    """

    def __init__(self, num_rows: int, dtype: torch.dtype, buffers: Buffers, scoring: Scoring) -> None:
        self.stats, self.top_k, self.buffers, self.dtype = scoring.stats, scoring.top_k, buffers, dtype
        device = buffers.device
        self.max = torch.full((num_rows,), FLOOR, dtype=dtype, device=device)
        self.own = torch.full((num_rows,), torch.nan, dtype=dtype, device=device)
        self.rest = torch.zeros(num_rows, dtype=torch.float64, device=device)
        self._first = torch.zeros_like(self.rest)  # sum of exp(z - max) (z - max)
        self._square = torch.zeros_like(self.rest)
        self._top = torch.empty((num_rows, 0), dtype=dtype, device=device)

    def fold(self, values: Tensor, tile: Tile) -> Tensor:
        """Take logits (rows, width) in, and leave exp(z - max) in their place, 0 at the targets.

        Returns:
            (rows,) float64: what sums taken relative to the previous ``max`` are to be multiplied with.
        """
        self.own[tile.rows] = values[tile.rows, tile.columns]
        values[tile.rows, tile.columns] = -torch.inf
        if "top_k_entropy" in self.stats:
            self._top = _largest(torch.cat([self._top, _largest(values, self.top_k)], 1), self.top_k)
        new = torch.maximum(self.max, values.amax(1))
        moved = self.max.double() - new
        shrink = moved.exp()
        values.sub_(new.unsqueeze(1))
        if "entropy" in self.stats:
            shifted = self.buffers.take("shifted", values.shape, values.dtype)
            torch.clamp(values, min=FLOOR, out=shifted)  # 0 * -inf would be NaN
        values.mul_(LOG2_E).exp2_()
        if "entropy" in self.stats:
            self._first.add_(self.rest * moved).mul_(shrink).add_(shifted.mul_(values).sum(1))
        if "sum_sq_probs" in self.stats:
            square = self.buffers.take("shifted", values.shape, values.dtype)
            self._square.mul_(shrink.square()).add_(torch.mul(values, values, out=square).sum(1))
        self.rest.mul_(shrink).add_(values.sum(1))
        self.max = new
        return shrink

    def join(self, largest: Tensor, rest: Tensor, own: Tensor, first: Tensor, square: Tensor) -> None:
        """Take in, instead of tiles, what was gathered of splits of the vocabulary, each (splits, rows).

        Args:
            largest: logit of the split, targets excluded; ``FLOOR`` where there is no other.
            rest: sum of exp(z - largest), targets excluded.
            own: the target's logit, 0 in the splits where it is not.
            first: sum of exp(z - largest) (z - largest); used for the entropy only.
            square: sum of exp(z - largest)^2; used for the sum of squared probabilities only.
        """
        self.max, self.own = largest.amax(0), own.sum(0)
        moved = largest.double() - self.max
        shrink = moved.exp()
        self.rest = (shrink * rest).sum(0)
        self._first = (shrink * (first + rest * moved)).sum(0)
        self._square = (shrink.square() * square).sum(0)

    def finish(self) -> tuple[TokenStats, Tensor]:
        """The statistics, and (rows,) the log-sum-exp."""
        own, top = self.own.double(), torch.maximum(self.max, self.own).double()
        shrink = (self.max.double() - top).exp()
        rest, label = self.rest * shrink, (own - top).exp()
        total = rest + label
        log_total = torch.where(self.own >= self.max, rest.log1p(), total.log())
        found: dict[str, Tensor] = {"logps": own - top - log_total}
        if "entropy" in self.stats:
            first = shrink * (self._first + self.rest * (self.max.double() - top))
            own_first = torch.where(label > 0, label * (own - top), 0.0)
            found["entropy"] = log_total - (first + own_first) / total
        if "sum_sq_probs" in self.stats:
            found["sum_sq_probs"] = (self._square * shrink.square() + label.square()) / total.square()
        if "top1_hit" in self.stats:
            found["top1_hit"] = self.own > self.max
        if "top_k_entropy" in self.stats:
            largest = _largest(torch.cat([self._top, self.own.unsqueeze(1)], 1), self.top_k)
            found["top_k_entropy"] = torch.special.entr(largest.double().softmax(1)).sum(1)
        stats = TokenStats(**{name: value.to(self.dtype) for name, value in found.items()})
        return stats, (top + log_total).to(self.dtype)


def _largest(values: Tensor, k: int) -> Tensor:
    return values.topk(min(k, values.shape[1]), dim=1, sorted=False).values
