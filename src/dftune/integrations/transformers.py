"""dftune's objectives as the ``compute_loss_func`` of transformers' ``Trainer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dftune.integrations.fit import fitting_objective
from dftune.objectives import TokenBatch
from dftune.objectives.base import Need
from dftune.ops.plain import stats_of_logits

IGNORED = -100
"""The label of a token that must not be trained on, as everywhere in transformers."""

_PROVIDES: frozenset[Need] = frozenset({"entropy", "top_k_entropy", "sum_sq_probs"})


def compute_loss_func(objective: str, **options: Any) -> Callable[..., Tensor]:
    """An objective as a loss for ``Trainer(compute_loss_func=...)``.

        trainer = Trainer(model=..., compute_loss_func=compute_loss_func("dynamic_ft", floor=0.1), ...)

    What comes back is called as ``(outputs, labels, num_items_in_batch=None)`` with the outputs of a causal language
    model, (rows, positions, vocab) logits among them, and unshifted labels. It gives the objective's sum over the
    tokens whose label is not -100, divided by ``num_items_in_batch``, the Trainer's count over all ranks and
    micro-batches of the step; without one, by the number of those tokens. Logits of supervised tokens are widened to
    float32. Without any such token the loss is 0, with a gradient of 0.

    The Trainer makes the whole batch's logits; ``dftune.integrations.trl`` and ``dftune train`` do not.

    Args:
        objective: as in a recipe; it must be a sum over tokens, each of which counts on its own.
        options: of the objective.

    Raises:
        ValueError: no such objective or option, or one that needs what the Trainer does not have.
    """
    chosen = fitting_objective(
        "transformers' Trainer", objective, options, provides=_PROVIDES, scopes=frozenset({"token"})
    )

    def loss(outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        if labels is None:
            raise ValueError(
                f"the batch has no labels for {objective} to train on. Give the dataset a column `labels`, -100 where "
                "a token must not be trained on, or use DataCollatorForLanguageModeling(tokenizer, mlm=False)."
            )
        tokens = _token_batch(outputs.logits, labels, chosen.needs)
        num_tokens = len(tokens.logps) if num_items_in_batch is None else num_items_in_batch
        return chosen(tokens).total / torch.as_tensor(num_tokens, device=tokens.logps.device).clamp(min=1)

    return loss


def _token_batch(logits: Tensor, labels: Tensor, needs: frozenset[Need]) -> TokenBatch:
    """The supervised tokens: the logits at a position predict the label of the next."""
    targets = labels[:, 1:].to(logits.device)
    supervised = targets != IGNORED
    found = stats_of_logits(logits[:, :-1][supervised].float(), targets[supervised], frozenset(_PROVIDES & needs))
    return TokenBatch(
        logps=found.logps,
        sequence_ids=supervised.nonzero()[:, 0],
        num_sequences=len(labels),
        entropy=found.entropy,
        top_k_entropy=found.top_k_entropy,
        sum_sq_probs=found.sum_sq_probs,
    )
