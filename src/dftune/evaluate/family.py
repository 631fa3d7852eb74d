"""Many comparisons at once: what may still be said when all of them are looked at together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dftune.evaluate.metrics import Difference, detectable_difference


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given.

    With ``p_(1) <= ... <= p_(m)`` the adjusted value is ``max_(j <= i) min(1, (m - j + 1) p_(j))``. Rejecting where it
    is under alpha keeps the chance of any false finding in the family at alpha, whatever the dependence between the
    tests (Holm 1979, Scandinavian Journal of Statistics 6(2)).
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def correct(differences: Sequence[Difference]) -> list[Difference]:
    """The same differences, corrected for being so many.

    ``p_adjusted`` is Holm's of ``Difference.p``, so that ``sign`` speaks for the family. ``detectable`` becomes what is
    found in 80 % of repetitions at a level of 0.05 / m, that of Holm's first step: later steps ask for less, so it
    never promises too much. Intervals stay those of a comparison by itself.
    """
    confidence = 1 - 0.05 / max(len(differences), 1)
    return [
        replace(
            one,
            p_adjusted=adjusted,
            detectable=detectable_difference(one.standard_error, one.degrees, confidence=confidence)
            * (one.num_questions + 2)
            / one.num_questions,
        )
        for one, adjusted in zip(differences, holm([one.p for one in differences]), strict=True)
    ]
