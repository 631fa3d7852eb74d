"""Discriminative Fine-Tuning: the good answer up, sampled answers down, each as far as it competes."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from dftune.objectives.base import LossSum, TokenBatch
from dftune.objectives.groups import check_groups, chosen_scores, group_sums, negative_means
from dftune.objectives.state import State

DEFAULTS = {False: {"tau": 1.0, "gamma": 0.85}, True: {"tau": 0.3, "gamma": 0.9}}


def discriminative_ft(
    tokens: TokenBatch,
    *,
    state: State,
    ref_free: bool = False,
    tau: Annotated[float, Field(gt=0)] | None = None,
    gamma: Annotated[float, Field(gt=0, le=1)] | None = None,
    u_init: float = 0.0,
    unbiased_start: bool = False,
) -> LossSum:
    """Discriminative Fine-Tuning.

        total = sum_i  - s(y_i) + (1 / m) sum_j sg[exp(d_ij - u_i)] * s(y'_ij)
        d_ij  = s(y'_ij) / tau - s_ref(y'_ij)          s: sum of the tokens' log p
        d_ij  = s(y'_ij) / tau                         s: mean of the tokens' log p         (ref_free, "DFT2")
        u_i  <- log((1 - gamma) exp(u_i) + gamma * (1 / m) sum_j exp(d_ij))                 before the loss

    exp(u_i) is a moving estimate, kept by example, of the normaliser of answer i's discriminative likelihood.
    A negative's weight is at most m / gamma. The total is a surrogate for its gradient and may have any sign.

    Args:
        tokens: ``logps`` (tokens,) float32; ``group_ids`` and ``is_chosen`` (sequences,); ``example_ids`` (groups,);
            ``ref_logps`` (tokens,) float32 unless ``ref_free``.
        state: keeps u by example id.
        ref_free: the variant without a reference, on length-averaged log-probabilities.
        tau: temperature; by default 1, and 0.3 with ``ref_free``.
        gamma: share of the new observation; by default 0.85, and 0.9 with ``ref_free``.
        u_init: u of an example not seen before.
        unbiased_start: take the observation itself as u at an example's first visit, in place of a mix with
            ``u_init``.

    Guo et al. 2025, arXiv:2502.18679.
    """
    tau, gamma = tau or DEFAULTS[ref_free]["tau"], gamma or DEFAULTS[ref_free]["gamma"]
    check_groups(tokens)
    scores = tokens.sequence_sums(tokens.logps)
    if ref_free:
        scores = scores / tokens.sequence_lengths()
        d = scores.detach() / tau
    else:
        d = scores.detach() / tau - tokens.sequence_sums(tokens.need("ref_logps").detach())

    old, seen = (values.to(d.device) for values in state.read(tokens.example_ids))
    new = _log_mean_exp(tokens, d)
    u = _mix(torch.where(seen, old, u_init).to(d), new, gamma)
    if unbiased_start:
        u = torch.where(seen, u, new)
    state.write(tokens.example_ids, u)

    is_negative = ~tokens.need("is_chosen")
    weights = torch.where(is_negative, d - u[tokens.need("group_ids")], -math.inf).exp()
    total = (-chosen_scores(tokens, scores) + negative_means(tokens, weights * scores)).sum()
    return LossSum(total, metrics={"u": u.sum(), "negative_weight": negative_means(tokens, weights).sum()})


def _log_mean_exp(tokens: TokenBatch, d: Tensor) -> Tensor:
    """log((1 / m) sum_j exp(d_j)) over each group's negatives: (groups,)."""
    group_ids, is_negative = tokens.need("group_ids"), ~tokens.need("is_chosen")
    d = torch.where(is_negative, d, -math.inf)
    greatest = d.new_full((tokens.num_groups,), -math.inf).scatter_reduce(0, group_ids, d, "amax")
    sums = group_sums(tokens, (d - greatest[group_ids]).exp())
    return greatest + (sums / group_sums(tokens, is_negative.to(d))).log()


def _mix(old: Tensor, new: Tensor, gamma: float) -> Tensor:
    """log((1 - gamma) exp(old) + gamma exp(new))."""
    return new if gamma == 1 else torch.logaddexp(math.log1p(-gamma) + old, math.log(gamma) + new)


def resolve(options: dict[str, Any]) -> dict[str, Any]:
    """Fill in the variant's own tau and gamma."""
    default = DEFAULTS[options["ref_free"]]
    return options | {key: default[key] for key in default if options[key] is None}
