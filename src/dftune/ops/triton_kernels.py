"""Triton kernels of the scorer: a tile of logits is made, used and dropped without leaving the processor it is made on.

Every kernel works on BLOCK_N rows at a time. Rows and vocabulary entries past the end are read as the last one and
neither counted nor written. Products are accumulated in float32 and, of float32 operands, exact (no TF32). Sizes,
strides and pointers are explained where the kernels are launched, :mod:`dftune.ops.triton_head`. Import this module
only where Triton is installed.
"""

# ruff: noqa: N803, PLR0917
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

_LOG2_E = tl.constexpr(1.4426950408889634)
_TINY = tl.constexpr(2.0**-126)
_FLOOR = tl.constexpr(-1e30)  # dftune.ops.stats.FLOOR: below every finite logit, and a difference with it is a number


@triton.jit
def _tanh(x):
    """Within 2e-7 of tanh, relatively: (1 - e^-2x) / (1 + e^-2x), and a series where that would cancel."""
    small = tl.exp2(tl.abs(x) * (-2.0 * _LOG2_E))
    far = (1.0 - small) / (1.0 + small)
    square = x * x
    series = 1.0 + square * (-1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315 + square * (62.0 / 2835))))
    return tl.where(tl.abs(x) < 0.25, x * series, tl.where(x < 0, -far, far))


@triton.jit
def _narrow(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """``x`` in ``dtype``, rounded to the nearest; by hand under the interpreter, which truncates."""
    if INTERPRETED and x.dtype == tl.float32 and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _logits(
    hidden, weight, bias, rows, columns, num_rows, vocab_size, stride_v, stride_d, inner, outer,
    HIDDEN: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ROUNDED: tl.constexpr,
    INTERPRETED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """z of ``rows`` and ``columns``: (BLOCK_N, BLOCK_V) float32."""
    features = tl.arange(0, BLOCK_D)
    row = tl.minimum(rows, num_rows - 1).to(tl.int64)
    column = tl.minimum(columns, vocab_size - 1).to(tl.int64)
    left = hidden + row[:, None] * HIDDEN + features[None, :]
    right = weight + column[None, :] * stride_v + features[:, None] * stride_d
    total = tl.zeros((BLOCK_N, BLOCK_V), dtype=tl.float32)
    for start in range(0, HIDDEN, BLOCK_D):
        if HIDDEN % BLOCK_D == 0:
            h, w = tl.load(left), tl.load(right)
        else:
            inside = start + features < HIDDEN
            h, w = tl.load(left, mask=inside[None, :], other=0.0), tl.load(right, mask=inside[:, None], other=0.0)
        w = _narrow(w, h.dtype, INTERPRETED)
        if INTERPRETED:  # it would multiply the bits of bfloat16 numbers as integers
            h, w = h.to(tl.float32), w.to(tl.float32)
        total = tl.dot(h, w, total, input_precision="ieee")
        left += BLOCK_D
        right += BLOCK_D * stride_d
    if ROUNDED:
        total = _narrow(total, hidden.dtype.element_ty, INTERPRETED).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + column).to(tl.float32)[None, :]
    if SOFTCAP:
        return _tanh(total * inner) * outer
    return total * inner


@triton.jit
def forward_kernel(
    hidden, weight, bias, targets, partials, kept, references,
    num_rows, vocab_size, stride_v, stride_d, inner, outer, tiles_per_split,
    HIDDEN: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ROUNDED: tl.constexpr,
    INTERPRETED: tl.constexpr, KEEP: tl.constexpr, ENTROPY: tl.constexpr, SQUARES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Online softmax of a block of rows over one split of the vocabulary, the targets' own logits kept apart."""
    split, num_splits = tl.program_id(1), tl.num_programs(1)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < num_rows
    target = tl.load(targets + rows, mask=inside, other=-1)
    largest = tl.full((BLOCK_N,), _FLOOR, dtype=tl.float32)
    own = tl.zeros((BLOCK_N,), dtype=tl.float32)
    rest, first, square = own, own, own
    last = tl.minimum((split + 1) * tiles_per_split, tl.cdiv(vocab_size, BLOCK_V))
    for tile in range(split * tiles_per_split, last):
        columns = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        z = _logits(
            hidden, weight, bias, rows, columns, num_rows, vocab_size, stride_v, stride_d, inner, outer,
            HIDDEN, HAS_BIAS, SOFTCAP, ROUNDED, INTERPRETED, BLOCK_N, BLOCK_V, BLOCK_D,
        )  # fmt: skip
        is_target = columns[None, :] == target[:, None]
        own += tl.sum(tl.where(is_target, z, 0.0), 1)
        z = tl.where(is_target | (columns[None, :] >= vocab_size), float("-inf"), z)
        new = tl.maximum(largest, tl.max(z, 1))
        moved = largest - new
        shrink = tl.exp2(moved * _LOG2_E)
        z -= new[:, None]
        e = tl.exp2(z * _LOG2_E)
        if ENTROPY:
            first = shrink * (first + rest * moved) + tl.sum(e * tl.maximum(z, _FLOOR), 1)
        if SQUARES:
            square = shrink * shrink * square + tl.sum(e * e, 1)
        rest = shrink * rest + tl.sum(e, 1)
        largest = new
        if KEEP:
            at = kept + rows.to(tl.int64)[:, None] * vocab_size + columns[None, :]
            present = inside[:, None] & (columns[None, :] < vocab_size)
            tl.store(at, _narrow(e, kept.dtype.element_ty, INTERPRETED), mask=present)
            tl.store(references + tile * num_rows + rows, largest, mask=inside)
    at = partials + split * num_rows + rows
    field = num_splits * num_rows
    tl.store(at, largest, mask=inside)
    tl.store(at + field, rest, mask=inside)
    tl.store(at + 2 * field, own, mask=inside)
    if ENTROPY:
        tl.store(at + 3 * field, first, mask=inside)
    if SQUARES:
        tl.store(at + 4 * field, square, mask=inside)


@triton.jit
def _write_slopes(
    p, log_p, lse, targets, label, entropy_slope, offset, out, rows, columns, start, num_rows, width, outer,
    SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """From probabilities to d loss / d logits, but for a factor a row: see :class:`dftune.ops.gradient.Upstream`."""
    inside = rows < num_rows
    if ENTROPY:
        slope = tl.load(entropy_slope + rows, mask=inside, other=0.0)
        p *= slope[:, None] * tl.maximum(log_p, -1e4) + tl.load(offset + rows, mask=inside, other=0.0)[:, None]
    if SOFTCAP:
        tangent = (log_p + lse[:, None]) / outer
        p *= 1.0 - tangent * tangent
    target = tl.load(targets + rows, mask=inside, other=-1)
    own = tl.load(label + rows, mask=inside, other=0.0)
    p = tl.where((start + columns)[None, :] == target[:, None], own[:, None], p)
    at = out + rows.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(at, _narrow(p, out.dtype.element_ty, INTERPRETED), mask=inside[:, None] & (columns[None, :] < width))


@triton.jit
def recomputed_slopes_kernel(
    hidden, weight, bias, targets, lse, label, entropy_slope, offset, out,
    start, width, num_rows, vocab_size, stride_v, stride_d, inner, outer,
    HIDDEN: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ROUNDED: tl.constexpr,
    INTERPRETED: tl.constexpr, ENTROPY: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Logits of a tile once more, turned into their gradient."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    z = _logits(
        hidden, weight, bias, rows, start + columns, num_rows, vocab_size, stride_v, stride_d, inner, outer,
        HIDDEN, HAS_BIAS, SOFTCAP, ROUNDED, INTERPRETED, BLOCK_N, BLOCK_V, BLOCK_D,
    )  # fmt: skip
    total = tl.load(lse + rows, mask=rows < num_rows, other=0.0)
    log_p = z - total[:, None]
    _write_slopes(
        tl.exp2(log_p * _LOG2_E), log_p, total, targets, label, entropy_slope, offset, out,
        rows, columns, start, num_rows, width, outer, SOFTCAP, ENTROPY, INTERPRETED,
    )  # fmt: skip


@triton.jit
def kept_slopes_kernel(
    kept, references, targets, lse, label, entropy_slope, offset, out,
    start, width, num_rows, vocab_size, outer,
    SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """What the forward kept of a tile, turned into the gradient of its logits; ``start`` is a multiple of BLOCK_V."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = rows < num_rows
    at = kept + rows.to(tl.int64)[:, None] * vocab_size + (start + columns)[None, :]
    e = tl.load(at, mask=inside[:, None] & (columns[None, :] < width), other=0.0).to(tl.float32)
    tile = start // BLOCK_V + tl.program_id(1)
    total = tl.load(lse + rows, mask=inside, other=0.0)
    shift = tl.load(references + tile * num_rows + rows, mask=inside, other=0.0) - total
    log_p = tl.log2(tl.maximum(e, _TINY)) / _LOG2_E + shift[:, None]
    _write_slopes(
        e * tl.exp2(shift * _LOG2_E)[:, None], log_p, total, targets, label,
        entropy_slope, offset, out, rows, columns, start, num_rows, width, outer, SOFTCAP, ENTROPY, INTERPRETED,
    )  # fmt: skip


IS_INTERPRETED = not isinstance(forward_kernel, triton.runtime.JITFunction)
"""Whether Triton's interpreter runs the kernels, on CPU tensors too."""
