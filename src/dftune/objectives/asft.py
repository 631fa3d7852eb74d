"""Anchored SFT: (dynamic) fine-tuning with a penalty on the divergence from the base model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dftune.objectives.base import LossSum, TokenBatch
from dftune.objectives.policy import k3


def asft(
    tokens: TokenBatch,
    *,
    base: Literal["dynamic", "nll"] = "dynamic",
    kl: Literal["full", "k3"] = "full",
    kl_weight: Annotated[float, Field(ge=0)] = 0.1,
) -> LossSum:
    """Anchored SFT.

        total = - sum_t  sg[w_t] * log p_t  +  kl_weight * sum_t KL_t
        w_t   = p_t (dynamic) or 1 (nll)
        KL_t  = KL(reference || model) over the vocabulary (full), or q_t/p_t - 1 - log(q_t/p_t) (k3)

    The two penalties differ in direction and in size, so a weight tuned for one says nothing of the other.

    Args:
        tokens: ``logps`` (tokens,) float32; ``ref_kl`` (tokens,) float32, differentiable, for the full penalty;
            ``ref_logps`` (tokens,) float32 for k3.
        base: the loss that is anchored; ``nll`` with a full penalty is the authors' SFT+KL.
        kl: the penalty.
        kl_weight: its weight, lambda in the paper.

    Zhu et al. 2025, arXiv:2509.23753.
    """
    logps = tokens.logps
    weights = logps.detach().exp() if base == "dynamic" else 1.0
    divergence = tokens.need("ref_kl") if kl == "full" else k3(logps, tokens.need("ref_logps").detach())
    total = -(weights * logps).sum() + kl_weight * divergence.sum()
    return LossSum(total, metrics={"kl": divergence.detach().sum()})
