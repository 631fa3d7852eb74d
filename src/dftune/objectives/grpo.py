"""GRPO's policy term, averaged over the tokens of each completion and then over completions."""

from __future__ import annotations

from typing import Literal

from dftune.objectives.base import LossSum, TokenBatch
from dftune.objectives.policy import clipped_surrogate, k3
from dftune.objectives.ppo import ClipHigh, ClipLow, KlWeight


def grpo(
    tokens: TokenBatch,
    *,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    ratio: Literal["token", "sequence"] = "token",
    kl_weight: KlWeight = 0.0,
) -> LossSum:
    """The policy term of GRPO.

        total = sum_i (1 / |y_i|) sum_t  - min(r_t A_i, clip(r_t, 1 - clip_low, 1 + clip_high) A_i) + kl_weight * k3_t
        r_t   = p_t / p_old_t, and with a sequence ratio exp(mean_t log(p_t / p_old_t)) for all tokens of y_i

    Args:
        tokens: ``logps`` and ``old_logps``, both (tokens,) float32; ``advantages`` (sequences,), already relative to
            their group; ``ref_logps`` (tokens,) where ``kl_weight`` is above 0.
        clip_low: how far a ratio may fall below 1 where the advantage is negative.
        clip_high: how far it may rise above 1 where the advantage is positive.
        ratio: of each token, or GSPO's of the sequence, whose clips are much smaller (3e-4 and 4e-4 in its paper).
        kl_weight: weight of the divergence from the reference, beta in the papers.

    Shao et al. 2024, arXiv:2402.03300; the sequence ratio: Zheng et al. 2025, arXiv:2507.18071.
    """
    logps, lengths = tokens.logps, tokens.sequence_lengths()
    log_ratio = logps - tokens.need("old_logps").detach()
    if ratio == "sequence":
        log_ratio = (tokens.sequence_sums(log_ratio) / lengths)[tokens.sequence_ids]
    advantages = tokens.need("advantages").detach()[tokens.sequence_ids]
    losses, clipped = clipped_surrogate(log_ratio, advantages, clip_low, clip_high)
    metrics = {"clipped_share": (tokens.sequence_sums(clipped.to(logps)) / lengths).sum()}
    if kl_weight > 0:
        divergence = k3(logps, tokens.need("ref_logps").detach())
        losses = losses + kl_weight * divergence
        metrics["kl"] = (tokens.sequence_sums(divergence.detach()) / lengths).sum()
    return LossSum((tokens.sequence_sums(losses) / lengths).sum(), metrics=metrics)
