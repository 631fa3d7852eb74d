"""The folder of a run: opened once, locked while it is written, explained by its files."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from dftune import config
from dftune.events import EVENTS, Tail, ended
from dftune.files import append_jsonl, locked, write_json, write_text
from dftune.recipe import Recipe

Watch = Callable[[Mapping[str, Any]], None]
"""Called with every row of events.jsonl when it has been written."""

_LOCK = ".lock"
# Keys that may change when a run is taken up again, since they do not change what it computes.
_FREE_SECTIONS = ("evaluate.", "generate.", "distributed.", "published", "watch.", "track.", "train.keep_best")
_FREE = frozenset(
    {
        *("output", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints"),
        *("train.background_checkpoints", "train.max_skipped_steps"),
    }
)


class RunFolder:
    """``runs/NAME``: see docs/run-folder.md for what it holds."""

    def __init__(self, path: Path, watch: Watch | None = None) -> None:
        self.path, self._watch = path, watch

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The final Hugging Face checkpoint."""
        return self.path / "model"

    def start(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
        """Make the folder, or check that the run in it is the recipe's.

        Raises:
            ValueError: it holds a run and neither ``resume`` nor ``overwrite`` was asked for, or the run to resume
                was made with other settings.
        """
        saved = self.path / "recipe.yaml"
        if overwrite and self.path.exists():
            if not saved.is_file() and any(entry.name != _LOCK for entry in self.path.iterdir()):
                raise ValueError(f"{self.path} is not a run of dftune (no recipe.yaml); it will not be deleted.")
            self._empty()
        if saved.is_file():
            if not resume:
                raise ValueError(
                    f"{self.path} already holds a run. Continue it with --resume, replace it with --overwrite, "
                    "or choose another name."
                )
            self._check_same(recipe, saved)
        elif self.path.is_file():
            raise ValueError(f"{self.path} is a file; a run needs a folder. Choose another output.")
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(saved, config.dump(recipe))

    def _empty(self) -> None:
        """Delete all but the lock, which is held."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != _LOCK:
                entry.unlink()

    def _check_same(self, recipe: Recipe, saved: Path) -> None:
        before = _flatten(config.read_yaml(saved, []))
        now = _flatten(recipe.model_dump(mode="json"))
        changed = sorted(key for key in before | now if before.get(key) != now.get(key) and not _free(key))
        if changed:
            listed = "\n".join(f"  {key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in changed)
            raise ValueError(
                f"{self.path} was started with other settings:\n{listed}\n"
                "Resume it with the same ones, or give the new run another name."
            )

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Write manifest.json."""
        write_json(self.path / "manifest.json", manifest)

    def log(self, kind: str, step: int, **fields: Any) -> None:
        """Append a row to events.jsonl."""
        row = {"kind": kind, "step": step, "time": time.time(), **fields}
        append_jsonl(self.path / EVENTS, [row])
        if self._watch is not None:
            self._watch(row)

    def finished(self) -> bool:
        """Whether the run has ended and left its model."""
        return self.model.is_dir() and ended(Tail(self.path / EVENTS).new()) == "finished"

    def has_begun(self) -> bool:
        """Whether a training run is here whose recipe, manifest and first event are written."""
        return all((self.path / name).is_file() for name in ("recipe.yaml", "manifest.json", EVENTS))

    def is_running(self) -> bool:
        """Whether a process trains here now."""
        with suppress(FileNotFoundError), (self.path / _LOCK).open(encoding="utf-8") as file:
            host, _, process = file.read().partition(", process ")
            if host == socket.gethostname() and process.isdecimal() and not _alive(int(process)):
                return False  # without touching the lock, which another process may be about to take
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder against a second writer.

        Raises:
            BusyError: another process holds it; names its host and process id.
        """
        return locked(self.path / _LOCK, str(self.path))


def _free(key: str) -> bool:
    return key in _FREE or key.startswith(_FREE_SECTIONS)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else key)
    return flat
