"""TensorBoard: event files in RUN/track/tensorboard, written without torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from dftune.track.trackers import Memory, Point, TrackedRun


class TensorBoard:
    """One writer for all metrics: of two in one folder a live TensorBoard drops what the first one writes later."""

    rewrites = True
    continues = True

    def __init__(self, run: TrackedRun) -> None:
        self._folder = run.path / "track" / "tensorboard"
        self._writer: Any = None

    def begin(self, memory: Memory, *, anew: bool) -> None:
        """Open a new event file; ``anew`` deletes the others."""
        if anew:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._writer = EventFileWriter(str(self._folder))

    def log(self, points: Sequence[Point]) -> None:
        """Write scalars under their own time."""
        for point in points:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self._writer.add_event(Event(wall_time=point.time, step=point.step, summary=Summary(value=values)))

    def flush(self) -> Memory:
        """Write to the file."""
        self._writer.flush()
        return {}

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


connect = TensorBoard
