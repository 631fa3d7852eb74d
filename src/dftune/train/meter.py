"""Tokens a second and the share of padding."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from dftune.data.batches import MicroBatch


class Meter:
    """Tokens a second and the share of padding since the last reading."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Forget what was counted, after a pause that is not training."""
        self.tokens, self.padding, self.since = 0, 0, time.perf_counter()

    def add(self, batches: Sequence[MicroBatch]) -> None:
        """Count a step."""
        self.tokens += sum(batch.num_tokens for batch in batches)
        self.padding += sum(batch.num_padding for batch in batches)

    def read(self) -> tuple[float, float]:
        """Tokens a second, padding share; counting starts again."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self.since
        found = self.tokens / max(seconds, 1e-9), self.padding / max(1, self.tokens + self.padding)
        self.restart()
        return found
