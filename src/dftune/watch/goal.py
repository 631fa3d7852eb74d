"""Which checkpoint is best, and whether it is time to stop: read off the rows of events.jsonl."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from dftune.evaluate.record import WATCHER
from dftune.events import Row, latest, scalars
from dftune.watch.config import GoalConfig, StopConfig


def scores(rows: Iterable[Row], goal: GoalConfig) -> dict[int, float]:
    """The goal's metric by step, where there is one.

    ``accuracy`` is the mean over the watcher's rows of a step, which are written together.
    """
    found: dict[int, list[float]] = defaultdict(list)
    whole = goal.metric == "accuracy"
    if whole:
        rows = [row for row in rows if row["kind"] == "evaluation" and row["source"] == WATCHER]
    for row in latest(rows):
        value = row["accuracy"] if whole else scalars(row).get(goal.metric)
        if value is not None:
            found[row["step"]].append(value)
    return {step: sum(values) / len(values) for step, values in sorted(found.items())}


def best_steps(found: Mapping[int, float], goal: GoalConfig, number: int = 1) -> list[int]:
    """The steps with the best scores, the best first; of equal ones the earliest."""
    return sorted(found, key=lambda step: (-goal.sign * found[step], step))[:number]


def stop_reason(found: Mapping[int, float], goal: StopConfig) -> str | None:
    """Why training should stop: the last ``patience`` scores are no better than the best before; None to go on."""
    best: int | None = None
    since = 0
    for step in sorted(found):
        if best is None or goal.sign * (found[step] - found[best]) > goal.min_delta:
            best, since = step, 0
        else:
            since += 1
    if best is None or since < goal.patience:
        return None
    return f"{goal.metric} has not been better than {found[best]:.4g} of step {best} in the {since} results since"
