"""The ranks of a run: how many processes train together, and what they tell each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dftune.ops.ulysses import SequenceGroup
from dftune.stopped import STATUS as STOPPED
from dftune.stopped import Stopped

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long ranks wait for what one of them does in its own time."""


@dataclass(frozen=True)
class World:
    """One process's place among those that train together. Alone, nothing here communicates.

    Attributes:
        rank: of this process, from 0; rank 0 writes the files and speaks to the user.
        size: processes in all.
        local_rank: of this process on its machine.
        local_size: processes on its machine.
        host: for what is small and lies in CPU memory, so that no device has to be waited for; None is the default
            group.
        patient: the same, for what rank 0 does while the others wait.
        device: for tensors on the training device; None is the default group.
        sequence: the ranks that share every sequence with this one; None where each has its own.
        of_data: see :attr:`data`.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    host: Any = None
    patient: Any = None
    device: Any = None
    sequence: SequenceGroup | None = None
    of_data: World | None = None

    @property
    def data(self) -> World:
        """The ranks among which examples are divided: one of each group that shares its sequences.

        Each group has as many such worlds as ranks, and all of them find the same: a sum over tokens or examples
        counts them once.
        """
        return self if self.of_data is None else self.of_data

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def sum(self, *counts: int) -> list[int]:
        """Each count summed over the ranks."""
        if self.size == 1:
            return list(counts)
        total = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(total, group=self.host)
        return [int(value) for value in total.tolist()]

    def total(self, value: Tensor) -> Tensor:
        """A tensor on the training device, summed over the ranks."""
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value, group=self.device)
        return value

    def gather(self, value: T) -> list[T]:
        """What every rank has, in the order of the ranks; pickled, so tensors should be on the CPU."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.host)
        return found

    def from_main(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on rank 0, the only one that calls it. The others wait for it, however long it takes.

        Raises:
            SystemExit: on the other ranks, where ``make`` failed on rank 0, which raises the error itself.
        """
        if self.size == 1:
            return make()
        error: BaseException | None = None
        box: list[Any] = [None]
        if self.main:
            try:
                box = [(make(), None)]
            except Exception as raised:  # the others must hear of it before it goes on
                error, box = raised, [(None, _status(raised))]
        dist.broadcast_object_list(box, src=0, group=self.patient)
        if error is not None:
            raise error
        value, status = box[0]
        if status is not None:
            give_way()
            raise SystemExit(status)
        found: T = value
        return found


def _status(error: Exception) -> int:
    if isinstance(error, Stopped):
        return STOPPED
    return 2 if isinstance(error, ValueError) else 1


ALONE = World()
"""A single process."""


def give_way(seconds: float = 3.0) -> None:
    """Let the rank that has something to say end first: the first that ends has the others ended."""
    time.sleep(seconds)
