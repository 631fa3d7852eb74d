"""From upstream gradients of the statistics to gradients of the head's inputs, a tile of probabilities at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dftune.ops.head import Head
from dftune.ops.matmul import add_product, set_product
from dftune.ops.scoring import HeadOptions, TokenStats, wide
from dftune.ops.stats import LOG2_E, Tile


@dataclass(frozen=True)
class Needs:
    """Which inputs need a gradient."""

    hidden: bool
    weight: bool
    bias: bool

    @property
    def any(self) -> bool:
        """Whether one does."""
        return self.hidden or self.weight or self.bias


class Upstream:
    """How a row's logits enter the loss, given d loss / d logp = g and d loss / d entropy = e.

        d loss / d z_j = g (1[j = y] - p_j) - e p_j (log p_j + entropy)

    It is kept as ``scale`` (rows,) times a tile, so that without entropy the tile is simply p, with p_y - 1 at the
    target: that difference comes from the log-probability itself and keeps its digits where p_y is close to 1.

    Attributes:
        scale: (rows,) what the tile is to be multiplied with, the head's gain included.
        label: (rows,) the tile at the target.
        plain: whether the tile is just p; otherwise it is p (entropy_slope * log p + offset).
        entropy_slope: (rows,), or None.
        offset: (rows,), or None.
    """

    def __init__(self, options: HeadOptions, stats: TokenStats, g: Tensor | None, e: Tensor | None) -> None:
        logps, entropy = stats.logps, stats.entropy
        g = torch.zeros_like(logps) if g is None else g.to(logps.dtype)
        self.plain = e is None or entropy is None
        self.entropy_slope: Tensor | None = None
        self.offset: Tensor | None = None
        if e is None or entropy is None:
            self.label, self.scale = torch.expm1(logps), -options.gain * g
            return
        # p (g + e (log p + entropy)) = p (slope * log p + offset)
        slope, own = e.to(logps.dtype), logps.exp()
        self.entropy_slope, self.offset = slope, g + slope * entropy
        self.label = g * torch.expm1(logps) + torch.where(own > 0, slope * own * (logps + entropy), 0.0)
        self.scale = torch.full_like(logps, -options.gain)

    def values(self, head: Head, log_probs: Tensor, softcap_slope: Tensor | None, tile: Tile) -> Tensor:
        """The tile in the operand dtype; ``log_probs`` (rows, width) is overwritten."""
        if self.entropy_slope is None or self.offset is None:
            values = log_probs.mul_(LOG2_E).exp2_()
        else:
            out = head.buffers.take("shifted", log_probs.shape, log_probs.dtype)
            factor = torch.clamp(log_probs, min=-1e4, out=out)  # 0 * -inf would be NaN
            factor.mul_(self.entropy_slope.unsqueeze(1)).add_(self.offset.unsqueeze(1))
            values = log_probs.mul_(LOG2_E).exp2_().mul_(factor)
        values[tile.rows, tile.columns] = self.label[tile.rows]
        return head.narrow(values if softcap_slope is None else values.mul_(softcap_slope))


class ScaledRows:
    """Factors of rows, and the hidden states multiplied with them.

    Attributes:
        factor: (rows,).
        hidden: (rows, hidden) in the operand dtype, in a buffer.
    """

    def __init__(self, head: Head, factor: Tensor) -> None:
        self.factor = factor
        self.hidden = head.buffers.take("scaled", head.hidden.shape, head.operand)
        if head.operand == head.wide:
            torch.mul(head.hidden, factor.unsqueeze(1), out=self.hidden)
        else:
            between = head.buffers.take("product", head.hidden.shape, head.wide)
            self.hidden.copy_(between.copy_(head.hidden).mul_(factor.unsqueeze(1)))


class HeadGradients:
    """Gradients of hidden, weight and bias, filled tile by tile.

    Attributes:
        hidden: (tokens, hidden) float32, a running sum.
        weight: (vocab, hidden); rows are written once, or, if ``summed``, added up in float32 over blocks of tokens.
        bias: (vocab,) likewise.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: Needs, *, operand: torch.dtype, summed: bool
    ) -> None:
        sums = wide(operand)
        self._dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        self.hidden = torch.zeros(hidden.shape, dtype=sums, device=hidden.device) if needs.hidden else None
        dtype = sums if summed else weight.dtype
        self.weight = torch.empty(weight.shape, dtype=dtype, device=weight.device) if needs.weight else None
        self.bias = None
        if bias is not None and needs.bias:
            self.bias = torch.empty(bias.shape, dtype=sums, device=bias.device)

    def add_to_head(self, head: Head, tile: Tile, values: Tensor, rows: ScaledRows, *, first: bool) -> None:
        """Add ``values.T @ rows.hidden`` to the tile's rows of the weight, and the like to the bias.

        Args:
            head: the block of rows.
            tile: the slice of the vocabulary.
            values: (rows, width) in the operand dtype.
            rows: hidden states and their factors.
            first: whether the gradient is still unwritten there.
        """
        if self.weight is not None:
            write = set_product if first else add_product
            write(self.weight[tile.start : tile.end], values.T, rows.hidden, head.buffers)
        if self.bias is not None:
            into, found = self.bias[tile.start : tile.end], torch.mv(values.T.to(rows.factor.dtype), rows.factor)
            into.copy_(found if first else into + found)

    def cast(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients in their inputs' dtypes."""
        found = (self.hidden, self.weight, self.bias)
        hidden, weight, bias = (
            gradient if gradient is None or dtype is None else gradient.to(dtype)
            for gradient, dtype in zip(found, self._dtypes, strict=True)
        )
        return hidden, weight, bias


def outputs(ctx: Any, found: TokenStats, *, constant_entropy: bool = False) -> tuple[Tensor | None, ...]:
    """The outputs of an autograd function: all but the log-probabilities, and mostly the entropy, are constants."""
    constant = (found.top_k_entropy, found.sum_sq_probs, found.top1_hit)
    marked = (*constant, found.entropy) if constant_entropy else constant
    ctx.mark_non_differentiable(*(value for value in marked if value is not None))
    return found.logps, found.entropy, *constant
