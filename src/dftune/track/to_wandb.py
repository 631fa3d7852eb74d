"""Weights & Biases, online or offline."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb

from dftune.track.trackers import Memory, Point, TrackedRun


class WeightsAndBiases:
    """One W&B run, always under the same id, with ``step`` (optimizer steps) as the axis of every metric.

    Offline it is one folder under RUN/track/wandb for `wandb sync`. W&B cannot go on in such a folder, and two
    folders of one run are not merged, so a later session writes the whole run again in place of the one before. Online
    a history cannot be changed: what was sent first stays.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._of = run
        mode = run.config.wandb_mode or os.environ.get("WANDB_MODE")
        self._offline = mode in ("offline", "dryrun")
        self.rewrites = self._offline
        self.continues = not self._offline
        self._memory: Memory = {}
        self._run: Any = None

    def begin(self, memory: Memory, *, anew: bool) -> None:
        """Start the run, or resume it.

        Raises:
            ValueError: W&B refuses, for want of an account or of a connection.
        """
        number = memory.get("number", 1)
        folder = Path(memory["folder"]) if memory.get("folder") else None
        if anew and folder is not None and folder.is_dir():
            if any(folder.glob("*.wandb.synced")):
                number += 1  # it is at the server; sent again under its id, points would stand there twice
            else:
                shutil.rmtree(folder)
        where = self._of.path / "track"
        where.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=self._of.config.project,
                name=self._of.name,
                id=self._of.id if number == 1 else f"{self._of.id}-{number}",
                dir=str(where),
                mode="offline" if self._offline else "online",
                resume="allow",
                config=dict(self._of.recipe),
                settings=wandb.Settings(
                    console="off", silent=True, save_code=False, disable_git=True, x_disable_stats=True
                ),
            )
        except (wandb.Error, OSError) as error:
            raise ValueError(
                f"W&B could not be begun ({error}). Log in with `wandb login`, or set track.wandb_mode=offline "
                "and send the folder later with `wandb sync`."
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._memory = {"number": number, "folder": str(Path(self._run.dir).parent) if self._offline else None}

    def log(self, points: Sequence[Point]) -> None:
        """Append to the history."""
        for point in points:
            self._run.log({"step": point.step, "_timestamp": point.time, **point.values})

    def flush(self) -> Memory:
        """Nothing to wait for: W&B's own process writes what it was given."""
        return self._memory

    def close(self) -> None:
        """Finish the session; the run can be resumed."""
        if self._run is not None:
            self._run.finish()
            self._run = None
            wandb.teardown()  # finish alone does not wait until an offline run is written


connect = WeightsAndBiases
