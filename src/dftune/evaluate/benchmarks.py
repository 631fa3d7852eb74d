"""Benchmarks: problems with reference answers, from a JSONL file or a dataset on the Hugging Face hub."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dftune.data.hub import hub_reachable, looks_like_path, offline
from dftune.files import check_name, fingerprint, read_jsonl

_LIMIT = re.compile(r"(?P<source>.+):(?P<limit>\d+)")
_PROBLEM, _ANSWER = ("problem", "question"), ("answer",)
# Columns of the completions file, and texts that would only be repeated there.
_NOT_CARRIED = {
    *("id", "sample", "problem", "question", "target", "prompt", "completion", "finish_reason", "num_tokens"),
    *("answer", "verdict", "rule", "stage", "reason", "solution", "url"),
}
_MAX_CARRIED = 200

Target = str | list[str]


@dataclass(frozen=True)
class Problem:
    """One problem of a benchmark.

    Attributes:
        id: unique in the benchmark.
        problem: the question.
        target: the reference answer, or the list of answers that are all right.
        extra: short columns carried over to the completions, such as subject and level.
    """

    id: str
    problem: str
    target: Target
    extra: Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A named list of problems.

    Attributes:
        name: file stem, or last part of the hub id; names the result files.
        path: as it was asked for.
        rows: the problems, in the order of the source.
        fingerprint: of ids, problems and answers.
    """

    name: str
    path: str
    rows: tuple[Problem, ...]
    fingerprint: str


def load_benchmark(spec: str) -> Benchmark:
    """Read a benchmark.

    Args:
        spec: a JSONL file, or a dataset id of the hub with or without ``@split`` (default ``test``). ``:N`` after
            either takes the first N rows. Rows need ``problem`` (or ``question``) and ``answer``: a string, a number,
            or a list of alternatives. ``id`` is the row's number, from 0, where it is absent.

    Raises:
        ValueError: there is no such file or dataset, it is empty, or a row is broken, lacks something or repeats an id;
            the message names file and line.
    """
    source, limit = spec, None
    match = _LIMIT.fullmatch(spec)
    if match and not Path(spec).exists():
        source, limit = match["source"], int(match["limit"])
    if limit == 0:
        raise ValueError(f"{spec} takes no rows at all; the number after the colon must be at least 1.")
    if not _on_hub(source):
        name, rows = Path(source).stem, _read_file(Path(source), limit)
    else:
        name, rows = _read_hub(source, limit)
    problems = tuple(_problem(row, index, where) for index, (where, row) in enumerate(rows))
    _check_unique(problems, [where for where, _ in rows])
    return Benchmark(
        name=check_name(name, "the benchmark's name"),
        path=spec,
        rows=problems,
        fingerprint=fingerprint([[row.id, row.problem, row.target] for row in problems]),
    )


def _on_hub(source: str) -> bool:
    """Whether the name must be a dataset id: nothing here has it, nor is there a folder it would lie in."""
    parent = Path(source).parent
    here = Path(source).exists() or (parent != Path() and parent.is_dir())
    return not here and not looks_like_path(source.partition("@")[0])


def _read_file(path: Path, limit: int | None) -> list[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "missing"
        raise ValueError(
            f"Benchmark {path} is {what}. Give a JSONL file (id, problem, answer), PATH:N for its first N rows, "
            "or a Hugging Face dataset id."
        )
    rows = read_jsonl(path)
    if not rows:
        raise ValueError(f"{path} is empty. A benchmark has one JSON object a line: id, problem, answer.")
    lines = [number for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
    return [(f"{path}, line {number}", row) for number, row in zip(lines, rows, strict=True)][:limit]


def _read_hub(source: str, limit: int | None) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    import datasets  # noqa: PLC0415  (seconds to import, and only for benchmarks on the hub)

    name, _, split = source.partition("@")
    split = split or "test"
    try:
        with offline(not hub_reachable()):
            table = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"There is no file {source}, and split {split!r} of dataset {name!r} could not be loaded from the "
            f"Hugging Face hub ({reason}). Another split is written {name}@SPLIT."
        ) from error
    table = table if limit is None else table.select(range(min(limit, len(table))))
    if not len(table):
        raise ValueError(f"Split {split!r} of dataset {name!r} is empty.")
    return name.rsplit("/", 1)[-1], [(f"{name}@{split}, row {index}", dict(row)) for index, row in enumerate(table)]


def _problem(row: Mapping[str, Any], index: int, where: str) -> Problem:
    problem = _first(row, _PROBLEM, where)
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError(f"{where}: the problem must be a text; found {problem!r}.")
    identity = row.get("id", index)
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise ValueError(f"{where}: the id must be a string or a whole number; found {identity!r}.")
    extra = {key: value for key, value in row.items() if key not in _NOT_CARRIED and _short(value)}
    return Problem(str(identity), problem, _target(_first(row, _ANSWER, where), where), extra)


def _first(row: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise ValueError(f"{where}: no {' and no '.join(names)}; found the columns {', '.join(map(str, row)) or 'none'}.")


def _short(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= _MAX_CARRIED)


def _target(value: Any, where: str) -> Target:
    if isinstance(value, list):
        alternatives = [_answer(part, where) for part in value]
        if not alternatives:
            raise ValueError(f"{where}: the list of answers is empty.")
        return alternatives
    return _answer(value, where)


def _answer(value: Any, where: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    raise ValueError(f"{where}: the answer must be a non-empty string, a number, or a list of these; found {value!r}.")


def _check_unique(problems: Sequence[Problem], places: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for problem, where in zip(problems, places, strict=True):
        if problem.id in seen:
            raise ValueError(f"{where}: id {problem.id!r} stands already in {seen[problem.id]}; ids must be unique.")
        seen[problem.id] = where
