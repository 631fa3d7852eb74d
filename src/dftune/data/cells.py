"""Cells of a source: text, numbers, and conversations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from dftune.data.messages import Message, Role

_ROLES: tuple[Role, ...] = ("system", "user", "assistant")
_SAME_ROLE = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}


class Exchange(NamedTuple):
    """The last question of a conversation and its answer."""

    history: tuple[Message, ...]
    """What was said before."""
    asked: str
    answered: str | None
    """None where the conversation ends with the question."""


def exchange(value: Any, column: str, location: str) -> Exchange:
    """What a conversation asks last and answers, and what came before.

    Args:
        value: the cell, a list of messages: a system message or none, then a user's and an assistant's in turn.
        column: its column, for the error.
        location: its row, for the error.

    Raises:
        ValueError: the conversation has other messages, or one that is not text.
    """
    roles = [role_of(message) for message in value]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != [("user", "assistant")[place % 2] for place in range(len(turns))]:
        raise ValueError(
            f"{location}: column {column!r} must hold text, or a conversation of a user's messages and an assistant's "
            f"answers in turn, after a system message or none; found {len(roles)} messages of "
            f"{', '.join(map(str, roles))}. Write other conversations into columns of text."
        )
    messages = tuple(
        Message(_ROLES[_ROLES.index(role)], text(content_of(message), column, location))
        for role, message in zip(roles, value, strict=True)
    )
    if turns[-1] == "user":
        return Exchange(messages[:-1], messages[-1].content, None)
    return Exchange(messages[:-2], messages[-2].content, messages[-1].content)


def role_of(message: Mapping[str, Any]) -> Any:
    """Who speaks: ``role``, or ``from`` with its names for the same (human, gpt)."""
    role = message.get("role", message.get("from"))
    return _SAME_ROLE.get(role, role) if isinstance(role, str) else role


def content_of(message: Mapping[str, Any]) -> Any:
    """What is said: ``content``, or ``value``."""
    return message.get("content", message.get("value"))


def question(value: Any, column: str, location: str) -> str:
    """Text as it stands, or the last question where the cell is a conversation.

    Raises:
        ValueError: the cell is neither.
    """
    return exchange(value, column, location).asked if is_conversation(value) else text(value, column, location)


def is_answer(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Whether a cell is a conversation of one message, an assistant's."""
    return is_conversation(value) and [role_of(message) for message in value] == ["assistant"]


def is_conversation(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Whether a cell is a list of messages: {role, content}, or {from, value}."""
    return isinstance(value, list) and bool(value) and all(isinstance(message, dict) for message in value)


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
