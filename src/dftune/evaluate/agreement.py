"""Our verdicts beside those of other graders, on the same completions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import thread_time
from typing import Any

from dftune.evaluate.grade import grade
from dftune.evaluate.math_verify_worker import MathVerify
from dftune.evaluate.peers import qwen, r1_zero, r1_zero_answer
from dftune.evaluate.regrade import count_rows, shortened, target_of
from dftune.files import iter_jsonl

Grader = Callable[[str, str], bool | None]
OURS = "dftune"
TEMPLATE = "r1-zero"
"""Refuses every completion outside its template; whether the others differ is asked without it."""


@dataclass(frozen=True)
class Pair:
    """A reference, a completion, and whether they are equal where a label says so."""

    id: str
    gold: str
    completion: str
    label: bool | None = None


@dataclass
class Column:
    """What one grader said: True, False, or None where it gave no verdict; and its processor time."""

    verdicts: list[bool | None] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Agreement:
    """Verdicts of every grader on every pair.

    ``differing`` holds the rows on which not all agree, as they are written to a file.
    """

    pairs: Sequence[Pair]
    columns: dict[str, Column]
    differing: list[dict[str, Any]]
    show: int

    def text(self) -> str:
        """The table, and the first rows on which graders differ."""
        labelled = any(pair.label is not None for pair in self.pairs)
        ours = self.columns[OURS].verdicts
        heads = [
            "grader",
            "correct",
            "no verdict",
            "agrees with ours",
            "correct only by it",
            "only by ours",
            "pairs/CPU s",
        ]
        heads += ["agrees with labels", "false +", "false -"] if labelled else []
        rows = [heads]
        for name, column in self.columns.items():
            said = [verdict is True for verdict in column.verdicts]
            same = sum(a == (b is True) for a, b in zip(said, ours, strict=True))
            only = sum(a and b is not True for a, b in zip(said, ours, strict=True))
            less = sum(not a and b is True for a, b in zip(said, ours, strict=True))
            none = sum(verdict is None for verdict in column.verdicts)
            speed = len(self.pairs) / column.seconds if column.seconds else 0.0
            row = [name, str(sum(said)), str(none), f"{100 * same / len(said):.1f} %", str(only), str(less)]
            row += [f"{speed:,.0f}"]
            if labelled:
                known = [(a, pair.label) for a, pair in zip(said, self.pairs, strict=True) if pair.label is not None]
                positives, negatives = sum(a and not b for a, b in known), sum(not a and bool(b) for a, b in known)
                row += [f"{100 * (1 - (positives + negatives) / len(known)):.1f} %", str(positives), str(negatives)]
            rows.append(row)
        widths = [max(len(row[index]) for row in rows) for index in range(len(heads))]
        lines = [f"{len(self.pairs)} completions", ""]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += ["", f"{len(self.differing)} rows on which the graders differ" + (":" if self.differing else "")]
        for row_ in self.differing[: self.show]:
            said_ = ", ".join(f"{name} {row_[name]}" for name in self.columns)
            lines += [f"  {row_['id']}: {said_}", f"    target {shortened(row_['target'])}"]
            lines += [f"    answer {shortened(row_['answer'])}"]
        return "\n".join(lines) + "\n"


def read_pairs(path: Path) -> Iterator[Pair]:
    """Pairs from a file of completions, or of labelled pairs (``gold``, ``prediction``, ``expected_equal``, ``kind``).

    Alternatives of a reference become rows of their own only for graders that take one: the first is used.

    Raises:
        ValueError: a row is neither.
    """
    first = next((row for _, row in iter_jsonl(path)), {}) if path.is_file() else {}
    if "prediction" not in first:
        count_rows(path)
    for number, row in iter_jsonl(path):
        name = str(row.get("id", f"row {number}"))
        if "prediction" in row:
            if not isinstance(row.get("gold"), str) or not isinstance(row["prediction"], str):
                raise ValueError(f"{path}, line {number}: expected `gold` and `prediction` as text.")
            bare = row.get("kind") == "answer"
            text = f"\\boxed{{{row['prediction']}}}" if bare else row["prediction"]
            yield Pair(name, row["gold"], text, row.get("expected_equal"))
        else:
            target = target_of(row)
            yield Pair(name, target if isinstance(target, str) else target[0], row["completion"])


def compare_graders(pairs: Sequence[Pair], *, show: int = 10) -> Agreement:
    """Ask every grader about every pair. Nothing in a completion is executed by the two rules that run in this process;
    Math-Verify runs in one of its own, with limits of time and memory.

    Args:
        pairs: what to judge.
        show: rows on which graders differ that `Agreement.text` prints.
    """
    if not pairs:
        raise ValueError("There is nothing to compare. Pass a file with at least one completion.")
    answers: list[str | None] = []
    children = _seconds_of_children()
    with ExitStack() as stack:
        graders: dict[str, Grader] = {TEMPLATE: r1_zero, "r1-zero, our extraction": _r1_zero_extracted, "Qwen": qwen}
        if MathVerify.installed():
            graders["Math-Verify"] = stack.enter_context(MathVerify()).verdict
        columns = {OURS: Column(), **{name: Column() for name in graders}}
        for pair in pairs:
            start = thread_time()
            verdict = grade(pair.gold, pair.completion)
            columns[OURS].seconds += thread_time() - start
            answers.append(verdict.answer)
            columns[OURS].verdicts.append({"correct": True, "incorrect": False}.get(verdict.verdict))
            for name, grader in graders.items():
                start = thread_time()
                columns[name].verdicts.append(grader(pair.gold, pair.completion))
                columns[name].seconds += thread_time() - start
    if "Math-Verify" in columns:
        columns["Math-Verify"].seconds = _seconds_of_children() - children
    differing = []
    for index, (pair, answer) in enumerate(zip(pairs, answers, strict=True)):
        said = {name: column.verdicts[index] for name, column in columns.items()}
        if len({verdict is True for name, verdict in said.items() if name != TEMPLATE}) > 1:
            label = {} if pair.label is None else {"label": pair.label}
            differing.append({"id": pair.id, "target": pair.gold, "answer": answer, **said, **label})
    return Agreement(pairs, columns, differing, show)


def _seconds_of_children() -> float:
    """Processor seconds of processes that this one started and that have ended."""
    used = os.times()
    return used.children_user + used.children_system


def _r1_zero_extracted(gold: str, completion: str) -> bool:
    """The comparison of r1-zero on the answer that our rules find: without it, only its own template can score."""
    from dftune.evaluate.extract import extract  # noqa: PLC0415

    found = extract(completion)
    return found is not None and r1_zero_answer(gold, found.answer)
