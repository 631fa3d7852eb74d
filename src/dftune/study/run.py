"""Run a study: workers take its tasks one by one, here and on other machines, until all have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftune.files import write_json
from dftune.progress import Progress
from dftune.study.board import Board, State
from dftune.study.budget import check_budgets
from dftune.study.cell import attempt, train_cell
from dftune.study.claim import STALE_AFTER_S
from dftune.study.config import StudyRecipe
from dftune.study.plan import Cell, Plan, Task, base_settings
from dftune.study.select import Choice, measure
from dftune.study.workers import places, run_workers

if TYPE_CHECKING:
    from dftune.report import Report

Say = Callable[[str], None]

_WAIT_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """What a study has come to.

    Attributes:
        choices: learning rates; None where they could not be chosen.
        failed: error by task.
        unequal: what was not the same for all objectives, one line each.
        report: None where no cell can be reported on.
        html: where it was written.
    """

    choices: tuple[Choice, ...] | None
    failed: Mapping[str, str]
    unequal: tuple[str, ...]
    report: Report | None
    html: Path | None

    @property
    def sound(self) -> bool:
        """Nothing failed, and what had to be equal was."""
        return not self.failed and not self.unequal


def run_study(
    recipe: StudyRecipe,
    *,
    workers: int | None = None,
    stale_after_s: float = STALE_AFTER_S,
    retry_failed: bool = False,
    title: str | None = None,
    say: Say = print,
) -> Outcome:
    """Train, choose, evaluate and report; a study that was stopped is taken up where it was.

    Other processes, on this machine or on others that see the same folder, may run the same study at the same time:
    each task is done by one of them.

    Args:
        recipe: of the study.
        workers: processes on this machine; None takes the CUDA devices there are, else the cores, at most four.
        stale_after_s: a process of another machine that gives no sign for so long has its task taken over.
        retry_failed: try again what failed before.
        title: of the report.
        say: receives lines for a person.

    Raises:
        ValueError: the study cannot be run as it stands; nothing expensive has happened.
    """
    plan = Plan(recipe)
    plan.check()
    where = places(workers, plan.tasks({})[0].recipe.train.device)
    plan.begin()
    board = Board(plan.folder, stale_after_s)
    if retry_failed:
        for name in board.forget_failed():
            say(f"tried again: {name}")
    say(f"{recipe.name}: {num_tasks(plan, board.states())} tasks, {where.what}")
    with Progress("study", num_tasks(plan, board.states()), done=len(board.states())) as progress:

        def show() -> None:
            states = board.states()
            if len(states) > progress.done:
                progress.total = num_tasks(plan, states)
                failed = sum(state.status == "failed" for state in states.values())
                progress.update(len(states), f"tasks{f', {failed} failed' if failed else ''}")

        arguments = (recipe, stale_after_s)
        run_workers(work, arguments, where, board=board, logs=plan.folder / "logs", on_poll=show)
    return finish(plan, board, title)


def num_tasks(plan: Plan, states: Mapping[str, State]) -> int:
    """Tasks of the study, those of the second stage too before it is known which they are."""
    num = len(plan.tasks(states))
    waiting = plan.two_stages and plan.choices(states) is None
    return num + (len(plan.keys) * len(plan.recipe.study.seeds) if waiting else 0)


def work(recipe: StudyRecipe, stale_after_s: float) -> None:
    """Do one task after another until none is left: what a worker process runs."""
    plan = Plan(recipe)
    board = Board(plan.folder, stale_after_s)
    while (taken := _take(plan, board)) is not None:
        task, claim = taken
        with board.claims.held(claim):
            if not board.ended(task.name):
                board.record(task.name, attempt(lambda task=task: perform(task, plan)))  # type: ignore[misc]


def _take(plan: Plan, board: Board) -> tuple[Task, Path] | None:
    """Claim a task that can be done now; wait while others are at work on what is left; None when nothing is."""
    while True:
        states = board.states()
        left = [task for task in plan.tasks(states) if task.name not in states]
        if not left:
            return None
        progressed = False
        for task in left:
            needed = [states.get(name) for name in task.after]
            if any(state is not None and state.status == "failed" for state in needed):
                board.record(task.name, State("failed", error=f"it needs {' and '.join(task.after)}, which failed"))
                progressed = True
            elif all(needed) and (claim := board.claims.take(task.name)) is not None:
                return task, claim
        if not progressed:
            time.sleep(_WAIT_S)


def perform(task: Task, plan: Plan) -> float | None:
    """Do a task in this process.

    Returns:
        The selection metric, where the task has one.
    """
    from dftune.data.prepare import prepared  # noqa: PLC0415
    from dftune.environment import set_threads  # noqa: PLC0415
    from dftune.evaluate.runner import evaluate, evaluate_run  # noqa: PLC0415

    recipe, select = task.recipe, plan.recipe.study.select
    set_threads(recipe.train.threads)
    if task.kind == "prepare":
        prepared(recipe)
        return None
    if task.kind == "base":
        settings, folder = base_settings(recipe), plan.folder / "base" / task.name.removeprefix("base.")
        path = str(recipe.model.path)
        evaluate(path, settings.benchmarks, settings, folder, step=0, device=recipe.train.device)
        return None
    train_cell(recipe)
    if task.tests:
        evaluate_run(recipe.output, recipe.evaluate, device=recipe.train.device)
    if not task.selects:
        return None
    assert select is not None
    return measure(select, recipe, plan.folder / "tuning" / recipe.name)


# --- the end ---------------------------------------------------------------------------------------------


def finish(plan: Plan, board: Board, title: str | None = None) -> Outcome:
    """Write ``selection.json``, ``budgets.json`` and the report from what the folder holds."""
    states = board.states()
    chosen = plan.choices(states)
    choices = None if chosen is None else tuple(chosen)
    select, selection = plan.recipe.study.select, None
    if choices is not None and select is not None:
        selection = {**select.model_dump(mode="json"), "choices": [choice.row() for choice in choices]}
        write_json(plan.folder / "selection.json", selection)
    cells = done_cells(plan, states)
    unequal = tuple(check_budgets(cells, plan.recipe.study.equal))
    write_json(plan.folder / "budgets.json", {"equal": list(plan.recipe.study.equal), "differences": list(unequal)})
    report, html = _report(plan, cells, choices, selection, title)
    failed = {name: state.error for name, state in sorted(states.items()) if state.status == "failed"}
    return Outcome(choices, failed, unequal, report, html)


def done_cells(plan: Plan, states: Mapping[str, State]) -> list[Cell]:
    """All cells that were trained."""
    found = {cell.name: cell for cell in plan.first_cells}
    found |= {cell.name: cell for cell in plan.chosen_cells(plan.choices(states) or ())}
    return [cell for cell in found.values() if any(_done(states, kind, cell) for kind in ("tune", "run"))]


def _done(states: Mapping[str, State], kind: str, cell: Cell) -> bool:
    state = states.get(f"{kind}.{cell.name}")
    return state is not None and state.status == "done"


def _is_chosen(cell: Cell, choices: tuple[Choice, ...] | None) -> bool:
    return any(choice.key == cell.key and choice.lr == cell.lr for choice in choices or ())


def _report(
    plan: Plan,
    cells: list[Cell],
    choices: tuple[Choice, ...] | None,
    selection: Mapping[str, Any] | None,
    title: str | None,
) -> tuple[Report | None, Path | None]:
    """The report on the chosen cells and the base models; the others show how much the rate matters."""
    from dftune import report  # noqa: PLC0415

    base = plan.folder / "base"
    there = [cell for cell in cells if (cell.recipe.output / "manifest.json").is_file()]
    folders = [cell.recipe.output for cell in there if _is_chosen(cell, choices)]
    folders += sorted(path for path in base.iterdir() if (path / "manifest.json").is_file()) if base.is_dir() else []
    if not folders:
        return None, None
    swept = [cell.recipe.output for cell in there if cell.recipe.output not in folders]
    found = report.read(folders, title or plan.recipe.name, selection=selection, swept=swept)
    return found, found.write(plan.folder).html
