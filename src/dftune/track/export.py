"""From events.jsonl to a tracker: once, in order, and again without doubling anything."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dftune.config import read_yaml
from dftune.events import EVENTS, Row, Tail, identity, latest, scalars
from dftune.files import fingerprint, read_json, write_json
from dftune.track.config import TrackConfig, TrackerName
from dftune.track.trackers import Memory, Point, TrackedRun, Tracker, make_tracker


class Exporter:
    """Brings the rows of a run to one tracker.

    How far it is stands in ``RUN/track/NAME.json``. Of rows that stand twice (a resumed run repeats steps) the last
    counts: a tracker that can take back is begun anew; in one that cannot, what was sent first stays. The same is done
    where it is not known what a killed exporter had sent.

    Args:
        run: the run folder.
        name: of the tracker.
        config: the ``track`` section.

    Raises:
        ValueError: there are no metrics, or the tracker's package is not installed.
    """

    def __init__(self, run: Path, name: TrackerName, config: TrackConfig) -> None:
        self.run, self.name, self.config = run, name, config
        self._state_path = run / "track" / f"{name}.json"
        self._tracker: Tracker | None = None
        self._begin()

    def _begin(self) -> None:
        """Read the run from its beginning, as far as it was exported before."""
        self._tail = Tail(self.run / EVENTS)
        rows = self._tail.new()
        if not rows:
            raise ValueError(f"{self.run / EVENTS} holds no metrics. `dftune train` writes them.")
        first = fingerprint(rows[0])
        state = read_json(self._state_path) if self._state_path.is_file() else {}
        known = state.get("first") == first and state["num_rows"] <= len(rows)
        self._sent = state["num_rows"] if known else 0
        self._certain = known and not state["sending"]
        self._memory: Memory = state.get("memory", {})
        self._first, self._num_rows = first, len(rows)
        self._keys = {identity(row) for row in rows[: self._sent]}
        self._unsent = rows[self._sent :]
        recipe = read_yaml(self.run / "recipe.yaml", []) if (self.run / "recipe.yaml").is_file() else {}
        name = self.config.name or str(recipe.get("name") or self.run.resolve().name)
        self.close()
        self._tracker_of = TrackedRun(self.run, name, first, recipe, self.config)

    def sync(self) -> int:
        """Send what is new; the number of points that were sent.

        Raises:
            ValueError: the tracker refuses.
        """
        new = self._tail.new()
        if self._tail.replaced:
            self._begin()
            new = []
        self._unsent += new
        self._num_rows += len(new)
        rows = [row for row in self._unsent if scalars(row)]
        if not rows:
            return 0
        tracker = self._tracker or make_tracker(self.name, self._tracker_of)
        repeated = any(identity(row) in self._keys for row in rows)
        lost = self._tracker is None and self._sent > 0 and not tracker.continues
        anew = tracker.rewrites and (repeated or lost or not self._certain)
        if anew:
            self._tail = Tail(self.run / EVENTS)
            rows = self._tail.new()
            self._num_rows, self._keys = len(rows), set()
            tracker.close()
        if anew or self._tracker is None:
            tracker.begin(self._memory, anew=anew)
            self._tracker = tracker
        points = _points(row for row in latest(rows) if identity(row) not in self._keys)
        self._save(sending=True)
        self._certain = False
        tracker.log(points)
        self._memory = tracker.flush()
        self._keys |= {identity(row) for row in rows}
        self._sent, self._unsent, self._certain = self._num_rows, [], True
        self._save(sending=False)
        return len(points)

    def _save(self, *, sending: bool) -> None:
        state = {"first": self._first, "num_rows": self._sent, "sending": sending, "memory": self._memory}
        write_json(self._state_path, state)

    def close(self) -> None:
        """Disconnect."""
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None


def _points(rows: Iterable[Row]) -> Sequence[Point]:
    found = ((row, scalars(row)) for row in rows)
    return [Point(row["step"], row["time"], values) for row, values in found if values]


@contextmanager
def exporting(run: Path) -> Iterator[None]:
    """Be the only exporter of a run.

    Raises:
        ValueError: another process is.
    """
    lock = run / "track" / ".lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{run} is being exported by another process, which will send everything.") from None
        yield


def track_config(run: Path, given: dict[str, Any]) -> TrackConfig:
    """The ``track`` section of the run's recipe, with what was given on the command line over it.

    Raises:
        ValueError: there is no recipe, or a value is wrong, or no tracker is named.
    """
    from dftune.config import validate  # noqa: PLC0415

    if not (run / "recipe.yaml").is_file():
        raise ValueError(f"{run} holds no training run (no recipe.yaml), so there are no metrics to export.")
    section = read_yaml(run / "recipe.yaml", []).get("track") or {}
    config = validate({**section, **given}, TrackConfig, "track")
    if not config.to:
        raise ValueError("which tracker? --to tensorboard, wandb, trackio or mlflow, or track.to in the recipe.")
    return config
