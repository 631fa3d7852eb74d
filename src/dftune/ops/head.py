"""The language-model head, one tile of logits at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from dftune.ops.matmul import Buffers, product
from dftune.ops.scoring import HeadOptions, wide


class Head:
    """A block of hidden states against slices of the vocabulary.

    Attributes:
        hidden: (rows, hidden) in the operand dtype.
        operand: dtype that the matrix products read.
        wide: dtype of tiles and sums.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, options: HeadOptions, buffers: Buffers
    ) -> None:
        self.options, self.buffers = options, buffers
        self.operand = options.operand(hidden, weight)
        self.wide = wide(self.operand)
        self.hidden = hidden.to(self.operand).contiguous()
        self.weight, self.bias = weight, bias
        self._rounded = self.operand != self.wide and options.logits_dtype == self.operand
        # CPU kernels write their operands' dtype: float32 logits need float32 copies there
        self._copied = self.operand != self.wide and not self._rounded and not hidden.is_cuda
        self._left = self.hidden.to(self.wide) if self._copied else self.hidden

    @property
    def num_rows(self) -> int:
        """Rows of hidden states."""
        return self.hidden.shape[0]

    def columns(self, start: int, end: int) -> Tensor:
        """(end - start, hidden) rows of the weight in the operand dtype."""
        return self._cast("columns", self.weight[start:end], self.operand)

    def logits(self, start: int, end: int, out: Tensor | None = None) -> Tensor:
        """z of vocabulary entries ``start`` to ``end`` for every row: (rows, end - start), in ``out`` or a buffer."""
        if out is None:
            out = self.buffers.take("tile", (self.num_rows, end - start), self.wide)
        if self._rounded:
            rounded = self.buffers.take("rounded", out.shape, self.operand)
            out.copy_(product(self.hidden, self.columns(start, end).T, rounded))
        elif self._copied:
            # through the operand dtype first, so that both directions see the same weight
            right = self._cast("right", self.columns(start, end), self.wide)
            product(self._left, right.T, out, bfloat16_valued=self.operand == torch.bfloat16)
        else:
            product(self.hidden, self.columns(start, end).T, out)
        if self.bias is not None:
            out.add_(self.bias[start:end].to(self.wide))
        if self.options.softcap is None:
            return out if self.options.gain == 1.0 else out.mul_(self.options.gain)
        scale = 1.0 if self.options.logit_scale is None else self.options.logit_scale
        return out.mul_(scale / self.options.softcap).tanh_().mul_(self.options.softcap / self.options.temperature)

    def slope(self, logits: Tensor) -> Tensor | None:
        """Slope of the soft-cap, 1 - tanh^2, at ``logits`` (rows, width), in a buffer; None without a soft-cap."""
        if self.options.softcap is None:
            return None
        out = self.buffers.take("slope", logits.shape, self.wide)
        torch.mul(logits, self.options.temperature / self.options.softcap, out=out)
        return out.square_().neg_().add_(1.0)

    def narrow(self, tile: Tensor) -> Tensor:
        """A tile in the operand dtype, to be multiplied."""
        return self._cast("narrow", tile, self.operand)

    def _cast(self, name: str, source: Tensor, dtype: torch.dtype) -> Tensor:
        if source.dtype == dtype:
            return source
        return self.buffers.take(name, source.shape, dtype).copy_(source)
