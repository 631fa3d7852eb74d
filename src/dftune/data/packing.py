"""Which examples share a row of a token budget: by best fit, in their order, or padded by length."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Sizes = Sequence[int] | npt.NDArray[np.int64]

Mode = Literal["best_fit", "in_order", "length_sorted"]

_OPEN_ROWS = 32


@dataclass(frozen=True)
class Rows:
    """Examples in rows.

    Attributes:
        order: (examples,) int64, the examples row by row.
        starts: (rows + 1,) int64; row ``i`` holds ``order[starts[i]:starts[i + 1]]``.
    """

    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1

    def lists(self) -> list[list[int]]:
        """The examples of each row."""
        return [self.order[start:end].tolist() for start, end in zip(self.starts[:-1], self.starts[1:], strict=True)]


def best_fit(sizes: Sizes, budget: int, counts: Sequence[int] | None = None, most: int | None = None) -> Rows:
    """Best-fit decreasing: the longest first, each into the fullest row that still takes it.

    Rows with the same room are in heaps of their own, and a bit says for each room whether there is one, so an
    example costs a shift of ``budget`` bits and a step in a heap. Memory is a few numbers an example.

    Args:
        sizes: tokens of each example, or of each group that shares a row.
        budget: most tokens in a row.
        counts: examples in each group; one by default.
        most: most examples in a row.

    Raises:
        ValueError: a size is larger than the budget, or not positive.
    """
    lengths, numbers = _checked(sizes, budget), np.ones(len(sizes), np.int64) if counts is None else np.asarray(counts)
    by_length = np.argsort(-lengths, kind="stable")
    open_rows = _OpenRows(budget, most)
    row_of = np.fromiter(
        (open_rows.put(int(lengths[item]), int(numbers[item])) for item in by_length), np.int64, len(lengths)
    )
    by_row = np.argsort(row_of, kind="stable")
    return Rows(by_length[by_row], np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=open_rows.num_rows))]))


def in_order(
    sizes: Iterable[int], budget: int, most: int | None = None, open_rows: int = _OPEN_ROWS
) -> Iterator[list[int]]:
    """Pack a stream: each example into the fullest open row that takes it; a row too many, and the fullest is done.

    Args:
        sizes: tokens of each example; read as they are needed.
        budget: most tokens in a row.
        most: most examples in a row.
        open_rows: rows that are waiting at once; with 1 every row is a stretch of the stream.

    Yields:
        The indices of the examples of a row, in their order.

    Raises:
        ValueError: a size is larger than the budget, or not positive.
    """
    waiting: list[tuple[int, list[int]]] = []
    for index, size in enumerate(sizes):
        _checked([size], budget)
        fitting = [at for at, (room, row) in enumerate(waiting) if room >= size and (most is None or len(row) < most)]
        if fitting:
            at = min(fitting, key=lambda place: waiting[place][0])
            room, row = waiting.pop(at)
        else:
            if len(waiting) == open_rows:
                yield waiting.pop(min(range(len(waiting)), key=lambda place: waiting[place][0]))[1]
            room, row = budget, []
        row.append(index)
        waiting.append((room - size, row))
    yield from (row for _, row in sorted(waiting, key=lambda item: item[1][0]))


def length_sorted(sizes: Sizes, budget: int, counts: Sequence[int] | None = None, most: int | None = None) -> Rows:
    """Padded batches: the longest first, as many as the budget takes when each is as long as the first.

    Args:
        sizes: tokens of each example, or of the longest of each group.
        budget: most tokens in a batch, padding included.
        counts: examples in each group; one by default.
        most: most examples in a batch.

    Raises:
        ValueError: a size is larger than the budget, or not positive.
    """
    lengths = _checked(sizes, budget)
    numbers = np.ones(len(lengths), np.int64) if counts is None else np.asarray(counts, np.int64)
    order = np.argsort(-lengths, kind="stable")
    starts: list[int] = []
    count = length = 0
    for place, item in enumerate(order):
        count += int(numbers[item])
        if not starts or count * length > budget or (most is not None and count > most):
            starts.append(place)
            count, length = int(numbers[item]), int(lengths[item])
    return Rows(order, np.array([*starts, len(order)], np.int64))


def unused_share(sizes: Sizes, budget: int, mode: Mode) -> float:
    """The share of the tokens in all rows that no example fills: padding, or room at the end of a packed row.

    Args:
        sizes: tokens of each example.
        budget: most tokens in a row.
        mode: how they are packed. Padded batches are as long as their longest example, others have the whole budget.
    """
    lengths = np.asarray(sizes, np.int64)
    if mode == "best_fit":
        room = len(best_fit(sizes, budget)) * budget
    elif mode == "in_order":
        room = sum(1 for _ in in_order(lengths.tolist(), budget)) * budget
    else:
        rows = length_sorted(sizes, budget)
        room = int((np.diff(rows.starts) * lengths[rows.order[rows.starts[:-1]]]).sum())
    return 1 - float(lengths.sum()) / room if room else 0.0


class _OpenRows:
    """Rows that still take examples, by the room that they have."""

    def __init__(self, budget: int, most: int | None) -> None:
        self._budget, self._most = budget, most
        self._by_room: dict[int, list[int]] = {}
        self._rooms = 0
        """Bit r is 1 where a row has room for exactly r tokens."""
        self._counts: list[int] = []

    @property
    def num_rows(self) -> int:
        return len(self._counts)

    def put(self, size: int, count: int) -> int:
        """Put an example, or several that share a row, into a row; returns its number."""
        found = self._fullest(size, count)
        if found is None:
            room, row = self._budget, len(self._counts)
            self._counts.append(0)
        else:
            room, row = found
            self._remove(room, row)
        self._counts[row] += count
        left = room - size
        if left and (self._most is None or self._counts[row] < self._most):
            heapq.heappush(self._by_room.setdefault(left, []), row)
            self._rooms |= 1 << left
        return row

    def _fullest(self, size: int, count: int) -> tuple[int, int] | None:
        least, rooms = size, self._rooms >> size
        while rooms:
            skipped = (rooms & -rooms).bit_length() - 1
            rows = self._by_room[least + skipped]
            # The first is nearly always it; only groups of several may exceed the number of examples.
            row = (
                rows[0]
                if self._takes(rows[0], count)
                else min(filter(lambda r: self._takes(r, count), rows), default=-1)
            )
            if row >= 0:
                return least + skipped, row
            least, rooms = least + skipped + 1, rooms >> skipped + 1
        return None

    def _takes(self, row: int, count: int) -> bool:
        return self._most is None or self._counts[row] + count <= self._most

    def _remove(self, room: int, row: int) -> None:
        rows = self._by_room[room]
        if rows[0] == row:
            heapq.heappop(rows)
        else:
            rows.remove(row)
            heapq.heapify(rows)
        if not rows:
            del self._by_room[room]
            self._rooms ^= 1 << room


def _checked(sizes: Sizes, budget: int) -> npt.NDArray[np.int64]:
    lengths = np.asarray(sizes, np.int64)
    if len(lengths) and (lengths.max() > budget or lengths.min() < 1):
        raise ValueError(
            f"examples have from {lengths.min()} to {lengths.max()} tokens, and a row takes 1 to {budget}. Raise the "
            "budget, or leave longer examples out."
        )
    return lengths
