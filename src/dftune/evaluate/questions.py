"""Graded completions gathered by question, one row at a time: memory grows with the questions, not the completions."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dftune.evaluate.metrics import Estimate, estimate_scores, variance_of_mean
from dftune.evaluate.protocols import score_of

Row = Mapping[str, Any]
COUNTS = ("graded", "correct", "finished", "finished_correct", "cut", "settled")
"""What is counted for every question, see `QuestionTally.add`."""


@dataclass(frozen=True)
class Components:
    """Where the variance of a mean over questions comes from; both are squared standard errors.

    Attributes:
        between: from the choice of the questions. It stays however many samples are drawn.
        sampling: from the draw of the samples, the questions being fixed: how far the score of this very benchmark
            would move if it were asked again. None where no question has two graded samples, or nothing tells them
            apart; ``between`` then holds both.
    """

    between: float
    sampling: float | None

    @property
    def total(self) -> float:
        """The squared standard error for new questions and new samples."""
        return self.between + (self.sampling or 0.0)


def variance_components(
    num_correct: Sequence[int], num_graded: Sequence[int], clusters: Sequence[str] | None = None
) -> Components:
    """Split the squared standard error of the mean of ``y_q = c_q / n_q`` over Q questions.

        total    = variance_of_mean(y)                     (s_y^2 / Q without clusters)
        sampling = sum_q v_q / n_q / Q^2,                  v_q = n_q y_q (1 - y_q) / (n_q - 1)
        between  = max(total - sampling, 0)

    ``v_q`` is the unbiased variance of one sample of question q; a question with a single sample takes the mean of the
    others. Since E[total] = between + sampling, the difference is the one-way random-effects (ANOVA) estimator
    (Searle, Casella and McCulloch 1992, chapter 3); for language models Miller 2024 (arXiv 2411.00640), section 2.

    Args:
        num_correct: correct samples, one number a question.
        num_graded: graded samples, at least 1.
        clusters: name of each question's cluster.
    """
    shares = [right / num for right, num in zip(num_correct, num_graded, strict=True)]
    total = variance_of_mean(shares, clusters)[0]
    known = [num * y * (1 - y) / (num - 1) for y, num in zip(shares, num_graded, strict=True) if num > 1]
    if not known:
        return Components(total, None)
    typical = math.fsum(known) / len(known)
    of_one = iter(known)
    parts = (next(of_one) / num if num > 1 else typical for num in num_graded)
    sampling = math.fsum(parts) / len(shares) ** 2
    return Components(max(total - sampling, 0.0), sampling)


class QuestionTally:
    """Counts by question. ``names[q]`` is the id of question q; ``counts[what][q]`` what `add` counted of it.

    Args:
        columns: columns of the rows whose value is kept for each question (its first one), such as ``subject``.
    """

    def __init__(self, columns: Sequence[str] = ()) -> None:
        self._index: dict[str, int] = {}
        self.counts: dict[str, Any] = {
            name: array("d" if name.endswith("correct") else "I") for name in COUNTS
        }  # scores are fractions
        self.columns: dict[str, list[Any]] = {name: [] for name in (*columns, "cluster")}
        self.num_rows = 0

    @classmethod
    def of(cls, rows: Iterable[Row]) -> QuestionTally:
        """The tally of rows."""
        tally = cls()
        for row in rows:
            tally.add(row)
        return tally

    def __len__(self) -> int:
        return len(self._index)

    @property
    def names(self) -> list[str]:
        """Ids in the order in which they came."""
        return list(self._index)

    def add(self, row: Row) -> None:
        """Count one completion.

        ``graded``: it has a verdict other than ungraded. ``correct``: its score, 1 where that is correct.
        ``finished`` and ``finished_correct``: the same of those that were not cut off (``finish_reason`` is not
        ``length``). ``cut``: cut off and not correct, so that it could have become correct. ``settled``: graded or cut.

        Args:
            row: with ``verdict``; ``id`` (without one the row is a question of its own), ``finish_reason``,
                ``cluster``.

        Raises:
            ValueError: there is no verdict.
        """
        verdict = row.get("verdict")
        if verdict not in ("correct", "incorrect", "scored", "ungraded"):
            raise ValueError(
                f"row {self.num_rows + 1} has verdict {verdict!r}; expected correct, incorrect or ungraded. "
                "`dftune grade` adds verdicts."
            )
        name = str(row["id"]) if row.get("id") is not None else f"\0{self.num_rows}"
        self.num_rows += 1
        place = self._index.setdefault(name, len(self._index))
        if place == len(self.columns["cluster"]):
            for column, values in self.columns.items():
                values.append(row.get(column))
            for numbers in self.counts.values():
                numbers.append(0)
        graded, correct = verdict != "ungraded", verdict == "correct"
        score = score_of(row) or 0.0
        is_cut = row.get("finish_reason") == "length"
        self.counts["graded"][place] += graded
        self.counts["correct"][place] += score
        self.counts["finished"][place] += graded and not is_cut
        self.counts["finished_correct"][place] += 0.0 if is_cut else score
        self.counts["cut"][place] += is_cut and not correct
        self.counts["settled"][place] += graded or is_cut

    def shares(self, right: str = "correct", out_of: str = "graded") -> dict[str, float]:
        """``right / out_of`` by question id, where ``out_of`` is not zero."""
        pairs = zip(self._index, self.counts[right], self.counts[out_of], strict=True)
        return {name: count / total for name, count, total in pairs if total}

    def clusters(self, places: Iterable[int]) -> list[str] | None:
        """Cluster of each of these questions; None where no row names one. A question without one is its own."""
        names = self.columns["cluster"]
        if all(name is None for name in names):
            return None
        return [f"\0{place}" if names[place] is None else str(names[place]) for place in places]

    def clusters_of(self, names: Iterable[str]) -> list[str] | None:
        """The same for questions by id."""
        return self.clusters(self._index[name] for name in names)

    def estimate(
        self, right: str = "correct", out_of: str = "graded", places: Sequence[int] | None = None
    ) -> Estimate | None:
        """Mean share over questions with its interval; None where nothing was graded.

        Args:
            right: what counts as a success.
            out_of: of what; questions without any are left out.
            places: only these questions.
        """
        kept = self._kept(out_of, places)
        if not kept:
            return None
        right_counts, totals = self.counts[right], self.counts[out_of]
        scores = (right_counts[q] / totals[q] for q in kept)
        return estimate_scores(scores, sum(totals[q] for q in kept), self.clusters(kept))

    def components(self) -> Components | None:
        """Where the variance of the accuracy comes from; None where nothing was graded."""
        kept = self._kept("graded", None)
        if not kept:
            return None
        correct, graded = self.counts["correct"], self.counts["graded"]
        return variance_components([correct[q] for q in kept], [graded[q] for q in kept], self.clusters(kept))

    def bounds(self) -> tuple[float, float] | None:
        """Accuracy if all completions that were cut off and are not correct were wrong, and if they were right."""
        kept = self._kept("settled", None)
        if not kept:
            return None
        correct, cut, settled = (self.counts[name] for name in ("correct", "cut", "settled"))
        low = math.fsum(correct[q] / settled[q] for q in kept) / len(kept)
        return low, math.fsum((correct[q] + cut[q]) / settled[q] for q in kept) / len(kept)

    def _kept(self, out_of: str, places: Sequence[int] | None) -> list[int]:
        totals = self.counts[out_of]
        return [q for q in (range(len(totals)) if places is None else places) if totals[q]]
