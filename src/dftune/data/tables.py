"""Columns of lists in a parquet file, read into flat arrays that need not stay in memory."""

from __future__ import annotations

import mmap
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_ROWS_AT_ONCE = 10_000
_MAPPED_FROM = 2**24
"""Values in a column, such as tokens, from which it is mapped from a file rather than held in memory."""
_DTYPES: dict[str, type[np.generic]] = {
    "input_ids": np.int32,
    "completion_mask": np.bool_,
    "negative_numbers": np.int64,
    "negatives": np.int32,
}


@dataclass(frozen=True)
class Lists:
    """A column of lists; of a column of lists of lists, the inner ones.

    Attributes:
        values: of all lists, end to end.
        offsets: (lists + 1,) int64, where each list starts among them, and where the last one ends.
    """

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]


def read_lists(path: Path, more: Sequence[str] = ()) -> tuple[list[str], dict[str, Lists]]:
    """The ids and the lists of a table of a prepared dataset.

    The values of a large column go into a memory-mapped file without a name (in the folder for temporary files), so
    that the system can take the memory back: training needs a few examples at a time.

    Args:
        path: the parquet file.
        more: columns beside input_ids and completion_mask.

    Raises:
        ValueError: the file is damaged or lacks a column.
    """
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    names = ("input_ids", "completion_mask", *more)
    ids: list[str] = []
    try:
        with parquet.ParquetFile(path) as file:
            room = _room(file.metadata)
            columns = {name: _Column(_DTYPES[name], room[name]) for name in names}
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=["id", *names]):
                ids += batch.column("id").to_pylist()
                for name, column in columns.items():
                    column.add(batch.column(name))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(str(error)) from error
    return ids, {name: column.lists() for name, column in columns.items()}


def _room(metadata: Any) -> Counter[str]:
    """Most values that each column can hold, by its name."""
    room: Counter[str] = Counter()
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            column = metadata.row_group(group).column(place)
            room[column.path_in_schema.partition(".")[0]] += column.num_values
    return room


class _Column:
    """Lists, added part by part into an array that has room for them all."""

    def __init__(self, dtype: type[np.generic], room: int) -> None:
        self._values: npt.NDArray[Any] = _mapped(dtype, room) if room > _MAPPED_FROM else np.zeros(room, dtype)
        self._num_values = 0
        self._lengths: list[npt.NDArray[np.int64]] = [np.zeros(1, np.int64)]

    def add(self, column: Any) -> None:
        values = column.flatten()
        if hasattr(values, "value_lengths"):  # lists themselves
            column, values = values, values.flatten()
        end = self._num_values + len(values)
        self._values[self._num_values : end] = values.to_numpy(zero_copy_only=False)
        self._num_values = end
        self._lengths.append(column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64))
        if isinstance(self._values, np.memmap):
            _release(self._values)

    def lists(self) -> Lists:
        offsets = np.cumsum(np.concatenate(self._lengths), dtype=np.int64)
        return Lists(_frozen(np.asarray(self._values[: self._num_values])), _frozen(offsets))


def _mapped(dtype: type[np.generic], room: int) -> npt.NDArray[Any]:
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype, "w+", shape=(room,))


def _release(values: np.memmap[Any, Any]) -> None:
    """Write a mapped array to its file and give its memory back; what is read later is read from the file."""
    values.flush()
    base = values.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array
