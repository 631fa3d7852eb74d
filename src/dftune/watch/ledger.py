"""Which checkpoints a watcher evaluates, in which order, and which of them must stay on the disk for it."""

from __future__ import annotations

import fcntl
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dftune.evaluate.record import WATCHER
from dftune.events import Row, latest
from dftune.files import BusyError, locked
from dftune.watch.config import Policy


def wanted(policy: Policy, steps: Iterable[int], rows: Iterable[Row]) -> list[int]:
    """The steps that a policy evaluates, in its order.

    Under ``best`` these are the steps whose held-out nll is below that of every earlier one of ``steps``; a step that
    was not validated cannot be ruled out.

    Args:
        policy: of the watcher.
        steps: of all checkpoints that the run ever wrote.
        rows: of events.jsonl.
    """
    ordered = sorted(set(steps))
    if policy == "newest":
        return ordered[::-1]
    if policy == "all":
        return ordered
    nll: Mapping[int, float] = {row["step"]: row["nll"] for row in latest(rows) if row["kind"] == "validation"}
    chosen, lowest = [], float("inf")
    for step in ordered:
        if nll.get(step, float("-inf")) < lowest:
            chosen.append(step)
            lowest = nll.get(step, lowest)
    return chosen


def written(rows: Iterable[Row]) -> set[int]:
    """Steps of all checkpoints that the run ever wrote."""
    return {row["step"] for row in rows if row["kind"] == "checkpoint"}


def evaluated(rows: Iterable[Row]) -> set[int]:
    """Steps that a watcher has evaluated; the rows of a step are written together."""
    return {row["step"] for row in rows if row["kind"] == "evaluation" and row["source"] == WATCHER}


def waiting(policy: Policy, rows: Collection[Row]) -> set[int]:
    """Checkpoints that the watcher of a recipe has yet to evaluate."""
    return set(wanted(policy, written(rows), rows)) - evaluated(rows)


@contextmanager
def claimed(run: Path, step: int) -> Iterator[bool]:
    """Whether this process has the checkpoint of a step to itself among all watchers of the run, while it lasts.

    A claim is a lock on a file, so it ends with the process that holds it, however that ends.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(_claim(run, step), f"evals/step-{step} of {run}"))
        except BusyError:
            yield False
        else:
            yield True


def is_claimed(run: Path, step: int) -> bool:
    """Whether a watcher is evaluating the checkpoint of a step."""
    with suppress(FileNotFoundError), _claim(run, step).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _claim(run: Path, step: int) -> Path:
    return run / "evals" / f".step-{step}.claim"
