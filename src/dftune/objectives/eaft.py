"""Entropy-Adaptive Fine-Tuning: tokens weigh as much as the model is undecided."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from dftune.objectives.base import LossSum, TokenBatch

LN_20 = math.log(20)


def eaft(tokens: TokenBatch, *, alpha: Annotated[float, Field(ge=0, le=100)] = 1.0) -> LossSum:
    """Entropy-Adaptive Fine-Tuning.

        total = - sum_t  sg[(H_t / ln 20)^alpha] * log p_t

    ``H_t`` is the entropy of the 20 likeliest tokens, renormalised, so the weight lies in [0, 1]. A token that the
    model confidently contradicts (low entropy, low probability) hardly counts.

    Args:
        tokens: ``logps`` and ``top_k_entropy``, both (tokens,) float32, in nats.
        alpha: exponent of the weight; 0 is SFT.

    arXiv:2601.02151.
    """
    weights = (tokens.need("top_k_entropy").detach() / LN_20) ** alpha
    return LossSum(-(weights * tokens.logps).sum())
