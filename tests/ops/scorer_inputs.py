"""Inputs and an independent float64 reference for the tests of the scorer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

STATS = frozenset({"entropy", "top_k_entropy", "sum_sq_probs", "top1_hit"})

HEADS: dict[str, dict[str, Any]] = {
    "bare": {},
    "bias": {"bias": True},
    "temperature": {"temperature": 0.6},
    "softcap": {"softcap": 3.0},
    "scale": {"logit_scale": 0.25},
    "all": {"bias": True, "temperature": 1.7, "softcap": 4.0, "logit_scale": 1.5},
}


@dataclass
class Inputs:
    """Leaves of a small scoring problem, and upstream gradients of its two differentiable results."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    options: dict[str, Any]
    upstream: Tensor
    entropy_upstream: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.hidden, self.weight, self.bias) if leaf is not None]

    def double(self) -> Inputs:
        """The same numbers in float64, as new leaves."""
        hidden, weight, bias = (
            None if leaf is None else leaf.detach().double().requires_grad_()
            for leaf in (self.hidden, self.weight, self.bias)
        )
        assert hidden is not None
        assert weight is not None
        return Inputs(hidden, weight, bias, self.targets, self.options, self.upstream, self.entropy_upstream)


def make_inputs(
    head: str = "bare",
    dtype: torch.dtype = torch.float32,
    *,
    tokens: int = 13,
    hidden: int = 6,
    vocab: int = 29,
    seed: int = 0,
) -> Inputs:
    """Random inputs whose probabilities range from nearly 0 to nearly 1, with repeated targets."""
    generator = torch.Generator().manual_seed(seed)
    options = dict(HEADS[head])
    has_bias = options.pop("bias", False)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return Inputs(
        hidden=leaf(tokens, hidden),
        weight=leaf(vocab, hidden),
        bias=leaf(vocab) if has_bias else None,
        targets=torch.randint(vocab, (tokens,), generator=generator),
        options=options,
        upstream=torch.randn(tokens, generator=generator, dtype=torch.float64),
        entropy_upstream=torch.randn(tokens, generator=generator, dtype=torch.float64),
    )


def reference(inputs: Inputs, top_k: int = 20) -> dict[str, Tensor]:
    """Every statistic in float64, from torch's own cross-entropy and distributions."""
    logits = F.linear(inputs.hidden, inputs.weight, inputs.bias) * inputs.options.get("logit_scale", 1.0)
    if (softcap := inputs.options.get("softcap")) is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits / inputs.options.get("temperature", 1.0)
    rows = torch.distributions.Categorical(logits=logits)
    return {
        "logps": -F.cross_entropy(logits, inputs.targets, reduction="none"),
        "entropy": rows.entropy(),
        "top_k_entropy": torch.distributions.Categorical(logits=logits.topk(top_k, dim=1).values).entropy(),
        "sum_sq_probs": (rows.probs**2).sum(1),
        "top1_hit": (logits.argmax(1) == inputs.targets).double(),
    }


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Norm of the error over norm of the exact value."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())
