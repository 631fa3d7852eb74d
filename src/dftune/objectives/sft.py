"""Supervised fine-tuning: the negative log-likelihood."""

from __future__ import annotations

from dftune.objectives.base import LossSum, TokenBatch


def sft(tokens: TokenBatch) -> LossSum:
    """Supervised fine-tuning, the baseline.

        total = - sum_t  log p_t

    Args:
        tokens: ``logps`` (tokens,) float32, log-probability of each target token.
    """
    return LossSum(-tokens.logps.sum())
