"""What every condition cost: tokens, time, memory and, where it was counted, energy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dftune.report.load import ENERGY, Run
from dftune.report.tables import ResultTable
from dftune.report.wording import count, duration, energy, size

DASH = "\N{EM DASH}"


@dataclass(frozen=True)
class CostRow:
    """One condition over all its seeds; what was not recorded is an em dash.

    Attributes:
        condition: its label.
        runs: how many.
        tokens: that were trained on, padding not counted.
        training: wall time, evaluations not counted.
        relative: tokens a second of training beside those of the first condition.
        evaluation: time of generating completions.
        memory: the largest peak of a run.
        energy: of training, by GPUs and by processors.
    """

    condition: str
    runs: str
    tokens: str
    training: str
    relative: str
    evaluation: str
    memory: str
    energy: str


def knows_energy(rows: Sequence[CostRow]) -> bool:
    """Whether any condition has an energy to show."""
    return any(row.energy != DASH for row in rows)


def build_cost(table: ResultTable) -> tuple[CostRow, ...]:
    """A row a trained condition, and the sum where there are several."""
    rows = [_row(row.label, row.runs, _speed(table.trained[0].runs)) for row in table.trained]
    everything = tuple(run for row in table.trained for run in row.runs)
    return (*rows, _row("together", everything, None)) if len(rows) > 1 else tuple(rows)


def _row(label: str, runs: tuple[Run, ...], first_speed: float | None) -> CostRow:
    tokens, seconds = _tokens(runs), math.fsum(run.seconds for run in runs)
    evaluation, peak, speed = _evaluation(runs), max(map(_peak, runs)), _speed(runs)
    return CostRow(
        condition=label,
        runs=count(len(runs)),
        tokens=count(tokens) if tokens else DASH,
        training=duration(seconds) if seconds else DASH,
        relative=f"{speed / first_speed:.2f}" if speed and first_speed else DASH,
        evaluation=duration(evaluation) if evaluation else DASH,
        memory=size(peak) if peak else DASH,
        energy=_energy(runs),
    )


def _energy(runs: tuple[Run, ...]) -> str:
    """What all runs know of."""
    names = dict(zip(ENERGY, ("GPU", "CPU"), strict=True))
    known = {key: name for key, name in names.items() if all(key in run.energy for run in runs)}
    sums = {name: math.fsum(run.energy[key] for run in runs) for key, name in known.items()}
    return " + ".join(f"{energy(joules)} {name}" for name, joules in sums.items()) or DASH


def _tokens(runs: tuple[Run, ...]) -> float:
    return math.fsum(float(run.train[-1].get("tokens") or 0) for run in runs if run.train)


def _speed(runs: tuple[Run, ...]) -> float | None:
    """Tokens a second; None where either was not recorded."""
    seconds = math.fsum(run.seconds for run in runs)
    return _tokens(runs) / seconds if seconds and _tokens(runs) else None


def _peak(run: Run) -> float:
    return max((float(event.get("peak_memory_bytes") or 0) for event in run.train), default=0.0)


def _evaluation(runs: tuple[Run, ...]) -> float:
    """Seconds of generation; several protocols read one file of completions, which counts once."""
    files = {
        (run.name, one.step, one.benchmark, one.sampling): float(one.settings.get("seconds") or 0)
        for run in runs
        for one in run.evaluations
    }
    return math.fsum(files.values())
