"""Check the rows of a training set against the benchmarks that its recipe will evaluate on."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat, tee
from pathlib import Path
from typing import Any

from dftune.decontaminate.decide import Problem
from dftune.decontaminate.embed import Embedder, scan_meaning
from dftune.decontaminate.index import BenchmarkRow, Hit, Index
from dftune.decontaminate.page import page
from dftune.decontaminate.scan import scan
from dftune.evaluate.benchmarks import Benchmark, load_benchmark

_LEAST_COVERED = 0.5
_MOST_KEPT = 200


@dataclass(frozen=True)
class TrainingRow:
    """What of a training row is compared.

    Attributes:
        id: its stable id.
        problem: the question.
        answer: its reference answer, if it is known.
        solution: what is trained on.
    """

    id: str
    problem: str
    answer: str | None
    solution: str


@dataclass
class Contamination:
    """What a training set has in common with benchmarks.

    Attributes:
        benchmarks: those it was checked against.
        same: ids of training rows that are a problem of a benchmark.
        pairs: the rows of ``contamination.jsonl``: every such pair, and the nearest look-alikes.
    """

    benchmarks: Sequence[Benchmark]
    same: set[str] = field(default_factory=set)
    pairs: list[dict[str, Any]] = field(default_factory=list)

    def counts(self) -> dict[str, dict[str, Any]]:
        """Of each benchmark: fingerprint, number of rows, ids of those that were found, training rows that are one."""
        found: dict[str, dict[str, Any]] = {}
        for benchmark in self.benchmarks:
            own = [pair for pair in self.pairs if pair["same"] and pair["benchmark"] == benchmark.name]
            found[benchmark.name] = {
                "path": benchmark.path,
                "fingerprint": benchmark.fingerprint,
                "rows": len(benchmark.rows),
                "matched": sorted({pair["benchmark_id"] for pair in own}),
                "training_rows": len({pair["id"] for pair in own}),
            }
        return found

    def files(self, name: str, action: str) -> dict[str, str]:
        """``contamination.jsonl`` and ``contamination.html``, as texts."""
        lines = (json.dumps(pair, ensure_ascii=False) + "\n" for pair in self.pairs)
        return {"contamination.jsonl": "".join(lines), "contamination.html": page(name, action, self.pairs)}


def load_benchmarks(specs: Iterable[str], data_dir: Path | None = None) -> list[Benchmark]:
    """The benchmarks to check against, each once; a limit (``:N``) is not kept, since later runs may take all rows.

    Raises:
        ValueError: one cannot be read.
    """
    loaded: dict[str, Benchmark] = {}
    for spec in specs:
        try:
            benchmark = load_benchmark(spec, data_dir)
        except ValueError as error:
            raise ValueError(
                f"The training rows are checked against the benchmarks of the recipe, and one cannot be read. {error} "
                "Without the check: data.decontaminate.action=skip."
            ) from error
        whole = benchmark.first(len(benchmark.source))
        loaded.setdefault(whole.fingerprint, whole)
    return list(loaded.values())


def screen(
    rows: Iterable[TrainingRow],
    benchmarks: Sequence[Benchmark],
    *,
    workers: int = 1,
    embed: Embedder | None = None,
    least_similarity: float = 0.9,
    progress: Callable[[int], None] | None = None,
) -> Contamination:
    """Compare every training row with every benchmark.

    Args:
        rows: the training rows; they are read once, and only those that are hits are kept in memory.
        benchmarks: what to check against.
        workers: processes.
        embed: also compare what this encoder holds for alike.
        least_similarity: cosine from which it does.
        progress: told now and then how many rows are done.
    """
    index = Index(
        BenchmarkRow(benchmark.name, row.id, Problem(row.problem, _alternatives(row.target)))
        for benchmark in benchmarks
        for row in benchmark.rows
    )
    found = Contamination(benchmarks)
    look_alikes: list[dict[str, Any]] = []
    ahead: deque[TrainingRow] = deque()

    def problems() -> Iterator[Problem]:
        for row in rows:
            ahead.append(row)
            yield Problem(row.problem, () if row.answer is None else (row.answer,), row.solution)

    by_text, by_meaning = tee(problems())
    meant = scan_meaning(by_meaning, index, embed, least_similarity=least_similarity) if embed else repeat([])
    for count, (hits, others) in enumerate(zip(scan(by_text, index, workers=workers), meant, strict=False), 1):
        row = ahead.popleft()
        known = {id(hit.row) for hit in hits if hit.decision.same}
        for hit in [*hits, *(other for other in others if id(other.row) not in known)]:
            if hit.decision.same:
                found.same.add(row.id)
                found.pairs.append(_pair(row, hit))
            elif min(hit.decision.covered, hit.decision.covered_train) >= _LEAST_COVERED:
                look_alikes.append(_pair(row, hit))
        if len(look_alikes) > 10 * _MOST_KEPT:
            look_alikes = _nearest(look_alikes)
        if progress is not None and count % 1000 == 0:
            progress(count)
    found.pairs += _nearest(look_alikes)
    return found


def _nearest(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(pairs, key=lambda pair: (-pair["covered"] - pair["covered_train"], pair["id"]))[:_MOST_KEPT]


def _alternatives(target: str | list[str]) -> tuple[str, ...]:
    return (target,) if isinstance(target, str) else tuple(target)


def _pair(row: TrainingRow, hit: Hit) -> dict[str, Any]:
    decision, benchmark = hit.decision, hit.row
    return {
        "same": decision.same,
        "reason": decision.reason,
        "covered": round(decision.covered, 3),
        "covered_train": round(decision.covered_train, 3),
        "answers_agree": decision.answers_agree,
        "id": row.id,
        "problem": row.problem,
        "answer": row.answer,
        "benchmark": benchmark.benchmark,
        "benchmark_id": benchmark.id,
        "benchmark_problem": benchmark.problem.text,
        "benchmark_answer": list(benchmark.problem.answers),
    }
