"""PPO's policy term, averaged over tokens."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dftune.objectives.base import LossSum, TokenBatch
from dftune.objectives.policy import clipped_surrogate, k3

ClipLow = Annotated[float, Field(gt=0, le=1)]
ClipHigh = Annotated[float, Field(gt=0)]
KlWeight = Annotated[float, Field(ge=0)]


def ppo(
    tokens: TokenBatch, *, clip_low: ClipLow = 0.2, clip_high: ClipHigh = 0.2, kl_weight: KlWeight = 0.0
) -> LossSum:
    """The policy term of PPO.

        total = sum_i sum_t  - min(r_t A_i, clip(r_t, 1 - clip_low, 1 + clip_high) A_i) + kl_weight * k3_t
        r_t   = p_t / p_old_t,     k3_t = q_t/p_t - 1 - log(q_t/p_t)

    Args:
        tokens: ``logps`` and ``old_logps``, both (tokens,) float32; ``advantages`` (sequences,), one a completion;
            ``ref_logps`` (tokens,) where ``kl_weight`` is above 0.
        clip_low: how far a ratio may fall below 1 where the advantage is negative.
        clip_high: how far it may rise above 1 where the advantage is positive.
        kl_weight: weight of the divergence from the reference, beta in most papers.

    Schulman et al. 2017, arXiv:1707.06347.
    """
    logps, advantages = tokens.logps, tokens.need("advantages").detach()[tokens.sequence_ids]
    losses, clipped = clipped_surrogate(logps - tokens.need("old_logps").detach(), advantages, clip_low, clip_high)
    metrics = {"clipped_share": clipped.sum()}
    if kl_weight > 0:
        divergence = k3(logps, tokens.need("ref_logps").detach())
        losses = losses + kl_weight * divergence
        metrics["kl"] = divergence.detach().sum()
    return LossSum(losses.sum(), metrics=metrics)
