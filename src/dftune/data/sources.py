"""Rows from a source: JSONL, JSON, CSV, parquet, a folder, a saved dataset, or the Hugging Face hub."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dftune.data.config import SourceConfig
from dftune.data.hub import hub_reachable, looks_like_path, offline
from dftune.data.negatives import negative_columns

Row = tuple[str, dict[str, Any]]
"""Where a row stands, such as ``data.jsonl, line 7``, and its columns."""

_BATCH = 1000
_USUAL_NAMES = {
    "problem": ("problem", "question", "instruction", "prompt", "query", "input"),
    "solution": ("solution", "output", "completion", "response", "generated_solution", "answer"),
    "negatives": ("negatives", "rejected", "generated_", "generated"),
}


def read_rows(config: SourceConfig) -> Iterator[Row]:
    """Read the source of a ``data`` section row by row.

    An existing path wins over a hub id of the same name.

    Raises:
        ValueError: no such source, not readable as what it claims to be, or a required column is missing.
    """
    path = Path(config.source).expanduser()
    if path.is_dir():
        return _read_folder(path, config)
    if path.exists():
        return _read_file(path, config)
    if looks_like_path(config.source):
        raise ValueError(f"data.source: no such file: {config.source}. {_nearby(path)}")
    return _read_hub(config)


def require_columns(found: Iterable[str], config: SourceConfig, where: str) -> None:
    """Check that the source has every column that the settings need.

    Raises:
        ValueError: names the columns found and the setting to use.
    """
    names = [str(name) for name in found]
    columns = config.columns
    for role, name in (("problem", columns.problem), ("solution", columns.solution)):
        if name not in names:
            raise ValueError(f"{where}: no column {name!r}; found: {_listed(names)}. {_advice(role, names, config)}")
    if columns.negatives is not None and not negative_columns(columns.negatives, names):
        raise ValueError(
            f"{where}: no column {columns.negatives!r}, nor one of that name with a number after it; "
            f"found: {_listed(names)}. {_advice('negatives', names, config)}"
        )
    if config.sources and columns.source not in names:
        raise ValueError(
            f"{where}: data.sources selects rows by the column {columns.source!r}, which is not there; "
            f"found: {_listed(names)}. Set data.columns.source=NAME, or leave data.sources out."
        )


def _wanted(names: Iterable[str], config: SourceConfig) -> list[str]:
    """The columns to read, each once."""
    found = list(names)
    one_each = [name for name in config.columns.model_dump().values() if name in found]
    return list(dict.fromkeys([*one_each, *(name for _, name in negative_columns(config.columns.negatives, found))]))


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"


def _advice(role: str, names: list[str], config: SourceConfig) -> str:
    taken = {config.columns.problem, config.columns.solution}
    found = {*names, *(name.rstrip("0123456789") for name in names)} if role == "negatives" else set(names)
    usual = [name for name in _USUAL_NAMES[role] if name in found and name not in taken]
    if usual:
        verb = "those are" if role == "negatives" else "that is"
        return f"Set data.columns.{role}={usual[0]}, if {verb} the {role}."
    if {"messages", "conversations"} & set(names):
        return "Conversations, lists of {role, content}, are read whole: set data.columns.messages to their column."
    return f"Set data.columns.{role}=NAME, one of these columns."


# --- files -----------------------------------------------------------------------------------------


def _read_file(path: Path, config: SourceConfig) -> Iterator[Row]:
    readers: dict[str, Callable[[Path, SourceConfig], Iterator[Row]]] = {
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".json": _read_json,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"data.source: the format of {path} is not known from its ending {path.suffix!r}; "
            f"expected one of {', '.join(readers)}, or a folder."
        )
    return reader(path, config)


def _read_jsonl(path: Path, config: SourceConfig) -> Iterator[Row]:
    # Line by line: a source may be larger than the memory. The messages are those of dftune.files.read_jsonl.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                shown = line[:80].decode("utf-8", errors="replace").rstrip()
                raise ValueError(f"{where}: not valid JSON ({error}). The line starts: {shown}") from error
            yield where, _checked(row, config, where)


def _checked(row: Any, config: SourceConfig, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(row).__name__}.")
    columns = config.columns
    complete = columns.problem in row and columns.solution in row
    if not complete or (columns.negatives is not None and columns.negatives not in row):
        require_columns(row, config, where)
    return row


def _read_json(path: Path, config: SourceConfig) -> Iterator[Row]:
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _read_jsonl(path, config)
        return
    try:
        rows = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}).") from error
    for number, row in enumerate(rows, 1):
        where = f"{path}, item {number}"
        yield where, _checked(row, config, where)


def _read_csv(path: Path, config: SourceConfig) -> Iterator[Row]:
    before = csv.field_size_limit(2**31 - 1)  # the default refuses solutions over 128 KiB
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header: list[str] | None = None
            line = 1
            try:
                for values in reader:
                    where, line = f"{path}, line {line}", reader.line_num + 1
                    if header is None:
                        header = _header(values, config, where)
                    elif values:
                        yield where, _named(header, values, where)
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(f"{path}, line {line}: not valid CSV ({error}).") from error
    finally:
        csv.field_size_limit(before)


def _header(names: list[str], config: SourceConfig, where: str) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{where}: the header names {', '.join(twice)} twice; every column needs its own name.")
    require_columns(names, config, f"{where} (the header)")
    return names


def _named(header: list[str], values: list[str], where: str) -> dict[str, Any]:
    if len(values) != len(header):
        raise ValueError(
            f"{where}: {len(values)} fields, and the header has {len(header)}. "
            "A field that holds a comma, a quote or a line break must be quoted."
        )
    return dict(zip(header, values, strict=True))


def _read_parquet(path: Path, config: SourceConfig) -> Iterator[Row]:
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    try:
        file = parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({error}).") from error
    with file:
        names = file.schema_arrow.names
        require_columns(names, config, str(path))
        batches = file.iter_batches(batch_size=_BATCH, columns=_wanted(names, config))
        yield from _located(str(path), (row for batch in batches for row in batch.to_pylist()))


def _located(where: str, rows: Iterable[dict[str, Any]]) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        yield f"{where}, row {number}", row


# --- datasets ----------------------------------------------------------------------------------------


def _read_folder(path: Path, config: SourceConfig) -> Iterator[Row]:
    import datasets  # noqa: PLC0415

    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            if config.split not in saved:
                raise ValueError(f"{path} has no split {config.split!r}. Set data.split to one of: {', '.join(saved)}.")
            saved = saved[config.split]
        return _rows_of(saved, str(path), config)
    try:
        # Streamed, so that the files are not copied into a cache first.
        loaded = datasets.load_dataset(str(path), config.subset, split=config.split, streaming=True)
    except Exception as error:  # the kinds differ by what is wrong with the folder
        raise ValueError(f"data.source: cannot read the folder {path} as a dataset: {_one_line(error)}.") from error
    return _rows_of(loaded, str(path), config)


def _read_hub(config: SourceConfig) -> Iterator[Row]:
    import datasets  # noqa: PLC0415

    reachable = hub_reachable()
    try:
        with offline(not reachable):
            loaded = datasets.load_dataset(config.source, config.subset, split=config.split, revision=config.revision)
    except Exception as error:  # the kinds differ: no network, no such dataset, no such split, no access
        if reachable:
            advice = f"Check the id, data.subset and data.split, or set data.source to a local copy. {_RULES}"
        else:
            advice = (
                "The Hugging Face hub cannot be reached, and the dataset is not in the cache. Download it where there "
                f"is a network (`hf download --repo-type dataset {config.source} --local-dir FOLDER`) and set "
                "data.source=FOLDER."
            )
        raise ValueError(
            f"data.source: cannot load the dataset {config.source!r}: {_one_line(error)}. {advice}"
        ) from error
    return _rows_of(loaded, config.source, config)


_RULES = "A path that exists is read as a path; any other name as a dataset id."


def _rows_of(dataset: Any, where: str, config: SourceConfig) -> Iterator[Row]:
    names = dataset.column_names
    if names is not None:  # a streamed dataset may not know them before its first row
        require_columns(names, config, where)
        dataset = dataset.select_columns(_wanted(names, config))
    rows = (row for batch in dataset.iter(batch_size=_BATCH) for row in _unbatched(batch))
    for number, (location, row) in enumerate(_located(where, rows)):
        if number == 0:
            require_columns(row, config, location)
        yield location, row


def _unbatched(batch: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split())[:300] or type(error).__name__).rstrip(".")


def _nearby(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:5]
    if folder != path.parent:
        return f"{path.parent} does not exist either; {folder.resolve()} does."
    return f"In {folder.resolve()} there is {', '.join(close)}." if close else f"{folder.resolve()} is empty."
