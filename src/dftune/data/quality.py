"""What a prepared dataset is like: lengths, duplicates, sources, answers, languages, answers against solutions."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypedDict

import numpy as np

from dftune.data.examples import Example
from dftune.data.language import language
from dftune.data.near import THRESHOLD, Signatures
from dftune.evaluate.classify import answer_kind
from dftune.evaluate.grade import grade

QUALITY_NAME = "quality.json"
_MOST_NAMED = 20
_NUM_SHOWN = 5
_LONGEST_ANSWER = 300
"""Longer ones are counted as text: they are no answers that a grader compares."""


class Quality(TypedDict):
    """The content of ``quality.json``."""

    rows: int
    characters: dict[str, dict[str, float]]
    """min, median, p95 and max of ``problem`` and ``solution``."""
    sources: dict[str, int]
    answers: dict[str, int]
    """Rows by the kind of their reference answer."""
    languages: dict[str, int]
    duplicates: dict[str, Any]
    """``same_problem``: rows whose problem an earlier row has, white space aside; ``near``: rows whose problem is
    nearly that of an earlier row, those included; ``near_groups``, ``threshold``, ``examples``."""
    grading: dict[str, Any]
    """Whether the solution of each row grades as correct against its reference answer, with examples."""


class QualityReport:
    """Takes the examples of a dataset one by one and keeps no text of them."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._lengths = {"problem": array("l"), "solution": array("l")}
        self._problems = array("Q")
        self._near = Signatures()
        self._sources: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._verdicts: Counter[str] = Counter()
        self._not_correct: list[dict[str, str]] = []

    def add(self, example: Example) -> None:
        """Count one example."""
        self._ids.append(example.id)
        self._lengths["problem"].append(len(example.problem))
        self._lengths["solution"].append(len(example.solution))
        said = "\n".join([*(message.content for message in example.history), example.problem])
        self._problems.append(_hash(" ".join(said.split())))
        self._near.add(said)
        self._sources[example.source or "none"] += 1
        self._answers[_kind_of(example.answer)] += 1
        self._languages[language(example.problem)] += 1
        if example.answer is not None:
            self._grade(example, example.answer)

    def finish(self) -> Quality:
        """The report on everything taken."""
        near = self._near.duplicates()
        num_different = len(np.unique(np.frombuffer(self._problems, np.uint64))) if self._ids else 0
        return {
            "rows": len(self._ids),
            "characters": {name: _spread(lengths) for name, lengths in self._lengths.items()},
            "sources": _most(self._sources),
            "answers": _most(self._answers),
            "languages": _most(self._languages),
            "duplicates": {
                "same_problem": len(self._ids) - num_different,
                "near": near.num_rows,
                "near_groups": near.num_groups,
                "threshold": THRESHOLD,
                "examples": [
                    {"ids": [self._ids[one], self._ids[other]], "similarity": share} for one, other, share in near.pairs
                ],
            },
            "grading": {
                "checked": self._verdicts.total(),
                **{verdict: self._verdicts[verdict] for verdict in ("correct", "incorrect", "ungraded")},
                "examples": self._not_correct,
            },
        }

    def _grade(self, example: Example, answer: str) -> None:
        verdict = grade(answer, example.solution)
        self._verdicts[verdict.verdict] += 1
        if verdict.verdict != "correct" and len(self._not_correct) < _NUM_SHOWN:
            found = {"id": example.id, "answer": answer[:200], "found": (verdict.answer or "")[:200]}
            self._not_correct.append({**found, "verdict": verdict.verdict, "reason": verdict.reason[:200]})


def describe_quality(quality: Quality, *, short: bool = True) -> str:
    """The report as text: a few lines, or everything with examples."""
    duplicates, grading = quality["duplicates"], quality["grading"]
    lines = [
        ("sources", _listed(quality["sources"], short)),
        ("answers", _listed(quality["answers"], short)),
        ("languages", _listed(quality["languages"], short)),
        (
            "duplicates",
            f"{duplicates['same_problem']:,} rows with a problem that an earlier one has; {duplicates['near']:,} with "
            f"one like it (similarity from {duplicates['threshold']:g}), in {duplicates['near_groups']:,} groups",
        ),
        (
            "answers against solutions",
            f"{grading['checked']:,} checked: {grading['correct']:,} agree, {grading['incorrect']:,} do not, "
            f"{grading['ungraded']:,} cannot be graded",
        ),
    ]
    if not short:
        for name, spread in quality["characters"].items():
            values = ", ".join(f"{key} {value:,.0f}" for key, value in spread.items())
            lines.append((f"characters of the {name}", values))
        lines += [
            ("near duplicates", f"{' and '.join(pair['ids'])}, similarity {pair['similarity']:g}")
            for pair in duplicates["examples"]
        ]
        lines += [
            (
                row["verdict"],
                f"{row['id']}: answer {row['answer']!r}, the solution says {row['found']!r}: {row['reason']}",
            )
            for row in grading["examples"]
        ]
    wide = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{wide}}  {text}" for label, text in lines)


def _listed(counts: Mapping[str, int], short: bool) -> str:
    shown = list(counts.items())[: 4 if short else None]
    more = len(counts) - len(shown)
    return ", ".join(f"{name} {count:,}" for name, count in shown) + (f", {more} more" if more else "")


def _most(counts: Counter[str]) -> dict[str, int]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = dict(ordered[:_MOST_NAMED])
    if len(ordered) > _MOST_NAMED:
        kept[f"{len(ordered) - _MOST_NAMED} others"] = sum(count for _, count in ordered[_MOST_NAMED:])
    return kept


def _spread(lengths: array[int]) -> dict[str, float]:
    if not lengths:
        return {}
    values = np.frombuffer(lengths, np.dtype("l"))
    return {
        "min": int(values.min()),
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "max": int(values.max()),
    }


def _kind_of(answer: str | None) -> str:
    if answer is None:
        return "none"
    if len(answer) > _LONGEST_ANSWER:
        return "longer text"
    return _kind_of_short(answer)


@lru_cache(maxsize=65536)
def _kind_of_short(answer: str) -> str:
    return answer_kind(answer) or "unreadable"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())
