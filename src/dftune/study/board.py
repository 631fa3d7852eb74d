"""What has become of each task: a file a task, in a folder that several processes and machines share."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dftune.files import read_json, write_json
from dftune.study.claim import STALE_AFTER_S, Claims


@dataclass(frozen=True)
class State:
    """How a task ended.

    Attributes:
        status: ``done`` or ``failed``.
        seconds: wall time of the session that ended it.
        host: where that was.
        value: the selection metric, for a task that has one.
        error: why it failed.
    """

    status: Literal["done", "failed"]
    seconds: float = 0.0
    host: str = ""
    value: float | None = None
    error: str = ""


class Board:
    """``tasks/`` and ``claims/`` of a folder.

    Attributes:
        claims: who is at work on what.
    """

    def __init__(self, folder: Path, stale_after_s: float = STALE_AFTER_S) -> None:
        self._tasks = folder / "tasks"
        self.claims = Claims(folder / "claims", stale_after_s)
        self._known: dict[str, State] = {}

    def states(self) -> Mapping[str, State]:
        """State by task, of those that have ended."""
        files = {path.stem: path for path in self._tasks.glob("*.json")} if self._tasks.is_dir() else {}
        self._known = {name: state for name, state in self._known.items() if name in files}
        for name, path in files.items():
            if name not in self._known:
                with suppress(FileNotFoundError):  # it has just been allowed another try
                    self._known[name] = State(**read_json(path))
        return dict(self._known)

    def ended(self, task: str) -> bool:
        """Whether a task has ended, as the folder says now."""
        return self._path(task).is_file()

    def record(self, task: str, state: State) -> None:
        """Say how a task ended."""
        row: dict[str, Any] = asdict(state) | {"host": state.host or socket.gethostname()}
        write_json(self._path(task), row)

    def forget_failed(self) -> list[str]:
        """Let failed tasks be tried again; returns their names."""
        failed = [name for name, state in self.states().items() if state.status == "failed"]
        for name in failed:
            self._path(name).unlink(missing_ok=True)
        return failed

    def _path(self, task: str) -> Path:
        return self._tasks / f"{task}.json"
