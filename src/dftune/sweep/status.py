"""How far a sweep is: trials by state, the best so far, who works on what."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dftune import config
from dftune.evaluate.summary import lay_out
from dftune.sweep.config import SweepRecipe, trial_name
from dftune.sweep.page import shown
from dftune.sweep.results import read_results
from dftune.sweep.search import Search


def open_sweep(folder: Path) -> Search:
    """The sweep in a folder.

    Raises:
        ValueError: the folder holds none.
    """
    path = folder / "sweep.yaml"
    if not path.is_file():
        raise ValueError(f"{folder} holds no sweep: there is no sweep.yaml. `dftune sweep RECIPE` begins one.")
    return Search(config.validate(config.read_yaml(path, []), SweepRecipe, str(path)))


def status(folder: Path) -> tuple[str, bool]:
    """A sweep as its folder and storage show it now.

    Returns:
        Text for a terminal, and whether every trial has ended.

    Raises:
        ValueError: the folder holds no sweep.
    """
    search = open_sweep(folder)
    results, sweep = read_results(search), search.recipe.sweep
    ends = Counter(trial.state for trial in results.trials)
    counts = ", ".join(f"{ends[state]} {name}" for state, name in _NAMES.items() if ends[state])
    lines = [
        f"{search.recipe.name}: {folder}",
        f"{len(results.trials)} of {sweep.size} trials begun: {counts or 'none'}",
    ]
    rows: list[tuple[str, ...]] = [("trial", "state", *sweep.space, sweep.select.metric)]
    for trial in results.trials:
        holder = search.board.claims.holder(trial_name(trial.number)) if trial.state == "running" else None
        state = trial.state if trial.state != "running" else f"on {holder.host}" if holder else "left by a dead process"
        last = f"{trial.curve[-1][0]} %: {trial.curve[-1][1]:.4g}" if trial.curve else ""
        value = last if trial.state == "running" or trial.value is None else f"{trial.value:.4g}"
        rows.append((str(trial.number), state, *(shown(trial.values.get(key)) for key in sweep.space), value))
    lines += ["", *lay_out(rows, 2)] if results.trials else []
    if results.best is not None:
        lines += ["", f"best: trial {results.best.number}, {sweep.select.metric} {results.best.value:.4g}"]
    over = len(results.trials) >= sweep.size and not ends["running"]
    return "\n".join(lines), over


_NAMES = {"complete": "trained to the end", "pruned": "pruned", "fail": "failed", "running": "running"}
