"""The power family between SFT and Dynamic Fine-Tuning, for all tokens or for those on one side of a threshold."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from dftune.objectives.base import LossSum, TokenBatch

Probability = Annotated[float, Field(ge=0, le=1)]


def power(
    tokens: TokenBatch,
    *,
    alpha: Annotated[float, Field(ge=0, le=100)] = 0.5,
    p_min: Probability | None = None,
    p_max: Probability | None = None,
) -> LossSum:
    """The power family: a loss that is linear in ``p^alpha``.

        total = sum_t  1[p_min <= p_t <= p_max] * (1 - p_t^alpha) / alpha          (- log p_t at alpha = 0)

    Its gradient is SFT's scaled by ``p_t^alpha``: SFT as alpha goes to 0, Dynamic Fine-Tuning at alpha = 1.
    Computed as ``-expm1(alpha log p) / alpha``, which stays exact for small alpha. Tokens outside the thresholds
    have no gradient, and still count as units.

    Args:
        tokens: ``logps`` (tokens,) float32, log-probability of each target token.
        alpha: exponent of the weight.
        p_min: train on tokens of at least this probability.
        p_max: train on tokens of at most this probability.

    Li et al. 2025, arXiv:2510.00526.
    """
    logps = tokens.logps
    losses = -(alpha * logps).expm1() / alpha if alpha > 0 else -logps
    if p_min is None and p_max is None:
        return LossSum(losses.sum())
    p = logps.detach().exp()
    kept = (p >= (p_min or 0)) & (p <= (1 if p_max is None else p_max))
    return LossSum((kept * losses).sum(), metrics={"kept_share": kept.sum()})


def resolve(options: dict[str, Any]) -> dict[str, Any]:
    """Refuse thresholds that leave no token."""
    p_min, p_max = options["p_min"], options["p_max"]
    if p_min is not None and p_max is not None and p_min > p_max:
        raise ValueError(f"no token has a probability from p_min {p_min} to p_max {p_max}. Exchange or drop one")
    return options
