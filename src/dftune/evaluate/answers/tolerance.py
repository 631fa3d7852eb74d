"""Answers that need only be near: a benchmark's own absolute error, such as OlympiadBench's ``abs_error``."""

from __future__ import annotations

from decimal import Decimal, localcontext

from dftune.evaluate.answers import decimals as dec
from dftune.evaluate.answers.budget import Budget, BudgetSpentError, UndecidedError, UndefinedError, UnreadableError
from dftune.evaluate.answers.decimals import context
from dftune.evaluate.answers.expr import Expr, symbols
from dftune.evaluate.answers.judge import read, read_prediction
from dftune.evaluate.answers.numeric import LOW, Evaluator
from dftune.evaluate.answers.shapes import unlabelled


def within(gold: str, answer: str, tolerance: float) -> bool:
    """Whether both are real numbers with ``|gold - answer| <= tolerance``.

    A percent sign on one side alone is overlooked, as in exact comparison.
    """
    budget = Budget()
    try:
        with localcontext(context(LOW)):
            mine = [value for tree in read(gold).trees if (value := _number(tree, budget)) is not None]
            theirs = [value for tree in read_prediction(answer).trees if (value := _number(tree, budget)) is not None]
            limit = Decimal(repr(tolerance))
            return any(abs(one - other) <= limit for one in mine for other in theirs)
    except (BudgetSpentError, UnreadableError, RecursionError, ArithmeticError, LookupError, ValueError):
        return False


def _number(tree: Expr, budget: Budget) -> Decimal | None:
    tree = unlabelled(tree)
    tree = tree.args[0] if tree.op == "percent" else tree
    if symbols(tree):
        return None
    try:
        value = Evaluator(budget, {}).value(tree)
    except (UndefinedError, UndecidedError):
        return None
    return value[0] if dec.is_real(value) else None
