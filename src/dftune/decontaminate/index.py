"""Benchmark problems that a training row could be: those that share rare n-grams with it, or all of its numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dftune.decontaminate.decide import Decision, Problem, same_problem

_N = 4
_MAX_ROWS = 25
"""An n-gram that more benchmark rows than this have is boilerplate."""
_MIN_SHARE = 0.2
"""Least share of the n-grams of either text that are shared by a candidate."""
_MIN_NUMBERS = 4
"""From so many different numbers on, having the same ones makes a candidate by itself."""


@dataclass(frozen=True)
class BenchmarkRow:
    """One problem of a benchmark, ready to be compared."""

    benchmark: str
    id: str
    problem: Problem


@dataclass(frozen=True)
class Hit:
    """A training row beside the benchmark row it was compared with."""

    row: BenchmarkRow
    decision: Decision


class Index:
    """Finds the rows of benchmarks that a problem is, or looks like.

    Memory is that of the benchmarks alone (about 40 MB for 8,000 problems), whatever is looked up.
    """

    def __init__(self, rows: Iterable[BenchmarkRow]) -> None:
        self.rows = tuple(rows)
        self._by_gram: dict[int, list[int]] = defaultdict(list)
        self._by_numbers: dict[frozenset[str], list[int]] = defaultdict(list)
        self._num_grams: list[int] = []
        for place, row in enumerate(self.rows):
            grams = _grams(row.problem.tokens)
            self._num_grams.append(len(grams))
            for gram in grams:
                self._by_gram[gram].append(place)
            if len(row.problem.numbers) >= _MIN_NUMBERS:
                self._by_numbers[row.problem.numbers].append(place)
        for gram in [gram for gram, places in self._by_gram.items() if len(places) > _MAX_ROWS]:
            self._by_gram[gram] = []

    def hits(self, problem: Problem) -> list[Hit]:
        """The benchmark rows that are the same problem, and those whose text was near enough to be compared.

        Sorted: the same problem first, then the nearer text first.
        """
        found = [
            Hit(self.rows[place], same_problem(problem, self.rows[place].problem)) for place in self._near(problem)
        ]
        return sorted(
            found, key=lambda hit: (not hit.decision.same, -hit.decision.covered, hit.row.benchmark, hit.row.id)
        )

    def _near(self, problem: Problem) -> Sequence[int]:
        grams = _grams(problem.tokens)
        shared: Counter[int] = Counter()
        for gram in grams & self._by_gram.keys():
            shared.update(self._by_gram[gram])
        near = {
            place for place, count in shared.items() if count >= _MIN_SHARE * min(len(grams), self._num_grams[place])
        }
        if len(problem.numbers) >= _MIN_NUMBERS:
            near.update(self._by_numbers.get(problem.numbers, ()))
        return sorted(near)


def _grams(found: Sequence[str]) -> set[int]:
    """Hashes of the n-grams; a text shorter than one is one n-gram. A collision only adds a candidate."""
    if len(found) < _N:
        return {hash(tuple(found))} if found else set()
    return {hash(tuple(found[start : start + _N])) for start in range(len(found) - _N + 1)}
