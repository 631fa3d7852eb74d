"""The plain route: full logits under autograd. The oracle that every faster route must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from dftune.ops.scoring import HeadOptions, Scoring, TokenStats, wide
from dftune.ops.stats import check_targets


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, scoring: Scoring) -> TokenStats:
    """Score with the (tokens, vocab) logits in float32, written as the formulas are; autograd does the rest.

    Arguments as for :func:`dftune.ops.recompute.recompute`.
    """
    check_targets(scoring.targets, weight.shape[0])
    with torch.autocast(hidden.device.type, enabled=False):
        logits = full_logits(hidden, weight, bias, scoring.options)
        return stats_of_logits(logits, scoring.targets, scoring.stats, scoring.top_k)


def stats_of_logits(
    logits: Tensor, targets: Tensor, stats: frozenset[str] = frozenset(), top_k: int = 20
) -> TokenStats:
    """Log-probabilities and statistics of rows of logits that are there already.

    Args:
        logits: (tokens, vocab), float32 or float64.
        targets: (tokens,) int64.
        stats: names of fields of :class:`dftune.ops.scoring.TokenStats`.
        top_k: of ``top_k_entropy``.
    """
    log_probs = logits.log_softmax(1)
    logps = log_probs.gather(1, targets.unsqueeze(1)).sum(1)  # of one: a view would trip FSDP2's hooks
    found: dict[str, Tensor] = {}
    if "entropy" in stats:
        found["entropy"] = -(log_probs.exp() * log_probs.clamp(min=-1e30)).sum(1)
    with torch.no_grad():
        if "sum_sq_probs" in stats:
            found["sum_sq_probs"] = log_probs.exp().square().sum(1)
        if "top1_hit" in stats:
            others = logits.scatter(1, targets.unsqueeze(1), -torch.inf).amax(1)
            found["top1_hit"] = (logits.gather(1, targets.unsqueeze(1)).squeeze(1) > others).to(logps.dtype)
        if "top_k_entropy" in stats:
            largest = logits.topk(min(top_k, logits.shape[1]), dim=1).values
            found["top_k_entropy"] = torch.special.entr(largest.softmax(1)).sum(1)
    return TokenStats(logps, **found)


def full_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, options: HeadOptions) -> Tensor:
    """The logits as :class:`dftune.ops.scoring.HeadOptions` describes them: (tokens, vocab), float32 or float64."""
    operand = options.operand(hidden, weight)
    dtype = wide(operand)
    left, right = hidden.to(operand), weight.to(operand)
    rounded = options.logits_dtype == operand
    logits = (left @ right.T).to(dtype) if rounded else left.to(dtype) @ right.to(dtype).T
    if bias is not None:
        logits = logits + bias.to(dtype)
    if options.logit_scale is not None:
        logits = logits * options.logit_scale
    if options.softcap is not None:
        logits = torch.tanh(logits / options.softcap) * options.softcap
    return logits / options.temperature
