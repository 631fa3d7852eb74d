"""Attention of all documents of a packed row in one call, by a kernel on the GPU: torch's, or FlashAttention's."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

Kernel = Literal["auto", "sdpa", "flash_attention_2", "flash_attention_3"]
PACKAGES: Mapping[str, tuple[str, str, tuple[int, int]]] = {
    "flash_attention_2": ("flash_attn", "flash-attn", (8, 0)),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3", (9, 0)),
}
"""Module, package and least compute capability of each kernel that is not torch's."""


@dataclass(frozen=True)
class AttentionOptions:
    """What models ask of causal attention beside queries, keys and values.

    Attributes:
        scaling: multiplies the scores; None is 1 / sqrt(head size).
        dropout: probability on the attention weights.
        window: a token sees itself and this many minus one before it; None is all of them.
        softcap: bound of the scores.
    """

    scaling: float | None = None
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None


def all_documents(
    kernel: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: tuple[Tensor | None, int | None],
    *,
    options: AttentionOptions,
) -> Tensor | None:
    """Causal attention within each document.

    Args:
        kernel: as in :func:`dftune.ops.attention.document_attention`.
        query: (1, heads, length, head size).
        key: (1, key-value heads, length, head size).
        value: as ``key``.
        documents: (documents + 1,) int32, their offsets with the length at the end; and how long the longest is.
        options: of the model.

    Returns:
        (1, length, heads, head size); None where the kernel does not compute this: on a CPU, in float32, and for
        torch's with dropout, a soft-cap, or heads wider than 256.

    Raises:
        ValueError: FlashAttention 3 has no dropout.
    """
    if not query.is_cuda or kernel == "sdpa" or query.dtype not in (torch.bfloat16, torch.float16):
        return None
    q, k, v = (x.transpose(1, 2).contiguous() for x in (query, key, value))
    if kernel != "auto":
        return flash(kernel, q, k, v, documents, options=options)
    varlen_attn = _varlen_attn()
    if varlen_attn is None or options.dropout or options.softcap is not None or not q.shape[-1] == v.shape[-1] <= 256:
        return None
    q, k, v = (x.squeeze(0) for x in (q, k, v))
    left, grouped = -1 if options.window is None else options.window - 1, q.shape[1] != k.shape[1]
    (bounds, longest), window_size = documents, (left, 0)
    out: Tensor = varlen_attn(
        q, k, v, bounds, bounds, longest, longest, scale=options.scaling, window_size=window_size, enable_gqa=grouped
    )
    return out.unsqueeze(0)


def flash(
    kernel: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: tuple[Tensor | None, int | None],
    *,
    options: AttentionOptions,
) -> Tensor:
    """The same by a FlashAttention package, called as transformers calls it; tensors are (1, length, heads, size).

    Raises:
        ValueError: FlashAttention 3 has no dropout.
    """
    from transformers.modeling_flash_attention_utils import _flash_attention_forward  # noqa: PLC0415  (1 s to import)

    if options.dropout and kernel == "flash_attention_3":
        raise ValueError(
            f"model.attention=flash_attention_3 has no dropout, and the model asks for {options.dropout:g}."
        )
    bounds, longest = documents
    out: Tensor = _flash_attention_forward(
        query,
        key,
        value,
        attention_mask=None,
        query_length=query.shape[1],
        is_causal=True,
        dropout=options.dropout,
        softmax_scale=options.scaling,
        sliding_window=options.window,
        softcap=options.softcap,
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=longest,
        max_length_k=longest,
        attn_implementation=kernel,
    )
    return out


def refusal(kernel: str, device: torch.device, precision: torch.dtype) -> str | None:
    """Why attention cannot be computed by a kernel here; None where it can.

    Args:
        kernel: as in :func:`dftune.ops.attention.document_attention`.
        device: of the compute.
        precision: of the compute.
    """
    if kernel not in PACKAGES:
        return None
    module, package, least = PACKAGES[kernel]
    if device.type != "cuda":
        return f"it runs on CUDA, and this run is on the {device.type.upper()}"
    if precision == torch.float32:
        return "it computes in 16 bits, and train.precision is fp32"
    if importlib.util.find_spec(module) is None:
        return f"the package {package} is not installed"
    if torch.cuda.get_device_capability(device) < least:
        return f"it needs a device of compute capability {least[0]}.{least[1]} or more"
    return None


@cache
def _varlen_attn() -> Any:
    """``torch.nn.attention.varlen.varlen_attn`` where it takes a window and grouped queries, else None."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"window_size", "enable_gqa", "scale"} <= known.keys() else None
