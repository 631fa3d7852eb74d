"""What is asked of the scorer, in the form in which every route gets it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

STATS = frozenset({"entropy", "top_k_entropy", "sum_sq_probs", "top1_hit"})


@dataclass(frozen=True)
class TokenStats:
    """What the scorer says of each token; float32 (float64 for float64 inputs).

    Attributes:
        logps: (tokens,) log-probability of the target, differentiable.
        entropy: (tokens,) of the whole row, in nats, differentiable.
        top_k_entropy: (tokens,) entropy of the renormalised k largest probabilities, in nats, no gradient.
        sum_sq_probs: (tokens,) sum of squared probabilities, no gradient.
        top1_hit: (tokens,) 1 where the target's logit is larger than every other one, else 0, no gradient.
    """

    logps: Tensor
    entropy: Tensor | None = None
    top_k_entropy: Tensor | None = None
    sum_sq_probs: Tensor | None = None
    top1_hit: Tensor | None = None

    def map(self, of_tokens: Callable[[Tensor], Tensor]) -> TokenStats:
        """What a function makes of each of them."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: of_tokens(value) for name, value in found.items() if value is not None})

    def detach(self) -> TokenStats:
        """The same numbers without gradient."""
        return self.map(Tensor.detach)


@dataclass(frozen=True)
class HeadOptions:
    """How logits are made from hidden states.

        x = logit_scale * (W h + bias)
        z = softcap * tanh(x / softcap) / temperature        or x / temperature without a soft-cap

    Attributes:
        temperature: divides last.
        softcap: bound of the logits, as in Gemma 2.
        logit_scale: multiplies first, as in Cohere and Granite models.
        operand_dtype: what the matrix products read, cast a tile at a time; None is the promoted dtype of hidden and
            weight, float32 where that is float16.
        logits_dtype: what a tile of ``W h`` is rounded to; None is float32. ``torch.bfloat16`` is what a bfloat16
            model's own forward computes, and on CPU halves the cost of a bfloat16 tile.
    """

    temperature: float = 1.0
    softcap: float | None = None
    logit_scale: float | None = None
    operand_dtype: torch.dtype | None = None
    logits_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0 or (self.softcap is not None and self.softcap <= 0):
            raise ValueError(f"temperature and softcap must be positive; found {self.temperature} and {self.softcap}.")

    @property
    def gain(self) -> float:
        """d z / d (W h + bias), but for the slope of the soft-cap."""
        return (1.0 if self.logit_scale is None else self.logit_scale) / self.temperature

    def operand(self, hidden: Tensor, weight: Tensor) -> torch.dtype:
        """The dtype that the matrix products read."""
        if self.operand_dtype is not None:
            return self.operand_dtype
        promoted = torch.promote_types(hidden.dtype, weight.dtype)
        return torch.float32 if promoted == torch.float16 else promoted


def wide(operand: torch.dtype) -> torch.dtype:
    """The dtype of logits, sums and results: float32, or float64 for float64 operands."""
    return torch.float64 if operand == torch.float64 else torch.float32


@dataclass(frozen=True)
class Scoring:
    """What a route is asked, besides the hidden states, weight and bias that may need a gradient.

    Attributes:
        targets: (tokens,) int64.
        options: of the head.
        stats: to compute besides the log-probabilities.
        top_k: of ``top_k_entropy``.
        width: vocabulary entries in a slice; the plain route has no slices.
    """

    targets: Tensor
    options: HeadOptions = HeadOptions()
    stats: frozenset[str] = frozenset()
    top_k: int = 20
    width: int = 1024

    def __post_init__(self) -> None:
        if unknown := sorted(self.stats - STATS):
            raise ValueError(f"unknown statistics {unknown}; known: {sorted(STATS)}.")
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1; found {self.top_k}.")
