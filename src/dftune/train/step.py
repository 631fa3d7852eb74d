"""The optimizer step: sums over micro-batches and ranks, one division by the step's number of units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from dftune.data.batches import MicroBatch
from dftune.objectives import LossSum, Objective, TokenBatch
from dftune.objectives.state import merge
from dftune.ops.token_logps import TokenStats
from dftune.train.model import ScoredModel
from dftune.train.random_state import random_states, restore_random_states
from dftune.train.shards import backward_turns, sum_gradients
from dftune.train.supply import NOTHING, Supply
from dftune.train.tokens import DIFFERENTIABLE, STATISTICS, boundaries, cut, fill, join, join_ranks
from dftune.train.world import ALONE, World

Normalization = Literal["global", "micro_batch_mean_sum"]


class NonFiniteError(ArithmeticError):
    """A loss or gradient that is NaN or infinite; the weights have not been touched."""


@dataclass(frozen=True)
class StepResult:
    """What a step leaves to be logged. Tensors stay on the device, so that nothing waits unless it is logged.

    Of several ranks each has its own tokens and metrics here, until :meth:`over` joins them; the rest is global.

    Attributes:
        loss: scalar, the objective's mean over the units of the step.
        grad_norm: scalar, global L2 norm before clipping.
        logps: (tokens,) log-probabilities of the step's supervised tokens.
        weights: (tokens,) w = - d total / d log p, the weight that the objective gave each token.
        targets: (tokens,) the tokens.
        metrics: the objective's own, as means over units.
        num_units: what the loss was divided by.
        top1_hit: (tokens,) whether the target was the likeliest token; None where it was not asked for.
    """

    loss: Tensor
    grad_norm: Tensor
    logps: Tensor
    weights: Tensor
    targets: Tensor
    metrics: dict[str, Tensor]
    num_units: int
    top1_hit: Tensor | None = None

    def over(self, world: World) -> StepResult:
        """The same of all ranks' tokens; every rank calls this."""
        if world.size == 1:
            return self
        names = ("logps", "weights", "targets", "top1_hit")
        own = {name: value.cpu() for name in names if (value := getattr(self, name)) is not None}
        ranks = world.gather((own, {name: value.item() for name, value in self.metrics.items()}))
        joined = {name: torch.cat([tokens[name] for tokens, _ in ranks]) for name in own}
        metrics = {name: sum(found.get(name, 0.0) for _, found in ranks) for _, found in ranks for name in found}
        return replace(self, **joined, metrics={k: torch.tensor(v) for k, v in metrics.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Pass:
    """What is asked of the engine beside the objective and its batches.

    Attributes:
        supply: what the objective is given beside the model's own statistics.
        stats: statistics wanted for the log.
        route: of the scorer.
        normalization: ``global`` divides by the units of the whole step; ``micro_batch_mean_sum`` divides each
            micro-batch's gradient by its own units and adds these means up.
        world: the ranks that share the step; all have the same number of micro-batches, and those that share their
            sequences the same ones.
        sync_each: exchange sharded gradients in every backward pass in place of the last.
    """

    supply: Supply = NOTHING
    stats: frozenset[str] = frozenset()
    route: str = "auto"
    normalization: Normalization = "global"
    world: World = ALONE
    sync_each: bool = False


@dataclass(frozen=True)
class _Scored:
    """A micro-batch whose gradient has been added; sums are not divided yet."""

    total: Tensor
    found: TokenStats
    slopes: Tensor
    metrics: dict[str, Tensor]


def accumulate_gradient(
    model: ScoredModel, objective: Objective, batches: Sequence[MicroBatch], how: Pass = Pass()
) -> StepResult:
    """Add the gradient of the step's loss to the parameters.

        loss = (1 / U) sum_micro-batches objective(micro-batch),   U = units over all micro-batches of all ranks

    An objective that adds up over parts of a micro-batch is evaluated where its tokens are scored. One that does not,
    or that compares whole rows with the reference's, is evaluated first, on the small vectors of log-probabilities
    (and entropies and divergences); the gradient with respect to these is then sent back through the model. So is any
    whose tokens several ranks score. Either way its derivative by log p is minus the weight that it gives each token,
    which is logged.

    Args:
        model: forward gives log-probabilities.
        objective: the loss.
        batches: the micro-batches of one optimizer step, this rank's share of them.
        how: inputs, statistics, route and ranks. The gradients are summed over the ranks.
    """
    units = [batch.num_units(objective.unit) for batch in batches]
    (num_units,) = how.world.data.sum(sum(units))
    divisors = units if how.normalization == "micro_batch_mean_sum" else [num_units] * len(units)
    turns = backward_turns(model, len(batches), each=how.sync_each)
    scored: list[_Scored] = []
    if objective.separable == "batch":
        scored += _together(model, objective, batches, num_units, how, turns=turns)
    else:
        for batch, divisor in zip(batches, divisors, strict=True):
            if batch.is_idle:
                _idle(model, objective, batch, how.supply, turns)
            elif "ref_kl" in objective.needs or how.world.sequence is not None:
                scored += _together(model, objective, [batch], divisor, how, turns=turns)
            else:
                scored.append(_in_parts(model, objective, batch, divisor, how, turns=turns))
    if how.world.size > 1 and not isinstance(model, FSDPModule):
        sum_gradients(model, how.world)
    return _result(scored, batches, num_units, how)


def _idle(model: ScoredModel, objective: Objective, batch: MicroBatch, supply: Supply, turns: Iterator[None]) -> None:
    """Take part in what the ranks exchange during a forward and a backward pass, with a gradient of zero."""
    _, tokens = supply.score(model, objective, batch)
    zeros = {name: torch.zeros_like(value) for name in DIFFERENTIABLE if (value := getattr(tokens, name)) is not None}
    next(turns)
    _send_back(tokens, zeros, 1)


def _in_parts(
    model: ScoredModel, objective: Objective, batch: MicroBatch, divisor: int, how: Pass, *, turns: Iterator[None]
) -> _Scored:
    """A micro-batch whose objective adds up over its parts; the scorer decides which."""
    needs = frozenset[str](objective.needs)
    frame, edges = how.supply.frame(objective, batch), boundaries(batch, objective.separable)
    metrics: dict[str, Tensor] = {}

    def of_part(found: TokenStats, rows: slice) -> Tensor:
        loss = evaluate(objective, fill(cut(frame, rows), found, needs), how.supply)
        for name, value in loss.metrics.items():
            metrics[name] = metrics.get(name, torch.zeros_like(value)) + value.detach()
        return loss.total / divisor

    names = how.stats | (STATISTICS & needs)
    mean, found, slopes = model(
        batch, lambda scorer: scorer.objective(of_part, boundaries=edges, names=names, route=how.route)
    )
    next(turns)
    mean.backward()
    return _Scored(mean.detach() * divisor, found, slopes * divisor, metrics)


def _together(
    model: ScoredModel,
    objective: Objective,
    batches: Sequence[MicroBatch],
    divisor: int,
    how: Pass,
    *,
    turns: Iterator[None],
) -> Iterator[_Scored]:
    """Micro-batches that the objective sees as one, with those of the other ranks where its scope is the batch.

    All but a single one are scored twice: without gradient for the objective's sake, and again to be differentiated.
    Random numbers are drawn anew from the same state, so that dropout drops the same.
    """
    twice = len(batches) > 1
    device = batches[0].targets.device
    states, outputs = [], []
    for batch in batches:
        states.append(random_states(device))
        with torch.set_grad_enabled(not twice):
            route = "auto" if twice else how.route
            outputs.append(how.supply.score(model, objective, batch, stats=how.stats, route=route))
    found, parts = zip(*outputs, strict=True)
    total, metrics, gradients = _differentiate(objective, join(parts), how)
    start = 0
    for index, (batch, state) in enumerate(zip(batches, states, strict=True)):
        if twice:
            restore_random_states(state, device)
            _, tokens = how.supply.score(model, objective, batch, route=how.route)
        else:
            tokens = parts[index]
        rows = slice(start, start := start + len(batch.targets))
        next(turns)
        _send_back(tokens, {name: value[rows] for name, value in gradients.items()}, divisor)
        own = (total, metrics) if index == 0 else (torch.zeros_like(total), {})
        yield _Scored(own[0], found[index].detach(), gradients["logps"][rows], own[1])


def _differentiate(
    objective: Objective, tokens: TokenBatch, how: Pass
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The objective's total, its metrics, and its derivatives by the fields that have one, each (tokens,).

    Where its scope is the batch, every rank evaluates it on the tokens of all ranks and takes the derivatives by its
    own; the total counts once.
    """
    world = how.world.data
    shared = world.size > 1 and objective.separable == "batch"
    own = slice(0, len(tokens.logps))
    if shared:
        tokens, own = join_ranks(tokens, world)
    given = {name: value for name in DIFFERENTIABLE if (value := getattr(tokens, name)) is not None}
    leaves = {name: value.detach().requires_grad_() for name, value in given.items()}
    loss = evaluate(objective, replace(tokens, **leaves), how.supply)
    found = torch.autograd.grad(loss.total, list(leaves.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(leaf[own]) if gradient is None else gradient[own]
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }
    if shared and not world.main:
        if how.supply.state is not None:
            how.supply.state.discard()
        return torch.zeros_like(loss.total), {}, gradients
    metrics = {name: value.detach() for name, value in loss.metrics.items()}
    return loss.total.detach(), metrics, gradients


def _send_back(tokens: TokenBatch, gradients: dict[str, Tensor], divisor: int) -> None:
    outputs = [getattr(tokens, name) for name in gradients]
    pairs = [
        (output, gradient / divisor)
        for output, gradient in zip(outputs, gradients.values(), strict=True)
        if output.requires_grad
    ]
    torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])


def evaluate(objective: Objective, tokens: TokenBatch, supply: Supply) -> LossSum:
    """The objective's sum over some tokens, with its state where it keeps one."""
    return objective(tokens, state=supply.state) if objective.stateful else objective(tokens)


def _result(scored: Sequence[_Scored], batches: Sequence[MicroBatch], num_units: int, how: Pass) -> StepResult:
    metrics: dict[str, Tensor] = {}
    for part in scored:
        for name, value in part.metrics.items():
            metrics[name] = metrics.get(name, torch.zeros_like(value)) + value / num_units
    none = torch.zeros(0, device=batches[0].targets.device)  # where every micro-batch of this rank is idle
    hits = [part.found.top1_hit for part in scored if part.found.top1_hit is not None]
    total = torch.stack([none.sum(), *(part.total for part in scored)]).sum()
    return StepResult(
        loss=how.world.data.total(total) / num_units,
        grad_norm=torch.zeros(()),
        logps=torch.cat([none, *(part.found.logps for part in scored)]),
        weights=-torch.cat([none, *(part.slopes for part in scored)]),
        targets=torch.cat([batch.targets for batch in batches]),
        metrics=metrics,
        num_units=num_units,
        top1_hit=torch.cat([none, *hits]) if "top1_hit" in how.stats else None,
    )


def train_step(
    model: ScoredModel,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batches: Sequence[MicroBatch],
    *,
    lr: float,
    max_grad_norm: float | None,
    how: Pass = Pass(),
) -> StepResult:
    """One optimizer step.

    Args:
        model: the wrapped model.
        optimizer: its optimizer.
        objective: the loss.
        batches: the step's micro-batches, this rank's share of them.
        lr: learning rate of this step.
        max_grad_norm: clip the gradient to this global L2 norm; None does not.
        how: inputs, statistics, route and ranks; what they have written of its state is committed when the weights
            have moved.

    Raises:
        NonFiniteError: the loss or the gradient is NaN or infinite; no weight has changed.
    """
    optimizer.zero_grad(set_to_none=True)
    state = how.supply.state
    try:
        result = accumulate_gradient(model, objective, batches, how)
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        if not torch.isfinite(result.loss + grad_norm):
            raise NonFiniteError(f"loss {result.loss.item():g}, gradient norm {grad_norm.item():g}")
    except BaseException:
        if state is not None:
            state.discard()
        raise
    if max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    if state is not None:
        state.commit(merge(how.world.data.gather(state.written)))
    return replace(result, grad_norm=grad_norm)
