"""Transformer blocks: what each keeps for its backward, and whether it is compiled."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

_KEPT = frozenset(
    {
        "aten.mm",
        "aten.addmm",
        "aten.bmm",
        "aten.baddbmm",
        "aten._scaled_dot_product_flash_attention",
        "aten._scaled_dot_product_flash_attention_for_cpu",
        "aten._scaled_dot_product_efficient_attention",
        "aten._scaled_dot_product_cudnn_attention",
        "aten._flash_attention_forward",
        "flash_attn._flash_attn_forward",
        "flash_attn._flash_attn_varlen_forward",
        "flash_attn_3._flash_attn_forward",
        "torch_attn._varlen_attn",
    }
)
"""Matrix products and attention: all that is expensive to make again."""


def recompute(model: Any, kind: str) -> None:
    """Have every block of a model make activations again in its backward pass.

    Args:
        model: a causal language model of transformers; changed in place.
        kind: ``none``; ``full`` keeps a block's input alone; ``selective`` the outputs of matrix products and of
            attention as well (selective activation checkpointing of ``torch.utils.checkpoint``).
    """
    if kind == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    # renamed in transformers 5.x; the old name goes with version 6
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = str(getattr(operation, "overloadpacket", operation)) in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(model: Any) -> None:
    """Compile each transformer block by itself, before anything is sharded. Nothing is compiled until it is called.

    Names of weights stay what they were. Attention runs as it is, since documents begin elsewhere in every batch.

    Args:
        model: the transformers model; changed in place.

    Raises:
        ValueError: its blocks are not known.
    """
    for block in blocks(model, "model.compile=false"):
        block.compile(dynamic=True)


def blocks(model: Any, instead: str) -> list[nn.Module]:
    """The transformer blocks of a causal language model.

    Args:
        model: the transformers model.
        instead: the setting to take where they are not known.

    Raises:
        ValueError: it does not name them.
    """
    names = set(model._no_split_modules or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    if not found:
        raise ValueError(
            f"{type(model).__name__} does not say which of its modules are blocks, so they cannot be treated one by "
            f"one. Set {instead}."
        )
    return found
