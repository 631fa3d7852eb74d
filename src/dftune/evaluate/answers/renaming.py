"""Variables that may have another name, and families that are the same up to a shift of their parameter."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from itertools import permutations

from dftune.evaluate.answers.budget import Budget, UndefinedError
from dftune.evaluate.answers.decimals import Complex
from dftune.evaluate.answers.expr import Expr, has, is_scalar, symbols, walk
from dftune.evaluate.answers.numeric import LOW, evaluate
from dftune.evaluate.answers.relations import split_label
from dftune.evaluate.answers.shapes import without_conditions
from dftune.evaluate.answers.vocabulary import names

_PARAMETERS = names("k n m l ell j t s r p q z a b c x y lambda mu alpha beta")
_CONSTANTS = names("a b c C c_1 c_2 c_3 c_4 C_1 C_2 C_3 C_4 A B K k m C_0 c_0 C' A_1 A_2 B_1 B_2 lambda mu alpha")
_FREE_SHAPES = frozenset(("group", "matrix", "builder"))
_MAX_RENAMED = 4


def renamings(gold: Expr, answer: Expr, *, marked: bool) -> Iterator[dict[str, str]]:
    """Ways to rename the variables of ``answer`` that ``gold`` lacks, where that is allowed.

    Allowed for the constants of a function or of integration, for the parameter of a point or set, and for the integer
    parameter of a family (``marked``: the text says integer; or the values repeat with pi or degrees).
    """
    mine, theirs = value_symbols(gold), value_symbols(answer)
    only_gold, only_answer = sorted(mine - theirs), sorted(theirs - mine)
    if gold.op == "sym" or not 0 < len(only_gold) == len(only_answer) <= _MAX_RENAMED:
        return
    label = split_label(gold)
    is_function = label is not None and bool(label.arguments)
    constants = {*only_gold, *only_answer} <= _CONSTANTS and (marked or is_function or has(gold, "call", "pow"))
    if constants:
        for order in permutations(only_gold) if len(only_gold) <= 3 else [tuple(only_gold)]:
            yield dict(zip(only_answer, order, strict=True))
    elif len(only_gold) == 1 and {*only_gold, *only_answer} <= _PARAMETERS:
        repeats = has(gold, "deg") or any(item.op == "const" and item.name == "pi" for item in walk(gold))
        if marked or repeats or gold.op in _FREE_SHAPES:
            yield {only_answer[0]: only_gold[0]}


def value_symbols(expr: Expr) -> set[str]:
    """Variables of the values, without the names they are given to."""
    label = split_label(expr)
    if label is not None:
        return symbols(label.value)
    if expr.op == "seq":
        return {name for item in without_conditions(list(expr.args)) for name in value_symbols(item)}
    return symbols(expr)


def same_family(gold: Expr, answer: Expr, budget: Budget) -> bool:
    """Whether ``a + k b`` and ``c + k d`` list the same numbers over all integers k."""
    variables = symbols(gold)
    if len(variables) != 1 or variables != symbols(answer) or not is_scalar(gold) or not is_scalar(answer):
        return False
    lines = [_line(expr, next(iter(variables)), budget) for expr in (gold, answer)]
    if lines[0] is None or lines[1] is None:
        return False
    (start, step), (other_start, other_step) = lines[0], lines[1]
    small = Decimal("1e-30") * abs(step)
    shift = (other_start - start) / step
    return abs(abs(step) - abs(other_step)) <= small and abs(shift - shift.to_integral_value()) <= Decimal("1e-30")


def _line(expr: Expr, variable: str, budget: Budget) -> tuple[Decimal, Decimal] | None:
    """Start and step of an arithmetic progression in ``variable``."""
    values = []
    for index in range(3):
        point: dict[str, Complex] = {variable: (Decimal(index), Decimal(0))}
        try:
            value = evaluate(expr, point, LOW, budget)
        except UndefinedError:
            return None
        if not value.real:
            return None
        values.append(value.number[0])
    step = values[1] - values[0]
    return (values[0], step) if step and abs(values[2] - values[1] - step) <= Decimal("1e-30") * abs(step) else None
