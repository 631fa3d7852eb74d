"""Who works on what: claim files in a shared folder, without a coordinator.

A claim on a task is ``NAME.N``, created exclusively; the largest N is the valid one. Its owner touches it as long as it
lives. A claim that is not touched for a while, or whose owner is known to be dead, is stale: whoever then creates
``NAME.(N+1)`` first takes the task over. Claims are never deleted, so nobody can delete the wrong one; one that was
given back has the modification time 0.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

STALE_AFTER_S = 120.0
LOST = 75
"""Exit status of a process that found its claim taken over, or its parent gone: it must not write any more."""

_TICK_S = 1.0
_GENERATION = re.compile(r"(?P<task>.+)\.(?P<number>\d+)")


@dataclass(frozen=True)
class Holder:
    """Who holds a claim: host, process id, and how long ago it gave a sign, by this machine's clock."""

    host: str
    pid: int
    age_s: float


class Claims:
    """The claims in one folder, as one process sees them.

    Whether a claim of another machine is stale is judged by this process's own clock: it is, when its modification
    time has not changed while this process looked on for ``stale_after_s``. Clocks of machines need not agree.
    """

    def __init__(self, folder: Path, stale_after_s: float = STALE_AFTER_S) -> None:
        self.folder, self.stale_after_s = folder, stale_after_s
        self._seen: dict[str, tuple[int, float]] = {}

    def take(self, task: str) -> Path | None:
        """Claim a task; None where another process holds it or was faster."""
        newest = self._newest(task)
        if newest is not None and not self._is_stale(newest):
            return None
        path = self.folder / f"{task}.{_number(newest) + 1 if newest else 0}"
        self.folder.mkdir(parents=True, exist_ok=True)
        owner = json.dumps({"host": socket.gethostname(), "place": _place(), "pid": os.getpid(), "started": _started()})
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return None
        with os.fdopen(descriptor, "w") as file:
            file.write(owner)
        return path

    @contextmanager
    def held(self, path: Path) -> Iterator[None]:
        """Give signs of life for a claim while the block runs, then give it back."""
        over = threading.Event()
        beat = threading.Thread(target=self._beat, args=(path, over), daemon=True)
        beat.start()
        try:
            yield
        finally:
            over.set()
            beat.join()
            self.give_back(path)

    def give_back(self, path: Path) -> None:
        """Let others take the task."""
        with suppress(FileNotFoundError):
            os.utime(path, (0, 0))

    def _beat(self, path: Path, over: threading.Event) -> None:
        every = min(self.stale_after_s / 6, 20.0)
        last = time.monotonic()
        while not over.wait(min(_TICK_S, every)):
            if time.monotonic() - last < every:
                continue
            last = time.monotonic()
            if self._newest(_task(path)) != path:
                end_now(f"{path.name}: another process took this task over")
            with suppress(FileNotFoundError):
                os.utime(path)

    def holder(self, task: str) -> Holder | None:
        """Who seems to be at work on a task: for a person to read."""
        newest = self._newest(task)
        owner = None if newest is None else _read(newest)
        if newest is None or owner is None:
            return None
        touched = newest.stat().st_mtime
        age = time.time() - touched
        gone = touched == 0 or age > self.stale_after_s or _is_dead(owner)
        return None if gone else Holder(str(owner["host"]), int(owner["pid"]), max(age, 0.0))

    def of_process(self, pid: int) -> list[str]:
        """Tasks whose claim a process of this machine holds, or held when it died."""
        found = []
        for task in sorted({_task(path) for path in self._files()}):
            newest = self._newest(task)
            owner = None if newest is None else _read(newest)
            if newest is not None and owner and owner["pid"] == pid and owner["place"] == _place():
                found += [task] if newest.stat().st_mtime else []
        return found

    def _newest(self, task: str) -> Path | None:
        return max((path for path in self._files(f"{task}.*") if _task(path) == task), key=_number, default=None)

    def _files(self, pattern: str = "*") -> list[Path]:
        found = self.folder.glob(pattern) if self.folder.is_dir() else ()
        return [path for path in found if _GENERATION.fullmatch(path.name)]

    def _is_stale(self, path: Path) -> bool:
        touched = path.stat().st_mtime_ns
        if touched == 0:
            return True
        owner = _read(path)
        if owner is not None and _is_dead(owner):
            return True
        before, now = self._seen.get(path.name), time.monotonic()
        if before is None or before[0] != touched:
            self._seen[path.name] = (touched, now)
            return False
        return now - before[1] > self.stale_after_s


def _number(path: Path) -> int:
    return int(path.name.rpartition(".")[2])


def _task(path: Path) -> str:
    return path.name.rpartition(".")[0]


def _read(path: Path) -> dict[str, str | int] | None:
    """The owner, None while it is still being written."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return owner if isinstance(owner, dict) else None


def _is_dead(owner: dict[str, str | int]) -> bool:
    """Whether the owner ran here and does so no more."""
    return owner["place"] == _place() and _started(int(owner["pid"])) != owner["started"]


def _place() -> str:
    """This machine since its start, and within it the space that process ids belong to."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{socket.gethostname()} {boot.read_text().strip()} {space.readlink()}"
    except OSError:
        return socket.gethostname()


def _started(pid: int | None = None) -> str:
    """When a process was started, so that another of the same id is told from it; empty where there is none."""
    pid = pid or os.getpid()
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _is_running(pid)
    return "" if fields[0] in "ZX" else fields[19]


def _is_running(pid: int) -> str:
    if sys.platform.startswith("linux"):
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"


def end_now(reason: str) -> None:
    """End the process at once: the main thread may be in the middle of a step that it has no right to any more."""
    print(f"{reason}; this process ends.", file=sys.stderr, flush=True)
    os._exit(LOST)
