"""Dynamic Fine-Tuning: the negative log-likelihood of each token, weighted by the token's own probability."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from dftune.objectives.base import LossSum, TokenBatch

Weight = Annotated[float, Field(ge=0, le=1)]


def dynamic_ft(tokens: TokenBatch, *, floor: Weight | None = None, clip: Weight | None = None) -> LossSum:
    """Dynamic Fine-Tuning.

        total = - sum_t  sg[w_t] * log p_t          (sg: stop-gradient)
        w_t   = p_t, or max(p_t, floor), or min(p_t, clip)

    Without options its gradient is SFT's scaled by ``p_t``, which is the gradient of ``- sum_t p_t``. The value lies
    in [0, 1/e] a token and cannot be compared with an SFT loss; the logged ``nll`` can.

    Args:
        tokens: ``logps`` (tokens,) float32, log-probability of each target token.
        floor: least weight, so that tokens the model finds nearly impossible are still learned.
        clip: greatest weight.

    Wu et al. 2025, arXiv:2508.05629.
    """
    logps = tokens.logps
    weights = logps.detach().exp()
    if floor is not None or clip is not None:
        weights = weights.clamp(floor, clip)
    return LossSum(-(weights * logps).sum())


def resolve(options: dict[str, Any]) -> dict[str, Any]:
    """Refuse a floor above the clip, where every token would have the same weight."""
    floor, clip = options["floor"], options["clip"]
    if floor is not None and clip is not None and floor > clip:
        raise ValueError(
            f"floor {floor} is above clip {clip}; every token would weigh {clip}. Lower floor or drop clip"
        )
    return options
