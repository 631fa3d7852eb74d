"""Prior-support guided fine-tuning: tokens weigh as much as the frozen base model believed in them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dftune.objectives.base import LossSum, TokenBatch
from dftune.objectives.dynamic_ft import Weight


def prior_ft(
    tokens: TokenBatch,
    *,
    alpha: Annotated[float, Field(gt=0, le=100)] = 1.0,
    floor: Weight | None = None,
    clip: Weight | None = None,
) -> LossSum:
    """PriFT: a rule that weights by p, with the frozen base's q in place of p.

        total = - sum_t  w_t * log p_t
        w_t   = q_t^alpha, or max(q_t^alpha, floor), or min(q_t^alpha, clip)

    alpha = 1 is Dynamic Fine-Tuning's rule and any other the power family's. The weights do not move with training.

    Args:
        tokens: ``logps`` and ``ref_logps``, both (tokens,) float32.
        alpha: exponent of the weight.
        floor: least weight.
        clip: greatest weight.

    Wang et al. 2026, arXiv:2606.09396 (PriFT-prob).
    """
    weights = (alpha * tokens.need("ref_logps").detach()).exp()
    if floor is not None or clip is not None:
        weights = weights.clamp(floor, clip)
    return LossSum(-(weights * tokens.logps).sum())
