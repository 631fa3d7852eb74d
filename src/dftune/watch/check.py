"""Whether what a recipe asks for beside training can be done, found out before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dftune.evaluate.config import EvaluateConfig
from dftune.watch.config import GoalConfig

if TYPE_CHECKING:
    from dftune.recipe import Recipe


def check_watch(recipe: Recipe) -> None:
    """Refuse ``watch`` and ``train.keep_best`` where they could do nothing.

    Raises:
        ValueError: says what is missing.
    """
    watch, train = recipe.watch, recipe.train
    if watch.enabled:
        with_servers(recipe.evaluate, watch.server)
        if train.checkpoint_every is None:
            raise ValueError("watch.enabled wants checkpoints to evaluate: set train.checkpoint_every.")
        if not (recipe.evaluate.benchmarks if watch.benchmarks is None else watch.benchmarks):
            raise ValueError("watch.enabled wants something to evaluate: set evaluate.benchmarks or watch.benchmarks.")
    for key, goal in (("watch.stop", watch.stop), ("train.keep_best", train.keep_best)):
        if goal is not None:
            _check_goal(recipe, key, goal)


def _check_goal(recipe: Recipe, key: str, goal: GoalConfig) -> None:
    if recipe.train.checkpoint_every is None:
        raise ValueError(f"{key} compares checkpoints: set train.checkpoint_every.")
    if goal.needs_watcher and not recipe.watch.enabled:
        raise ValueError(
            f"{key}.metric {goal.metric} comes from a watcher: set watch.enabled=true, or compare by validation/nll."
        )
    if not goal.needs_watcher and (recipe.data.validation == 0 or recipe.train.validate_every is None):
        raise ValueError(f"{key}.metric {goal.metric} wants train.validate_every and data.validation.")


def with_servers(config: EvaluateConfig, servers: Sequence[str]) -> EvaluateConfig:
    """What a watcher evaluates with: the servers that it may give other weights, or none.

    Args:
        config: the recipe's.
        servers: of ``watch.server``.

    Raises:
        ValueError: only ``config`` names a server.
    """
    if servers:
        return config.model_copy(update={"server": tuple(servers)})
    if config.server:
        raise ValueError(
            f"evaluate.server is {', '.join(config.server)}: it keeps the weights it was started with, and a watcher "
            "needs those of one checkpoint after another. Leave it out and the watcher loads the model itself "
            "(watch.device), or name a server whose weights may be changed as watch.server (docs/watch.md)."
        )
    return config
