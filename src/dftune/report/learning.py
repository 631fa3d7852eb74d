"""How fast each condition learns: steps to a target, and the mean of its curve over the training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dftune.report.charts import Curve
from dftune.report.conditions import Condition
from dftune.report.curves import accuracy_curves, metric_curves
from dftune.report.load import inner
from dftune.report.tables import ResultTable
from dftune.report.wording import count, number


@dataclass(frozen=True)
class LearningRow:
    """One condition and one curve.

    Attributes:
        condition: its label.
        curve: what is measured.
        target: the value to reach: what its reference ends with, mean over seeds.
        steps: when it is reached first; ``not reached`` or, of some seeds, how many of them did.
        mean: area under the curve divided by its steps, over the steps that all conditions of that reference have.
    """

    condition: str
    curve: str
    target: str
    steps: str
    mean: str


def build_learning(table: ResultTable) -> tuple[LearningRow, ...]:
    """A row a condition for every benchmark that was evaluated during training, and for the NLL on held-out rows."""
    rows: list[LearningRow] = []
    for column in table.whole_columns:
        found = [(row, curves) for row in table.trained if (curves := accuracy_curves(row, column))]
        for family in _families(table, found):
            rows += _rows(family, f"accuracy on {table.name(column)}, %", digits=1, higher_is_better=True)
    held_out = [(row, metric_curves(row, "validation", "nll")) for row in table.trained]
    held_out = [(row, kept) for row, curves in held_out if (kept := [curve for curve in curves if len(curve) > 2])]
    for family in _families(table, held_out):
        rows += _rows(family, "NLL on held-out rows", digits=3, higher_is_better=False)
    return tuple(rows)


_Found = tuple[Condition, Sequence[Curve]]


def _families(table: ResultTable, found: Sequence[_Found]) -> Iterator[list[_Found]]:
    """Conditions behind the one that they are compared with: on other data held-out rows are others as well.

    Conditions of the first objective that nothing is compared with stand behind the first one on their data.
    """
    families: dict[str, list[_Found]] = {}
    first_on: dict[frozenset[str], str] = {}
    for row, curves in found:
        data = frozenset(str(inner(run.manifest, "data", "fingerprint")) for run in row.runs)
        is_reference = row.label in table.compared_with.values()
        own = row.label if is_reference else first_on.setdefault(data, row.label)
        families.setdefault(table.compared_with.get(row.label, own), []).append((row, curves))
    for head, family in families.items():
        yield sorted(family, key=lambda one: one[0].label != head)  # stable


def _rows(found: Sequence[_Found], name: str, *, digits: int, higher_is_better: bool) -> Iterator[LearningRow]:
    """One family, its first condition the one whose end is to be reached."""
    target = math.fsum(curve[-1][1] for curve in found[0][1]) / len(found[0][1])
    first = max(curve[0][0] for _, curves in found for curve in curves)
    last = min(curve[-1][0] for _, curves in found for curve in curves)
    for row, curves in found:
        reached = [steps_to(curve, target, higher_is_better=higher_is_better) for curve in curves]
        means = [mean for curve in curves if (mean := mean_height(curve, first, last)) is not None]
        yield LearningRow(row.label, name, number(target, digits), _steps(reached), _spread(means, digits))


def steps_to(curve: Curve, target: float, *, higher_is_better: bool) -> float | None:
    """The first measured step at which a curve is as good as ``target``; None where it never is."""
    sign = 1 if higher_is_better else -1
    return next((x for x, y in curve if sign * y >= sign * target - 1e-9), None)


def mean_height(curve: Curve, first: float, last: float) -> float | None:
    """Area under a piecewise linear curve from ``first`` to ``last``, divided by their distance.

    None where the curve has no two points there, or the ends lie outside of it.
    """
    inside = [(x, y) for x, y in curve if first <= x <= last]
    if len(inside) < 2:
        return None
    area = math.fsum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairwise(inside))
    return area / (inside[-1][0] - inside[0][0])


def _steps(reached: Sequence[float | None]) -> str:
    known = [steps for steps in reached if steps is not None]
    if not known:
        return "not reached"
    shown = count(min(known)) if min(known) == max(known) else f"{count(min(known))} to {count(max(known))}"
    return shown if len(known) == len(reached) else f"{shown} ({len(known)} of {len(reached)} seeds)"


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return "\N{EM DASH}"
    mean = number(math.fsum(values) / len(values), digits)
    ends = f" ({number(min(values), digits)} to {number(max(values), digits)})" if len(values) > 1 else ""
    return f"{mean}{ends}"
