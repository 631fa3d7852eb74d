"""Why a completion counts as it does: one category and one reason for each, so that counts add up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from dftune.evaluate.answers.budget import MAX_ANSWER_CHARS
from dftune.evaluate.answers.expr import Expr, walk
from dftune.evaluate.answers.judge import read
from dftune.evaluate.answers.shapes import unlabelled
from dftune.evaluate.loops import loop_kind

Row = Mapping[str, Any]
Category = Literal["correct", "wrong", "format failure", "truncated", "repetition loop", "empty", "scored", "ungraded"]
CATEGORIES: tuple[Category, ...] = (
    *("correct", "wrong", "format failure", "truncated", "repetition loop", "empty", "scored", "ungraded"),
)
"""In the order in which they are shown."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_NUMBER = re.compile(r"\s*[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?\s*")
_TAIL_CHARS = 20_000
_MAX_BOXES = 50
"""Boxes are looked for in this much of the end, and so many at most, as the extraction does."""
_MARKED_RULES = {"box": "box", "tag": "tag"}
_COLLECTIONS = frozenset({"seq", "group", "setop", "builder", "named", "matrix"})


class Finding(NamedTuple):
    """A category, and what within it: reasons of one category exclude each other."""

    category: Category
    reason: str


def classify(row: Row) -> Finding:
    """Sort one completion. The first of these that holds is its category:

    1. ``correct``: by its verdict. Reason: ``finished`` or ``cut off``.
    2. ``ungraded``: by its verdict. Reason: the grader's, up to its first colon. ``scored`` (a number between 0 and 1,
       of another program): by its verdict. Reason: what was measured.
    3. ``empty``: no visible character.
    4. ``repetition loop``: its end repeats itself (`dftune.evaluate.loops`). Reason: ``cut off`` or ``stopped``.
    5. ``truncated``: cut off at the token limit (``finish_reason`` is ``length``). Reason: ``answer in the box or
       tag`` (a closed one, so the model had committed to an answer) or ``no answer yet``.
    6. ``format failure``: it stopped, but not with an answer where one was to be found. Reason, the first that holds:
       ``no answer``; ``unclosed box`` (the last one); ``several different answers`` (two boxes that are not one list);
       ``outside the box or tag`` (the prompt names ``\\boxed`` or ``<answer>``, the answer stood elsewhere);
       ``last number taken`` (no rule but the last resort of the extraction found one).
    7. ``wrong``: a legible answer in its place that differs. Reason: ``unreadable``, ``other kind of object``, else
       ``other number``, ``other expression``, ``other collection`` (tuples, sets, intervals, matrices), ``other
       relation`` or ``other words``, by the kind that reference and answer share; ``other choice`` of several.

    Verdicts go first because they are what the accuracy counts, and the loop goes before the token limit because it
    is why the limit was met. All that were cut off: ``truncated``, and the reason ``cut off`` elsewhere.

    Args:
        row: with ``verdict``. ``completion``, ``finish_reason``, ``answer``, ``target``, ``rule``, ``reason``,
            ``prompt`` are used where they are there; without them a category or reason that needs one is not given.
    """
    is_cut = row.get("finish_reason") == "length"
    if row["verdict"] == "correct":
        return Finding("correct", "cut off" if is_cut else "finished")
    if row["verdict"] == "ungraded":
        return Finding("ungraded", str(row.get("reason") or "no reason given").split(":", 1)[0])
    if row["verdict"] == "scored":
        return Finding("scored", str(row.get("stage") or "score"))
    text = row.get("completion")
    if text is not None and not text.strip():
        return Finding("empty", "cut off" if is_cut else "stopped")
    if text is not None and loop_kind(text) is not None:
        return Finding("repetition loop", "cut off" if is_cut else "stopped")
    if is_cut:
        committed = (
            row.get("answer") is not None and row.get("rule") in _MARKED_RULES and not _last_box_open(text or "")
        )
        return Finding("truncated", "answer in the box or tag" if committed else "no answer yet")
    failure = _format_failure(row, text or "")
    return Finding("format failure", failure) if failure else Finding("wrong", _wrong(row))


def _format_failure(row: Row, text: str) -> str | None:
    if row.get("answer") is None:
        return "no answer"
    rule = row.get("rule")
    if rule == "box":
        text = text.rpartition("</think>")[2] or text
        if _last_box_open(text):
            return "unclosed box"
        if _boxes_differ(text, str(row["answer"])):
            return "several different answers"
    prompt = row.get("prompt") or ""
    asked = {place for place, mark in (("box", "\\boxed"), ("tag", "<answer>")) if mark in prompt}
    if asked and rule is not None and _MARKED_RULES.get(rule) not in asked:
        return "outside the box or tag"
    return "last number taken" if rule == "number" else None


def _last_box_open(text: str) -> bool:
    tail = text[-_TAIL_CHARS:]
    starts = list(_BOX.finditer(tail))
    return bool(starts) and _inside(tail, starts[-1].end()) is None


def _inside(text: str, start: int) -> str | None:
    """What stands up to the brace that closes the one before ``start``; None where none does."""
    depth = 1
    for found in re.finditer(r"(?<!\\)[{}]", text[start:]):
        depth += 1 if found.group() == "{" else -1
        if depth == 0:
            return text[start : start + found.start()]
    return None


def _boxes_differ(text: str, answer: str) -> bool:
    """Some box holds what is not part of the answer: a list of boxes is one answer, and all of its parts are in it."""
    tail = text[-_TAIL_CHARS:]
    boxes = [_inside(tail, found.end()) for found in list(_BOX.finditer(tail))[-_MAX_BOXES:]]
    squeezed = re.sub(r"[\s$]", "", answer)
    return len(boxes) > 1 and any(box is not None and re.sub(r"[\s$]", "", box) not in squeezed for box in boxes)


def _wrong(row: Row) -> str:
    if str(row.get("reason") or "").startswith("the answer cannot be read"):
        return "unreadable"
    if row.get("stage") == "choice":
        return "other choice"
    answer, target = str(row["answer"]), row.get("target")
    golds = [target] if isinstance(target, str) else list(target or ())
    if not golds:
        return "other answer"
    kinds = [_kind(str(gold)) for gold in golds]
    mine = _kind(answer)
    if mine is None:
        return "unreadable"
    return f"other {mine}" if mine in kinds else "other kind of object"


def _kind(text: str) -> str | None:
    """``number``, ``expression``, ``collection``, ``relation`` or ``words``; None where it cannot be read."""
    if _NUMBER.fullmatch(text):
        return "number"
    if len(text) > MAX_ANSWER_CHARS:
        return None
    try:
        trees = read(text).trees
    except (ArithmeticError, LookupError, TypeError, ValueError):  # as in `compare_answers`
        return None
    return _kind_of(unlabelled(trees[0])) if trees else None


def _kind_of(tree: Expr) -> str:
    if tree.op == "group" and len(tree.args) == 1 and tree.args[0].op not in _COLLECTIONS:
        return _kind_of(tree.args[0])
    if tree.op in _COLLECTIONS:
        return "collection"
    if tree.op in ("rel", "ratio"):
        return "relation" if tree.op == "rel" else "number"
    ops = {item.op for item in walk(tree)}
    if "text" in ops:
        return "words"
    return "expression" if ops & {"sym", "app"} else "number"
