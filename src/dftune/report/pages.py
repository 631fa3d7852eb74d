"""All completions of all runs, a page at a time: files stay on the disk, the offsets of their lines are in memory."""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from dftune.evaluate.classify import CATEGORIES, classify
from dftune.files import fingerprint, locate_jsonl, read_json
from dftune.report.load import Row, completion_key, find_evaluations, find_runs, read_settings
from dftune.report.samples import shown_answer, shown_text
from dftune.report.wording import visible

PAGE = 20
"""Completions of one run on a page."""
NOT_CORRECT = "not correct"
"""What may be wanted beside a category: any of the others."""
MOST_CHARACTERS = 200_000
"""Of one text; the rest is cut with a count."""
_FILES_KEPT, _SEARCHES_KEPT = 16, 32


@dataclass(frozen=True)
class Source:
    """One file of completions.

    Attributes:
        id: names it in a request; nothing in a request is ever taken for a path.
        label: the run and the step of the model.
        benchmark: names of the benchmark and of the sampling, and which version it is where there are several.
        path: the file.
        state: its size and time of change, so that what was remembered of it is forgotten when it grows.
    """

    id: str
    label: str
    benchmark: str
    path: Path
    state: tuple[int, int]


@dataclass(frozen=True)
class Query:
    """Which completions are wanted.

    Attributes:
        first: their file.
        second: a file whose completions to the same question, with the same number of the sample, stand beside them.
        wanted: outcomes in the two: a category, ``not correct``, or empty for any.
        search: text in the id, the question, the reference answer or either completion, in lower case; empty for any.
    """

    first: Source
    second: Source | None = None
    wanted: tuple[str, str] = ("", "")
    search: str = ""


@dataclass(frozen=True)
class _Index:
    """Of one file: the place of every completion by id and sample, its offset in bytes and its outcome by place."""

    places: Mapping[tuple[str, int], int]
    offsets: array[int]
    outcomes: array[int]


def find_sources(runs: Sequence[Path]) -> list[Source]:
    """The files of completions of all runs, by benchmark, run and step.

    Raises:
        ValueError: a folder is missing or no run folder, or a file in it is damaged.
    """
    found, versions = [], defaultdict[str, set[str]](set)
    for run in find_runs(runs):
        name = visible(str(read_json(run / "manifest.json").get("name") or run.resolve().name))
        for step, settings in find_evaluations(run):
            path, about = settings.with_suffix(".jsonl"), read_settings(settings)
            if path.is_file():
                benchmark = visible(f"{about['benchmark']}, {about['protocol']}")
                version = visible(str(about.get("benchmark_fingerprint")))
                versions[benchmark].add(version)
                found.append((path, f"{name}, step {step}" if step else name, benchmark, version))
    sources = []
    for path, label, benchmark, version in found:  # a question of one version is not that of another
        shown = benchmark if len(versions[benchmark]) == 1 else f"{benchmark}, version {version}"
        sources.append(Source(fingerprint(str(path.resolve())), label, shown, path, _state(path)))
    return sorted(sources, key=lambda source: source.benchmark)


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def parse_query(sources: Sequence[Source], values: Mapping[str, str]) -> Query:
    """A query as a request has it: ``first``, ``second`` (ids), ``first_wanted``, ``second_wanted``, ``search``.

    Raises:
        ValueError: no such file or outcome.
    """
    by_id: Mapping[str, Source | None] = {source.id: source for source in sources} | {"": None}
    ids, wanted = (values.get("first", ""), values.get("second", "")), []
    for name in ids:
        if name not in by_id:
            raise ValueError(f"there is no file of completions {name!r} (any more); load the page again.")
    for key in ("first_wanted", "second_wanted"):
        wanted.append(values.get(key, ""))
        if wanted[-1] not in ("", NOT_CORRECT, *CATEGORIES):
            raise ValueError(f"{key} is {wanted[-1]!r}; expected {NOT_CORRECT} or one of {', '.join(CATEGORIES)}.")
    first = by_id[ids[0]]
    if first is None:
        raise ValueError("first: required, but not given; it names a file of completions.")
    return Query(first, by_id[ids[1]], (wanted[0], wanted[1]), values.get("search", "").strip().lower())


def read_page(query: Query, start: int) -> dict[str, Any]:
    """``PAGE`` completions from the start-th that fits, with how many do and how many there are.

    Raises:
        ValueError: a file is damaged, or has changed just now.
    """
    fitting = _fitting(query)
    one, other = _index(query.first.path, query.first.state), _second(query)
    start = max(0, min(start, len(fitting) - 1) // PAGE * PAGE)
    rows = []
    with ExitStack() as stack:
        first, second = _opened(query, stack)
        for place in fitting[start : start + PAGE]:
            row = _row_at(first, one.offsets[place])
            beside = _beside(row, second, other)
            rows.append(_shown(row, [row] if query.second is None else [row, beside]))
    return {"num": len(one.offsets), "num_fitting": len(fitting), "start": start, "size": PAGE, "rows": rows}


def _shown(row: Row, answers: Sequence[Row | None]) -> dict[str, Any]:
    sample = row.get("sample", 0)
    return {
        "id": visible(f"{row['id']}, sample {sample}" if sample else str(row["id"])),
        "problem": shown_text(row.get("problem"), MOST_CHARACTERS),
        "target": shown_text(row.get("target"), MOST_CHARACTERS),
        "answers": [shown_answer(answer, MOST_CHARACTERS) for answer in answers],
    }


@lru_cache(maxsize=_FILES_KEPT)
def _index(path: Path, state: tuple[int, int]) -> _Index:
    """Reads the whole file once, a line at a time; ``state`` is there to be remembered by."""
    places: dict[tuple[str, int], int] = {}
    offsets, outcomes = array("Q"), array("B")
    for number, offset, row in locate_jsonl(path, partial_last_line=True):
        key, outcome = completion_key(path, number, row), CATEGORIES.index(classify(row).category)
        place = places.setdefault(key, len(places))
        if place == len(offsets):
            offsets.append(offset)
            outcomes.append(outcome)
        else:  # a later line with the same id and sample counts
            offsets[place], outcomes[place] = offset, outcome
    return _Index(places, offsets, outcomes)


def _second(query: Query) -> _Index | None:
    return None if query.second is None else _index(query.second.path, query.second.state)


@lru_cache(maxsize=_SEARCHES_KEPT)
def _fitting(query: Query) -> array[int]:
    """Places in the first file of what fits. Outcomes are remembered; only a search reads the texts again."""
    one, other = _index(query.first.path, query.first.state), _second(query)
    found = array("Q")
    with ExitStack() as stack:
        first, second = _opened(query, stack)
        for key, place in one.places.items():
            beside = None if other is None else other.places.get(key)
            outcomes = (one.outcomes[place], None if other is None or beside is None else other.outcomes[beside])
            if not all(map(_fits, outcomes, query.wanted)):
                continue
            if query.search:
                row = _row_at(first, one.offsets[place])
                if not any(query.search in text.lower() for text in _texts(row, _beside(row, second, other))):
                    continue
            found.append(place)
    return found


def _fits(outcome: int | None, wanted: str) -> bool:
    if not wanted or outcome is None:
        return not wanted
    category = CATEGORIES[outcome]
    return category != "correct" if wanted == NOT_CORRECT else category == wanted


def _texts(row: Row, beside: Row | None) -> Iterator[str]:
    target = row.get("target")
    values = [row["id"], row.get("problem"), row.get("completion"), *(target if isinstance(target, list) else [target])]
    yield from (str(value) for value in (*values, beside and beside.get("completion")) if value is not None)


def _opened(query: Query, stack: ExitStack) -> tuple[BinaryIO, BinaryIO | None]:
    files = [stack.enter_context(one.path.open("rb")) for one in (query.first, query.second) if one is not None]
    return files[0], files[1] if len(files) > 1 else None


def _beside(row: Row, file: BinaryIO | None, index: _Index | None) -> Row | None:
    if file is None or index is None:
        return None
    place = index.places.get((str(row["id"]), row.get("sample", 0)))
    return None if place is None else _row_at(file, index.offsets[place])


def _row_at(file: BinaryIO, offset: int) -> Row:
    file.seek(offset)
    try:
        row: Row = json.loads(file.readline())
    except ValueError as error:
        raise ValueError(f"{file.name} has changed while it was read; load the page again.") from error
    return row
