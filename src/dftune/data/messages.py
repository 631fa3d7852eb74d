"""Messages of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Role = Literal["system", "user", "assistant"]


class Message(NamedTuple):
    """What one side says."""

    role: Role
    content: str


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as chat templates and JSON have them."""
    return [{"role": message.role, "content": message.content} for message in messages]
