"""Equations and inequalities: labels such as ``x =``, and equality up to rearrangement."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext

from dftune.evaluate.answers import decimals as dec
from dftune.evaluate.answers import numeric
from dftune.evaluate.answers.budget import UndecidedError, UndefinedError
from dftune.evaluate.answers.exact import PRIME, NotRationalError, TooLargeError, field_value
from dftune.evaluate.answers.expr import Expr, add, is_scalar, neg, node, substituted, symbols, walk
from dftune.evaluate.answers.numeric import HIGH, LOW
from dftune.evaluate.answers.scalars import Scalars
from dftune.evaluate.answers.vocabulary import names

_SINGLE_VALUE_CALLS = names("sin cos tan cot sec csc abs max min det gcd lcm Re Im")
_FLIP = {">": "<", "≥": "≤"}


@dataclass(frozen=True)
class Labelled:
    """``label = value``. ``arguments`` are the variables of a function on the left, ``f(x) = ...``."""

    label: str
    value: Expr
    arguments: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    """Names on the left when it is a tuple, ``(x, y) = (1, 2)``."""


def split_label(expr: Expr) -> Labelled | None:
    """The name and the value of an assignment, or None for anything else, equations in unknowns included."""
    if expr.op != "rel":
        return None
    names, parts = expr.name.split(), list(expr.args)
    if names == ["∈"] and parts[1].op != "named" and _is_label(parts[0], parts[1]):
        return Labelled(_name(parts[0]), parts[1])
    for index, name in enumerate(names):
        if name in ("≈", "∼") and index > 0:
            names, parts = names[:index], parts[: index + 1]
            break
    if any(name not in ("=", "≈", "∼", "≡") for name in names) or (names[0] == "≡"):
        return None
    first, last = parts[0], parts[-1]
    if names == ["≈"] and not _is_label(first, last):
        return Labelled("", first)
    if _is_label(first, last):
        return _labelled(first, last)
    if last.op == "sym" and len(parts) == 2 and is_scalar(first) and not symbols(first):
        return Labelled(last.name, first)
    if len(parts) == 2 and first.op == last.op == "ratio" and not symbols(last):
        return Labelled("", last)
    constant = all(is_scalar(part) and not symbols(part) for part in parts)
    if constant and not any(item.op in ("app", "dots") for part in parts for item in walk(part)):
        return Labelled("", last)
    return None


def _labelled(label: Expr, value: Expr) -> Labelled:
    if label.op == "app":
        return Labelled(label.name, value, tuple(arg.name for arg in label.args if arg.op == "sym"))
    if label.op in ("group", "seq"):
        names = tuple(_name(arg) for arg in label.args)
        arguments = {arg.name for part in label.args if part.op == "app" for arg in part.args if arg.op == "sym"}
        return Labelled(",".join(names), value, tuple(sorted(arguments)), names)
    return Labelled(_name(label), value)


def _name(expr: Expr) -> str:
    return expr.name if expr.op in ("sym", "app", "text") else repr(expr)


def _is_label(left: Expr, right: Expr) -> bool:
    """Whether ``left`` names the quantity that ``right`` is."""
    if left.op == "sym":
        return left.name not in symbols(right)
    if left.op == "app":
        return all(arg.op in ("sym", "num") for arg in left.args) and not any(
            item.op == "app" and item.name == left.name for item in walk(right)
        )
    if left.op == "setop":  # A \\cap B = {1}
        return all(arg.op == "sym" or _is_label(arg, right) for arg in left.args) and not is_scalar(right)
    if left.op == "group" and left.name == "()":
        return right.op in ("group", "matrix", "seq", "rel") and all(_is_label(arg, right) for arg in left.args)
    if symbols(right):
        return False
    if left.op == "call" and left.name in _SINGLE_VALUE_CALLS:
        return all(arg.op == "sym" or _is_segment(arg) for arg in left.args)
    if left.op == "mul" and len(left.args) == 2 and left.args[1].op == "pow" and left.args[1].args[1].value == -1:
        parts = (left.args[0], left.args[1].args[0])
        return all(part.op == "sym" or _is_segment(part) for part in parts)
    return _is_segment(left)


def _is_segment(expr: Expr) -> bool:
    """``AB``, ``BEA_1``: names of points side by side."""
    return expr.op == "mul" and all(arg.op == "sym" and arg.name[0].isupper() for arg in expr.args)


class Relations:
    """Equality of equations and inequalities in several unknowns."""

    def __init__(self, scalars: Scalars) -> None:
        self.scalars = scalars
        self.budget = scalars.budget

    def same(self, gold: Expr, answer: Expr) -> bool:
        """Whether two relations say the same."""
        gold, answer = _rightward(gold), _rightward(answer)
        names, others = gold.name.split(), answer.name.split()
        if names != others:
            return False
        if not all(is_scalar(part) for part in (*gold.args, *answer.args)):
            return False
        if len(names) == 1 and names[0] in ("=", "≠"):
            return self.same_equation(_difference(gold), _difference(answer))
        if len(names) == 1 and names[0] in ("<", "≤"):
            return self.constant_ratio(_difference(gold), _difference(answer), positive=True)
        return all(self.scalars.same(one, other) for one, other in zip(gold.args, answer.args, strict=True))

    def same_equation(self, gold: Expr, answer: Expr) -> bool:
        """Whether ``gold = 0`` and ``answer = 0`` have the same solutions."""
        if self.constant_ratio(gold, answer, positive=False):
            return True
        if symbols(gold) != symbols(answer) or len(symbols(gold)) < 2:
            return False
        return self.vanishes_with(gold, answer) and self.vanishes_with(answer, gold)

    def solves(self, equation: Expr, variable: str, value: Expr) -> bool:
        """Whether ``variable = value`` is what the equation says, when it is linear in the variable."""
        difference = _difference(equation)
        replaced = substituted(difference, variable, value)
        return numeric.slope_in(difference, variable, self.budget) is not None and self.scalars.equal(
            replaced, neg(node("add", value, neg(value)))
        )

    def constant_ratio(self, gold: Expr, answer: Expr, *, positive: bool) -> bool:
        """Whether ``gold / answer`` is the same number everywhere, neither side being zero everywhere."""
        if not symbols(gold) and not symbols(answer):
            return False
        if not positive:
            try:
                return self.constant_field_ratio(gold, answer)
            except (NotRationalError, UndefinedError, TooLargeError):
                pass
        ratios = []
        names = numeric.free_names(gold, answer)
        for salt in (1, 2, 3):
            point = numeric.point_of(names, "real", salt)
            try:
                one, _, _ = numeric.evaluate(gold, point, HIGH, self.budget)
                other, _, _ = numeric.evaluate(answer, point, HIGH, self.budget)
                ratios.append(dec.mul(one, dec.inverse(other)))
            except UndefinedError:
                return False
        first = ratios[0]
        size = max(abs(first[0]), abs(first[1]))
        if size < Decimal("1e-30") or (positive and first[0] <= 0):
            return False
        return all(max(abs(r[0] - first[0]), abs(r[1] - first[1])) <= size * Decimal("1e-40") for r in ratios)

    def constant_field_ratio(self, gold: Expr, answer: Expr) -> bool:
        """`constant_ratio` for rational functions, exactly."""
        values = [(field_value(gold, salt, self.budget), field_value(answer, salt, self.budget)) for salt in (1, 2, 3)]
        if any(one == 0 or other == 0 for one, other in values):
            return False
        one, other = values[0]
        return all((one * b - a * other) % PRIME == 0 for a, b in values)

    def vanishes_with(self, equation: Expr, other: Expr) -> bool:
        """Whether ``other`` is zero at roots of ``equation``, found by Newton's method in each variable in turn."""
        checked = 0
        names = numeric.free_names(equation, other)
        for salt, variable in enumerate(sorted(symbols(equation)), 7):
            for start in ("0.7", "-1.3"):
                point = numeric.point_of(names, "real", salt)
                root = self.newton(equation, variable, point, (Decimal(start), Decimal("0.4")))
                if root is None:
                    continue
                try:
                    value, scale, _ = numeric.evaluate(other, {**point, variable: root}, LOW, self.budget)
                except (UndefinedError, UndecidedError):
                    return False
                if max(abs(value[0]), abs(value[1])) > Decimal("1e-25") * max(scale, Decimal("1e-6")):
                    return False
                checked += 1
        return checked >= 2

    def newton(
        self, equation: Expr, variable: str, point: dict[str, dec.Complex], start: dec.Complex
    ) -> dec.Complex | None:
        """A root by the secant method, or None when it does not settle."""
        previous, current = start, (start[0] + Decimal("0.1"), start[1])
        try:
            old, _, _ = numeric.evaluate(equation, {**point, variable: previous}, LOW, self.budget)
            for _ in range(60):
                new, _, _ = numeric.evaluate(equation, {**point, variable: current}, LOW, self.budget)
                step = (current[0] - previous[0], current[1] - previous[1])
                with localcontext(dec.context(LOW)):
                    slope = (new[0] - old[0], new[1] - old[1])
                    if not slope[0] and not slope[1]:
                        return current if max(abs(new[0]), abs(new[1])) < Decimal("1e-35") else None
                    move = dec.mul(dec.mul(new, step), dec.inverse(slope))
                    previous, old = current, new
                    current = (current[0] - move[0], current[1] - move[1])
                    if max(abs(move[0]), abs(move[1])) < Decimal("1e-40"):
                        return current
        except (UndefinedError, UndecidedError):
            return None
        return None


def _difference(relation: Expr) -> Expr:
    return add(relation.args[0], neg(relation.args[1]))


def _rightward(relation: Expr) -> Expr:
    """Turn a chain around so that it reads with < and ≤."""
    names = relation.name.split()
    if not any(name in _FLIP for name in names) or any(name in ("<", "≤") for name in names):
        return relation
    turned = [_FLIP.get(name, name) for name in reversed(names)]
    return node("rel", *reversed(relation.args), name=" ".join(turned))
