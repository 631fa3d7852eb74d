"""The optimizer step: sums over micro-batches, one division by the step's number of units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dftune.data.batches import MicroBatch
from dftune.objectives import LossSum, Objective, TokenBatch
from dftune.train.model import ScoredModel


class NonFiniteError(ArithmeticError):
    """A loss or gradient that is NaN or infinite; the weights have not been touched."""


@dataclass(frozen=True)
class StepResult:
    """What a step leaves to be logged. Tensors stay on the device, so that nothing waits unless it is logged.

    Attributes:
        loss: scalar, the objective's mean over the units of the step.
        grad_norm: scalar, global L2 norm before clipping.
        logps: (tokens,) log-probabilities of the step's supervised tokens.
        weights: (tokens,) w = - d total / d log p, the weight that the objective gave each token.
        targets: (tokens,) the tokens.
        metrics: the objective's own, as means over units.
        num_units: what the loss was divided by.
    """

    loss: Tensor
    grad_norm: Tensor
    logps: Tensor
    weights: Tensor
    targets: Tensor
    metrics: dict[str, Tensor]
    num_units: int


def objective_of(objective: Objective, batch: MicroBatch, logps: Tensor) -> LossSum:
    """The objective's sum over a micro-batch, given its log-probabilities (tokens,)."""
    return objective(TokenBatch(logps=logps, sequence_ids=batch.sequence_ids, num_sequences=batch.num_sequences))


def accumulate_gradient(model: ScoredModel, objective: Objective, batches: Sequence[MicroBatch]) -> StepResult:
    """Add the gradient of the step's loss to the parameters.

        loss = (1 / U) sum_micro-batches objective(micro-batch),   U = units over all micro-batches

    The objective's gradient with respect to log p is taken first, on the small (tokens,) vector, and then sent back
    through the model. It is minus the weight that the objective gives each token, which is logged.

    Args:
        model: forward gives log-probabilities.
        objective: the loss.
        batches: the micro-batches of one optimizer step.

    Raises:
        NonFiniteError: a micro-batch's loss is NaN or infinite; names its examples.
    """
    num_units = sum(batch.num_units(objective.unit) for batch in batches)
    totals, all_logps, all_weights = [], [], []
    metrics: dict[str, Tensor] = {}
    for batch in batches:
        logps = model(batch)
        leaf = logps.detach().requires_grad_()
        loss = objective_of(objective, batch, leaf)
        (gradient,) = torch.autograd.grad(loss.total, leaf)
        logps.backward(gradient / num_units)
        totals.append(loss.total.detach())
        all_logps.append(leaf.detach())
        all_weights.append(-gradient)
        for name, value in loss.metrics.items():
            metrics[name] = metrics.get(name, torch.zeros_like(value)) + value.detach() / num_units
    return StepResult(
        loss=torch.stack(totals).sum() / num_units,
        grad_norm=torch.zeros(()),
        logps=torch.cat(all_logps),
        weights=torch.cat(all_weights),
        targets=torch.cat([batch.targets for batch in batches]),
        metrics=metrics,
        num_units=num_units,
    )


def train_step(
    model: ScoredModel,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batches: Sequence[MicroBatch],
    *,
    lr: float,
    max_grad_norm: float | None,
) -> StepResult:
    """One optimizer step.

    Args:
        model: the wrapped model.
        optimizer: its optimizer.
        objective: the loss.
        batches: the step's micro-batches.
        lr: learning rate of this step.
        max_grad_norm: clip the gradient to this global L2 norm; None does not.

    Raises:
        NonFiniteError: the loss or the gradient is NaN or infinite; no weight has changed.
    """
    optimizer.zero_grad(set_to_none=True)
    result = accumulate_gradient(model, objective, batches)
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm(gradients)
    if not torch.isfinite(result.loss + grad_norm):
        raise NonFiniteError(f"loss {result.loss.item():g}, gradient norm {grad_norm.item():g}")
    if max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return StepResult(**{**result.__dict__, "grad_norm": grad_norm})
