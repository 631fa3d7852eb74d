"""Launching the scorer's Triton kernels: what a block of rows is asked, and what is kept of it for the gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dftune.ops.gradient import HeadGradients, ScaledRows, Upstream
from dftune.ops.head import Head
from dftune.ops.matmul import add_product
from dftune.ops.scoring import HeadOptions, Scoring, TokenStats
from dftune.ops.stats import RunningSoftmax, Tile, check_targets
from dftune.ops.triton_kernels import IS_INTERPRETED, forward_kernel, kept_slopes_kernel, recomputed_slopes_kernel

STATS = frozenset({"entropy", "sum_sq_probs", "top1_hit"})
"""Statistics that the kernels gather; ``top_k_entropy`` needs a sort."""

_FIELDS = 5
"""Partial results of a split: largest logit, sums of e, e z and e^2, and the target's logit."""

_LONGEST_SPLIT = 64
"""Tiles that a program adds up in float32; longer sums are finished in float64."""

_PROGRAMS_PER_PROCESSOR = 8
"""Programs that the forward is split into for each multiprocessor, so that the last wave is a small part."""


@dataclass(frozen=True)
class Tiling:
    """Sizes of a tile of logits, and how a program works on it.

    Attributes:
        rows: of a tile.
        columns: of a tile.
        features: hidden units that are multiplied at a time.
        warps: of a program.
        stages: loads in flight.
    """

    rows: int
    columns: int
    features: int
    warps: int
    stages: int

    @property
    def launch(self) -> dict[str, int]:
        """As arguments of a kernel."""
        return {
            "BLOCK_N": self.rows,
            "BLOCK_V": self.columns,
            "BLOCK_D": self.features,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def choose_tiling(operand: torch.dtype, capability: tuple[int, int], *, bare: bool) -> Tiling:
    """A tile that fits the shared memory, and by what the compiler reports the registers; not chosen by measurement.

    Args:
        operand: of the matrix products.
        capability: of the device, ``(0, 0)`` for none.
        bare: whether there is neither a soft-cap nor a statistic: those need registers.
    """
    if operand != torch.bfloat16:
        return Tiling(rows=64, columns=64, features=32, warps=4, stages=2)
    if capability[0] == 9:
        return Tiling(rows=128, columns=256 if bare else 128, features=64, warps=8, stages=3)  # 144 or 96 KiB
    return Tiling(rows=128, columns=128, features=32, warps=8, stages=4)  # 64 KiB


def check_call(device: torch.device, operand: torch.dtype, stats: frozenset[str]) -> None:
    """Refuse what the kernels cannot take.

    Raises:
        ValueError: tensors that are not on a GPU (but under Triton's interpreter), float64, or a statistic that they
            do not gather.
    """
    if device.type != "cuda" and not IS_INTERPRETED:
        raise ValueError(f"Triton kernels want CUDA tensors; found {device.type} tensors. Use route='auto'.")
    if operand not in (torch.float32, torch.bfloat16):
        raise ValueError(f"Triton kernels read float32 or bfloat16 operands; found {operand}. Use route='recompute'.")
    if unknown := sorted(stats - STATS):
        raise ValueError(f"Triton kernels do not gather {unknown}. Use route='auto'.")


def triton_store(head: Head, values: Tensor, scoring: Scoring) -> tuple[TritonRows, TokenStats]:
    """Score a block of rows, and keep its probabilities; stands in for :func:`dftune.ops.stored.store`.

    Args:
        head: the rows.
        values: flat, rows times vocab in the operand dtype, overwritten.
        scoring: its targets are those of these rows.
    """
    return triton_forward(head, scoring, values)


def triton_forward(head: Head, scoring: Scoring, values: Tensor | None = None) -> tuple[TritonRows, TokenStats]:
    """Online softmax over splits of the vocabulary side by side, joined in float64.

    Args:
        head: the rows.
        scoring: what is asked; its targets are those of these rows.
        values: flat, rows times vocab, where probabilities are kept for the gradient; None: they are made again.

    Raises:
        ValueError: see :func:`check_call`; or, on CPU, a target outside the vocabulary.
    """
    device, num_rows, vocab_size = head.hidden.device, head.num_rows, head.weight.shape[0]
    check_call(device, head.operand, scoring.stats)
    check_targets(scoring.targets, vocab_size)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    tiling = choose_tiling(head.operand, capability, bare=not scoring.stats and head.options.softcap is None)
    num_tiles = _pieces(vocab_size, tiling.columns)
    per_split = tiles_per_split(_pieces(num_rows, tiling.rows), num_tiles, _processors(device))
    num_splits = _pieces(num_tiles, per_split)
    partials = torch.zeros((_FIELDS, num_splits, num_rows), dtype=head.wide, device=device)
    references = None if values is None else torch.empty((num_tiles, num_rows), dtype=head.wide, device=device)
    targets = scoring.targets.contiguous()
    with _on(device):
        if num_rows:
            forward_kernel[(_pieces(num_rows, tiling.rows), num_splits)](
                *_operands(head), targets, partials, values, references, *_sizes(head), *_gains(head.options),
                per_split, **_flags(head), KEEP=values is not None, ENTROPY="entropy" in scoring.stats,
                SQUARES="sum_sq_probs" in scoring.stats, **tiling.launch,
            )  # fmt: skip
    running = RunningSoftmax(num_rows, head.wide, head.buffers, scoring)
    running.join(*partials)
    found, lse = running.finish()
    return TritonRows(targets, scoring.width, tiling, lse, found.logps, values, references), found


def tiles_per_split(row_blocks: int, num_tiles: int, num_processors: int) -> int:
    """Tiles of the vocabulary that one program goes through, so that few rows still fill the device.

    Args:
        row_blocks: programs if the vocabulary were not split.
        num_tiles: of the vocabulary.
        num_processors: of the device.
    """
    num_splits = _pieces(_PROGRAMS_PER_PROCESSOR * num_processors, max(1, row_blocks))
    return max(1, min(_pieces(num_tiles, num_splits), _LONGEST_SPLIT))


@dataclass(frozen=True)
class TritonRows:
    """What is needed for the gradient of a block of rows.

    Attributes:
        targets: (rows,).
        width: vocabulary entries in a slice of the gradient.
        tiling: of the forward.
        lse: (rows,).
        logps: (rows,).
        values: flat, rows times vocab, exp(z - reference); None: logits are made again.
        references: (tiles, rows), or None.
    """

    targets: Tensor
    width: int
    tiling: Tiling
    lse: Tensor
    logps: Tensor
    values: Tensor | None = None
    references: Tensor | None = None

    def add_gradients(
        self, head: Head, gradients: HeadGradients, into: Tensor | None, upstream: Upstream, *, first: bool
    ) -> None:
        """Add the gradients of these rows, a slice of the vocabulary at a time.

        A kernel writes the slice's d loss / d logits, but for a factor a row, once; two matrix products read it. The
        rows of dW that belong to the slice come from one of them.

        Args:
            head: the same rows.
            gradients: its weight and bias are added to.
            into: (rows, hidden) these rows' part of the gradient of hidden, zero before, or None.
            upstream: of these rows.
            first: whether the gradients of weight and bias are still unwritten.
        """
        rows, vocab_size = ScaledRows(head, upstream.scale), head.weight.shape[0]
        slope = head.slope((self.logps + self.lse).unsqueeze(1))
        label = upstream.label if slope is None else upstream.label * slope.squeeze(1)
        width = _pieces(self.width, self.tiling.columns) * self.tiling.columns
        nowhere = self.targets[:0]
        for start in range(0, vocab_size, width):
            tile = Tile(start, min(start + width, vocab_size), nowhere, nowhere)
            slopes = self._slopes(head, upstream, label, tile)
            if into is not None:
                add_product(into, slopes, head.columns(tile.start, tile.end), head.buffers)
            gradients.add_to_head(head, tile, slopes, rows, first=first)
        if into is not None:
            into.mul_(upstream.scale.unsqueeze(1))

    def _slopes(self, head: Head, upstream: Upstream, label: Tensor, tile: Tile) -> Tensor:
        """(rows, width) d loss / d logits in the operand dtype, in a buffer, still to be multiplied with the scale."""
        width = tile.end - tile.start
        out = head.buffers.take("slopes", (head.num_rows, width), head.operand)
        if not head.num_rows:
            return out
        grid = (_pieces(head.num_rows, self.tiling.rows), _pieces(width, self.tiling.columns))
        per_row = (self.targets, self.lse, label, upstream.entropy_slope, upstream.offset)
        entropy = not upstream.plain
        with _on(out.device):
            if self.values is None:
                recomputed_slopes_kernel[grid](
                    *_operands(head), *per_row, out, tile.start, width, *_sizes(head), *_gains(head.options),
                    **_flags(head), ENTROPY=entropy, **self.tiling.launch,
                )  # fmt: skip
            else:
                kept_slopes_kernel[grid](
                    self.values, self.references, *per_row, out, tile.start, width, *_sizes(head)[:2],
                    _gains(head.options)[1], SOFTCAP=head.options.softcap is not None, ENTROPY=entropy,
                    INTERPRETED=IS_INTERPRETED, BLOCK_N=self.tiling.rows, BLOCK_V=self.tiling.columns,
                    num_warps=self.tiling.warps,
                )  # fmt: skip
        return out


def _pieces(total: int, size: int) -> int:
    return -(-total // size)


def _operands(head: Head) -> tuple[Tensor, Tensor, Tensor | None]:
    return head.hidden, head.weight, None if head.bias is None else head.bias.contiguous()


def _sizes(head: Head) -> tuple[int, int, int, int]:
    """Rows, vocabulary, and the weight's strides."""
    return head.num_rows, head.weight.shape[0], head.weight.stride(0), head.weight.stride(1)


def _gains(options: HeadOptions) -> tuple[float, float]:
    """``inner`` and ``outer``: z = inner x, or outer tanh(inner x) with a soft-cap."""
    if options.softcap is None:
        return options.gain, 1.0
    scale = 1.0 if options.logit_scale is None else options.logit_scale
    return scale / options.softcap, options.softcap / options.temperature


def _flags(head: Head) -> dict[str, Any]:
    return {
        "HIDDEN": head.hidden.shape[1],
        "HAS_BIAS": head.bias is not None,
        "SOFTCAP": head.options.softcap is not None,
        "ROUNDED": head.operand != head.wide and head.options.logits_dtype == head.operand,
        "INTERPRETED": IS_INTERPRETED,
    }


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Triton launches on the current device."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield
