"""Grade a file of completions row by row, in bounded memory and over several processes."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import Any

from dftune.evaluate.grade import grade
from dftune.evaluate.metrics import accuracy_estimate
from dftune.files import iter_jsonl

Row = dict[str, Any]
Pair = tuple[str | list[str], str, float | None]
_TARGETS = ("target", "answer", "gold")
_COLUMNS = ("answer", "verdict", "rule", "stage", "reason")
_CHUNK = 500
_ALONE = 4_000
"""Files with fewer rows than this are graded in the calling process: starting others takes longer."""
_REPORT_SECONDS = 10.0
_ROWS_SHOWN = 12


def count_rows(path: Path) -> int:
    """The number of rows of a file, after a look at each.

    Raises:
        ValueError: the file is missing or empty, a line is no JSON object, or a row lacks a completion or reference.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there. Pass a JSONL file of completions, such as dftune evaluate writes.")
    count = 0
    for number, row in iter_jsonl(path):
        problem = _problem(row)
        if problem:
            raise ValueError(
                f"{path}, line {number}: {problem}. Expected `completion` (text) and `target` "
                f"(text, or a list of texts); this row has {', '.join(sorted(row)) or 'no columns'}."
            )
        count += 1
    if not count:
        raise ValueError(f"{path} is empty; expected one completion a line.")
    return count


def graded_rows(path: Path, count: int, *, strict: bool, workers: int) -> Iterator[tuple[Row, Row]]:
    """Each row of a file with its verdict, in the order of the file.

    No more than a few hundred rows a worker are in memory at a time.

    Args:
        path: a file that `count_rows` has accepted.
        count: its number of rows.
        strict: accept an answer in a box or an answer tag only.
        workers: processes to grade in.
    """
    rows = (row for _, row in iter_jsonl(path))
    if workers < 2 or count < _ALONE:
        for row in rows:
            yield row, _verdicts([_pair(row)], strict)[0]
        return
    pending: deque[tuple[list[Row], Future[list[Row]]]] = deque()
    start = told = monotonic()
    done = 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while True:
            while len(pending) < 2 * workers and (chunk := list(islice(rows, _CHUNK))):
                pairs = [_pair(row) for row in chunk]
                pending.append((chunk, pool.submit(_verdicts, pairs, strict)))
            if not pending:
                return
            chunk, future = pending.popleft()
            yield from zip(chunk, future.result(), strict=True)
            done += len(chunk)
            if monotonic() - told > _REPORT_SECONDS:
                told = monotonic()
                print(f"{path}: {done:,} of {count:,} graded, {done / (told - start):,.0f} a second", file=sys.stderr)


def _pair(row: Row) -> Pair:
    """What the grader needs of a row."""
    return target_of(row), row["completion"], row.get("tolerance")


def _verdicts(pairs: list[Pair], strict: bool) -> list[Row]:
    """The verdicts of some completions, as rows; runs in a worker."""
    verdicts = (
        grade(target, completion, strict=strict, tolerance=tolerance) for target, completion, tolerance in pairs
    )
    return [{name: getattr(verdict, name) for name in _COLUMNS} for verdict in verdicts]


def _problem(row: Row) -> str:
    if not isinstance(row.get("completion"), str):
        return "`completion` is " + ("missing" if "completion" not in row else "not text")
    name = _target_column(row)
    if name is None:
        return "`target` is missing"
    value = row[name]
    listed = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
    return "" if isinstance(value, str) or listed else f"`{name}` is neither text nor a list of texts"


def _target_column(row: Row) -> str | None:
    """Beside a verdict, ``answer`` is what was extracted, not the reference."""
    return next((name for name in _TARGETS if name in row and not (name == "answer" and "verdict" in row)), None)


def target_of(row: Row) -> str | list[str]:
    """The reference of a row: ``target``, ``gold``, or ``answer`` where no verdict stands beside it."""
    target: str | list[str] = row[_target_column(row) or "target"]
    return target


class Tally:
    """Counts over the rows of one file; its size grows with the number of problems, not of completions.

    Args:
        show: how many rows whose stored verdict differs are kept for `disagreements`.
    """

    def __init__(self, show: int = 0) -> None:
        self.show = show
        self.rows = self.stored = self.differing = 0
        self.single: Counter[bool] = Counter()
        self.questions: dict[str, tuple[int, int]] = {}
        self.tables: dict[str, tuple[Counter[str], Counter[str]]] = {
            title: (Counter(), Counter()) for title in ("extraction rule", "reason")
        }
        self.examples: list[str] = []

    def add(self, row: Row, verdict: Row) -> None:
        """Count one row."""
        self.rows += 1
        correct = verdict["verdict"] == "correct"
        if verdict["verdict"] != "ungraded":
            if "id" in row:
                done, total = self.questions.get(str(row["id"]), (0, 0))
                self.questions[str(row["id"])] = (done + correct, total + 1)
            else:
                self.single[correct] += 1
        for title, key in (("extraction rule", verdict["rule"] or "none"), ("reason", verdict["reason"])):
            totals, hits = self.tables[title]
            totals[str(key)] += 1
            hits[str(key)] += correct
        if "verdict" in row:
            self.stored += 1
            if row["verdict"] != verdict["verdict"]:
                self.differing += 1
                if len(self.examples) < self.show:
                    self.examples.append(self.example(row, verdict))

    def example(self, row: Row, verdict: Row) -> str:
        """A row whose stored verdict is another one, in three lines."""
        return (
            f"  {row.get('id', f'row {self.rows}')}: {row['verdict']} -> {verdict['verdict']} ({verdict['reason']})\n"
            f"    target {shortened(target_of(row))}\n"
            f"    answer {shortened(verdict['answer'])}  [{verdict['rule'] or 'none'}]"
        )

    def summary(self, path: Path) -> str:
        """Accuracy with its interval, then how answers were found and why verdicts fell."""
        num_graded = sum(self.single.values()) + sum(total for _, total in self.questions.values())
        num_questions = sum(self.single.values()) + len(self.questions)
        ungraded = f"{self.rows - num_graded} ungraded"
        shared: dict[float, list[float]] = {}  # one list a value, not one a problem
        scores = [
            shared.setdefault(score, [score]) for score in (done / total for done, total in self.questions.values())
        ]
        scores += [[1.0]] * self.single[True] + [[0.0]] * self.single[False]
        count = (
            f"n = {num_graded}"
            if num_graded == num_questions
            else f"n = {num_questions} problems, {num_graded} completions"
        )
        lines = [str(path)]
        if num_graded:
            estimate = accuracy_estimate(scores, num_completions=num_graded)
            interval = f"95 % interval {100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
            lines.append(f"accuracy {100 * estimate.mean:.1f} %  ({interval}, {count}, {ungraded})")
        else:
            lines.append(f"no accuracy: {ungraded}")
        for title, (totals, correct) in self.tables.items():
            lines += ["", *self.table(title, totals, correct)]
        return "\n".join([*lines, ""])

    def table(self, title: str, totals: Counter[str], correct: Counter[str]) -> list[str]:
        """The most common keys with their counts."""
        shown = totals.most_common(_ROWS_SHOWN)
        rest = self.rows - sum(count for _, count in shown)
        width = min(60, max(len(title), *(len(key) for key, _ in shown)))
        lines = [f"  {title:<{width}}  {'count':>7}  {'correct':>7}"]
        lines += [f"  {key[:width]:<{width}}  {count:>7}  {correct[key]:>7}" for key, count in shown]
        return [*lines, f"  {'(others)':<{width}}  {rest:>7}"] if rest else lines

    def disagreements(self) -> str:
        """The rows kept by ``show``."""
        if not self.stored:
            return "no verdicts are stored in this file, so there is nothing to disagree with"
        head = f"{self.differing} verdicts differ from the stored ones"
        lines = [head + (f"; the first {self.show}:" if self.differing else ""), *self.examples]
        return "\n".join(lines) + "\n"


def shortened(value: object) -> str:
    """A value as Python writes it, cut to 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
