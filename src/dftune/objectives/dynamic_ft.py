"""Dynamic Fine-Tuning: the negative log-likelihood of each token, weighted by the token's own probability."""

from __future__ import annotations

from dftune.objectives.base import LossSum, TokenBatch


def dynamic_ft(tokens: TokenBatch) -> LossSum:
    """Dynamic Fine-Tuning.

        total = - sum_t  sg[p_t] * log p_t          (sg: stop-gradient)

    Its gradient is SFT's scaled by ``p_t``, which is the gradient of ``- sum_t p_t``. The value lies in
    [0, 1/e] a token and cannot be compared with an SFT loss; the logged ``nll`` can.

    Args:
        tokens: ``logps`` (tokens,) float32, log-probability of each target token.

    Wu et al. 2025, arXiv:2508.05629.
    """
    logps = tokens.logps
    return LossSum(-(logps.detach().exp() * logps).sum())
