"""How the result depends on the learning rate and the batch size, where runs differ in them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from dftune.files import canonical_json
from dftune.report.charts import Line, Scale, linear_scale
from dftune.report.conditions import Column, Condition, styles_of
from dftune.report.curves import MANY_SEEDS
from dftune.report.panels import panels
from dftune.report.tables import ResultTable

KEYS = {"optimizer.lr": "learning rate", "train.batch_size": "batch size"}
"""Keys of the recipe that get a chart, both on a log scale."""


@dataclass(frozen=True)
class Sensitivity:
    """One chart: a line for runs that differ in nothing but the key and the seed."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    caption: str
    y_scale: Scale


def sensitivity_charts(table: ResultTable, shown: Sequence[Condition]) -> Iterator[Sensitivity]:
    """A chart a key and benchmark, and one of the last NLL on held-out rows.

    Args:
        table: of all runs.
        shown: conditions whose styles the report uses elsewhere.
    """
    looks = {row.method: row.style for row in shown}
    for key, name in KEYS.items():
        for column in table.whole_columns:
            on = f" on {table.name(column)}" if len(table.columns) > 1 else ""
            caption = "Final accuracy of each run, mean over its seeds. An optimum at an end may lie beyond it."
            charts = _charts(table, key, partial(_final_accuracies, table, column), looks)
            yield from _alike(charts, f"Accuracy{on} by {name}", name, "accuracy, %", caption)
        caption = "At the last validation. Where demonstrations are wrong, fitting them better is no gain."
        charts = _charts(table, key, _last_nll, looks)
        yield from _alike(charts, f"NLL on held-out rows by {name}", name, "nats per token", caption)


def _alike(
    charts: Iterable[tuple[str, tuple[Line, ...]]], title: str, x_label: str, y_label: str, caption: str
) -> Iterator[Sensitivity]:
    """Panels of one thing, on one scale."""
    charts = list(charts)
    y_scale = linear_scale([y for _, lines in charts for line in lines for y in line.values])
    for ending, lines in charts:
        yield Sensitivity(f"{title}{ending}", x_label, y_label, lines, caption, y_scale)


def _final_accuracies(table: ResultTable, column: Column, row: Condition) -> list[float]:
    evaluations = table.cell(row, column).evaluations
    return [100 * math.fsum(one.scores.values()) / len(one.scores) for one in evaluations if one.scores]


def _last_nll(row: Condition) -> list[float]:
    last = [run.validation[-1].get("nll") for run in row.runs if run.validation]
    return [float(nll) for nll in last if isinstance(nll, int | float) and math.isfinite(nll)]


def _charts(
    table: ResultTable, key: str, values: Callable[[Condition], list[float]], looks: Mapping[str, int]
) -> Iterator[tuple[str, tuple[Line, ...]]]:
    """Conditions joined that differ in ``key`` alone; nothing where no line would have two points."""
    families: dict[bytes, list[tuple[float, list[float], Condition]]] = defaultdict(list)
    for row in table.trained:
        x = row.group.settings.get(key) if row.group else None
        if row.group and isinstance(x, int | float) and x > 0 and (found := values(row)):
            rest = {name: value for name, value in row.group.settings.items() if name != key}
            families[canonical_json(rest)].append((float(x), found, row))
    if all(len(family) < 2 for family in families.values()):
        return
    by_head = {family[0][2].label: sorted(family, key=lambda point: point[0]) for family in families.values()}
    heads = [row for row in table.trained if row.label in by_head]
    several = styles_of([row.method for row in heads])
    own = dict(zip((row.label for row in heads), several, strict=True))
    for panel in panels(heads, but=key):
        one_each = len({row.method for row in panel.rows}) == len(panel.rows)
        known = looks if one_each else {}
        lines = [
            _line(panel.label(row), known.get(row.method, own[row.label]), by_head[row.label]) for row in panel.rows
        ]
        yield panel.title, tuple(lines)


def _line(label: str, style: int, family: list[tuple[float, list[float], Condition]]) -> Line:
    means = [(x, math.fsum(found) / len(found)) for x, found, _ in family]
    return Line(label, style, means, markers=True, band=_band(family))


def _band(family: list[tuple[float, list[float], Condition]]) -> list[tuple[float, float, float]]:
    if max(len(found) for _, found, _ in family) < MANY_SEEDS:
        return []
    return [(x, min(found), max(found)) for x, found, _ in family]
