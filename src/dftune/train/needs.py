"""Whether a recipe's objective can be trained as it stands, found out before anything expensive happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dftune.objectives import LossSum, Objective, TokenBatch, get_objective
from dftune.objectives.state import LogEstimates
from dftune.recipe import Recipe
from dftune.train.config import TrainConfig
from dftune.train.setup import check_options, check_scorer
from dftune.train.tokens import DIFFERENTIABLE, cut
from dftune.watch.check import check_watch

PROVIDED = frozenset({"ref_logps", "old_logps", "entropy", "top_k_entropy", "sum_sq_probs", "ref_kl", "groups"})
_LENGTHS = (3, 2, 1, 2)


def check_recipe(recipe: Recipe) -> None:
    """Refuse an objective that the recipe's data and settings do not fit, before any of them is loaded.

    Raises:
        ValueError: says why, and what to do.
    """
    objective = get_objective(recipe.objective.name, **recipe.objective.options)
    check_objective(objective, recipe.train, grouped=recipe.data.columns.negatives is not None)
    check_scorer(recipe, objective)
    check_options(recipe)
    check_watch(recipe)


def check_objective(objective: Objective, config: TrainConfig, *, grouped: bool) -> None:
    """Refuse what the engine cannot provide, settings that would change the loss silently, and a broken objective.

    Args:
        objective: with its options.
        config: the recipe's ``train`` section.
        grouped: whether the data has negatives.

    Raises:
        ValueError: says why, and what to do.
    """
    name, needs = objective.name, frozenset[str](objective.needs)
    if "advantages" in needs:
        raise ValueError(
            f"{name} needs rollouts with advantages, and the loops that make them come later. Train on fixed "
            "completions with another objective: `dftune objectives` lists them."
        )
    if unknown := sorted(needs - PROVIDED):
        raise ValueError(
            f"{name} needs {', '.join(unknown)}, which the engine does not have; it has {sorted(PROVIDED)}."
        )
    if "old_logps" in needs and config.inner_loop == 1:
        raise ValueError(
            f"{name} compares the model with itself at the start of an inner loop, and train.inner_loop is 1: the two "
            "would never differ, and it would be sft. Set train.inner_loop to the number of optimizer steps that share "
            "a start (the authors of psft: 8), or use sft."
        )
    if "old_logps" not in needs and config.inner_loop > 1:
        raise ValueError(f"train.inner_loop is {config.inner_loop}, and {name} has no use for it. Leave it out.")
    if objective.separable == "batch" and config.normalization != "global":
        raise ValueError(
            f"{name} is defined on the whole optimizer step, and train.normalization {config.normalization} takes each "
            "micro-batch for itself. Leave train.normalization out."
        )
    if "groups" in needs and not grouped:
        raise ValueError(
            f"{name} holds every completion against negatives, and the data has none. Set data.columns.negatives to "
            "the column that holds them (docs/data.md), or use another objective."
        )
    if "groups" not in needs and objective.unit == "group":
        raise ValueError(f"{name} is counted in groups and does not need any. Add 'groups' to its `needs`.")
    _try(objective)


def _try(objective: Objective) -> None:
    """Evaluate on a few made-up tokens: what it returns, that it can be differentiated, and that it adds up."""
    tokens = _made_up(objective)
    try:
        loss = _evaluate(objective, tokens)
        _check_sum(loss, tokens)
        parts = [_evaluate(objective, part).total for part in _parts(objective, tokens)]
    except Exception as error:
        said = str(error) or "no message"
        raise ValueError(
            f"{objective.name} fails on a batch of {len(tokens.logps)} made-up tokens: {type(error).__name__}: {said}. "
            "It gets a TokenBatch with logps, sequence_ids, num_sequences and what it `needs`, and returns a LossSum."
        ) from error
    together = loss.total.item()
    apart = torch.stack(parts).sum().item()
    if not math.isclose(together, apart, rel_tol=1e-3, abs_tol=1e-4):
        raise ValueError(
            f"{objective.name} is declared separable='{objective.separable}', and its loss does not add up over "
            f"{objective.separable}s: {together:.6g} together, {apart:.6g} as a sum. Declare a wider scope; 'batch' is "
            "always right."
        )


def _evaluate(objective: Objective, tokens: TokenBatch) -> LossSum:
    return objective(tokens, state=LogEstimates()) if objective.stateful else objective(tokens)


def _check_sum(loss: Any, tokens: TokenBatch) -> None:
    if not isinstance(loss, LossSum):
        raise TypeError(f"it returned {type(loss).__name__}, not a LossSum")
    if not isinstance(loss.total, Tensor) or loss.total.ndim != 0:
        raise TypeError("LossSum.total is not a tensor of one number: sum over the tokens")
    if not torch.isfinite(loss.total):
        raise ArithmeticError(f"the total is {loss.total.item()}")
    wrong = [name for name, value in loss.metrics.items() if not isinstance(value, Tensor) or value.ndim != 0]
    if wrong:
        raise TypeError(f"metrics {wrong} are not tensors of one number: sum over the tokens")
    leaves = [value for name in DIFFERENTIABLE if (value := getattr(tokens, name)) is not None]
    if not loss.total.requires_grad:
        raise TypeError("the total has no gradient: everything was detached")
    found = torch.autograd.grad(loss.total, leaves, allow_unused=True, retain_graph=True)
    if not all(torch.isfinite(gradient).all() for gradient in found if gradient is not None):
        raise ArithmeticError("the gradient is not finite")


def _parts(objective: Objective, tokens: TokenBatch) -> Iterator[TokenBatch]:
    edges = {
        "token": range(sum(_LENGTHS) + 1),
        "sequence": (0, 3, 5, 6, 8),
        "group": (0, 5, 8),
        "batch": (0, 8),
    }[objective.separable]
    return (cut(tokens, slice(start, end)) for start, end in pairwise(edges))


def _made_up(objective: Objective) -> TokenBatch:
    """Two groups of two completions, of three, two, one and two tokens."""
    generator = torch.Generator().manual_seed(0)
    num_tokens, num_sequences = sum(_LENGTHS), len(_LENGTHS)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(num_tokens, generator=generator)

    tokens = TokenBatch(
        logps=uniform(-3, -0.1).requires_grad_(),
        sequence_ids=torch.repeat_interleave(torch.arange(num_sequences), torch.tensor(_LENGTHS)),
        num_sequences=num_sequences,
        example_ids=tuple(f"made-up/{index}" for index in range(num_sequences)),
    )
    needs = objective.needs
    make: dict[str, Callable[[], Tensor]] = {
        "ref_logps": lambda: uniform(-3, -0.1),
        "old_logps": lambda: uniform(-3, -0.1),
        "entropy": lambda: uniform(0.1, 3).requires_grad_(),
        "top_k_entropy": lambda: uniform(0.1, 2),
        "sum_sq_probs": lambda: uniform(0.05, 0.9),
        "ref_kl": lambda: uniform(0, 1).requires_grad_(),
    }
    tokens = replace(tokens, **{name: made() for name, made in make.items() if name in needs})  # type: ignore[arg-type]
    if "groups" in needs:
        tokens = replace(
            tokens,
            group_ids=torch.tensor([0, 0, 1, 1]),
            is_chosen=torch.tensor([True, False, True, False]),
            num_groups=2,
            example_ids=tokens.example_ids[:2],
        )
    return tokens
