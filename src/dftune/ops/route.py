"""Which route the scorer takes, and in how large pieces."""

from __future__ import annotations

import importlib.util
from typing import Literal, get_args

import torch

Route = Literal["plain", "stored", "recompute", "one_pass", "frozen_head", "liger"]

ROUTES: tuple[Route, ...] = get_args(Route)

_MIB = 2**20

_CPU_TILE_BYTES = 16 * _MIB
"""A tile should stay in the last-level cache: larger ones are no faster on CPU."""

_FEWEST_COLUMNS = 256
"""Narrower tiles make slow matrix products, whatever the budget says."""


_PLAIN_ENTRIES = 2**18
"""Up to so many logits, full logits under autograd cost less than the bookkeeping of any other route (about 0.4 ms)."""


def default_budget(device: torch.device) -> int:
    """Scratch bytes that the scorer may use beyond inputs, outputs and gradients: 160 MiB on CPU, 1 GiB elsewhere."""
    return 160 * _MIB if device.type == "cpu" else 1024 * _MIB


def choose_route(
    *,
    num_tokens: int,
    vocab_size: int,
    itemsize: int,
    differentiable: bool,
    head_trained: bool,
    entropy_gradient: bool,
    budget_bytes: int,
    longest_group: int | None = None,
) -> Route:
    """The route of a call; *liger* is never among the answers.

    A few logits are simply made. Without gradients it is the forward of *recompute*, which keeps nothing. A frozen
    head takes two matrix products whatever the objective, unless the entropy needs a gradient. Otherwise an objective
    that adds up over groups of rows which fit the budget is evaluated in one pass. For log-probabilities whose use is
    not known, probabilities are stored where they fit, and made again where they do not.

    Args:
        num_tokens: rows to score.
        vocab_size: columns.
        itemsize: bytes of a stored probability: 4, or 2 for bfloat16 operands.
        differentiable: whether anything needs a gradient.
        head_trained: whether weight or bias does.
        entropy_gradient: whether the entropy is asked for, and so can receive a gradient.
        budget_bytes: scratch that may be used.
        longest_group: rows of the largest group within which the objective does not add up (1: it adds up token by
            token; ``num_tokens``: not at all); None where the objective is not known.
    """
    row = vocab_size * itemsize
    if num_tokens * vocab_size <= _PLAIN_ENTRIES and num_tokens * row <= budget_bytes:
        return "plain"
    if not differentiable:
        return "recompute"
    if not head_trained and not entropy_gradient:
        return "frozen_head"
    if longest_group is not None and longest_group * row <= budget_bytes:
        return "one_pass"
    if num_tokens * row <= budget_bytes:
        return "stored"
    return "recompute"


def has_triton() -> bool:
    """Whether Triton is installed; it is not imported."""
    return importlib.util.find_spec("triton") is not None


def has_liger() -> bool:
    """Whether liger-kernel is installed, in whatever version; it is not imported."""
    return importlib.util.find_spec("liger_kernel") is not None


def tile_width(num_rows: int, hidden_size: int, vocab_size: int, device: torch.device, budget_bytes: int) -> int:
    """Vocabulary entries in a slice, so that a float32 tile of logits and one of the weight fit their share."""
    share = budget_bytes // 4
    if device.type == "cpu":
        share = min(share, _CPU_TILE_BYTES)
    width = share // (4 * max(num_rows, hidden_size, 1))
    return min(vocab_size, max(width // 64 * 64, _FEWEST_COLUMNS))


def block_rows(vocab_size: int, hidden_size: int, itemsize: int, device: torch.device, budget_bytes: int) -> int:
    """Rows in a block of the one-pass route.

    Every block adds to the whole gradient of the weight, so a large head wants few, large blocks. Where that gradient
    stays in a CPU's cache, so should the block.
    """
    if device.type == "cpu" and vocab_size * hidden_size * 4 <= _CPU_TILE_BYTES // 2:
        budget_bytes = min(budget_bytes, _CPU_TILE_BYTES // 2)
    return max(1, budget_bytes // (vocab_size * itemsize))
