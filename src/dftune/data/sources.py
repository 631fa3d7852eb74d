"""Rows from a source: JSONL, JSON, CSV, parquet, Arrow, a folder, a saved dataset, or the Hugging Face hub."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dftune.data.columns import MissingColumnsError, Source, Wanted, recognised
from dftune.data.config import SourceConfig
from dftune.data.hub import hub_reachable, looks_like_path, offline
from dftune.data.named import NamedSource, copy_of

Row = tuple[str, dict[str, Any]]
"""Where a row stands, such as ``data.jsonl, line 7``, and its columns."""

_BATCH = 1000


def read_rows(config: SourceConfig) -> Iterator[Row]:
    """Read the source of a ``data`` section row by row.

    An existing path wins over a hub id or a known training set of the same name.

    Raises:
        ValueError: no such source, not readable as what it claims to be, or a required column is missing.
    """
    wanted = Wanted.of(config)
    path = Path(config.source).expanduser()
    if wanted.named is not None:
        rows = _read_named(wanted.named, wanted)
    elif path.is_dir():
        rows = _read_folder(path, config.subset, wanted)
    elif path.exists():
        rows = _read_file(path, wanted)
    elif looks_like_path(config.source):
        raise ValueError(f"data.source: no such file: {config.source}. {_nearby(path)}")
    else:
        rows = _read_hub(config.source, config.subset, wanted)
    if not wanted.made and not wanted.nested:
        return rows
    return ((where, wanted.filled(row, where)) for where, row in rows)


def open_rows(config: Source) -> tuple[Iterator[Row], Source, str | None]:
    """Read a source whose columns may have to be recognised.

    Returns:
        The rows, the settings to understand them by, and what was recognised, in words; None where nothing had to be.

    Raises:
        ValueError: as `read_rows`; errors beyond the first row are raised when it is read.
    """
    rows = read_rows(config)
    try:
        first = list(islice(rows, 1))
    except MissingColumnsError as error:
        found = recognised(error.found, config)
        if found is None:
            raise
        layout, config = found
        columns = ", ".join(f"data.columns.{key}={name}" for key, name in layout.columns.items())
        return read_rows(config), config, f"recognised by its columns as {layout.name}: {columns}"
    return chain(first, rows), config, None


# --- files -----------------------------------------------------------------------------------------


def _read_file(path: Path, wanted: Wanted) -> Iterator[Row]:
    readers: dict[str, Callable[[Path, Wanted], Iterator[Row]]] = {
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".json": _read_json,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
        ".arrow": _read_arrow,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"data.source: the format of {path} is not known from its ending {path.suffix!r}; "
            f"expected one of {', '.join(readers)}, or a folder."
        )
    return reader(path, wanted)


def _read_jsonl(path: Path, wanted: Wanted) -> Iterator[Row]:
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
            yield where, _checked(row, wanted, where)


def _checked(row: Any, wanted: Wanted, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(row).__name__}.")
    if not wanted.complete(row):
        wanted.require(row, where)
    return row


def _read_json(path: Path, wanted: Wanted) -> Iterator[Row]:
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _read_jsonl(path, wanted)
        return
    try:
        rows = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}).") from error
    for number, row in enumerate(rows, 1):
        where = f"{path}, item {number}"
        yield where, _checked(row, wanted, where)


def _read_csv(path: Path, wanted: Wanted) -> Iterator[Row]:
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
                        header = _header(values, wanted, where)
                    elif values:
                        yield where, _named(header, values, where)
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(f"{path}, line {line}: not valid CSV ({error}).") from error
    finally:
        csv.field_size_limit(before)


def _header(names: list[str], wanted: Wanted, where: str) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{where}: the header names {', '.join(twice)} twice; every column needs its own name.")
    wanted.require(names, f"{where} (the header)")
    return names


def _named(header: list[str], values: list[str], where: str) -> dict[str, Any]:
    if len(values) != len(header):
        raise ValueError(
            f"{where}: {len(values)} fields, and the header has {len(header)}. "
            "A field that holds a comma, a quote or a line break must be quoted."
        )
    return dict(zip(header, values, strict=True))


def _read_parquet(path: Path, wanted: Wanted) -> Iterator[Row]:
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    try:
        file = parquet.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({error}).") from error
    with file:
        names = file.schema_arrow.names
        wanted.require(names, str(path))
        batches = _readable(path, file.iter_batches(batch_size=_BATCH, columns=wanted.among(names)))
        yield from _located(str(path), (row for batch in batches for row in batch.to_pylist()))


def _read_arrow(path: Path, wanted: Wanted) -> Iterator[Row]:
    import pyarrow as pa  # noqa: PLC0415

    with pa.memory_map(str(path)) as file:
        try:
            opened = pa.ipc.open_file(file) if file.read(6) == b"ARROW1" else pa.ipc.open_stream(_rewound(file))
        except pa.ArrowException as error:
            raise ValueError(f"{path}: not a readable Arrow file ({error}).") from error
        names = opened.schema.names
        wanted.require(names, str(path))
        parts = (
            map(opened.get_batch, range(opened.num_record_batches)) if hasattr(opened, "num_record_batches") else opened
        )
        batches = (batch.select(wanted.among(names)) for batch in _readable(path, parts))
        yield from _located(str(path), (row for batch in batches for row in batch.to_pylist()))


def _rewound(file: Any) -> Any:
    file.seek(0)
    return file


def _readable(path: Path, batches: Iterable[Any]) -> Iterator[Any]:
    import pyarrow as pa  # noqa: PLC0415

    try:
        yield from batches
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is damaged: part of it cannot be read ({_one_line(error)}). Copy or download it again."
        ) from error


def _located(where: str, rows: Iterable[dict[str, Any]]) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        yield f"{where}, row {number}", row


# --- datasets ----------------------------------------------------------------------------------------


def _read_named(source: NamedSource, wanted: Wanted) -> Iterator[Row]:
    """All configurations of a named source, one after another: from the folder of local copies, else from the hub."""
    config = wanted.config
    subsets: tuple[str | None, ...] = (config.subset,) if config.subset is not None else source.configs or (None,)
    copy = copy_of(source, config.data_dir)
    for subset in subsets:
        if copy is not None:
            yield from _read_folder(copy, subset, wanted)
        else:
            yield from _read_hub(source.hub, subset, wanted)


def _read_folder(path: Path, subset: str | None, wanted: Wanted) -> Iterator[Row]:
    import datasets  # noqa: PLC0415

    split = wanted.config.split
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise ValueError(f"{path} has no split {split!r}. Set data.split to one of: {', '.join(saved)}.")
            saved = saved[split]
        return _rows_of(saved, str(path), wanted)
    try:
        # Streamed, so that the files are not copied into a cache first.
        loaded = datasets.load_dataset(str(path), subset, split=split, streaming=True)
    except Exception as error:  # the kinds differ by what is wrong with the folder
        raise ValueError(
            f"data.source: cannot read the folder {path} as a dataset: {_one_line(error)}. {_odd_file(path)}"
        ) from error
    return _rows_of(loaded, f"{path} ({subset})" if subset is not None else str(path), wanted, path)


def _read_hub(name: str, subset: str | None, wanted: Wanted) -> Iterator[Row]:
    import datasets  # noqa: PLC0415

    config = wanted.config
    reachable = hub_reachable()
    try:
        with offline(not reachable):
            loaded = datasets.load_dataset(
                name,
                subset,
                split=config.split,
                revision=config.revision,
                # Without a network only the copy in the cache is left, and that is not streamed.
                streaming=config.streaming and reachable,
            )
    except Exception as error:  # the kinds differ: no network, no such dataset, no such split, no access
        raise ValueError(
            f"data.source: cannot load the dataset {name!r}: {_one_line(error)}. "
            f"{_hub_advice(name, reachable, wanted.named)}"
        ) from error
    return _rows_of(loaded, f"{name} ({subset})" if subset is not None else name, wanted)


def _hub_advice(name: str, reachable: bool, source: NamedSource | None) -> str:
    if reachable:
        return (
            "Check the id, data.subset and data.split, or set data.source to a local copy. A path that exists is read "
            "as a path; any other name as a dataset id."
        )
    folder, setting = ("FOLDER", "data.source") if source is None else (f"FOLDER/{source.name}", "data.data_dir")
    return (
        "The Hugging Face hub cannot be reached, and the dataset is not in the cache. Download it where there "
        f"is a network (`hf download --repo-type dataset {name} --local-dir {folder}`) and set {setting}=FOLDER."
    )


def _rows_of(dataset: Any, where: str, wanted: Wanted, folder: Path | None = None) -> Iterator[Row]:
    names = dataset.column_names
    if names is not None:  # a streamed dataset may not know them before its first row
        wanted.require(names, where)
        dataset = dataset.select_columns(wanted.among(names))
    batches = _batches(dataset, where, folder)
    rows = (row for batch in batches for row in _unbatched(batch))
    for number, (location, row) in enumerate(_located(where, rows)):
        if number == 0:
            wanted.require(row, location)
        yield location, row


def _batches(dataset: Any, where: str, folder: Path | None) -> Iterator[dict[str, list[Any]]]:
    count = 0
    try:
        for batch in dataset.iter(batch_size=_BATCH):
            yield batch
            count += len(next(iter(batch.values())))
    except Exception as error:  # of every library that reads a format
        raise ValueError(
            f"{where}: a row after row {count} cannot be read: {_one_line(error)}. "
            f"{_odd_file(folder) if folder is not None else 'Download it again, or check the revision.'}"
        ) from error


def _odd_file(folder: Path) -> str:
    """Which parquet file of a folder is damaged or unlike the first, in words."""
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    first: dict[Path, tuple[Path, Any]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        try:
            schema = parquet.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            return f"{path} is not a readable parquet file ({_one_line(error)}). Copy or download it again."
        other, expected = first.setdefault(path.parent, (path, schema))
        if not schema.equals(expected):
            differing = [field for field in schema if field not in list(expected)]
            differing += [field for field in expected if field.name not in schema.names]
            shown = ", ".join(f"{field.name} ({field.type})" for field in differing[:5])
            return f"{path} has other columns or types than {other.name}: {shown}. All files need the same."
    return "All its files must be readable, of one format, and have the same columns."


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
