"""Checkpoints written while training goes on: a copy is taken at once, and a thread of each rank does the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from dftune.train.checkpoint import Contents, writer
from dftune.train.world import ALONE, PATIENCE, World


class Saver:
    """Saves one checkpoint at a time.

    Args:
        folder: the run's checkpoints.
        background: False has everything written before :meth:`save` returns.
        done: called with each checkpoint's step and path once it is complete, on rank 0, from the thread that wrote it.
        world: the ranks.
    """

    def __init__(
        self, folder: Path, *, background: bool, done: Callable[[int, Path], None], world: World = ALONE
    ) -> None:
        self.folder, self.background, self.done, self.world = folder, background, done, world
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if world.size > 1 else None

    def save(self, step: int, contents: Contents) -> None:
        """Copy what belongs to the checkpoint and have it written; first wait for the one before. All ranks call this.

        Raises:
            OSError: this one, or in the background the one before, could not be written.
        """
        self.finish()
        write = writer(self.folder, step, contents, self.world, copy=self.background, group=self._group)
        self._thread = threading.Thread(target=self._write, args=(step, write), name=f"checkpoint {step}")
        self._thread.start()
        if not self.background:
            self.finish()

    def _write(self, step: int, write: Callable[[], Path]) -> None:
        try:
            path = write()
            if self.world.main:
                self.done(step, path)
        except Exception as error:  # it is raised again by the thread that trains
            self._error = error

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Wait, and raise what went wrong. All ranks call this."""
        self.wait()

        def raise_error() -> None:
            error, self._error = self._error, None
            if error is not None:
                raise error

        self.world.from_main(raise_error)
