"""Negatives: completions of the same problem that an objective holds against the one to train on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dftune.data.cells import (
    Exchange,
    content_of,
    exchange,
    has_surrogate,
    is_answer,
    is_conversation,
    role_of,
    text,
)
from dftune.data.config import ColumnsConfig

Negative = tuple[int, str]
"""Its number, which is that of its column or its place in the list, and its text."""

EQUAL = "equal to the solution"
EMPTY_NEGATIVE = "empty"
NEGATIVE_NOT_UNICODE = "text that is not valid Unicode"
NEGATIVE_NOTHING_TO_SCORE = "no token to train on"
NEGATIVE_END_INSIDE = "end-of-turn token inside the negative"
NEGATIVE_TOO_LONG = "too long"
NEGATIVE_CUT_AWAY = "completion cut away"
ALREADY_THERE = "already there from an earlier row"
ROW_LEFT_OUT = "row left out"


def negative_id(name: str, number: int) -> str:
    """The stable id of a negative of the row ``name``."""
    return f"{name}#{number}"


def clash(ids: Iterable[str]) -> tuple[str, str] | None:
    """Two ids of rows of which the second reads like that of a negative of the first."""
    known = set(ids)
    for name in known:
        before, mark, number = name.rpartition("#")
        if mark and number.isdecimal() and before in known:
            return before, name
    return None


def negative_columns(name: str | None, found: Iterable[str]) -> list[tuple[int, str]]:
    """Number and name of the columns that ``data.columns.negatives`` stands for, in the order of their numbers.

    Args:
        name: a column, or what comes before the number in the names of several: ``generated_`` for ``generated_0``.
        found: the columns of the source.

    Raises:
        ValueError: two columns have the same number.
    """
    if name is None:
        return []
    names = list(found)
    if name in names:
        return [(0, name)]
    rests = [(column[len(name) :], column) for column in names if column.startswith(name)]
    columns = sorted((int(rest), column) for rest, column in rests if rest.isascii() and rest.isdecimal())
    numbers = [number for number, _ in columns]
    if len(set(numbers)) < len(numbers):
        listed = ", ".join(column for _, column in columns)
        raise ValueError(f"data.columns.negatives={name}: columns of the same number among {listed}. Rename them.")
    return columns


def read_negatives(row: Mapping[str, Any], columns: ColumnsConfig, location: str) -> tuple[Negative, ...]:
    """The negatives of a row as the source has them; one that is null is none.

    Raises:
        ValueError: a cell has the wrong type, or is the answer to another question than the solution.
    """
    solution = row.get(columns.solution)
    asked = None
    if is_conversation(solution) and not is_answer(solution):
        asked = exchange(solution, columns.solution, location)
    found = negative_columns(columns.negatives, row)
    if len(found) == 1 and found[0][1] == columns.negatives:
        (_, column) = found[0]
        value = row[column]
        many = isinstance(value, list) and not is_conversation(value)
        cells = [(number, column, cell) for number, cell in enumerate(value if many else [value])]
    else:
        cells = [(number, column, row[column]) for number, column in found]
    return tuple(
        (number, _text_of(cell, asked, column, location)) for number, column, cell in cells if cell is not None
    )


def _text_of(cell: Any, asked: Exchange | None, column: str, location: str) -> str:
    if is_answer(cell):
        return text(content_of(cell[0]), column, location)
    if not is_conversation(cell):
        return text(cell, column, location)
    found = exchange(cell, column, location)
    if found.answered is None:
        raise ValueError(
            f"{location}: column {column!r} must hold text, or a conversation that ends with an assistant's answer; "
            f"found {len(cell)} messages of {', '.join(str(role_of(message)) for message in cell)}."
        )
    if asked is not None and _stripped(found) != _stripped(asked):
        raise ValueError(
            f"{location}: column {column!r} answers another question than the solution does: "
            f"{found.asked[:60]!r} instead of {asked.asked[:60]!r}. The columns were put together wrongly; match the "
            "rows by their ids."
        )
    return found.answered


def _stripped(found: Exchange) -> list[str]:
    return [*(message.content.strip() for message in found.history), found.asked.strip()]


def reason_to_drop(negative: str, solution: str) -> str | None:
    """Why a negative cannot be used as it stands."""
    if not negative.strip():
        return EMPTY_NEGATIVE
    if has_surrogate(negative):
        return NEGATIVE_NOT_UNICODE
    return EQUAL if negative.strip() == solution.strip() else None


def joined(earlier: Sequence[Negative], later: Sequence[Negative]) -> tuple[tuple[Negative, ...], list[Negative]]:
    """The negatives of two rows with the same problem and solution, the later ones numbered on.

    Returns:
        The negatives of both, and those of the later row that were there already.
    """
    known = {negative for _, negative in earlier}
    new = [negative for _, negative in later if negative not in known]
    start = max(number for number, _ in earlier) + 1
    return (*earlier, *enumerate(new, start)), [negative for negative in later if negative[1] in known]
