"""Importance-weighted SFT: what the model has come to prefer to the reference weighs more."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dftune.objectives.base import LossSum, TokenBatch

Bound = Annotated[float, Field(ge=0)]
DEFAULT_BOUNDS = {"sequence": {"w_min": 0.0, "w_max": 16.0}, "token": {"w_min": 0.2, "w_max": 1.8}}


def iw_sft(
    tokens: TokenBatch,
    *,
    form: Literal["sequence", "token"] = "sequence",
    temperature: Annotated[float, Field(gt=0)] = 1.0,
    w_min: Bound | None = None,
    w_max: Bound | None = None,
) -> LossSum:
    """Importance-weighted SFT.

        total   = - sum_t  sg[w_t] * log p_t
        w_t     = clip(exp(temperature * delta_t), w_min, w_max)
        delta_t = log p_t - log q_t, and in the sequence form its mean over the sequence that t belongs to

    At the reference q the weight is 1 and this is SFT. The mean makes the sequence's weight independent of its
    length; the loss is still a sum over tokens.

    Args:
        tokens: ``logps`` and ``ref_logps``, both (tokens,) float32.
        form: one weight a sequence, or one a token.
        temperature: multiplies the log-ratio.
        w_min: least weight; by default 0 for sequences and 0.2 for tokens.
        w_max: greatest weight; by default 16 for sequences and 1.8 for tokens.

    Qin and Springenberg 2025, arXiv:2507.12856.
    """
    delta = (tokens.logps - tokens.need("ref_logps")).detach()
    if form == "sequence":
        delta = (tokens.sequence_sums(delta) / tokens.sequence_lengths())[tokens.sequence_ids]
    ratio = (temperature * delta).exp()
    weights = ratio.clamp(w_min, w_max)
    return LossSum(-(weights * tokens.logps).sum(), metrics={"clipped_share": (weights != ratio).sum()})


def resolve(options: dict[str, Any]) -> dict[str, Any]:
    """Fill in the bounds of the form; refuse a lower bound above the upper."""
    default = DEFAULT_BOUNDS[options["form"]]
    options = options | {key: default[key] for key in default if options[key] is None}
    if options["w_min"] > options["w_max"]:
        raise ValueError(f"w_min {options['w_min']} is above w_max {options['w_max']}; exchange them")
    return options
