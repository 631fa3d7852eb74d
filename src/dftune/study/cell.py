"""One run of a study or a sweep in this process."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable

from dftune.recipe import Recipe
from dftune.run import Watch
from dftune.study.board import State


def train_cell(recipe: Recipe, watch: Watch | None = None) -> None:
    """Train a run, from its last checkpoint where it has begun.

    Args:
        recipe: of the run.
        watch: told every event; what it raises ends the run.
    """
    from dftune.data.prepare import prepared  # noqa: PLC0415
    from dftune.train.loop import train  # noqa: PLC0415

    train(recipe, prepared(recipe), resume=(recipe.output / "recipe.yaml").is_file(), watch=watch)


def attempt(do: Callable[[], float | None]) -> State:
    """Do it and say how it ended: one cell that fails must not keep the others from their turn."""
    started = time.perf_counter()
    try:
        value = do()
    except Exception as error:
        traceback.print_exc()
        message = str(error) or type(error).__name__
        return State("failed", time.perf_counter() - started, error=message)
    finally:
        tidy()
    return State("done", time.perf_counter() - started, value=value)


def tidy() -> None:
    """Give memory back before the next task: a model that ended in an exception hangs on its traceback."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
