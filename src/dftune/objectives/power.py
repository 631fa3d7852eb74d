"""The power family between SFT and Dynamic Fine-Tuning."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dftune.objectives.base import LossSum, TokenBatch


def power(tokens: TokenBatch, *, alpha: Annotated[float, Field(gt=0, le=100)] = 0.5) -> LossSum:
    """The power family: a loss that is linear in ``p^alpha``.

        total = sum_t  (1 - p_t^alpha) / alpha

    Its gradient is SFT's scaled by ``p_t^alpha``: SFT as alpha goes to 0, Dynamic Fine-Tuning at alpha = 1.
    Computed as ``-expm1(alpha log p) / alpha``, which stays exact for small alpha.

    Args:
        tokens: ``logps`` (tokens,) float32, log-probability of each target token.
        alpha: exponent of the weight.

    Li et al. 2025, arXiv:2510.00526.
    """
    return LossSum(-(alpha * tokens.logps).expm1().sum() / alpha)
