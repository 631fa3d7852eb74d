"""The syntax tree of an answer, and what every stage asks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from dftune.evaluate.answers.budget import MAX_DEPTH, UnreadableError


@dataclass(frozen=True, slots=True)
class Expr:
    """One node.

    ``op`` is one of

    * numbers: ``num`` (value; digits > 0 for a decimal literal), ``literal`` (name: too long to compute), ``sym``,
      ``const`` (``pi``, ``e``, ``i``, ``inf``), ``add``, ``mul``, ``pow``, ``call`` (name), ``app`` (name: an unknown
      function), ``percent``, ``deg``, ``base`` (name: digits; one argument), ``fold`` (name: ``sum`` or ``prod``;
      body, variable, first, last), ``pm`` (unary plus-minus), ``mp``, ``dots``
    * structures: ``seq`` (comma list; name: the separator), ``group`` (name: the two brackets), ``matrix`` (rows of
      ``seq``), ``rel`` (name: operators separated by a space), ``setop`` (name), ``builder`` (a set given by a
      condition), ``named`` (name of a set), ``ratio``, ``text``
    """

    op: str
    args: tuple[Expr, ...] = ()
    name: str = ""
    value: Fraction | None = None
    digits: int = 0
    depth: int = 1


def node(op: str, *args: Expr, name: str = "") -> Expr:
    """An inner node; refuses trees deeper than the evaluators follow."""
    depth = 1 + max((arg.depth for arg in args), default=0)
    if depth > MAX_DEPTH:
        raise UnreadableError("nested too deeply")
    return Expr(op, args, name, depth=depth)


def num(value: Fraction | int, digits: int = 0) -> Expr:
    """A rational number; ``digits`` counts the significant digits of a decimal literal."""
    return Expr("num", value=Fraction(value), digits=digits)


def sym(name: str) -> Expr:
    """A variable or named constant."""
    return Expr("sym", name=name)


def add(*args: Expr) -> Expr:
    """A sum."""
    return args[0] if len(args) == 1 else node("add", *args)


def mul(*args: Expr) -> Expr:
    """A product."""
    return args[0] if len(args) == 1 else node("mul", *args)


def power(base: Expr, exponent: Expr) -> Expr:
    """``base`` to the power ``exponent``."""
    return node("pow", base, exponent)


def neg(arg: Expr) -> Expr:
    """The negative of ``arg``; a literal stays one."""
    if arg.op == "num" and arg.value is not None:
        return Expr("num", value=-arg.value, digits=arg.digits)
    return mul(num(-1), arg)


def divide(numerator: Expr, denominator: Expr) -> Expr:
    """``numerator`` over ``denominator``."""
    return mul(numerator, power(denominator, num(-1)))


def walk(expr: Expr) -> Iterator[Expr]:
    """The node and everything below it."""
    stack = [expr]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(current.args)


def symbols(expr: Expr) -> set[str]:
    """Names of the free variables."""
    if expr.op == "sym":
        return {expr.name}
    if expr.op == "fold":
        body, variable, first, last = expr.args
        return (symbols(body) - {variable.name}) | symbols(first) | symbols(last)
    return {name for arg in expr.args for name in symbols(arg)}


def has(expr: Expr, *ops: str) -> bool:
    """Whether a node of one of these kinds occurs."""
    return any(item.op in ops for item in walk(expr))


def rebuild(expr: Expr, change: Callable[[Expr], Expr]) -> Expr:
    """Apply ``change`` to every node, leaves first."""
    if not expr.args:
        return change(expr)
    args = tuple(rebuild(arg, change) for arg in expr.args)
    if all(new is old for new, old in zip(args, expr.args, strict=True)):
        return change(expr)
    return change(Expr(expr.op, args, expr.name, expr.value, expr.digits, expr.depth))


def rename(expr: Expr, names: dict[str, str]) -> Expr:
    """Replace variables by others."""
    return rebuild(expr, lambda item: sym(names[item.name]) if item.op == "sym" and item.name in names else item)


def substituted(expr: Expr, name: str, value: Expr) -> Expr:
    """Put ``value`` in place of a variable."""
    return rebuild(expr, lambda item: value if item.op == "sym" and item.name == name else item)


STRUCTURES = frozenset({"seq", "group", "matrix", "rel", "setop", "builder", "named", "ratio", "text"})


def is_scalar(expr: Expr) -> bool:
    """Whether the tree is one number or formula rather than a list, set, relation or text."""
    return not any(item.op in STRUCTURES for item in walk(expr))
