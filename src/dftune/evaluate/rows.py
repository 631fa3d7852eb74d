"""Rows of a benchmark with the place where each stands: JSONL, CSV, parquet, datasets of the Hugging Face hub."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dftune.data.hub import hub_reachable, offline
from dftune.files import read_jsonl

Located = tuple[str, dict[str, Any]]
"""Where a row stands, such as ``a.jsonl, line 7``, and its columns."""


@dataclass(frozen=True)
class HubName:
    """A dataset of the hub: ``owner/name``, ``owner/name@split``, ``owner/name:config@split``."""

    id: str
    config: str | None = None
    split: str = "test"

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Read the notation."""
        source, _, split = text.partition("@")
        name, _, config = source.partition(":")
        return cls(name, config or None, split or "test")

    def __str__(self) -> str:
        return f"{self.id}{f':{self.config}' if self.config else ''}@{self.split}"


def read_file(path: Path) -> list[Located]:
    """Rows of a file by its ending: ``.csv``, ``.parquet``, and JSONL for any other.

    Raises:
        ValueError: the file is missing, empty, or not what its ending says.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "missing"
        raise ValueError(
            f"Benchmark {path} is {what}. Give a JSONL file (id, problem, answer), CSV or parquet, PATH:N for "
            "its first N rows, a Hugging Face dataset id, or a name that `dftune evaluate --list` shows."
        )
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    rows = readers.get(path.suffix.lower(), _read_jsonl)(path)
    if not rows:
        raise ValueError(f"{path} is empty. A benchmark has one problem a row: id, problem, answer.")
    return rows


def _read_jsonl(path: Path) -> list[Located]:
    lines = [number for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
    return [(f"{path}, line {number}", row) for number, row in zip(lines, read_jsonl(path), strict=True)]


def _read_csv(path: Path) -> list[Located]:
    """Every field is text: an answer ``1.50`` stays what it is."""
    rows: list[Located] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            line = 2
            for row in reader:
                if None in row or None in row.values():
                    fields = len(reader.fieldnames or ())
                    raise ValueError(f"{path}, line {line}: the row does not have the {fields} fields of the header.")
                rows.append((f"{path}, line {line}", dict(row)))
                line = reader.line_num + 1
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid CSV ({error}).") from error
    return rows


def _read_parquet(path: Path) -> list[Located]:
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({error}).") from error
    return [(f"{path}, row {index}", row) for index, row in enumerate(rows)]


def read_hub(name: HubName, *, numbered: bool = False) -> list[Located]:
    """Rows of a dataset of the hub, or of the local cache where the hub cannot be reached.

    Args:
        name: what to read.
        numbered: give rows without an ``id`` one that holds the configuration.

    Raises:
        ValueError: it cannot be loaded, or is empty.
    """
    import datasets  # noqa: PLC0415  (seconds to import, and only for benchmarks on the hub)

    reachable = hub_reachable()
    try:
        with offline(not reachable):
            table = datasets.load_dataset(name.id, name.config, split=name.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"There is no file {name.id}, and split {name.split!r} of dataset {name.id!r}"
            f"{f' (configuration {name.config})' if name.config else ''} could not be loaded from the Hugging Face hub"
            f"{'' if reachable else ', which does not answer'} ({reason}). Another split is written {name.id}@SPLIT, a "
            f"configuration {name.id}:CONFIG@SPLIT."
        ) from error
    if not len(table):
        raise ValueError(f"Split {name.split!r} of dataset {name.id!r} is empty.")
    rows = [dict(row) for row in table]
    if numbered:
        rows = [{"id": f"{name.config}/{index}", **row} for index, row in enumerate(rows)]
    return [(f"{name}, row {index}", row) for index, row in enumerate(rows)]
