"""What a study will take, before it is begun: cells, steps, tokens, disk, time."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dftune.data.dataset import PreparedDataset
from dftune.evaluate.summary import lay_out
from dftune.files import read_jsonl
from dftune.recipe import Recipe
from dftune.report.wording import count, duration, size
from dftune.study.board import Board, State
from dftune.study.plan import Cell, Key, Plan, base_settings
from dftune.study.select import GREEDY_ALONE, asked, problems_of, without_limit
from dftune.study.workers import Places, places

_PROBE_STEPS = 4
_PROBE_PROBLEMS = 16
_BUSY = 0.5
"""On CPU a process that computes with one thread and gets less of a core than this shares it with others."""
_STATES_OF_A_CHECKPOINT = 3
"""Weights and two moments, of 4 bytes a parameter each."""


@dataclass(frozen=True)
class Speed:
    """What one run of an objective costs.

    Attributes:
        start_s: from nothing to the first step.
        step_s: one optimizer step.
        validation_s: scoring the held-out rows once.
        problem_s: answering one problem once.
        model_bytes: the final model.
        share: of the processor's time that this process got while it was measured.
    """

    start_s: float
    step_s: float
    validation_s: float
    problem_s: float
    model_bytes: int
    share: float


def describe_plan(plan: Plan, *, workers: int | None = None, probe: bool = True) -> str:
    """The plan of a study for a person: nothing of it is kept.

    Time is taken from cells that have run; where there are none, a few steps of each objective are timed in a
    temporary folder, if the model is on this machine.
    """
    states = Board(plan.folder).states()
    where = places(workers, plan.first_cells[0].recipe.train.device)
    with tempfile.TemporaryDirectory(prefix="dftune-plan-") as name:
        temporary = Path(name)
        sizes = {cell.key: _steps_and_tokens(cell, temporary, probe) for cell in _one_of_each(plan)}
        measured = _earlier(plan, states)
        speeds: dict[str, Speed] = {}
        if probe and not measured and all(_is_here(cell.recipe) for cell in plan.first_cells):
            speeds = {label: _probe(cell, temporary, plan) for label, cell in _one_of_each_objective(plan).items()}
    rows: list[tuple[str, ...]] = [_HEAD]
    total_s, total_bytes, total_tokens, num_runs = 0.0, 0, 0, 0
    for cell in _one_of_each(plan):
        steps, tokens = sizes[cell.key]
        num_tune, num_run = _num_cells(plan, cell.key)
        trained = len({*_names(plan, cell.key)}) if plan.two_stages else num_run
        seconds = measured.get(cell.key[2]) or _seconds(speeds.get(cell.key[2]), cell.recipe, steps, plan)
        disk = _disk(cell.recipe, steps, speeds.get(cell.key[2]))
        costs = ("-" if disk is None else size(disk), "-" if seconds is None else duration(seconds))
        rows.append((*_row(cell.key, (num_tune, num_run), steps=steps, tokens=tokens), *costs))
        total_s += trained * seconds if seconds is not None else float("nan")
        total_bytes += trained * (disk or 0)
        total_tokens += trained * (tokens or 0)
        num_runs += trained
    lines = [f"{plan.recipe.name}: {num_runs} runs, {where.what}, in {plan.folder}", "", *lay_out(rows, 3), ""]
    lines.append(f"tokens: {count(total_tokens) if total_tokens else 'not known before the data are prepared'}")
    lines.append(f"disk: {size(total_bytes) if total_bytes else 'not known'} beside the prepared data")
    lines.append(f"time: {_time(total_s, where, measured, speeds, probe)}")
    if states:
        ended = sum(state.status == "done" for state in states.values())
        lines.append(
            f"already done: {ended} tasks, {duration(sum(state.seconds for state in states.values()))} of work"
        )
    return "\n".join(lines)


_HEAD = ("objective", "model", "condition", "runs", "steps", "tokens a run", "disk a run", "time a run")


def _row(cell: Key, runs: tuple[int, int], *, steps: int | None, tokens: int | None) -> tuple[str, ...]:
    tune, final = runs
    shown = f"{tune} + {final}" if tune else str(final)
    return (cell[2], cell[0] or "-", cell[1] or "-", shown, *("-" if n is None else count(n) for n in (steps, tokens)))


def _time(
    total_s: float, where: Places, measured: Mapping[str, float], speeds: Mapping[str, Speed], probe: bool
) -> str:
    if math.isnan(total_s):
        why = "" if probe else ", since it was not to be probed"
        return f"not known{why or ': the model is not on this machine, so that it could not be probed'}"
    num = len(where.environments)
    source = "from runs that have ended" if measured else f"from {_PROBE_STEPS} steps of each objective"
    share = sum(speed.share for speed in speeds.values()) / len(speeds) if speeds else 1.0
    busy = ""
    if share < _BUSY and not where.on_cuda:
        idle = duration(share * total_s / num)
        busy = f"; the machine is busy (the probe got {100 * share:.0f} % of a core): {idle} on an idle one"
    return f"about {duration(total_s / num)} on {num} {'worker' if num == 1 else 'workers'}, {source}{busy}"


def _one_of_each(plan: Plan) -> list[Cell]:
    """The first cell of every model, condition and objective."""
    return list({cell.key: cell for cell in reversed(plan.first_cells)}.values())[::-1]


def _one_of_each_objective(plan: Plan) -> dict[str, Cell]:
    return {cell.key[2]: cell for cell in reversed(plan.first_cells)}


def _num_cells(plan: Plan, key: Key) -> tuple[int, int]:
    """Runs of the first stage, and those that the second adds at least."""
    study = plan.recipe.study
    first = sum(cell.key == key for cell in plan.first_cells)
    if not plan.two_stages:
        return 0, first
    return first, len(set(study.seeds) - set(study.first_seeds))


def _names(plan: Plan, key: Key) -> list[str]:
    """As many names as there will be runs: which rate is chosen does not change how many."""
    first, more = _num_cells(plan, key)
    return [f"{index}" for index in range(first + more)]


def _is_here(recipe: Recipe) -> bool:
    return recipe.model.scratch is not None or Path(str(recipe.model.path)).is_dir()


def _prepared(recipe: Recipe, temporary: Path, prepare_anew: bool) -> PreparedDataset | None:
    """The prepared data: those of the study, or made for now."""
    from dftune.data.prepare import prepared  # noqa: PLC0415

    if recipe.data.prepared.is_dir():
        return PreparedDataset.load(recipe.data.prepared)
    return prepared(_moved(recipe, temporary)) if prepare_anew and _is_here(recipe) else None


def _moved(recipe: Recipe, temporary: Path, **train: Any) -> Recipe:
    """A recipe whose files go into another folder."""
    data = recipe.data
    if not data.prepared.is_dir():
        data = data.model_copy(update={"prepared": temporary / "prepared" / data.prepared.name})
    output = temporary / recipe.name
    settings = recipe.train.model_copy(update=train)
    return recipe.model_copy(update={"data": data, "output": output, "train": settings})


def _steps_and_tokens(cell: Cell, temporary: Path, prepare_anew: bool) -> tuple[int | None, int | None]:
    """Optimizer steps, and tokens without padding, of one run."""
    from dftune.objectives import get_objective  # noqa: PLC0415
    from dftune.train.examples import Schedule, Visited  # noqa: PLC0415

    recipe = cell.recipe
    data = _prepared(recipe, temporary, prepare_anew)
    if data is None:
        return recipe.train.steps, None
    objective = get_objective(recipe.objective.name, **recipe.objective.options)
    visited = Visited(data.train, recipe.data, "groups" in objective.needs)
    schedule = Schedule.of(recipe.train, len(visited), cell.seed)
    per_visit = sum(map(len, visited.of((0, index) for index in range(len(visited))))) / len(visited)
    return schedule.num_steps, round(schedule.num_total * per_visit)


def _earlier(plan: Plan, states: Mapping[str, State]) -> dict[str, float]:
    """Mean seconds of a run by objective, from tasks that have ended; empty while an objective has none."""
    found: dict[str, list[float]] = {choice.called: [] for choice in plan.recipe.study.objectives}
    for cell in plan.first_cells:
        for kind in ("tune", "run"):
            state = states.get(f"{kind}.{cell.name}")
            if state is not None and state.status == "done":
                found[cell.key[2]].append(state.seconds)
    return {label: sum(times) / len(times) for label, times in found.items()} if all(found.values()) else {}


def _probe(cell: Cell, temporary: Path, plan: Plan) -> Speed:
    """Time a few steps and a few completions."""
    from dftune.data.prepare import prepared  # noqa: PLC0415
    from dftune.evaluate.runner import evaluate_run  # noqa: PLC0415
    from dftune.train.loop import train  # noqa: PLC0415

    short = {"steps": _PROBE_STEPS, "epochs": None, "validate_every": None, "checkpoint_every": None, "log_every": 1}
    recipe = _moved(cell.recipe, temporary, **short)
    data, started, computed = prepared(recipe), time.time(), time.process_time()
    train(recipe, data, say=lambda line: None)
    rows = read_jsonl(recipe.output / "events.jsonl")
    steps = [row["time"] for row in rows if row["kind"] == "train"]
    begun = next(row["time"] for row in rows if row["kind"] == "start")
    validated = next((row["time"] for row in rows if row["kind"] == "validation"), begun)
    problem_s = 0.0
    if recipe.evaluate.benchmarks:
        few = f"{without_limit(recipe.evaluate.benchmarks[0])}:{_PROBE_PROBLEMS}"
        settings = recipe.evaluate.model_copy(update={**GREEDY_ALONE, "benchmarks": (few,)})
        before = time.time()
        (summary,) = evaluate_run(recipe.output, settings, device=recipe.train.device, say=lambda line: None)
        problem_s = (time.time() - before) / summary.num_problems
    model_bytes = sum(file.stat().st_size for file in (recipe.output / "model").iterdir())
    shutil.rmtree(recipe.output)
    step_s = (steps[-1] - steps[0]) / (len(steps) - 1)
    share = (time.process_time() - computed) / (time.time() - started)
    return Speed(begun - started, step_s, validated - begun, problem_s, model_bytes, share)


def _seconds(speed: Speed | None, recipe: Recipe, steps: int | None, plan: Plan) -> float | None:
    """Of one run with its evaluations."""
    if speed is None or steps is None:
        return None
    every = recipe.train.validate_every
    validations = 1 + (steps // every if every else 0) + (0 if every and steps % every == 0 else 1)
    problems = _num_completions(recipe, plan)
    return speed.start_s + steps * speed.step_s + validations * speed.validation_s + problems * speed.problem_s


def _num_completions(recipe: Recipe, plan: Plan) -> int:
    """Completions of the benchmarks, and of the problems that a rate is chosen by."""
    from dftune.evaluate.benchmarks import load_benchmark  # noqa: PLC0415
    from dftune.evaluate.jobs import plan_samplings  # noqa: PLC0415

    num = 0
    if recipe.evaluate.benchmarks:
        samples = sum(sampling.num_samples for sampling in plan_samplings(base_settings(recipe)))
        benchmarks = [load_benchmark(spec, recipe.evaluate.data_dir) for spec in recipe.evaluate.benchmarks]
        num += samples * sum(len(benchmark.rows) for benchmark in benchmarks)
    select = plan.recipe.study.select
    if select is not None and select.generates:
        held_out = select.benchmark is None
        chosen_by = problems_of(select, recipe)
        rows = recipe.data.validation if held_out else len(load_benchmark(chosen_by, recipe.evaluate.data_dir).rows)
        num += rows * sum(sampling.num_samples for sampling in plan_samplings(asked(select, recipe)))
    return num


def _disk(recipe: Recipe, steps: int | None, speed: Speed | None) -> int | None:
    """Final model and checkpoints of one run; completions and events are small beside them."""
    if speed is not None:
        model = speed.model_bytes
    elif recipe.model.path is not None and Path(recipe.model.path).is_dir():
        model = sum(file.stat().st_size for file in Path(recipe.model.path).glob("*.safetensors"))
    else:
        return None
    every = recipe.train.checkpoint_every
    kept: Sequence[int] = range(every, steps, every) if every and steps else ()
    num = min(len(kept), recipe.train.keep_checkpoints or len(kept))
    return model * (1 + _STATES_OF_A_CHECKPOINT * num)
