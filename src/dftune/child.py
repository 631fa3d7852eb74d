"""A command of dftune in a process beside training, that learns when training ends and can never harm it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

_FINISHED = b"finished\n"
_OF_LAUNCHERS = ("TORCHELASTIC_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_")


class Child:
    """``dftune ARGUMENTS`` in a session of its own, so that signals to the parent's terminal do not reach it.

    It holds the reading end of a pipe (its standard input). ``finish`` tells it through the pipe that training has
    ended; a pipe that closes without that, because the parent was killed, ends the child.

    Args:
        name: what it is, for messages.
        arguments: of the command, which calls `follow_parent`.
        log: file that its output is appended to.
        again: the command by which a user takes its work up when it failed.
        say: receives lines for a person.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], log: Path, *, again: str, say: Callable[[str], None]
    ) -> None:
        self.name, self.log, self.again, self.say = name, log, again, say
        self._told = False
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(_OF_LAUNCHERS)}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dftune", *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environment,
            )

    def check(self) -> bool:
        """Whether it runs; says once when it has failed."""
        status = self._process.poll()
        if status not in (None, 0) and not self._told:
            self._told = True
            self.say(
                f"{self.name} ended with status {status}: {_last_line(self.log)}\n"
                f"Its output is in {self.log}; training does not depend on it. Take it up with: {self.again}"
            )
        return status is None

    def tell_finished(self) -> None:
        """Tell it that training has ended; it does what is left and ends."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(OSError):  # it has ended already
                self._process.stdin.write(_FINISHED)
                self._process.stdin.flush()
                self._process.stdin.close()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until it has done what is left, at most so long; then, or when interrupted, it is ended."""
        self.tell_finished()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._told = True
            self.say(f"{self.name} has not ended after {timeout_s:g} s and is left. Take it up with: {self.again}")
        finally:
            if self.check():
                self.end()

    def end(self) -> None:
        """End it now. What it has written stays."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def follow_parent(pipe: IO[bytes]) -> threading.Event:
    """Wait, in a thread, for what the parent has to say; without a last word from it this process ends.

    Args:
        pipe: the reading end, standard input.

    Returns:
        Set when training has ended and this process may finish its work.
    """
    finished = threading.Event()

    def listen() -> None:
        if pipe.read() == _FINISHED:
            finished.set()
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True, name="parent").start()
    return finished


def give_way(nice: int) -> None:
    """Lower this process's priority to at least ``nice``."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))


def wait_until(condition: Callable[[], bool], poll_s: float) -> None:
    """Look every ``poll_s`` seconds until it is true."""
    while not condition():
        time.sleep(poll_s)
