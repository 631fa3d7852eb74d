"""Matrix products of the scorer: float32 accumulation, reused outputs, and the fastest float32 kernel the CPU has."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_WORTH_ONEDNN = 2**27
"""Multiply-adds below which oneDNN's cost of preparing a kernel for a new shape outweighs what it saves."""


class Buffers:
    """Scratch tensors by name, allocated once: on CPU a fresh large tensor costs more than the work on it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._flat: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised contiguous tensor; what was taken under this name and dtype before is overwritten."""
        size = math.prod(shape)
        flat = self._flat.get((name, dtype))
        if flat is None or flat.numel() < size:
            self._flat.pop((name, dtype), None)  # freed before its larger successor is allocated
            del flat
            flat = self._flat[name, dtype] = torch.empty(size, dtype=dtype, device=self.device)
        return flat[:size].view(*shape)


def product(a: Tensor, b: Tensor, out: Tensor, *, bfloat16_valued: bool = False) -> Tensor:
    """``out = a @ b``. Where ``out`` is wider than the operands (CUDA only), nothing is rounded in between.

    Args:
        a: left.
        b: right.
        out: written.
        bfloat16_valued: whether float32 operands hold bfloat16 numbers, so that bfloat16 arithmetic loses nothing.
    """
    if a.dtype != out.dtype:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    with _fastest_float32(a, b, bfloat16_valued=bfloat16_valued):
        return torch.mm(a, b, out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor, buffers: Buffers) -> None:
    """``total += a @ b`` with a float32 (or float64) total.

    On CPU a bfloat16 product is rounded once to bfloat16 before it is added, because CPU kernels write their operands'
    dtype; the sum over products is float32.
    """
    if a.dtype == total.dtype:
        with _fastest_float32(a, b):
            total.addmm_(a, b)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        rounded = torch.mm(a, b, out=buffers.take("product", total.shape, a.dtype))
        # mixed-dtype addition takes a scalar path on CPU, several times slower than copying first
        total.add_(buffers.take("product", total.shape, total.dtype).copy_(rounded))


def set_product(out: Tensor, a: Tensor, b: Tensor, buffers: Buffers) -> None:
    """``out = a @ b`` for any dtype of ``out``, accumulated in float32 and rounded once."""
    if a.dtype == out.dtype or (out.is_cuda and out.dtype == torch.float32):
        product(a, b, out)
    else:
        out.copy_(product(a, b, buffers.take("product", out.shape, a.dtype)))


@contextmanager
def _fastest_float32(a: Tensor, b: Tensor, *, bfloat16_valued: bool = False) -> Iterator[None]:
    """Use oneDNN rather than MKL for float32 products on CPU, where that changes nothing but the speed.

    torch reaches oneDNN's float32 kernel only under its bfloat16 math mode, which permits lower precision and, on
    processors without AMX, does not use it. Measured: 1.1 times MKL's speed on an AMD Zen 4.
    """
    large = a.shape[0] * a.shape[1] * b.shape[1] >= _WORTH_ONEDNN
    float32_on_cpu = a.dtype == torch.float32 and a.device.type == "cpu"
    if not (large and float32_on_cpu and (bfloat16_valued or onednn_keeps_float32())):
        yield
        return
    with _bfloat16_math_mode():
        yield


@contextmanager
def _bfloat16_math_mode() -> Iterator[None]:
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


@functools.cache
def onednn_keeps_float32() -> bool:
    """Whether oneDNN's matrix product under the bfloat16 math mode is still an exact float32 one, by trying it.

    1 + 2**-12 needs 13 bits: bfloat16 (8) and TF32 (11) round it to 1.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    probe = torch.full((256, 256), 1 + 2**-12)
    with _bfloat16_math_mode():
        return torch.equal(torch.mm(probe, torch.eye(256)), probe)
