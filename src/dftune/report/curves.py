"""Curves over training: of one run, of all seeds of a condition, and their mean."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from dftune.report.charts import Curve, Line
from dftune.report.conditions import Column, Condition, column_of

MANY_SEEDS = 3
"""From so many on seeds are drawn as a band: single lines can no longer be told apart."""


def metric_curves(row: Condition, kind: str, key: str) -> list[Curve]:
    """A metric of the training, a curve a seed that has it.

    Args:
        row: a trained condition.
        kind: ``train`` or ``validation`` events.
        key: name of the metric.
    """
    curves: list[Curve] = []
    for run in row.runs:
        events = run.train if kind == "train" else run.validation
        curve = [(float(one["step"]), float(one[key])) for one in events if isinstance(one.get(key), int | float)]
        if curve:
            curves.append(curve)
    return curves


def accuracy_curves(row: Condition, column: Column) -> list[Curve]:
    """Accuracy in per cent of every completely evaluated step, the base model as step 0, a curve a seed."""
    curves: list[Curve] = []
    for run in row.runs:
        base = [one.base for one in row.scored.get(column, ()) if one.run is run and one.base is not None]
        own = [one for one in run.evaluations if column_of(one) == column and one.step > 0]
        points = [
            (float(one.step), 100 * math.fsum(one.scores.values()) / len(one.scores))
            for one in (*base, *own)
            if one.complete and one.scores
        ]
        if len(points) > 2 or (len(points) == 2 and not base):
            curves.append(points)
    return curves


def line_of(label: str, style: int, curves: Sequence[Curve], *, markers: bool) -> Line:
    """The mean of the seeds; behind it each of two, or the band of more."""
    many = len(curves) >= MANY_SEEDS
    return Line(
        label,
        style,
        mean_curve(curves),
        curves if len(curves) > 1 and not many else (),
        markers=markers,
        band=[(x, min(ys), max(ys)) for x, ys in _shared(curves)] if many else (),
    )


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over seeds at each step that all of them have; the first curve where they share none."""
    return [(x, math.fsum(ys) / len(ys)) for x, ys in _shared(curves)] or curves[0]


def _shared(curves: Sequence[Curve]) -> list[tuple[float, list[float]]]:
    by_step: dict[float, list[float]] = defaultdict(list)
    for curve in curves:
        for x, y in curve:
            by_step[x].append(y)
    return [(x, ys) for x, ys in sorted(by_step.items()) if len(ys) == len(curves)]
