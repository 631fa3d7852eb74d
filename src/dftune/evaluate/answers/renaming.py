"""Variables that may have another name: integer parameters of a family, constants of integration."""

from __future__ import annotations

from dftune.evaluate.answers.expr import Expr, has, symbols
from dftune.evaluate.answers.relations import split_label
from dftune.evaluate.answers.vocabulary import names

_PARAMETERS = names("k n m l ell j t s r p q z a b x y")
_CONSTANTS = names("c C c_1 c_2 c_3 c_4 C_1 C_2 C_3 C_4 A B K k C_0 c_0 C' A_1 A_2 B_1 B_2")


def parameter_renamings(gold: Expr, answer: Expr, *, marked: bool) -> dict[str, str] | None:
    """How to rename the one variable of ``answer`` that ``gold`` lacks, if that is allowed.

    Allowed for the integer parameter of a family (``marked``: the text says integer, or the value repeats with pi or
    degrees) and for constants of integration.
    """
    mine, theirs = _value_symbols(gold), _value_symbols(answer)
    only_gold, only_answer = sorted(mine - theirs), sorted(theirs - mine)
    if not only_gold or len(only_gold) != len(only_answer):
        return None
    if all(name in _CONSTANTS for name in (*only_gold, *only_answer)) and len({*only_gold, *only_answer}) > 1:
        label = split_label(gold)
        if not marked and not has(gold, "call", "pow") and not (label and label.arguments):
            return None
        return dict(zip(only_answer, only_gold, strict=True))
    if len(only_gold) > 1 or not {*only_gold, *only_answer} <= _PARAMETERS:
        return None
    family = marked or has(gold, "deg") or any(item == "pi" for item in _constants(gold))
    return {only_answer[0]: only_gold[0]} if family else None


def _value_symbols(expr: Expr) -> set[str]:
    """Variables of the values, without the names they are given to."""
    label = split_label(expr)
    if label is not None:
        return symbols(label.value)
    if expr.op == "seq":
        return {name for item in expr.args for name in _value_symbols(item)}
    return symbols(expr)


def _constants(expr: Expr) -> list[str]:
    found = [expr.name] if expr.op == "const" else []
    return found + [name for arg in expr.args for name in _constants(arg)]
