"""How the learning rates of a study were chosen, as its ``selection.json`` has it (docs/study.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from dftune.evaluate.metrics import Difference
from dftune.report.conditions import Column, Condition
from dftune.report.groups import LEARNING_RATE
from dftune.report.load import Row
from dftune.report.tables import ResultTable
from dftune.report.wording import listed, one_line, plural, setting

_DASH = "\N{EM DASH}"
_MOST_NAMES = 6


@dataclass(frozen=True)
class TuningRow:
    """The choice for one objective, in one model and data condition.

    Attributes:
        name: model, condition and objective.
        chosen: the rate.
        grid: every rate with its value, mean over seeds.
        edge: ``smallest`` or ``largest`` where the chosen rate is an end of its grid, else empty.
    """

    name: str
    chosen: str
    grid: tuple[tuple[str, str], ...]
    edge: str


@dataclass(frozen=True)
class Tuning:
    """All choices of a study.

    Attributes:
        metric: what they go by, in words.
        rows: in the order of the recipe.
        protocol: of the answers that they go by; empty where there are none.
        wider: the result table of all runs, those of other rates too; None without these runs.
    """

    metric: str
    rows: tuple[TuningRow, ...]
    protocol: str = ""
    wider: ResultTable | None = None

    @property
    def tried(self) -> bool:
        """Whether there was more than one rate to choose from."""
        return any(len(row.grid) > 1 for row in self.rows)

    def at_same_rate(self, row: Condition, column: Column) -> Difference | None:
        """The difference to the reference trained with the learning rate of ``row``, where the two have others.

        It is that of a comparison by itself.
        """
        twins = [other for other in (self.wider.trained if self.wider else ()) if _settings(other) == _settings(row)]
        if self.wider is None or len(twins) != 1 or column not in self.wider.columns:
            return None
        references = [one for one in self.wider.trained if one.label == self.wider.compared_with.get(twins[0].label)]
        rates = {_settings(one).get(LEARNING_RATE) for one in (*references, row)}
        return self.wider.cell(twins[0], column).versus if references and len(rates) == 1 else None

    def notes(self, table: ResultTable) -> Iterator[str]:
        """Choices that ask for a wider grid or other answers, and objectives for which nothing could be chosen."""
        others = sorted({column.protocol for column in table.columns} - {self.protocol})
        if self.protocol and others:
            yield (
                f"Learning rates were chosen by {self.protocol} answers; scores under {listed(others)} may be best at "
                "other rates, and differences there partly be those of rates."
            )
        for row in self.rows:
            if row.chosen == _DASH:
                yield f"No learning rate of {row.name} was trained to the end with every seed: it has no result here."
        for edge in ("smallest", "largest"):
            names = [row.name for row in self.rows if row.edge == edge]
            if names:
                rest = [plural(len(names) - _MOST_NAMES, "other")] if len(names) > _MOST_NAMES else []
                yield (
                    f"The {edge} learning rate of its grid was the best for {listed(names[:_MOST_NAMES] + rest)}: "
                    "a better one may lie beyond."
                )


def read_tuning(selection: Mapping[str, Any], wider: ResultTable | None = None) -> Tuning:
    """The choices in words and numbers.

    Args:
        selection: what ``selection.json`` holds.
        wider: see `Tuning`.
    """
    source = selection.get("benchmark")
    where = "held-out rows" if source is None else one_line(PurePosixPath(str(source)).stem)
    protocol = str(selection.get("protocol") or "greedy") if selection["metric"] == "accuracy" else ""
    rows = tuple(_row(choice) for choice in selection["choices"])
    metric = f"{selection['metric']} on {where}{f' ({protocol})' if protocol else ''}"
    return Tuning(metric, rows, protocol, wider)


def _settings(row: Condition) -> Row:
    return row.group.settings if row.group else {}


def _row(choice: Mapping[str, Any]) -> TuningRow:
    parts = (str(choice[key]) for key in ("model", "condition", "objective"))
    return TuningRow(
        name=one_line(" ".join(part for part in parts if part)),
        chosen=_DASH if choice["lr"] is None else setting(choice["lr"]),
        grid=tuple(
            (setting(one["lr"]), "failed" if one["value"] is None else f"{one['value']:.3f}") for one in choice["grid"]
        ),
        edge=str(choice.get("at_edge") or ""),
    )


def grid_of(row: TuningRow) -> str:
    """``1e-4: 0.520, 3e-4: 0.610``."""
    return ", ".join(f"{rate}: {value}" for rate, value in row.grid)
