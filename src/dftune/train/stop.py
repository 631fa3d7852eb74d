"""A request from outside to stop: a signal, on which a run saves what it has and ends so that it can be taken up."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dftune.stopped import Stopped
from dftune.train.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_ONE_REQUEST_S = 5.0


class StopRequest:
    """Listens for SIGTERM and SIGUSR1, and tells all ranks of a request to any of them.

    Before training has begun there is nothing to save, and a signal ends the process at once, by :class:`Stopped`.
    Afterwards it is only noted, until the loop asks for it between two steps. A second signal ends the process as if
    nobody listened; what comes within five seconds of the first is taken for the same request, since launchers and
    batch systems send one along several ways.
    """

    def __init__(self) -> None:
        self.training = False
        self._heard: signal.Signals | None = None
        self._since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this context; nothing is heard outside of the main thread, where Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self._hear) for one in SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._heard is None:
            self._heard, self._since = signal.Signals(number), now
            if not self.training:
                raise Stopped(self._heard.name, "before the first step; nothing was saved")
        elif now - self._since > _ONE_REQUEST_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def over(self, world: World) -> str | None:
        """Name of the signal that any rank has heard, the same on all of them; None to go on. All ranks call this."""
        counts = world.sum(*(int(self._heard is one) for one in SIGNALS))
        return next((one.name for one, count in zip(SIGNALS, counts, strict=True) if count), None)
