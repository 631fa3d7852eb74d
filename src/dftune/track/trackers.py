"""What every tracker is asked to do, and where it is found by name."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dftune.track.config import TrackConfig, TrackerName

Memory = dict[str, Any]

_PACKAGES: Mapping[TrackerName, str] = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
}


@dataclass(frozen=True)
class TrackedRun:
    """The run as a tracker shows it.

    Attributes:
        path: the run folder.
        name: shown.
        id: the same for one run wherever it is exported from, another when the folder holds another run.
        recipe: the resolved recipe.
        config: the ``track`` section.
    """

    path: Path
    name: str
    id: str
    recipe: Mapping[str, Any]
    config: TrackConfig


@dataclass(frozen=True)
class Point:
    """Numbers of one moment: names of docs/tracking.md, optimizer steps done, Unix seconds."""

    step: int
    time: float
    values: Mapping[str, float]


class Tracker(Protocol):
    """A connection to a tracker, for one run.

    Attributes:
        rewrites: whether what was sent can be taken back, by beginning anew.
        continues: whether another process can go on where this one ends.
    """

    rewrites: bool
    continues: bool

    def begin(self, memory: Memory, *, anew: bool) -> None:
        """Connect.

        Args:
            memory: what `flush` of an earlier session returned; empty before the first.
            anew: take back what earlier sessions sent, and begin with an empty run.
        """
        ...

    def log(self, points: Sequence[Point]) -> None:
        """Send points."""
        ...

    def flush(self) -> Memory:
        """Return when what was sent is kept; what a later session needs to know, as JSON values."""
        ...

    def close(self) -> None:
        """Disconnect."""
        ...


def make_tracker(name: TrackerName, run: TrackedRun) -> Tracker:
    """A tracker by name.

    Raises:
        ValueError: its package is not installed.
    """
    if importlib.util.find_spec(_PACKAGES[name]) is None:
        raise ValueError(f"{name} is not installed: pip install {_PACKAGES[name]}")
    tracker: Tracker = importlib.import_module(f"dftune.track.to_{name}").connect(run)
    return tracker


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
