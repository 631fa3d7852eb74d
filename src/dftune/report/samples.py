"""Completions for the browser: the same questions side by side, cut to what a report can carry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dftune.evaluate.classify import CATEGORIES, classify
from dftune.report.conditions import Column, Condition
from dftune.report.load import Evaluation, Row
from dftune.report.tables import ResultTable
from dftune.report.wording import count, listed, plural, visible

MOST_BYTES = 2_500_000
"""Of sample data in a report, so that the file stays well under 5 MB."""
MOST_CHARACTERS = 6_000
"""Of one text; the rest is cut with a count."""


@dataclass(frozen=True)
class Browser:
    """Everything the sample browser shows.

    Attributes:
        conditions: columns, as ``{"label", "name", "details", "style", "reference"}``, the last being the position of
            the column that this one is compared with, or null.
        benchmarks: names of the columns of the result table.
        questions: as ``{"benchmark", "id", "problem", "target", "answers"}``; ``answers[c][s]`` is what seed s of
            condition c wrote, or null.
        num_seeds: the most seeds that any condition has.
        scope: a sentence on what was left out.
    """

    conditions: tuple[Row, ...]
    benchmarks: tuple[str, ...]
    questions: tuple[Row, ...]
    num_seeds: int
    scope: str

    def as_json(self) -> str:
        """The data for the script, with nothing in it that could end or open an element."""
        data = {"conditions": self.conditions, "benchmarks": self.benchmarks, "questions": self.questions}
        return script_json(data | {"num_seeds": self.num_seeds, "outcomes": CATEGORIES})


def script_json(value: Any) -> str:
    """JSON that is safe inside ``<script type="application/json">``: ASCII, with ``<``, ``>`` and ``&`` as escapes."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def build_browser(table: ResultTable, most_bytes: int = MOST_BYTES) -> Browser:
    """Collect the first sample of every question, condition and seed, evenly thinned out to ``most_bytes``."""
    questions: list[Row] = []
    sentences = []
    rows = [row for row in table.conditions if any(row.scored.get(column) for column in table.columns)]
    columns = _files(table, rows)
    for column in columns:
        found = _questions(table, rows, column)
        kept = _fit(found, most_bytes // len(columns))
        questions += kept
        whole = "all" if len(kept) == len(found) else f"{count(len(kept))} of"
        spread = "" if len(kept) == len(found) else ", evenly spaced to keep this file small"
        sentences.append(f"{whole} {plural(len(found), 'question')} of {table.name(column)}{spread}")
    most_samples = max((table.cell(row, column).num_samples for row in rows for column in table.columns), default=1)
    first = " Of several samples a question, the first is shown." if most_samples > 1 else ""
    return Browser(
        conditions=tuple(
            {
                "label": visible(row.label),
                "name": visible(row.name),
                "details": visible(row.details),
                "style": row.style,
                "reference": _position(table.compared_with.get(row.label), rows),
            }
            for row in rows
        ),
        benchmarks=tuple(table.name(column) for column in columns),
        questions=tuple(questions),
        num_seeds=max((len(row.scored.get(column, ())) for row in rows for column in table.columns), default=0),
        scope=f"Here are {listed(sentences)}.{first}" if sentences else "",
    )


def _files(table: ResultTable, rows: Sequence[Condition]) -> list[Column]:
    """One column for each file of completions: several protocols read the same one."""
    first: dict[tuple[str, str, str], Column] = {}
    for column in table.whole_columns:
        names = {one.evaluation.sampling for row in rows for one in row.scored.get(column, ())}
        for name in names or {column.protocol}:
            first.setdefault((column.benchmark, column.fingerprint, name), column)
    return list(dict.fromkeys(first.values()))


def _position(label: str | None, rows: Sequence[Condition]) -> int | None:
    return next((index for index, row in enumerate(rows) if row.label == label), None)


def _questions(table: ResultTable, rows: Sequence[Condition], column: Column) -> list[Row]:
    evaluations = [[one.evaluation for one in row.scored.get(column, ())] for row in rows]
    answers = [[_first_samples(one) for one in seeds] for seeds in evaluations]
    problems: dict[str, Row] = {}
    for seeds in answers:
        for by_id in seeds:
            for name, row in by_id.items():
                problems.setdefault(name, row)
    benchmark = table.name(column)
    return [
        {
            "benchmark": benchmark,
            "id": visible(name),
            "problem": shown_text(row.get("problem")),
            "target": shown_text(row.get("target")),
            "answers": [[shown_answer(by_id.get(name)) for by_id in seeds] for seeds in answers],
        }
        for name, row in problems.items()
    ]


def _first_samples(evaluation: Evaluation) -> Mapping[str, Row]:
    return {str(row["id"]): row for row in evaluation.completions if row.get("sample", 0) == 0}


def shown_answer(row: Row | None, most: int = MOST_CHARACTERS) -> Row | None:
    """What a browser shows of a completion, each text cut to ``most`` characters; None stays None."""
    if row is None:
        return None
    return {
        "outcome": classify(row).category,
        "answer": None if row.get("answer") is None else shown_text(row["answer"], most),
        "completion": shown_text(row.get("completion"), most),
        "tokens": row.get("num_tokens"),
        "reason": shown_text(row.get("reason"), most),
    }


def shown_text(value: Any, most: int = MOST_CHARACTERS) -> str:
    """A text, or a list of alternatives, with control characters written out, cut with a count of the rest."""
    if isinstance(value, list):
        return " or ".join(shown_text(one, most) for one in value)
    shown = visible("" if value is None else str(value))
    if len(shown) <= most:
        return shown
    return f"{shown[:most]}\N{HORIZONTAL ELLIPSIS} [{count(len(shown) - most)} more characters]"


def _fit(questions: Sequence[Row], most_bytes: int) -> list[Row]:
    """As many questions as fit, evenly spaced over the benchmark."""
    sizes = [len(script_json(question)) + 1 for question in questions]
    keep = len(questions)
    while keep and sum(sizes[index] for index in _spaced(len(questions), keep)) > most_bytes:
        keep = min(keep - 1, int(keep * 0.9))
    return [questions[index] for index in _spaced(len(questions), keep)]


def _spaced(total: int, keep: int) -> list[int]:
    return [index * total // keep for index in range(keep)]
