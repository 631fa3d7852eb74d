"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """Shows how far a task is, how fast, and when it will end, on standard error.

    On a terminal it is a bar; in files and logs, where a bar's carriage returns would be litter, one line every
    ``every_s`` seconds.

    Args:
        title: what is being done.
        total: number of steps.
        done: steps already done, when work is taken up again.
        every_s: seconds between lines where there is no terminal.
        shown: False says nothing.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, every_s: float = 10.0, shown: bool = True) -> None:
        self.title, self.total, self.done, self.every_s, self.shown = title, total, done, every_s, shown
        self._first, self._started, self._said = done, time.monotonic(), time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        """Start the bar."""
        if self.shown and sys.stderr.isatty():
            from rich import progress as bars  # noqa: PLC0415
            from rich.console import Console  # noqa: PLC0415

            self._bar = bars.Progress(
                bars.TextColumn("{task.description}"),
                bars.BarColumn(),
                bars.MofNCompleteColumn(),
                bars.TimeRemainingColumn(),
                bars.TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Say that ``done`` steps are done; ``note`` is shown beside them."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        if not self.shown:
            return
        now = time.monotonic()
        if now - self._said >= self.every_s or done == self.total:
            self._said = now
            left = (self.total - done) * (now - self._started) / max(1, done - self._first)
            print(
                f"{self.title} {done}/{self.total}, {duration(left)} left  {note}".rstrip(),
                file=sys.stderr,
                flush=True,
            )


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: ``1:02:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
