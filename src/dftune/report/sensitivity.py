"""How the result depends on the learning rate and the batch size, where runs differ in them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from dftune.files import canonical_json
from dftune.report.charts import Line
from dftune.report.conditions import NUM_STYLES, Column, Condition
from dftune.report.curves import MANY_SEEDS
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


def sensitivity_charts(table: ResultTable, shown: Sequence[Condition]) -> Iterator[Sensitivity]:
    """A chart a key and benchmark, and one of the last NLL on held-out rows.

    Args:
        table: of all runs.
        shown: conditions whose styles the report uses elsewhere.
    """
    for key, name in KEYS.items():
        styles = {_label(row, key): row.style for row in shown}
        for column in table.whole_columns:
            on = f" on {table.name(column)}" if len(table.columns) > 1 else ""
            lines = _lines(table, key, partial(_final_accuracies, table, column), styles)
            if lines:
                caption = "Final accuracy of each run, mean over its seeds. An optimum at an end may lie beyond it."
                yield Sensitivity(f"Accuracy{on} by {name}", name, "accuracy, %", lines, caption)
        lines = _lines(table, key, _last_nll, styles)
        if lines:
            caption = "At the last validation. Where demonstrations are wrong, fitting them better is no gain."
            yield Sensitivity(f"NLL on held-out rows by {name}", name, "nats per token", lines, caption)


def _final_accuracies(table: ResultTable, column: Column, row: Condition) -> list[float]:
    evaluations = table.cell(row, column).evaluations
    return [100 * math.fsum(one.scores.values()) / len(one.scores) for one in evaluations if one.scores]


def _last_nll(row: Condition) -> list[float]:
    last = [run.validation[-1].get("nll") for run in row.runs if run.validation]
    return [float(nll) for nll in last if isinstance(nll, int | float) and math.isfinite(nll)]


def _lines(
    table: ResultTable, key: str, values: Callable[[Condition], list[float]], styles: Mapping[str, int]
) -> tuple[Line, ...]:
    """Conditions joined that differ in ``key`` alone; none where no line would have two points."""
    families: dict[bytes, list[tuple[float, list[float], Condition]]] = defaultdict(list)
    for row in table.trained:
        x = row.group.settings.get(key) if row.group else None
        if row.group and isinstance(x, int | float) and x > 0 and (found := values(row)):
            rest = {name: value for name, value in row.group.settings.items() if name != key}
            families[canonical_json(rest)].append((float(x), found, row))
    if all(len(family) < 2 for family in families.values()):
        return ()
    lines = []
    for index, family in enumerate(families.values()):
        family.sort(key=lambda point: point[0])
        label = _label(family[0][2], key)
        lines.append(
            Line(
                label,
                styles.get(label, index % NUM_STYLES + 1),
                [(x, math.fsum(found) / len(found)) for x, found, _ in family],
                markers=True,
                band=_band(family),
            )
        )
    return tuple(lines)


def _band(family: list[tuple[float, list[float], Condition]]) -> list[tuple[float, float, float]]:
    if max(len(found) for _, found, _ in family) < MANY_SEEDS:
        return []
    return [(x, min(found), max(found)) for x, found, _ in family]


def _label(row: Condition, key: str) -> str:
    details = [shown for name, shown in (row.group.details if row.group else ()) if name != key]
    return f"{row.name} ({', '.join(details)})" if details else row.name
