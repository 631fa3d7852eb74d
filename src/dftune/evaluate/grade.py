"""Grade completions of math problems: extract the answer, compare it with the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

from dftune.evaluate.answers.judge import Outcome, compare_answers, read
from dftune.evaluate.answers.tolerance import within
from dftune.evaluate.extract import extract

GRADER_VERSION = "2"
"""Stands beside every stored verdict; raised whenever a rule of extraction or comparison changes."""


@dataclass(frozen=True)
class Verdict:
    """The outcome for one completion.

    ``ungraded`` means that the grader could not decide: the reference cannot be read, or the comparison ran out of
    operations. A completion without an answer is incorrect. ``rule`` is the extraction rule that fired, ``stage`` the
    step that decided, ``elapsed`` is in seconds.
    """

    verdict: Literal["correct", "incorrect", "ungraded"]
    answer: str | None
    rule: str | None
    stage: str
    reason: str
    elapsed: float


def grade(target: str | list[str], completion: str, *, strict: bool = False, tolerance: float | None = None) -> Verdict:
    """Grade one completion.

    Args:
        target: the reference answer, or alternatives of which any one will do.
        completion: what the model wrote.
        strict: accept an answer in a box or an answer tag only.
        tolerance: absolute error that a benchmark allows for this one reference.
    """
    start = perf_counter()
    targets = [target] if isinstance(target, str) else list(target)
    if not targets:
        raise ValueError("target is an empty list. Pass the reference answer, or a list of alternatives.")
    found = extract(completion, strict=strict)
    if found is None:
        outcome, answer, rule = Outcome(False, "extract", "no answer"), None, None
    else:
        outcome = _best([_compare(gold, found.answer, completion, strict) for gold in targets])
        if outcome.equal is not True and tolerance and any(within(gold, found.answer, tolerance) for gold in targets):
            outcome = Outcome(True, "tolerance", f"within {tolerance:g}")
        answer, rule = found.answer, found.rule
    verdict: Literal["correct", "incorrect", "ungraded"] = (
        "ungraded" if outcome.equal is None else "correct" if outcome.equal else "incorrect"
    )
    return Verdict(verdict, answer, rule, outcome.stage, outcome.reason, perf_counter() - start)


def is_correct(target: str | list[str], completion: str) -> bool:
    """Whether the completion is correct; usable as a reward. What cannot be decided is not correct."""
    return grade(target, completion).verdict == "correct"


def check_golds(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """References that cannot be read, or that do not grade as correct against themselves.

    Args:
        rows: benchmark rows with ``answer`` (a string or a list of alternatives), and ``id`` where they have one.

    Returns:
        One ``{"id", "answer", "reason"}`` for each such reference; empty when every row can be graded.
    """
    problems = []
    for index, row in enumerate(rows):
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        for answer in answers:
            reading = read(answer)
            outcome = compare_answers(answer, answer)
            boxed = grade(answer, f"\\boxed{{{answer}}}")
            reason = ""
            if not reading.trees:
                reason = f"cannot be read: {reading.error}"
            elif outcome.equal is not True or boxed.verdict != "correct":
                reason = f"does not grade as correct against itself: {boxed.reason}"
            if reason:
                problems.append({"id": str(row.get("id", index)), "answer": str(answer), "reason": reason})
    return problems


def _compare(gold: str, answer: str, completion: str, strict: bool) -> Outcome:
    outcome = compare_answers(gold, answer)
    if outcome.equal is not True and not strict and completion.strip() == gold.strip():
        return Outcome(True, "text", "same text")
    return outcome


def _best(outcomes: list[Outcome]) -> Outcome:
    """Correct if any alternative is; undecided if any is undecided; else the first."""
    for wanted in (True, None):
        for outcome in outcomes:
            if outcome.equal is wanted:
                return outcome
    return outcomes[0]
