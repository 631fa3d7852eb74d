"""Benchmarks: problems with reference answers, known by name, from a file, or from the Hugging Face hub."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dftune.data.hub import looks_like_path
from dftune.evaluate.extract import extract
from dftune.evaluate.named import NAMED, NamedBenchmark, local_copy, local_names
from dftune.evaluate.rows import HubName, Located, read_file, read_hub
from dftune.files import check_name, fingerprint

_LIMIT = re.compile(r"(?P<source>.+):(?P<limit>\d+)")
_PROBLEM, _ANSWER, _SOLUTION = ("problem", "question"), ("answer",), "solution"
# Columns of the completions file, and texts that would only be repeated there.
_NOT_CARRIED = {
    *("id", "sample", "problem", "question", "target", "prompt", "completion", "finish_reason", "num_tokens"),
    *(
        "answer",
        "verdict",
        "rule",
        "stage",
        "reason",
        "solution",
        "url",
        "key",
        "score",
        "reward",
        "tolerance",
        "stop_string",
    ),
    *("mean_logp", "mean_entropy"),
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
        tolerance: absolute error that the benchmark allows, where it states one (``abs_error``).
    """

    id: str
    problem: str
    target: Target
    extra: Mapping[str, Any]
    tolerance: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """A named list of problems.

    Attributes:
        name: of the benchmark, file stem, or last part of the hub id; names the result files.
        path: as it was asked for.
        rows: the problems taken, in the order of the source.
        source: all problems of the source; ``rows`` is its beginning.
    """

    name: str
    path: str
    rows: tuple[Problem, ...]
    source: tuple[Problem, ...] = field(repr=False, default=())

    @property
    def fingerprint(self) -> str:
        """Of ids, problems, answers and tolerances of the problems taken."""
        parts = [[row.id, row.problem, row.target] for row in self.rows]
        tolerances = {row.id: row.tolerance for row in self.rows if row.tolerance is not None}
        return fingerprint(parts, tolerances) if tolerances else fingerprint(parts)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are carried over to the completions, of any row taken."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row.extra))

    def first(self, num: int) -> Benchmark:
        """The same benchmark with the first ``num`` problems of its source."""
        return replace(self, rows=self.source[:num])


def load_benchmark(spec: str, data_dir: Path | None = None) -> Benchmark:
    """Read a benchmark.

    Args:
        spec: a name (`dftune.evaluate.named.NAMED`), a file (JSONL, CSV or parquet), or a dataset id of the hub:
            ``owner/name``, ``owner/name@split`` (default ``test``), ``owner/name:config@split``. ``:N`` after any of
            them takes the first N rows. Rows need ``problem`` (or ``question``) and ``answer``: a string, a number, or
            a list of alternatives. Of an answer with ``####`` the part behind it counts; without an answer the last box
            of ``solution`` does. ``id`` is the row's number, from 0, where it is absent.
        data_dir: local copies of the named benchmarks; default, what the environment variable DFTUNE_DATA names.

    Raises:
        ValueError: there is no such file or dataset, it is empty, a named one has another number of rows than was
            published, or a row is broken, lacks something or repeats an id; the message names file and line.
    """
    source, limit = spec, None
    match = _LIMIT.fullmatch(spec)
    if match and not Path(spec).exists():
        source, limit = match["source"], int(match["limit"])
    if limit == 0:
        raise ValueError(f"{spec} takes no rows at all; the number after the colon must be at least 1.")
    if source in NAMED and not Path(source).is_file():
        name, rows = source, _read_named(NAMED[source], data_dir, limit)
    elif _on_hub(source):
        hub = HubName.parse(source)
        name, rows = hub.id.rsplit("/", 1)[-1], read_hub(hub)
    else:
        name, rows = Path(source).stem, read_file(Path(source))
    problems = tuple(_problem(row, index, where) for index, (where, row) in enumerate(rows))
    _check_unique(problems, [where for where, _ in rows])
    return Benchmark(check_name(name, "the benchmark's name"), spec, problems[:limit], problems)


def _on_hub(source: str) -> bool:
    """Whether the name must be a dataset id: nothing here has it, nor is there a folder it would lie in."""
    parent = Path(source).parent
    here = Path(source).exists() or (parent != Path() and parent.is_dir())
    return not here and not looks_like_path(HubName.parse(source).id)


def _read_named(named: NamedBenchmark, data_dir: Path | None, limit: int | None) -> list[Located]:
    """Rows of a named benchmark under our names of columns.

    Raises:
        ValueError: it is neither here nor on the hub, or its number of rows is not a published one.
    """
    copy = local_copy(named.name, data_dir)
    if copy is not None:
        rows, where = read_file(copy), str(copy)
    else:
        where = f"{named.hub}@{named.split}"
        try:
            rows = [
                row
                for config in named.configs or (None,)
                for row in read_hub(HubName(named.hub, config, named.split), numbered=len(named.configs) > 1)
            ]
        except ValueError as error:
            raise ValueError(
                f"Benchmark {named.name} has no local copy and could not be fetched. A copy is looked for as "
                f"{' or '.join(local_names(named.name))} in --data-dir FOLDER (recipe key evaluate.data_dir, else the "
                f"environment variable DFTUNE_DATA). The hub: {error}"
            ) from error
    if limit is None and len(rows) not in named.sizes:
        raise ValueError(
            f"{where} has {len(rows)} rows; {named.name} was published with "
            f"{' or '.join(map(str, named.sizes))}. A part of it is asked for as {named.name}:N; give a file that is "
            "something else by its path."
        )
    return [(place, _renamed(row, named)) for place, row in rows]


def _renamed(row: Mapping[str, Any], named: NamedBenchmark) -> dict[str, Any]:
    ours = {named.columns.get(key, key): value for key, value in row.items() if named.columns.get(key) not in row}
    if named.name == "olympiadbench" and isinstance(ours.get("answer"), list):
        ours["answer"] = ", ".join(map(str, ours["answer"]))  # parts of one answer, not alternatives
    if named.name == "math" and isinstance(ours.get("level"), str):
        ours["level"] = ours["level"].removeprefix("Level ")
    return ours


def _problem(row: Mapping[str, Any], index: int, where: str) -> Problem:
    problem = _first(row, _PROBLEM, where)
    if not isinstance(problem, str) or not problem.strip():
        raise ValueError(f"{where}: the problem must be a text; found {problem!r}.")
    identity = row.get("id", index)
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise ValueError(f"{where}: the id must be a string or a whole number; found {identity!r}.")
    extra = {key: value for key, value in row.items() if key not in _NOT_CARRIED and _short(value)}
    return Problem(str(identity), problem, _target(_reference(row, where), where), extra, _tolerance(row))


def _reference(row: Mapping[str, Any], where: str) -> Any:
    """The answer column; what follows ``####`` in it; or the last box of the solution."""
    solution = row.get(_SOLUTION)
    if row.get("answer") is None and isinstance(solution, str):
        found = extract(solution, strict=True)
        if found is not None and found.rule == "box":
            return found.answer
    answer = _first(row, _ANSWER, where)
    if isinstance(answer, str) and "####" in answer:
        return answer.rpartition("####")[2].strip()
    return answer


def _tolerance(row: Mapping[str, Any]) -> float | None:
    """The absolute error that a row allows; lists of several, for answers of several parts, are not used."""
    try:
        value = float(row.get("abs_error") or 0)
    except (TypeError, ValueError):
        return None
    return value if 0 < value < math.inf else None


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
