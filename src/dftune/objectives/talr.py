"""Token-Adaptive Loss Reweighting: hard tokens weigh less, by a temperature that the batch sets."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dftune.objectives.base import LossSum, TokenBatch


def talr(tokens: TokenBatch, *, floor: Annotated[float, Field(ge=0, le=1)] = 0.01) -> LossSum:
    """Token-Adaptive Loss Reweighting.

        total = - sum_t  sg[max(p_t^(1 / tau), floor)] * log p_t
        tau   = median over the sequences of the batch of (mean NLL of the sequence's tokens)

    The temperature belongs to the batch, so the loss is no sum over parts of it.

    Args:
        tokens: ``logps`` (tokens,) float32, log-probability of each target token.
        floor: least weight.

    Lin et al. 2025, arXiv:2509.20758.
    """
    logps = tokens.logps.detach()
    tau = (-tokens.sequence_sums(logps) / tokens.sequence_lengths()).quantile(0.5)
    weights = (logps / tau.clamp(min=1e-6)).exp().clamp(min=floor)  # a batch known by heart has tau = 0
    return LossSum(-(weights * tokens.logps).sum(), metrics={"tau": tau * len(logps)})
