"""Training sets from graded rollouts, without a model: correct ones, preference pairs, repeats by quality.

Every function is deterministic and reads the verdicts as the file has them; `dftune grade --in-place` renews those.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from dftune.files import fingerprint
from dftune.generate.recipe import PairsConfig, RftConfig, WeightedConfig
from dftune.generate.sets import NOT_GRADED, Completions, Row, distinct, question

Made = tuple[list[Row], dict[str, Any]]
"""Rows of a set, and the counts that lead from the completions to them."""


def rft_set(completions: Completions, config: RftConfig, *, keep_truncated: bool = False) -> Made:
    """Correct completions, the first ``per_problem`` distinct ones of every problem (rejection-sampling fine-tuning).

    Yuan et al. 2023, arXiv:2308.01825, where the first distinct ones are told by their equations, not by their text.
    """
    by_problem, left_out = completions.usable(keep_truncated=keep_truncated)
    rows: list[Row] = []
    for found in by_problem.values():
        correct = _with(found, "correct", left_out)
        texts = list(distinct(correct))
        kept = texts[: config.per_problem]
        left_out["repeated"] += len(correct) - len(texts)
        left_out["beyond per_problem"] += len(texts) - len(kept)
        rows += [_row(row, f"{row['id']}.{row['sample']}") for row in kept]
    solved = len({row["problem_id"] for row in rows})
    return rows, _counts(completions, rows, left_out) | {"problems_with_a_row": solved}


def pair_set(completions: Completions, config: PairsConfig, *, keep_truncated: bool = False) -> Made:
    """A correct completion against an incorrect one, in columns ``solution`` and ``rejected``; none is used twice."""
    by_problem, left_out = completions.usable(keep_truncated=keep_truncated)
    pairs: list[tuple[Row, Row]] = []
    one_sided: Counter[str] = Counter()
    drift = 0
    for found in by_problem.values():
        left_out[NOT_GRADED] += sum(row["verdict"] == "ungraded" for row in found)
        correct = list(distinct([row for row in found if row["verdict"] == "correct"]))
        incorrect = list(distinct([row for row in found if row["verdict"] == "incorrect"]))
        one_sided["no correct completion"] += not correct
        one_sided["no incorrect completion"] += not incorrect
        for _ in range(min(len(correct), len(incorrect), config.per_problem)):
            chosen, rejected = _nearest(correct, incorrect, drift) if config.balance_lengths else (0, 0)
            pairs.append((correct.pop(chosen), incorrect.pop(rejected)))
            drift += _gap(*pairs[-1])
    rows = [
        {**_row(chosen, f"{chosen['id']}.{chosen['sample']}-{rejected['sample']}"), "rejected": rejected["solution"]}
        for chosen, rejected in pairs
    ]
    lengths = np.array([[chosen["num_tokens"], rejected["num_tokens"]] for chosen, rejected in pairs] or [[0, 0]])
    return rows, {
        **_counts(completions, rows, left_out),
        "problems_with_a_pair": len({row["problem_id"] for row in rows}),
        **{f"problems_with_{name.replace(' ', '_')}": count for name, count in sorted(one_sided.items())},
        "mean_tokens": dict(zip(("chosen", "rejected"), lengths.mean(0).round(2).tolist(), strict=True)),
    }


def weighted_set(completions: Completions, config: WeightedConfig, *, keep_truncated: bool = False) -> Made:
    """Completions repeated in proportion to their quality, for the (Q) variants: sequences drawn by their score.

    The quality of a completion is its ``reward`` where scores were given, else 1 for a correct one and 0 for an
    incorrect one. ``num_rows`` are drawn systematically, so completion i stands in the set

        floor or ceil of  num_rows * q_i / sum_j q_j

    times. With ``percentiles`` it stands there once for each percentile of the qualities that it reaches, as in the
    union of the best tenths that the authors of iw-SFT take.

    Qin and Springenberg 2025, arXiv:2507.12856.

    Raises:
        ValueError: a quality is negative, or none is above 0.
    """
    by_problem, left_out = completions.usable(keep_truncated=keep_truncated)
    found = [row for rows in by_problem.values() for row in rows]
    scored = any("reward" in row for row in found)
    known = found if scored else [row for row in found if row["verdict"] != "ungraded"]
    left_out[NOT_GRADED] += len(found) - len(known)
    quality = [float(row["reward"]) if scored else float(row["verdict"] == "correct") for row in known]
    if any(value < 0 for value in quality):
        raise ValueError(f"the lowest score is {min(quality):g}; a quality is at least 0. Shift or clip the scores.")
    if config.percentiles:
        marks = np.percentile(quality, config.percentiles) if quality else ()
        copies = [int(sum(value > 0 and value >= mark for mark in marks)) for value in quality]
    else:
        copies = systematic_copies(quality, config.num_rows or sum(value > 0 for value in quality), config.seed)
    rows = [
        _row(row, f"{row['id']}.{row['sample']}.{copy}") | {"quality": value}
        for row, value, times in zip(known, quality, copies, strict=True)
        for copy in range(times)
    ]
    left_out["quality too low"] += sum(times == 0 for times in copies)
    used = sum(times > 0 for times in copies)
    most = max(copies, default=0)
    return rows, _counts(completions, rows, left_out) | {"completions_used": used, "most_copies": most}


def systematic_copies(quality: Sequence[float], num_rows: int, seed: int) -> list[int]:
    """How often each is drawn when ``num_rows`` marks at equal distances are laid over the cumulative quality.

    Args:
        quality: at least 0 each.
        num_rows: draws.
        seed: places the first mark.

    Returns:
        Copies of each; they sum to ``num_rows``, and each is its expected number rounded up or down.
    """
    if not any(quality):
        return [0] * len(quality)
    start = random.Random(int(fingerprint("systematic", seed), 16)).random()
    sums = np.cumsum(np.asarray(quality, dtype=np.float64))
    edges = sums / sums[-1] * num_rows
    below = np.ceil(edges - start).clip(0, num_rows).astype(int)  # marks start + k below each edge
    return [int(times) for times in np.diff(below, prepend=0)]


def difficulty(completions: Completions) -> dict[str, Any]:
    """How often each problem was solved: pass rates and their histogram.

    Returns:
        ``num_problems``, ``num_samples``, ``num_graded`` and ``num_ungraded`` completions; ``pass_rate``, the mean
        over problems of correct / graded; ``histogram``, the number of problems by correct completions among those
        whose completions were all graded; ``partly_graded``, the number of the others; and ``problems``, one
        ``{id, correct, graded}`` each.
    """
    counts: dict[str, Counter[str]] = {}
    for row in completions.rows:
        counts.setdefault(row["id"], Counter())[row["verdict"]] += 1
    num_samples = completions.settings["num_samples"]
    problems: list[dict[str, Any]] = [
        {"id": name, "correct": found["correct"], "graded": found["correct"] + found["incorrect"]}
        for name, found in counts.items()
    ]
    rates = [one["correct"] / one["graded"] for one in problems if one["graded"]]
    whole = Counter(one["correct"] for one in problems if one["graded"] == num_samples)
    return {
        "num_problems": len(problems),
        "num_samples": num_samples,
        "num_graded": sum(one["graded"] for one in problems),
        "num_ungraded": sum(found["ungraded"] for found in counts.values()),
        "pass_rate": math.fsum(rates) / len(rates) if rates else None,
        "histogram": [whole[correct] for correct in range(num_samples + 1)],
        "partly_graded": sum(one["graded"] != num_samples for one in problems),
        "problems": problems,
    }


def _with(rows: Sequence[Row], verdict: str, left_out: Counter[str]) -> list[Row]:
    """The rows of a verdict; the others are counted."""
    for row in rows:
        if row["verdict"] != verdict:
            left_out[row["verdict"]] += 1
    return [row for row in rows if row["verdict"] == verdict]


def _row(row: Row, name: str) -> Row:
    kept = {"source": row["source"]} if "source" in row else {}
    answer = row["target"] or None
    found = {"id": name, "problem_id": row["id"], "problem": question(row), "solution": row["solution"]}
    return found | {"answer": answer, **kept}


def _gap(chosen: Row, rejected: Row) -> int:
    return int(chosen["num_tokens"] - rejected["num_tokens"])


def _nearest(correct: Sequence[Row], incorrect: Sequence[Row], drift: int) -> tuple[int, int]:
    """Places of the pair with the nearest lengths; of two, the one that takes back the sum of the gaps so far."""
    places = [(left, right) for left in range(len(correct)) for right in range(len(incorrect))]

    def order(pair: tuple[int, int]) -> tuple[int, bool]:
        gap = _gap(correct[pair[0]], incorrect[pair[1]])
        return abs(gap), gap * drift > 0

    return min(places, key=order)


def _counts(completions: Completions, rows: Sequence[Row], left_out: Counter[str]) -> dict[str, Any]:
    reasons = {reason: count for reason, count in sorted(left_out.items()) if count}
    return {"completions": len(completions.rows), "rows": len(rows), "left_out": reasons}
