"""``events.jsonl`` as its readers see it: read on as it grows, names of its numbers, which row replaces which."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

EVENTS = "events.jsonl"
_FAMILIES = {"train": "train", "validation": "validation", "evaluation": "eval", "system": "system"}
_NOT_METRICS = ("kind", "step", "time")


class Tail:
    """Reads on in a JSONL file that others append to, whole lines only.

    A file that was replaced (``dftune train --overwrite``) is read from its beginning again.

    Args:
        path: the file; it may not be there yet.
        offset: bytes that were read before.

    Attributes:
        offset: bytes read so far.
        replaced: whether the last `new` found another file than the one before.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path, self.offset = path, offset
        self.replaced = False
        self._file: tuple[int, int] | None = None

    def new(self) -> list[Row]:
        """The rows since the last call.

        Raises:
            ValueError: a line is not a JSON object.
        """
        self.replaced = False
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                identity = (found.st_dev, found.st_ino)
                if self._file not in (None, identity) or found.st_size < self.offset:
                    self.offset, self.replaced = 0, True
                self._file = identity
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            self.replaced = self.offset > 0
            self.offset, self._file = 0, None
            return []
        whole = data.rfind(b"\n") + 1
        rows = [self._parse(line) for line in data[:whole].split(b"\n") if line.strip()]
        self.offset += whole
        return rows

    def _parse(self, line: bytes) -> Row:
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            shown = line[:80].decode("utf-8", errors="replace")
            raise ValueError(f"{self.path}: not valid JSON ({error}). The line starts: {shown}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{self.path}: expected a JSON object, found {type(row).__name__}.")
        return row


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by the names that trackers and goals know them by (docs/tracking.md).

    ``train/KEY``, ``validation/KEY``, ``system/KEY`` and ``eval/BENCHMARK/PROTOCOL/KEY``; empty for other rows.
    """
    family = _FAMILIES.get(row["kind"])
    if family is None:
        return {}
    prefix = f"{family}/{row['benchmark']}/{row['protocol']}" if family == "eval" else family
    return {
        f"{prefix}/{key}": float(value)
        for key, value in row.items()
        if key not in _NOT_METRICS and isinstance(value, int | float) and not isinstance(value, bool)
    }


def identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a later row with the same identity replaces."""
    if row["kind"] == "evaluation":
        return ("evaluation", row["step"], row["benchmark"], row["protocol"])
    if row["kind"] == "system":  # several samples can fall into one step
        return ("system", row["step"], row["time"])
    return (row["kind"], row["step"])


def latest(rows: Iterable[Row]) -> list[Row]:
    """The rows that count: of several with one identity the last, in the order of their first appearance."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        found[identity(row)] = row
    return list(found.values())


def ended(rows: Sequence[Row]) -> str | None:
    """How the run's last session ended: the status of its ``end`` row; None while there is none."""
    for row in reversed(rows):
        if row["kind"] in ("start", "end"):
            return str(row.get("status")) if row["kind"] == "end" else None
    return None
