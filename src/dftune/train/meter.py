"""Tokens a second and the share of padding."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from dftune.data.batches import MicroBatch
from dftune.train.world import ALONE, World


class Meter:
    """Tokens a second and the share of padding since the last reading, over all ranks."""

    def __init__(self, device: torch.device, world: World = ALONE) -> None:
        self.device, self.world = device, world
        self.restart()

    def restart(self) -> None:
        """Forget what was counted, after a pause that is not training."""
        self.tokens, self.padding, self.since = 0, 0, time.perf_counter()

    def add(self, batches: Sequence[MicroBatch]) -> None:
        """Count a step's micro-batches, this rank's share of them."""
        self.tokens += sum(batch.num_tokens for batch in batches)
        self.padding += sum(batch.num_padding for batch in batches)

    def read(self) -> tuple[float, float]:
        """Tokens a second, padding share; counting starts again. Every rank calls this."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self.since
        tokens, padding = self.world.sum(self.tokens, self.padding)
        found = tokens / max(seconds, 1e-9), padding / max(1, tokens + padding)
        self.restart()
        return found
