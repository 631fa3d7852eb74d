"""Cells of a source: text, numbers, and conversations of one question and one answer."""

from __future__ import annotations

import math
from typing import Any, Literal

Role = Literal["user", "assistant"]

_ROLES = ("user", "assistant")


def turn(value: Any, role: Role, column: str, location: str) -> str:
    """Text as it stands, or what one side says where the cell is a conversation.

    Raises:
        ValueError: the cell is neither.
    """
    return exchange(value, column, location)[role] if is_conversation(value) else text(value, column, location)


def is_conversation(value: Any) -> bool:
    """Whether a cell is a list of messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(message, dict) for message in value)


def exchange(messages: Any, column: str, location: str) -> dict[Role, str]:
    """What the user asks and the assistant answers in a conversation of these two messages.

    Args:
        messages: the cell, a list of messages.
        column: its column, for the error.
        location: its row, for the error.

    Raises:
        ValueError: the conversation has other messages, or one that is not text.
    """
    roles = tuple(message.get("role") for message in messages)
    if roles != _ROLES:
        raise ValueError(
            f"{location}: column {column!r} must hold text, or a conversation of a user's message and an assistant's "
            f"answer; found {len(roles)} messages of {', '.join(map(str, roles))}. Write other conversations into "
            "columns of text."
        )
    asked, answered = (text(message.get("content"), column, location) for message in messages)
    return {"user": asked, "assistant": answered}


def text(value: Any, column: str, location: str) -> str:
    """Text; nothing where the cell is null.

    Raises:
        ValueError: the cell is something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(
            f"{location}: column {column!r} must hold text, found {type(value).__name__} {_shown(value)}. "
            "Convert it, or set data.columns to text columns."
        )
    return value


def scalar(value: Any, column: str, location: str) -> str | None:
    """Text without white space around it, or a number as text; None where the cell is empty.

    Raises:
        ValueError: the cell is something else.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float) and value.is_integer():  # tables with gaps turn integers into floats
        return str(int(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(
        f"{location}: column {column!r} must hold text or a number, found {type(value).__name__} {_shown(value)}."
    )


def has_surrogate(value: str) -> bool:
    """Whether a text holds half of a surrogate pair, and so is no valid Unicode."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:60] + "..."
