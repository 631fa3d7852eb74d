"""Proximal SFT: the likelihood ratio to the policy at the start of an inner loop, clipped from above."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from dftune.objectives.base import LossSum, TokenBatch


def psft(tokens: TokenBatch, *, clip: Annotated[float, Field(gt=0)] = 0.28) -> LossSum:
    """Proximal SFT: PPO's surrogate with an advantage of 1 for every token.

        total = - sum_t  min(r_t, clip(r_t, 1 - clip, 1 + clip)) = - sum_t  min(r_t, 1 + clip),    r_t = p_t / p_old_t

    A token whose probability has risen by more than ``clip`` since the inner loop began has no gradient. While p is
    still p_old the ratio is 1, the gradient is SFT's and the clip does nothing: without an inner loop this *is* SFT.

    Args:
        tokens: ``logps`` and ``old_logps``, both (tokens,) float32.
        clip: how far a ratio may rise above 1.

    Zhu et al. 2025, arXiv:2508.17784.
    """
    log_ratio = tokens.logps - tokens.need("old_logps").detach()
    bound = math.log1p(clip)
    return LossSum(
        -log_ratio.clamp(max=bound).exp().sum(),  # clamped before exp: a clipped ratio cannot overflow
        metrics={"clipped_share": (log_ratio > bound).sum()},
    )
