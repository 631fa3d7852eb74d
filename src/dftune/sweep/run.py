"""Run a sweep: workers train trial after trial, then the best recipe and the page are written."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dftune import config
from dftune.files import write_json, write_text
from dftune.progress import Progress
from dftune.recipe import Recipe
from dftune.study.cell import attempt, tidy, train_cell
from dftune.study.claim import STALE_AFTER_S, Claims
from dftune.study.config import begin_folder
from dftune.study.select import measure
from dftune.study.workers import places, run_workers
from dftune.sweep.config import SweepRecipe, trial_name
from dftune.sweep.page import render_page
from dftune.sweep.results import Results, read_results
from dftune.sweep.search import PrunedError, Search, Watcher

if TYPE_CHECKING:
    import optuna

Say = Callable[[str], None]

_WAIT_S = 1.0
_MAY_CHANGE = ("sweep.num_trials", "sweep.test", "shared.evaluate.")


@dataclass(frozen=True)
class Found:
    """What a sweep has come to.

    Attributes:
        results: every trial.
        best: the recipe of the best one; None where no trial was completed.
        page: the HTML page.
    """

    results: Results
    best: Path | None
    page: Path


def run_sweep(
    recipe: SweepRecipe,
    *,
    workers: int | None = None,
    stale_after_s: float = STALE_AFTER_S,
    say: Say = print,
) -> Found:
    """Search; a sweep that was stopped is taken up, and trials that were cut short go on from their checkpoints.

    Other processes, on this machine or on others that see the same folder, may run the same sweep at the same time.

    Args:
        recipe: of the sweep.
        workers: processes on this machine; None takes the CUDA devices there are, else the cores, at most four.
        stale_after_s: a process of another machine that gives no sign for so long has its trial taken over.
        say: receives lines for a person.

    Raises:
        ValueError: the sweep cannot be run as it stands; nothing expensive has happened.
    """
    recipe.check()
    begin(recipe)
    search = Search(recipe, stale_after_s)
    where = places(workers, recipe.trial(0, recipe.first).train.device)
    board, size = search.board, recipe.sweep.size
    say(f"{recipe.name}: {size} trials by {recipe.sweep.select.metric}, {where.what}")
    with Progress("sweep", size, done=len(_ended(search))) as progress:

        def show() -> None:
            if (ended := len(_ended(search))) > progress.done:
                progress.update(ended, "trials")

        logs = recipe.output / "logs"
        run_workers(work, (recipe, stale_after_s), where, board=board, logs=logs, on_poll=show)
        tested = to_test(recipe, read_results(search))
        if tested:
            arguments = (recipe, tested, stale_after_s)
            run_workers(test, arguments, where, board=board, logs=logs, on_poll=lambda: None)
    return finish(search)


def begin(recipe: SweepRecipe) -> None:
    """Write down what the sweep is, or check that it is what was begun.

    Raises:
        ValueError: the folder holds a sweep of other settings.
    """
    advice = "Only sweep.num_trials, sweep.test and the evaluate section may change"
    begin_folder(recipe.output, "sweep", recipe, may_change=_MAY_CHANGE, advice=advice)


def _ended(search: Search) -> Sequence[object]:
    return [trial for trial in search.study.get_trials(deepcopy=False) if trial.state.is_finished()]


def work(recipe: SweepRecipe, stale_after_s: float) -> None:
    """Train trial after trial until there are enough: what a worker process runs."""
    search = Search(recipe, stale_after_s)
    while (taken := search.take()) is not None:
        trial, claim = taken
        with search.board.claims.held(claim):
            value, state = _train(search, trial)
            search.tell(trial, value, state)


def _train(search: Search, trial: optuna.Trial) -> tuple[float | None, str]:
    """One trial, from its last checkpoint where it has begun; the metric and how it ended."""
    recipe, select = search.recipe, search.recipe.sweep.select
    try:
        run = recipe.trial(trial.number, search.values(trial))
        prepare_once(search.board.claims, run)
        prunes = recipe.sweep.prune is not None
        watcher = Watcher(trial, run, recipe.sweep.pruned_by)
        train_cell(run, watcher if prunes else None)
        return measure(select, run, recipe.output / "tuning" / run.name), "COMPLETE"
    except PrunedError as pruned:
        print(f"{trial_name(trial.number)}: {pruned}")
        return None, "PRUNED"
    except Exception:
        traceback.print_exc()
        return None, "FAIL"
    finally:
        tidy()


def prepare_once(claims: Claims, recipe: Recipe) -> None:
    """Prepare the data of a trial, unless another process has done it or is at it."""
    from dftune.data.prepare import prepare  # noqa: PLC0415

    folder = recipe.data.prepared
    while not folder.is_dir():
        claim = claims.take(f"prepare.{folder.name}")
        if claim is None:
            time.sleep(_WAIT_S)
            continue
        with claims.held(claim):
            if not folder.is_dir():
                prepare(recipe)


def to_test(recipe: SweepRecipe, results: Results) -> list[int]:
    """Numbers of the trials whose models are evaluated on the benchmarks."""
    benchmarks = bool(recipe.shared.get("evaluate", {}).get("benchmarks"))
    if not benchmarks or recipe.sweep.test == "none" or results.best is None:
        return []
    return results.completed if recipe.sweep.test == "all" else [results.best.number]


def test(recipe: SweepRecipe, numbers: Sequence[int], stale_after_s: float) -> None:
    """Evaluate final models: what a worker process runs."""
    from dftune.evaluate.runner import evaluate_run  # noqa: PLC0415

    search = Search(recipe, stale_after_s)
    board = search.board
    by_number = {trial.number: trial for trial in read_results(search).trials}
    waiting = {f"test.{trial_name(number)}": number for number in numbers}
    while waiting:
        waiting = {task: number for task, number in waiting.items() if not board.ended(task)}
        for task, number in waiting.items():
            claim = board.claims.take(task)
            if claim is None:
                continue
            run = recipe.trial(number, by_number[number].values)
            with board.claims.held(claim):
                if not board.ended(task):
                    board.record(task, attempt(lambda run=run: _tested(run, evaluate_run)))  # type: ignore[misc]
        time.sleep(_WAIT_S if waiting else 0)


def _tested(run: Recipe, evaluate_run: Callable[..., object]) -> None:
    evaluate_run(run.output, run.evaluate, device=run.train.device)


def finish(search: Search) -> Found:
    """Write ``best.yaml``, ``sweep.json`` and ``sweep.html`` from what the storage holds."""
    recipe, results = search.recipe, read_results(search)
    best = None
    if results.best is not None:
        best = recipe.output / "best.yaml"
        write_text(best, config.dump(recipe.best(recipe.trial(results.best.number, results.best.values))))
    write_json(recipe.output / "sweep.json", results.as_json())
    page = recipe.output / "sweep.html"
    write_text(page, render_page(results))
    return Found(results, best, page)
