"""CHORD's token weight phi: what the model is in two minds about counts most."""

from __future__ import annotations

from dftune.objectives.base import LossSum, TokenBatch


def chord_phi(tokens: TokenBatch) -> LossSum:
    """The supervised term of CHORD-phi.

        total = - sum_t  sg[p_t * (1 - p_t)] * log p_t

    The weight is 1/4 at p = 1/2 and falls to 0 at both ends. CHORD adds this term to a policy-gradient loss.

    Args:
        tokens: ``logps`` (tokens,) float32, log-probability of each target token.

    Zhang et al. 2025, arXiv:2508.11408.
    """
    logps = tokens.logps.detach()
    weights = -logps.exp() * logps.expm1()
    return LossSum(-(weights * tokens.logps).sum())
