"""trackio: a local database, shown by `trackio show`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import trackio

from dftune.track.trackers import Memory, Point, TrackedRun


class Trackio:
    """One run of a project. trackio finds runs by name, so the name carries the first digits of the run's id."""

    rewrites = True
    continues = True

    def __init__(self, run: TrackedRun) -> None:
        self._of = run
        self._name = f"{run.name}-{run.id[:6]}"
        self._run: Any = None

    def begin(self, memory: Memory, *, anew: bool) -> None:
        """Find the run; ``anew`` deletes what it holds."""
        if anew:
            self._delete({self._name, memory.get("name")})
        self._open()

    def _delete(self, names: set[Any]) -> None:
        try:
            found = list(trackio.Api().runs(self._of.config.project))
        except ValueError:  # no such project
            return
        for run in found:
            if run.name in names:
                run.delete()

    def _open(self) -> None:
        with redirect_stdout(None):  # it prints how to show its dashboard
            self._run = trackio.init(
                project=self._of.config.project,
                name=self._name,
                resume="allow",
                config=dict(self._of.recipe),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, points: Sequence[Point]) -> None:
        """Append to the run."""
        if self._run is None:
            self._open()
        for point in points:
            self._run.log(dict(point.values), step=point.step)

    def flush(self) -> Memory:
        """Finish: trackio writes from a thread, and only this waits for it."""
        self.close()
        return {"name": self._name}

    def close(self) -> None:
        """Finish the session; the next one resumes the run."""
        if self._run is not None:
            with redirect_stdout(None):
                self._run.finish()
            self._run = None


connect = Trackio
