"""Protocols: how a model is sampled, and how the completions of a problem become its score.

A protocol is a view of completions that are on disk. Several share one file: ``avg@16``, ``maj@16`` and ``pass@8`` are
read off the same sixteen samples, and none of them needs the model again.
"""

from __future__ import annotations

import difflib
import math
import re
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dftune.evaluate.answers.judge import compare_answers
from dftune.evaluate.grade import grade

Row = Mapping[str, Any]

GREEDY, SAMPLE = "greedy", "sample"
"""The two ways of sampling, which name the files of completions."""

_NAME = re.compile(r"(?P<kind>[a-z-]+)(?:@(?P<number>[1-9]\d{0,5}))?")
_TAGGED = re.compile(r"</think>\s*<answer>(?P<answer>.*?)</answer>", re.DOTALL)
_CLOSE = "</answer>"


@dataclass(frozen=True)
class Protocol(ABC):
    """How completions become scores.

    Attributes:
        name: as the command line, the table and the report call it.
        num_samples: completions a problem that it needs.
        sampled: False for the one completion at temperature 0, True for samples at the temperature asked for.
    """

    summary: ClassVar[str]
    averages: ClassVar[bool] = False
    """Whether the score of a problem is the mean over its graded completions."""

    name: str
    num_samples: int = 1
    sampled: bool = True

    @property
    def sampling(self) -> str:
        """Which file of completions it reads: ``greedy`` or ``sample``."""
        return SAMPLE if self.sampled else GREEDY

    def used(self, rows: Iterable[Row]) -> list[Row]:
        """The completions that it looks at: the first ``num_samples`` of every problem."""
        return [row for row in rows if row.get("sample", 0) < self.num_samples]

    def num_used(self, there: int) -> int:
        """How many of the samples that are there for each problem it looks at."""
        return min(self.num_samples, there)

    @abstractmethod
    def score(self, rows: Sequence[Row]) -> float | None:
        """The score of one problem, in [0, 1], from the completions that `used` gave; None where there is none."""

    def scores(self, rows: Iterable[Row]) -> dict[str, float]:
        """Scores by problem id; a problem without a score is left out."""
        by_problem: dict[str, list[Row]] = defaultdict(list)
        for row in self.used(rows):
            by_problem[str(row["id"])].append(row)
        found = {name: self.score(problem) for name, problem in by_problem.items()}
        return {name: score for name, score in found.items() if score is not None}


class Mean(Protocol):
    """Share of correct completions among the graded ones, unrounded."""

    summary = "mean over the samples: share of correct ones among those that were graded"
    averages = True

    def score(self, rows: Sequence[Row]) -> float | None:
        """``c / m`` with c correct of m graded completions; None where m is 0."""
        return share_correct(rows)


class Majority(Protocol):
    """Majority vote over classes of equal answers."""

    summary = "majority vote over classes of equal answers; a tie counts by expectation"

    def score(self, rows: Sequence[Row]) -> float | None:
        """Mean score of the classes with the most votes.

        Answers form a class if the grader calls them equal. A completion without an answer votes for none; without any
        vote the problem scores 0. A class scores the mean of its graded members. If all members of a winning class are
        ungraded, so is the problem: None.
        """
        voting = [row for row in rows if row.get("answer") is not None and str(row["answer"]).strip()]
        classes = answer_classes([str(row["answer"]) for row in voting])
        most = max(map(len, classes), default=0)
        won = [members for members in classes if len(members) == most]
        winners = [share_correct(voting[index] for index in members) for members in won]
        known = [score for score in winners if score is not None]
        return None if len(known) < len(winners) else math.fsum(known) / len(known) if known else 0.0


@dataclass(frozen=True)
class PassAt(Protocol):
    """Unbiased estimate of the chance that one of k samples is correct, from all samples that are there."""

    summary = "chance that at least one of k samples is correct, estimated without bias from all n >= k"

    @property
    def k(self) -> int:
        """Samples drawn."""
        return self.num_samples

    def used(self, rows: Iterable[Row]) -> list[Row]:
        """All of them: more samples than k make the estimate less noisy."""
        return list(rows)

    def num_used(self, there: int) -> int:
        """All of them."""
        return there

    def score(self, rows: Sequence[Row]) -> float | None:
        """`pass_at_k` over the graded completions; None where fewer than k were graded."""
        graded = [row["verdict"] == "correct" for row in rows if row["verdict"] != "ungraded"]
        return pass_at_k(len(graded), sum(graded), self.k) if len(graded) >= self.k else None


class BestScored(Protocol):
    """The sample with the highest given score, such as a reward model's."""

    summary = "the sample with the highest given score (--scores FILE); ties count by expectation"

    def score(self, rows: Sequence[Row]) -> float | None:
        """Mean verdict of the samples with the highest ``reward``; None where one of them is ungraded."""
        best = max(float(row["reward"]) for row in rows)
        winners = [row for row in rows if float(row["reward"]) == best]
        return None if any(row["verdict"] == "ungraded" for row in winners) else share_correct(winners)


class StrictFormat(Protocol):
    """Right only inside ``</think> <answer>...</answer>``, with any white space between the tags."""

    summary = "right and written as </think> <answer>...</answer>, with any or no white space between the tags"

    def answer(self, completion: str) -> str | None:
        """What stands in the answer tag, None where the format is broken."""
        found = _TAGGED.search(completion)
        return found["answer"] if found else None

    def score(self, rows: Sequence[Row]) -> float | None:
        """Share of completions that keep the format and are right.

        Left out are those that cannot be graded, and those that would keep it with a closing tag where the engine does
        not say whether they ended at one.
        """
        values = [self._one(row) for row in rows]
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known else None

    def _one(self, row: Row) -> float | None:
        completion = row["completion"]
        if row.get("stop_string") == _CLOSE:  # the engine cuts a completion before the stop string it ended at
            completion += _CLOSE
        answer = self.answer(completion)
        if answer is None:
            unsaid = row.get("stop_string") is None and row.get("finish_reason") == "stop"
            return None if unsaid and self.answer(completion + _CLOSE) is not None else 0.0
        verdict = grade(row["target"], f"<answer>{answer}{_CLOSE}", strict=True).verdict
        return None if verdict == "ungraded" else float(verdict == "correct")


class OriginalFormat(StrictFormat):
    """The format rule as R1-Zero reproductions have it, quirks included."""

    summary = "the same by the original r1-zero rule: exactly one space between the tags, order not checked"

    def answer(self, completion: str) -> str | None:
        """Text after the last ``<answer>``, if ``</think> <answer>`` and ``</answer>`` occur anywhere.

        So ``</answer> </think> <answer>5`` passes and ``</think>\\n<answer>5</answer>`` does not (sail-sg
        understand-r1-zero, ``drgrpo_grader.py``).
        """
        if "</think> <answer>" not in completion or _CLOSE not in completion:
            return None
        return completion.rpartition("<answer>")[2].replace(_CLOSE, "")


def share_correct(rows: Iterable[Row]) -> float | None:
    """``c / m`` with c correct of m graded completions; None where m is 0."""
    graded = [score for row in rows if (score := score_of(row)) is not None]
    return math.fsum(graded) / len(graded) if graded else None


def score_of(row: Row) -> float | None:
    """What a row counts for, from 0 to 1: its ``score`` where it has one, else its verdict; None where ungraded."""
    if row.get("score") is not None:
        return float(row["score"])
    return None if row["verdict"] == "ungraded" else float(row["verdict"] == "correct")


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is correct: ``1 - C(n - c, k) / C(n, k)``.

    Args:
        num_samples: n, samples drawn.
        num_correct: c, correct ones among them.
        k: 1 to n.

    Raises:
        ValueError: the three do not fit together.

    Chen et al. 2021, arXiv:2107.03374, equation 1.
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise ValueError(f"pass@{k} needs k <= n samples; found n = {num_samples} with {num_correct} correct.")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def answer_classes(answers: Sequence[str]) -> list[list[int]]:
    """Group answers that the grader calls equal, in either direction; the reference answer plays no part.

    Equality of answers as written (``0.333333`` and ``1/3``, ``1/3`` and ``0.33333334``) is not transitive. So that the
    order of the samples does not matter, texts are taken by frequency, then by the alphabet, and each joins the first
    class whose first member it equals.

    Returns:
        Positions in ``answers``, class by class.
    """
    counts = Counter(answer.strip() for answer in answers)
    texts = sorted(counts, key=lambda text: (-counts[text], text))
    class_of: dict[str, int] = {}
    heads: list[str] = []
    for text in texts:
        equal = (index for index, head in enumerate(heads) if _equal(head, text))
        index = next(equal, len(heads))
        if index == len(heads):
            heads.append(text)
        class_of[text] = index
    classes: list[list[int]] = [[] for _ in heads]
    for position, answer in enumerate(answers):
        classes[class_of[answer.strip()]].append(position)
    return classes


def _equal(one: str, other: str) -> bool:
    return compare_answers(one, other).equal is True or compare_answers(other, one).equal is True


_KINDS: dict[str, tuple[type[Protocol], str]] = {
    "avg": (Mean, "avg@n"),
    "maj": (Majority, "maj@n"),
    "pass": (PassAt, "pass@k"),
    "rm": (BestScored, "rm@n"),
    "strict-format": (StrictFormat, "strict-format[@n]"),
    "strict-format-original": (OriginalFormat, "strict-format-original[@n]"),
}


def get_protocol(name: str) -> Protocol:
    """A protocol by name.

    Args:
        name: ``greedy``, ``avg@16``, ``maj@16``, ``pass@8``, ``rm@16``, ``strict-format`` or ``strict-format@4``, ...
            Without a number the format protocols look at the greedy completion.

    Raises:
        ValueError: there is no such protocol; says which there are.
    """
    if name == GREEDY:
        return Mean(name, 1, sampled=False)
    match = _NAME.fullmatch(name)
    kind = match["kind"] if match else ""
    if match is None or kind not in _KINDS:
        near = difflib.get_close_matches(name, [GREEDY, *_KINDS], n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ValueError(f"protocol {name!r} is not known. {hint}There are: {', '.join(protocol_names())}.")
    maker, pattern = _KINDS[kind]
    if match["number"] is None:
        if "[" not in pattern:
            raise ValueError(f"protocol {name!r} lacks its number of samples; write for example {kind}@16.")
        return maker(name, 1, sampled=False)
    return maker(name, int(match["number"]))


def protocol_names() -> list[str]:
    """What can be asked for, with letters for numbers."""
    return [GREEDY, *(pattern for _, pattern in _KINDS.values())]


def describe_protocols() -> str:
    """One line a protocol."""
    entries = [(GREEDY, "one completion at temperature 0")]
    entries += [(pattern, maker.summary) for maker, pattern in _KINDS.values()]
    width = max(len(name) for name, _ in entries)
    return "\n".join(f"  {name:<{width}}  {summary}" for name, summary in entries)


def stored_protocols(settings: Mapping[str, Any]) -> list[Protocol]:
    """The protocols that a file of completions was made for, as its settings list them.

    Files from before there were several protocols a file list none: theirs is the mean over all samples.
    """
    listed = settings.get("protocols")
    if listed is None:
        listed = [GREEDY if settings["protocol"] == GREEDY else f"avg@{settings['num_samples']}"]
    return [get_protocol(str(name)) for name in listed]


def with_scores(rows: Iterable[Row], scores: Mapping[tuple[str, int], float], where: str) -> list[dict[str, Any]]:
    """Rows with the score given to each, as ``reward``.

    Raises:
        ValueError: a completion has no score.
    """
    rows = list(rows)
    missing = [row for row in rows if (row["id"], row["sample"]) not in scores]
    if missing:
        raise ValueError(
            f"{where} has no score for {len(missing)} of {len(rows)} completions, the first being id "
            f"{missing[0]['id']!r}, sample {missing[0]['sample']}. Score every completion: one line each with id, "
            "sample and score."
        )
    return [{**row, "reward": scores[row["id"], row["sample"]]} for row in rows]


def read_scores(rows: Iterable[Row], where: str) -> dict[tuple[str, int], float]:
    """Scores by problem id and sample, from rows with ``id``, ``sample`` (default 0) and ``score``.

    Raises:
        ValueError: a row lacks one of them, or its score is no finite number.
    """
    scores: dict[tuple[str, int], float] = {}
    for number, row in enumerate(rows, 1):
        score, sample = row.get("score"), row.get("sample", 0)
        whole = isinstance(sample, int) and not isinstance(sample, bool)
        finite = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        if "id" not in row or not finite or not whole:
            raise ValueError(
                f"{where}, row {number}: expected id, sample (a whole number) and score (a finite number); "
                f"found {dict(row)!r:.200}."
            )
        scores[str(row["id"]), sample] = float(row["score"])
    return scores
