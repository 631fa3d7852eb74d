"""Tokenised rows as text for people: every stretch that is trained on told apart from what is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple


class Stretch(NamedTuple):
    """Tokens next to each other that are all trained on, or all not."""

    is_supervised: bool
    ids: list[int]


def stretches(ids: Sequence[int], mask: Sequence[bool]) -> list[Stretch]:
    """Cut a row where its mask changes."""
    pairs = zip((bool(value) for value in mask), map(int, ids), strict=True)
    return [Stretch(key, [token for _, token in part]) for key, part in groupby(pairs, lambda pair: pair[0])]


def decode_parts(tokenizer: Any, parts: Sequence[Sequence[int]]) -> list[str]:
    """The text that each part adds to those before it. Some tokenizers drop a space where a text begins."""
    texts: list[str] = []
    done: list[int] = []
    before = ""
    for part in parts:
        done += part
        whole = tokenizer.decode(done, clean_up_tokenization_spaces=False)
        texts.append(whole[len(before) :])
        before = whole
    return texts


def visible(text: str) -> str:
    """Line breaks and other control characters as signs, so that none reaches the terminal."""
    return "".join(_SIGNS.get(c) or (c if c.isprintable() else repr(c)[1:-1]) for c in text)


_SIGNS = {"\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d"}


def lines(tokenizer: Any, ids: Sequence[int], mask: Sequence[bool]) -> Iterator[tuple[bool, str]]:
    """The row line by line, each with whether it is trained on; a line ends at a line break or where that changes."""
    parts = stretches(ids, mask)
    for part, text in zip(parts, decode_parts(tokenizer, [part.ids for part in parts]), strict=True):
        for line in text.splitlines(keepends=True):
            yield part.is_supervised, visible(line)


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Every token by itself, as the tokenizer's vocabulary has it."""
    return [visible(str(piece)) for piece in tokenizer.convert_ids_to_tokens(list(ids))]
