"""DEFT: the power family with an exponent of each token's own, set by how concentrated the model's prediction is."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from dftune.objectives.base import LossSum, TokenBatch


def deft(tokens: TokenBatch, *, exponent: Literal["concentration", "cayley"] = "concentration") -> LossSum:
    """DEFT.

        total = sum_t  (1 - p_t^a_t) / a_t,         a_t without gradient
        a_t   = sum_v p_tv^2                                            (concentration)
        a_t   = a_0 + (1 - a_0) * p_t / (2 - p_t),   a_0 = mean(p) / 2   (cayley)

    Its gradient is SFT's scaled by ``p_t^a_t``: near SFT where the model is undecided (a small), near Dynamic
    Fine-Tuning where it is sure (a near 1). The mean is over the batch, so the Cayley form is no sum over parts.

    Args:
        tokens: ``logps`` (tokens,) float32; ``sum_sq_probs`` (tokens,) float32 for the concentration.
        exponent: what sets ``a_t``.

    arXiv:2602.11424.
    """
    a = tokens.need("sum_sq_probs").detach() if exponent == "concentration" else _cayley(tokens.logps.detach().exp())
    return LossSum(-((a * tokens.logps).expm1() / a).sum(), metrics={"exponent": a.sum()})


def _cayley(p: Tensor) -> Tensor:
    floor = p.mean() / 2
    return (floor + (1 - floor) * p / (2 - p)).clamp(min=1e-3)
