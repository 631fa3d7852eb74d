"""Whether a completion ends in a repetition loop: two tests of its tail, so the cost does not grow with its length.

Thresholds were set on texts that are no loops: of 11,993 solutions (math500, minerva_math, olympiadbench, gsm8k train,
3,073 of NuminaMath and others) none comes near, see docs/evaluation.md.
"""

from __future__ import annotations

import re

MIN_CHARS = 100
"""A text whose end is exactly periodic over fewer characters is no loop yet."""
MIN_REPEATS = 3
"""Nor is one of fewer periods."""
_PERIOD_CHARS = 6_000
"""Periods are looked for in this much of the end, so the longest that can be found is a third of it."""
_PROBE_CHARS = 24

NGRAM = 8
"""Tokens of an n-gram in the inexact test; a token is a run of letters, a run of digits, or a sign."""
FEW_DISTINCT = 0.25
"""Over the last 200 tokens a loop has fewer distinct n-grams than this share; solutions have at least 0.45."""
FEW_DISTINCT_COUNTING = 0.08
"""The same over the last 400 tokens with every number taken for the same, for loops that count; at least 0.13."""
_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")
_TOKEN_CHARS = 2_400


def loop_kind(text: str) -> str | None:
    """How the end of ``text`` repeats itself: ``exact``, ``nearly``, ``counting``, or None where it does not.

    ``exact``: the last L characters have a period p (``t[i] = t[i - p]``) with L >= 100 and L >= 3 p. The nearest
    earlier copy of the last 24 characters gives p, one comparison of the text with itself shifted by p decides.
    ``nearly``: of the 8-grams in the last 200 tokens fewer than a quarter are distinct, as where a sampled loop varies
    a word. ``counting``: with every number taken for the same, fewer than 8 % are in the last 400 tokens, as in
    "Step 101: add 1. Step 102: add 1." Blank space at the end is not looked at.
    """
    text = text.rstrip()
    if len(text) < MIN_CHARS:
        return None
    if _is_periodic(text[-_PERIOD_CHARS:]):
        return "exact"
    tokens = _TOKEN.findall(text[-_TOKEN_CHARS:])
    if _few_distinct(tokens[-200:], 200, FEW_DISTINCT):
        return "nearly"
    if _few_distinct(["0" if token[0].isdigit() else token for token in tokens[-400:]], 400, FEW_DISTINCT_COUNTING):
        return "counting"
    return None


def _is_periodic(tail: str) -> bool:
    start = tail.rfind(tail[-_PROBE_CHARS:], 0, len(tail) - 1)
    if start < 0:
        return False
    period = len(tail) - _PROBE_CHARS - start
    length = max(MIN_CHARS, MIN_REPEATS * period)
    return length <= len(tail) and tail[-length:-period] == tail[period - length :]


def _few_distinct(tokens: list[str], needed: int, share: float) -> bool:
    if len(tokens) < needed:
        return False
    num = len(tokens) - NGRAM + 1
    return len(set(zip(*(tokens[start : start + num] for start in range(NGRAM)), strict=True))) < share * num
