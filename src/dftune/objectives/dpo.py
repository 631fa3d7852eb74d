"""Direct Preference Optimization, for a chosen completion and one or more rejected ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dftune.objectives.base import LossSum, TokenBatch
from dftune.objectives.groups import check_groups, chosen_scores, negative_means

Loss = Literal["sigmoid", "ipo", "hinge", "robust"]


def dpo(
    tokens: TokenBatch,
    *,
    loss: Loss = "sigmoid",
    beta: Annotated[float, Field(gt=0)] = 0.1,
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
    reference_free: bool = False,
) -> LossSum:
    """Direct Preference Optimization.

        total   = sum_i  (1 / m) sum_j loss(delta_ij)
        delta   = s(y_i) - s(y'_ij),     s = sum_t log p_t - log q_t         (reference_free: without q)
        sigmoid = - (1 - e) log sigmoid(beta delta) - e log sigmoid(-beta delta)
        robust  = (- (1 - e) log sigmoid(beta delta) + e log sigmoid(-beta delta)) / (1 - 2 e)
        hinge   = max(0, 1 - beta delta)
        ipo     = (delta - 1 / (2 beta))^2,          s = mean_t instead of sum_t

    e is ``label_smoothing``: the share of preferences taken to be the wrong way round.

    Args:
        tokens: ``logps`` (tokens,) float32; ``group_ids`` and ``is_chosen`` (sequences,); ``ref_logps`` (tokens,)
            float32 unless ``reference_free``.
        loss: of the margin.
        beta: how far the model may leave the reference; for ``ipo`` the tau of its paper.
        label_smoothing: for ``sigmoid`` and ``robust``.
        reference_free: as if the reference were uniform.

    Rafailov et al. 2023, arXiv:2305.18290; ipo: arXiv:2310.12036; hinge: arXiv:2305.10425; robust: arXiv:2403.00409.
    """
    check_groups(tokens)
    logps = tokens.logps if reference_free else tokens.logps - tokens.need("ref_logps").detach()
    scores = tokens.sequence_sums(logps)
    if loss == "ipo":
        scores = scores / tokens.sequence_lengths()
    chosen = chosen_scores(tokens, scores)
    delta = chosen[tokens.need("group_ids")] - scores
    rewards = (beta * delta).detach()
    return LossSum(
        negative_means(tokens, _loss(loss, delta, beta, label_smoothing)).sum(),
        metrics={
            "reward_margin": negative_means(tokens, rewards).sum(),
            "preference_accuracy": negative_means(tokens, (rewards > 0).to(rewards)).sum(),
        },
    )


def _loss(name: Loss, delta: Tensor, beta: float, smoothing: float) -> Tensor:
    if name == "hinge":
        return (1 - beta * delta).relu()
    if name == "ipo":
        return (delta - 1 / (2 * beta)).square()
    right = -(1 - smoothing) * F.logsigmoid(beta * delta)
    wrong = -smoothing * F.logsigmoid(-beta * delta)
    return right + wrong if name == "sigmoid" else (right - wrong) / (1 - 2 * smoothing)


def resolve(options: dict[str, Any]) -> dict[str, Any]:
    """Refuse a label smoothing that the loss would ignore."""
    if options["label_smoothing"] > 0 and options["loss"] in ("hinge", "ipo"):
        raise ValueError(
            f"label_smoothing {options['label_smoothing']} has no meaning for loss {options['loss']}. "
            "Use loss sigmoid or robust, or leave label_smoothing out"
        )
    return options
