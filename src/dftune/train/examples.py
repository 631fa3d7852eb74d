"""What a run visits: examples, or groups of a completion and its negatives, in the order of the seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dftune.data.batches import Example, step_visits
from dftune.data.config import DataConfig
from dftune.data.dataset import PreparedSplit
from dftune.train.config import TrainConfig


@dataclass(frozen=True)
class Visited:
    """The examples of a split as an objective wants them.

    Attributes:
        split: of the prepared dataset.
        data: says which negatives.
        grouped: each example with its negatives; by itself otherwise.
    """

    split: PreparedSplit
    data: DataConfig
    grouped: bool

    def __len__(self) -> int:
        return len(self.split)

    def of(self, visits: Iterable[tuple[int, int]]) -> list[Example]:
        """The examples of some visits, each an epoch and an index."""
        return [example for epoch, index in visits for example in self._visit(epoch, index)]

    def all(self) -> list[Example]:
        """Every example that some epoch may visit, each once."""
        if self.grouped and self.data.rotate_negatives:
            return [example for index in range(len(self)) for example in self.split.group(index)]
        return self.of((0, index) for index in range(len(self)))

    def _visit(self, epoch: int, index: int) -> list[Example]:
        if not self.grouped:
            return [self.split.example(index)]
        settings = self.data
        return self.split.group(
            index, epoch=epoch, num_negatives=settings.num_negatives, rotate=settings.rotate_negatives
        )


@dataclass(frozen=True)
class Schedule:
    """Which examples each optimizer step visits.

    Attributes:
        num_examples: in the training split.
        num_total: visits in the whole run.
        num_steps: optimizer steps of the whole run.
        batch_size: visits a step.
        seed: decides the order.
    """

    num_examples: int
    num_total: int
    num_steps: int
    batch_size: int
    seed: int

    @classmethod
    def of(cls, config: TrainConfig, num_examples: int, seed: int) -> Schedule:
        """The schedule that a recipe asks for."""
        if config.steps is not None:
            num_total = config.steps * config.batch_size
        else:
            assert config.epochs is not None
            num_total = max(1, round(config.epochs * num_examples))
        return cls(num_examples, num_total, math.ceil(num_total / config.batch_size), config.batch_size, seed)

    def visits(self, step: int) -> list[tuple[int, int]]:
        """Epoch and index of every example of a step."""
        return step_visits(
            step,
            num_examples=self.num_examples,
            batch_size=self.batch_size,
            seed=self.seed,
            num_total=self.num_total,
        )

    def epoch(self, step: int) -> float:
        """Epochs seen after so many steps."""
        return min(step * self.batch_size, self.num_total) / self.num_examples
