"""What a run is doing, in one line: read off its events, for `dftune top`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dftune.events import EVENTS, Row, Tail, ended, latest
from dftune.progress import duration
from dftune.run import RunFolder
from dftune.watch.ledger import evaluated, written

_BARS = "▁▂▃▄▅▆▇█"
_RECENT = 20


@dataclass(frozen=True)
class Overview:
    """One run now.

    Attributes:
        name: of the run folder.
        state: ``waiting``, ``running``, ``stopped`` (no process and no end), or the status of its end: ``finished``,
            ``failed``, ``interrupted``, ...
        step: optimizer steps done.
        num_steps: of the whole run.
        losses: of the logged steps, in their order.
        nlls: likewise.
        validation_nll: the last; None without one.
        accuracy: step, benchmark, protocol and score of the last evaluations, those of one step.
        num_evaluated: checkpoints that a watcher has evaluated.
        num_checkpoints: checkpoints that were written.
        tokens_per_s: the last.
        left_s: seconds to the end at the speed of the last steps; None unless it runs.
    """

    name: str
    state: str
    step: int
    num_steps: int | None
    losses: Sequence[float]
    nlls: Sequence[float]
    validation_nll: float | None
    accuracy: Sequence[tuple[int, str, str, float]]
    num_evaluated: int
    num_checkpoints: int
    tokens_per_s: float | None
    left_s: float | None


class Follower:
    """Reads on in the events of a run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._tail = Tail(run / EVENTS)
        self._rows: list[Row] = []

    def look(self) -> Overview:
        """The run as it is now."""
        new = self._tail.new()
        if self._tail.replaced:
            self._rows = []
        self._rows += new
        return overview(self.run.resolve().name, self._rows, running=RunFolder(self.run).is_running())


def overview(name: str, rows: Sequence[Row], *, running: bool) -> Overview:
    """What the events of a run say.

    Args:
        name: shown.
        rows: of events.jsonl.
        running: whether a process trains it.
    """
    counting = latest(rows)
    by_kind: dict[str, dict[int, Row]] = {}
    for row in counting:
        by_kind.setdefault(row["kind"], {})[row["step"]] = row
    starts = [row for row in rows if row["kind"] == "start"]
    train = [by_kind.get("train", {})[step] for step in sorted(by_kind.get("train", {}))]
    validation = by_kind.get("validation", {})
    scored = [row for row in counting if row["kind"] == "evaluation" and row["accuracy"] is not None]
    newest = max((row["step"] for row in scored), default=0)
    status = ended(rows)
    state = "running" if running and status is None else status or ("stopped" if starts else "waiting")
    num_steps = starts[-1]["num_steps"] if starts else None
    step = train[-1]["step"] if train else 0
    return Overview(
        name=name,
        state=state,
        step=step,
        num_steps=num_steps,
        losses=[row["loss"] for row in train],
        nlls=[row["nll"] for row in train],
        validation_nll=validation[max(validation)]["nll"] if validation else None,
        accuracy=[
            (row["step"], row["benchmark"], row["protocol"], row["accuracy"]) for row in scored if row["step"] == newest
        ],
        num_evaluated=len(evaluated(rows) & written(rows)),
        num_checkpoints=len(written(rows)),
        tokens_per_s=train[-1]["tokens_per_s"] if train else None,
        left_s=_left(rows, num_steps) if state == "running" and num_steps is not None else None,
    )


def _left(rows: Sequence[Row], num_steps: int) -> float | None:
    """Seconds to the end, from the time of the last logged steps of this session."""
    session: list[Row] = []
    for row in reversed(rows):
        if row["kind"] == "start" or len(session) == _RECENT:
            break
        if row["kind"] == "train":
            session.append(row)
    pairs = [(late["time"] - early["time"], late["step"] - early["step"]) for late, early in pairwise(session)]
    steps = sum(step for _, step in pairs)
    return None if steps <= 0 else (num_steps - session[0]["step"]) * sum(seconds for seconds, _ in pairs) / steps


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """Block characters for values, the highest the tallest; longer series are averaged to ``width`` parts."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    parts = min(width, len(finite))
    means = []
    for part in range(parts):
        members = finite[part * len(finite) // parts : (part + 1) * len(finite) // parts]
        means.append(sum(members) / len(members))
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def cells(found: Overview) -> list[str]:
    """The line of the table: name, state, progress, loss, nll, held-out nll, accuracy, evaluated, tokens/s, left."""
    total = "?" if found.num_steps is None else str(found.num_steps)
    share = f" {100 * found.step / found.num_steps:.0f} %" if found.num_steps else ""
    accuracy = ", ".join(f"{name} {protocol} {100 * score:.1f} %" for _, name, protocol, score in found.accuracy[:2])
    return [
        found.name,
        found.state,
        f"{found.step}/{total}{share}",
        _figure(found.losses[-1] if found.losses else None),
        f"{sparkline(found.nlls)} {_figure(found.nlls[-1])}" if found.nlls else "-",
        _figure(found.validation_nll),
        f"{accuracy} at {found.accuracy[0][0]}" if found.accuracy else "-",
        f"{found.num_evaluated}/{found.num_checkpoints}" if found.num_checkpoints else "-",
        "-" if found.tokens_per_s is None else f"{found.tokens_per_s:,.0f}",
        "-" if found.left_s is None else duration(found.left_s),
    ]


HEAD = ("run", "state", "step", "loss", "nll", "held-out", "accuracy so far", "evaluated", "tokens/s", "left")


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}"


_INSIDE = ("*", "cells/*", "trials/*", "*/cells/*", "*/trials/*")
"""Where runs lie in a folder of runs, in a study and in a sweep, and in a folder of those."""


_BEGUN = ("study.yaml", "sweep.yaml", "*/study.yaml", "*/sweep.yaml")


def find(paths: Sequence[Path]) -> list[Path]:
    """The training runs that paths name: each itself, or those inside it and inside its studies and sweeps.

    Raises:
        ValueError: a folder is missing, or holds no run.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is no folder. Give run folders, or a folder that holds some.")
        own = (path / "recipe.yaml").is_file()
        inside = [path] if own else [run.parent for at in _INSIDE for run in sorted(path.glob(f"{at}/recipe.yaml"))]
        if not inside and not any(any(path.glob(name)) for name in _BEGUN):
            raise ValueError(
                f"{path} holds no training run: no recipe.yaml in it or one level down, and no study or sweep."
            )
        found += inside
    return list({path.resolve(): path for path in found}.values())
