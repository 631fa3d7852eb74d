"""A list whose items are on disk: only where they lie is in memory."""

from __future__ import annotations

import pickle
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_IN_MEMORY = 32 * 2**20


class Spool(Generic[T]):
    """Items of any kind in a file without a name, which is gone when the process ends, however it ends.

    The first 32 MiB stay in memory, so that small data never touch the disk. In memory are 16 bytes an item.

    Args:
        folder: where the file would be; the system's folder for temporary files by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        where = None if folder is None else str(folder)
        self._file: Any = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=where)  # noqa: SIM115
        self._starts, self._sizes = array("q"), array("q")
        self.num_bytes = 0

    def append(self, item: T) -> None:
        """Add an item at the end."""
        start, size = self._write(item)
        self._starts.append(start)
        self._sizes.append(size)

    def __setitem__(self, place: int, item: T) -> None:
        """Put another item in a place; the old one stays in the file, unused."""
        self._starts[place], self._sizes[place] = self._write(item)

    def __getitem__(self, place: int) -> T:
        """The item in a place, read anew each time."""
        self._file.seek(self._starts[place])
        item: T = pickle.loads(self._file.read(self._sizes[place]))
        return item

    def __iter__(self) -> Iterator[T]:
        """All items in order."""
        return (self[place] for place in range(len(self)))

    def __len__(self) -> int:
        """How many items there are."""
        return len(self._starts)

    def _write(self, item: T) -> tuple[int, int]:
        data = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        start = self.num_bytes
        self._file.seek(start)
        self._file.write(data)
        self.num_bytes += len(data)
        return start, len(data)
