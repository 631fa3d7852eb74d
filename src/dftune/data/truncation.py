"""Rows that are longer than allowed: cut, and what was cut is named; or left out."""

from __future__ import annotations

from typing import Literal, NamedTuple

from dftune.data.conversations import Row

Truncation = Literal["drop", "left", "right", "error"]

CUT_PROMPT = "prompt cut from the left"
CUT_COMPLETION = "completion cut at its end"
CUT_LAST_ANSWERS = "last answers cut away"
CUT_NEGATIVE = "negative cut at its end"


class Cut(NamedTuple):
    """What is left of a row, and what was cut."""

    row: Row
    what: str


def cut_left(row: Row, max_length: int, bos: int | None) -> Cut | None:
    """Cut the prompt from the left, so that the last completion is whole.

    A beginning-of-sequence token stays first. An earlier answer that is cut is trained on no more.

    Returns:
        None where the last completion does not fit with one token before it.
    """
    excess = len(row.ids) - max_length
    lead = 1 if row.ids[:1] == [bos] else 0
    first = max(lead, 1)  # the first token of a row has nothing to be predicted from
    if row.spans[-1][0] - excess < first:
        return None
    ids = row.ids[:lead] + row.ids[lead + excess :]
    spans = tuple((start - excess, end - excess) for start, end in row.spans if start - excess >= first)
    return Cut(Row(ids, spans), CUT_PROMPT)


def cut_right(row: Row, max_length: int) -> Cut | None:
    """Cut the end of the last completion, which then has no end token, and whole answers where that is not enough.

    Returns:
        None where no token to train on is left.
    """
    spans = tuple((start, min(end, max_length)) for start, end in row.spans if start < max_length)
    if not spans:
        return None
    what = CUT_COMPLETION if len(spans) == len(row.spans) else CUT_LAST_ANSWERS
    return Cut(Row(row.ids[: spans[-1][1]], spans), what)
