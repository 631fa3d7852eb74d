"""Causal attention over packed rows, each document by itself, registered with transformers.

Left to itself transformers isolates packed documents only when ``use_cache=False`` and no mask is given. Here the
document bounds travel as an argument of the forward, and no (length, length) mask is ever built. On a GPU a varlen
kernel does all documents in one call.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dftune.ops.ulysses import SequenceGroup
from dftune.ops.varlen import AttentionOptions, Kernel, all_documents

IMPLEMENTATION = "dftune_documents"
# Arguments that some models pass and that change the result; silently ignoring one would be another model.
_UNSUPPORTED = ("s_aux", "position_bias", "sinks")


def register(kernel: Kernel = "auto") -> str:
    """Make the attention known to transformers and return its name. Without a mask function it is given no mask.

    Args:
        kernel: computes the documents of a packed row, see :func:`document_attention`.
    """
    from transformers import AttentionInterface  # noqa: PLC0415  (1 s to import)

    # transformers gives a name with "flash" in it a meaning of its own
    name = IMPLEMENTATION if kernel == "auto" else f"{IMPLEMENTATION}_{kernel.replace('flash_attention_', 'fa')}"
    AttentionInterface.register(name, _uncompiled(kernel))
    return name


@cache
def _uncompiled(kernel: Kernel) -> Any:
    """The attention, left as it is inside compiled blocks: documents begin elsewhere in every batch."""
    disable: Any = torch.compiler.disable

    def attention(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return document_attention(*args, kernel=kernel, **kwargs)

    return disable(attention)


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    document_starts: list[int] | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    kernel: Kernel = "auto",
    sequence: SequenceGroup | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal self-attention within each document of a packed row, or within each row of a batch.

    Args:
        module: the calling attention layer; ``is_causal=False`` is refused.
        query: (rows, heads, length, head size).
        key: (rows, key-value heads, length, head size); heads are repeated by the kernels (grouped queries).
        value: as ``key``.
        attention_mask: must be None; padding stands on the right, where causal attention never looks.
        scaling: multiplies the scores; default 1 / sqrt(head size).
        dropout: probability on the attention weights.
        sliding_window: a token sees itself and this many minus one before it.
        softcap: bound of the scores.
        document_starts: offsets of the documents in a single packed row, with the row's length at the end.
        cu_seq_lens_q: the same as an int32 tensor on the device, for varlen kernels.
        max_length_q: longest document.
        kernel: of packed rows. ``auto``: torch's varlen kernel on CUDA in 16 bits, where it knows the model's options;
            ``flash_attention_2`` and ``_3``: the package of that name, on CUDA. Elsewhere, with ``sdpa``, and of rows
            that are not packed, torch's scaled-dot-product attention, document by document.
        sequence: the ranks that share the rows; query, key and value are then of this rank's positions, and lengths
            and offsets those of the whole.
        kwargs: what else transformers passes along.

    Returns:
        (rows, length, heads, head size), and None for the weights.
    """
    given = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if attention_mask is not None or given or not getattr(module, "is_causal", True):
        raise ValueError(
            f"{type(module).__name__} asks for attention that dftune does not compute "
            f"({', '.join(given) or 'a mask or bidirectional attention'}). Use a model with plain causal attention."
        )
    if torch.is_autocast_enabled(query.device.type):  # rotation leaves queries and keys in float32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if sequence is not None:
        query, key, value = sequence.to_heads(query, key, value)
    options = AttentionOptions(scaling, dropout, sliding_window, softcap)
    attended = None
    if document_starts is not None:
        attended = all_documents(kernel, query, key, value, (cu_seq_lens_q, max_length_q), options=options)
    if attended is None:
        attended = _by_document(query, key, value, document_starts, options).transpose(1, 2)
    return attended if sequence is None else sequence.to_positions(attended), None


def _by_document(
    query: Tensor, key: Tensor, value: Tensor, document_starts: list[int] | None, options: AttentionOptions
) -> Tensor:
    if document_starts is None:
        return _causal(query, key, value, options)
    documents = []
    for start, end in pairwise(document_starts):
        q, k, v = (x[:, :, start:end] for x in (query, key, value))
        documents.append(_causal(q, k, v, options))
    return torch.cat(documents, dim=2)


def _causal(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
    length = query.shape[2]
    scaling, dropout, window, softcap = options.scaling, options.dropout, options.window, options.softcap
    if softcap is None and (window is None or window >= length):
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=length > 1, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
    index = torch.arange(length, device=query.device)
    distance = index[:, None] - index[None, :]
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    weights = scores.float().masked_fill(~visible, float("-inf")).softmax(-1).to(query.dtype)
    return F.dropout(weights, dropout) @ value
