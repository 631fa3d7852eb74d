"""What policy objectives share: the clipped surrogate of PPO, and an estimate of the KL to a reference."""

from __future__ import annotations

from torch import Tensor


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """PPO's loss of each action, and whether the clip has taken its gradient away.

        loss = - min(r A, clip(r, 1 - clip_low, 1 + clip_high) A),     r = exp(log_ratio)

    Args:
        log_ratio: (n,) log p - log p_old.
        advantages: (n,).
        clip_low: how far a ratio may fall below 1 where the advantage is negative.
        clip_high: how far it may rise above 1 where the advantage is positive.

    Returns:
        losses (n,), and clipped (n,) bool.
    """
    ratio = log_ratio.exp()
    free, bounded = ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return -free.minimum(bounded), bounded < free


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate of KL(model || reference) from one token each: q/p - 1 - log(q/p), never negative, 0 where p = q.

    Its value is unbiased where the tokens were sampled from the model; on other tokens it is a penalty with the same
    minimum. Its gradient in log p is 1 - q/p, on average not that of the divergence.

    Args:
        logps: (n,) log p, differentiable.
        ref_logps: (n,) log q.
    """
    log_ratio = ref_logps - logps
    return log_ratio.expm1() - log_ratio
