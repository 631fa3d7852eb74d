"""Look many training rows up in the index: in order, in bounded memory, on every core."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice

from dftune.decontaminate.decide import Decision, Problem
from dftune.decontaminate.index import BenchmarkRow, Hit, Index

_CHUNK = 1000
_ALONE = 10_000
"""Rows that this process looks up by itself: starting others takes longer."""

_Row = tuple[str, tuple[str, ...], str]
_Found = list[list[tuple[int, Decision]]]


def scan(problems: Iterable[Problem], index: Index, *, workers: int = 1) -> Iterator[list[Hit]]:
    """The hits of every problem, in their order.

    Args:
        problems: the training rows; read as they are needed, a few thousand ahead.
        index: the benchmarks.
        workers: processes; 1 works in this one. The result does not depend on it.
    """
    rows = iter(problems)
    for problem in islice(rows, None if workers == 1 else _ALONE):
        yield index.hits(problem)
    if workers > 1 and (first := list(islice(rows, _CHUNK))):
        yield from _scan_with_others(first, rows, index, workers)


def _scan_with_others(first: list[Problem], rest: Iterator[Problem], index: Index, workers: int) -> Iterator[list[Hit]]:
    # Started afresh, not forked: a forked process can hang on the locks of threads that it does not have.
    context = multiprocessing.get_context("spawn")
    benchmark = [(row.benchmark, row.id, _plain(row.problem)) for row in index.rows]
    with ProcessPoolExecutor(workers, context, _start, (benchmark,)) as pool:
        waiting: deque[Future[_Found]] = deque()
        chunk = first
        while chunk or waiting:
            if chunk:
                waiting.append(pool.submit(_look_up, [_plain(problem) for problem in chunk]))
                chunk = list(islice(rest, _CHUNK))
            if len(waiting) > 2 * workers or not chunk:
                for found in waiting.popleft().result():
                    yield [Hit(index.rows[place], decision) for place, decision in found]


def _plain(problem: Problem) -> _Row:
    return problem.text, problem.answers, problem.solution


_index: Index
_place: dict[tuple[str, str], int]


def _start(benchmark: Sequence[tuple[str, str, _Row]]) -> None:
    global _index, _place  # noqa: PLW0603  (of a process that does nothing else)
    _index = Index(BenchmarkRow(name, row_id, Problem(*problem)) for name, row_id, problem in benchmark)
    _place = {(row.benchmark, row.id): place for place, row in enumerate(_index.rows)}


def _look_up(rows: Sequence[_Row]) -> _Found:
    return [
        [(_place[hit.row.benchmark, hit.row.id], hit.decision) for hit in _index.hits(Problem(*row))] for row in rows
    ]
