"""High-precision evaluation, and equality of formulas by their values at several points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from decimal import Decimal, DivisionByZero, InvalidOperation, Overflow, getcontext, localcontext
from fractions import Fraction
from typing import NamedTuple
from zlib import crc32

from dftune.evaluate.answers import decimals as dec
from dftune.evaluate.answers.budget import Budget, UndecidedError, UndefinedError
from dftune.evaluate.answers.decimals import ONE, ZERO, Complex
from dftune.evaluate.answers.exact import Exact, TooLargeError
from dftune.evaluate.answers.expr import Expr, has, symbols, walk

LOW, HIGH = 50, 110
"""Decimal digits of the first evaluation, and of the one that confirms an equality."""
_CALL_COST = 20
_MAX_TERMS = 5_000
_MAX_SERIES = 1_500


class OverflowedError(UndecidedError):
    """The value overflows even decimal exponents of a million millions."""


def to_decimal(value: Fraction) -> Decimal:
    """The nearest decimal at the current precision."""
    return Decimal(value.numerator) / Decimal(value.denominator)


class Evaluator:
    """Evaluates a tree at one point.

    Args:
        budget: operations left.
        point: values of the variables.
        opaque: whether ``a(b)`` is an unknown function of b (else a product).
    """

    def __init__(self, budget: Budget, point: dict[str, Complex], *, opaque: bool = True) -> None:
        self.budget = budget
        self.point = point
        self.opaque = opaque
        self.exact = Exact(budget)
        self.scale = ZERO
        """Largest magnitude that entered a sum: what rounding errors are relative to."""
        self.left_reals = False
        """Whether a complex number occurred on the way."""

    def value(self, expr: Expr) -> Complex:
        """The value; raises `UndefinedError` or `UndecidedError`."""
        self.budget.spend()
        number = self.node_value(expr)
        if number[1]:
            self.left_reals = True
        return number

    def node_value(self, expr: Expr) -> Complex:
        """The value of a node, by its kind."""
        op = expr.op
        if op == "num" and expr.value is not None:
            return to_decimal(expr.value), ZERO
        if op == "sym":
            return self.point[expr.name]
        if op == "const":
            return self.constant(expr.name)
        if op == "add":
            return self.sum(self.value(arg) for arg in expr.args)
        if op == "mul":
            product: Complex = (ONE, ZERO)
            for arg in expr.args:
                product = dec.mul(product, self.value(arg))
            return product
        if op == "pow":
            return self.power(expr.args[0], expr.args[1])
        if op in ("call", "app"):
            self.budget.spend(_CALL_COST)
            return self.call(expr) if op == "call" else self.application(expr)
        return self.rare(expr)

    def rare(self, expr: Expr) -> Complex:
        """The value of a node of one of the less common kinds."""
        if expr.op == "percent":
            return dec.mul(self.value(expr.args[0]), (Decimal("0.01"), ZERO))
        if expr.op == "deg":
            return dec.mul(self.value(expr.args[0]), (dec.pi() / 180, ZERO))
        if expr.op == "fold":
            return self.fold(expr)
        if expr.op == "literal":
            try:
                return +Decimal(expr.name), ZERO
            except InvalidOperation as error:
                raise OverflowedError("number too large") from error
        raise UndefinedError(f"{expr.op} has no value")

    def constant(self, name: str) -> Complex:
        """pi, e or i."""
        if name == "pi":
            return dec.pi(), ZERO
        if name == "e":
            return ONE.exp(), ZERO
        if name == "i":
            return ZERO, ONE
        raise UndefinedError("infinity has no value")

    def sum(self, values: Iterable[Complex]) -> Complex:
        """The sum, remembering how large its terms were."""
        total: Complex = (ZERO, ZERO)
        for value in values:
            self.scale = max(self.scale, abs(value[0]), abs(value[1]))
            total = dec.add(total, value)
        return total

    def power(self, base: Expr, exponent: Expr) -> Complex:
        """A power; integer and odd-root exponents are kept exact."""
        bottom = self.value(base)
        try:
            known = self.exact.value(exponent) if not symbols(exponent) else None
        except TooLargeError:
            known = None
        if known is not None and known.denominator == 1 and known.numerator.bit_length() < 200:
            if known.numerator == -1:
                return dec.inverse(bottom)
            return dec.integer_power(bottom, known.numerator)
        self.budget.spend(_CALL_COST)
        if known is not None and known.denominator % 2 and known.denominator < 1000 and dec.is_real(bottom):
            return self.real_power(bottom[0], known)
        top = (to_decimal(known), ZERO) if known is not None else self.value(exponent)
        if base.op == "const" and base.name == "e":
            return dec.exp(top)
        return dec.power(bottom, top)

    @staticmethod
    def real_power(base: Decimal, exponent: Fraction) -> Complex:
        """A real odd root of a negative number, as school mathematics has it."""
        if not base:
            if exponent <= 0:
                raise UndefinedError("power of zero")
            return ZERO, ZERO
        size = (abs(base).ln() * to_decimal(exponent)).exp()
        return (-size if base < 0 and exponent.numerator % 2 else size), ZERO

    def application(self, expr: Expr) -> Complex:
        """An unknown function: some fixed value for each name and argument, or the product it may have meant."""
        inner = [self.value(arg) for arg in expr.args]
        if not self.opaque and len(inner) == 1:
            return dec.mul(self.point[expr.name], inner[0])
        total = self.point[expr.name]
        for index, value in enumerate(inner, 2):
            total = dec.add(dec.mul(total, (Decimal(index) / 7, ZERO)), dec.inverse(dec.add(value, (Decimal(3), ONE))))
        return total[0], ZERO

    def fold(self, expr: Expr) -> Complex:
        """A finite sum or product."""
        body, variable, low, high = expr.args
        if high.op == "const" and high.name == "inf":
            return self.series(body, variable.name, self.integer(low))
        first, last = self.integer(low), self.integer(high)
        if last - first > _MAX_TERMS:
            raise UndecidedError("too many terms")
        outer = self.point
        total: Complex = (ZERO if expr.name == "sum" else ONE, ZERO)
        try:
            for index in range(first, last + 1):
                self.point = {**outer, variable.name: (Decimal(index), ZERO)}
                value = self.value(body)
                total = self.sum((total, value)) if expr.name == "sum" else dec.mul(total, value)
        finally:
            self.point = outer
        return total

    def series(self, body: Expr, variable: str, first: int) -> Complex:
        """An infinite sum, as long as its terms shrink fast enough to be added up."""
        outer = self.point
        total: Complex = (ZERO, ZERO)
        small = Decimal(10) ** (-getcontext().prec - 5)
        quiet = 0
        try:
            for index in range(first, first + _MAX_SERIES):
                self.point = {**outer, variable: (Decimal(index), ZERO)}
                term = self.value(body)
                total = self.sum((total, term))
                size = max(abs(term[0]), abs(term[1]))
                quiet = quiet + 1 if size <= small * self.scale else 0
                if quiet == 4:
                    return total
        finally:
            self.point = outer
        raise UndecidedError("the infinite sum converges too slowly")

    def integer(self, expr: Expr) -> int:
        """The integer that a limit of a sum must be."""
        value = self.value(expr)
        rounded = value[0].to_integral_value()
        if value[1] or abs(value[0] - rounded) > Decimal("1e-20") or rounded.adjusted() > 9:
            raise UndefinedError("limit is not an integer")
        return int(rounded)

    def call(self, expr: Expr) -> Complex:
        """A known function."""
        name = expr.name
        if name == "root":
            return self.root(expr.args[0], expr.args[1])
        values = [self.value(arg) for arg in expr.args]
        if name == "log" and len(values) == 2:
            return dec.mul(dec.log(values[0]), dec.inverse(dec.log(values[1])))
        if name in _COMPLEX and len(values) == 1:
            return _COMPLEX[name](values[0])
        return real_call(name, values)

    def root(self, inside: Expr, degree: Expr) -> Complex:
        """A root; real for negative numbers and odd degrees."""
        value = self.value(inside)
        if degree.value == 2:
            return dec.sqrt(value)
        order = self.value(degree)
        if abs(order[0]) > 10**9:
            raise UndecidedError("degree of a root too large")
        exact = degree.value
        if exact is not None and exact.denominator == 1 and exact % 2 and dec.is_real(value) and exact > 0:
            return self.real_power(value[0], 1 / exact)
        return dec.power(value, dec.inverse(order))


def _hyperbolic(a: Complex) -> tuple[Complex, Complex]:
    grow, shrink = dec.exp(a), dec.exp((-a[0], -a[1]))
    half = Decimal("0.5")
    return (
        ((grow[0] - shrink[0]) * half, (grow[1] - shrink[1]) * half),
        ((grow[0] + shrink[0]) * half, (grow[1] + shrink[1]) * half),
    )


def _quotient(a: Complex, b: Complex) -> Complex:
    return dec.mul(a, dec.inverse(b))


def _arccosine(a: Complex) -> Complex:
    value = dec.arcsine(a)
    return dec.pi() / 2 - value[0], -value[1]


_COMPLEX: dict[str, Callable[[Complex], Complex]] = {
    "sin": dec.sine,
    "cos": dec.cosine,
    "tan": lambda a: _quotient(dec.sine(a), dec.cosine(a)),
    "cot": lambda a: _quotient(dec.cosine(a), dec.sine(a)),
    "sec": lambda a: dec.inverse(dec.cosine(a)),
    "csc": lambda a: dec.inverse(dec.sine(a)),
    "sinh": lambda a: _hyperbolic(a)[0],
    "cosh": lambda a: _hyperbolic(a)[1],
    "tanh": lambda a: _quotient(*_hyperbolic(a)),
    "coth": lambda a: dec.inverse(_quotient(*_hyperbolic(a))),
    "arcsin": dec.arcsine,
    "arccos": _arccosine,
    "arctan": dec.arctangent,
    "arccot": lambda a: dec.arctangent(dec.inverse(a)),
    "arcsinh": lambda a: dec.log(dec.add(a, dec.sqrt(dec.add(dec.mul(a, a), (ONE, ZERO))))),
    "ln": dec.log,
    "log": dec.log,
    "abs": lambda a: (dec.magnitude(a), ZERO),
    "Re": lambda a: (a[0], ZERO),
    "Im": lambda a: (a[1], ZERO),
}


def real_call(name: str, values: list[Complex]) -> Complex:
    """Functions of real numbers."""
    if any(value[1] for value in values) or not values:
        raise UndefinedError(f"{name} of a complex number")
    reals = [value[0] for value in values]
    if name in ("floor", "ceil"):
        nearest = reals[0].to_integral_value()
        if abs(reals[0] - nearest) < Decimal("1e-35") * max(ONE, abs(reals[0])):
            return nearest, ZERO
        return reals[0].to_integral_value(rounding="ROUND_FLOOR" if name == "floor" else "ROUND_CEILING"), ZERO
    if name in ("max", "min"):
        return (max(reals) if name == "max" else min(reals)), ZERO
    if name == "sign":
        return Decimal((reals[0] > 0) - (reals[0] < 0)), ZERO
    if name == "mod" and len(reals) == 2 and reals[1]:
        return reals[0] - reals[1] * (reals[0] / reals[1]).to_integral_value(rounding="ROUND_FLOOR"), ZERO
    if name in ("gcd", "lcm", "factorial2") and all(x == x.to_integral_value() and x.adjusted() < 200 for x in reals):
        whole = [int(x) for x in reals]
        if name != "factorial2":
            return Decimal(math.gcd(*whole) if name == "gcd" else math.lcm(*whole)), ZERO
        if 0 <= whole[0] <= 2_000:
            return Decimal(math.prod(range(whole[0], 0, -2))), ZERO
    if name == "factorial" and len(reals) == 1:
        return _factorial(reals[0])
    if name == "binomial" and len(reals) == 2:
        top, bottom = _factorial(reals[0])[0], _factorial(reals[1])[0]
        return top / bottom / _factorial(reals[0] - reals[1])[0], ZERO
    raise UndefinedError(f"{name} has no value here")


def _factorial(x: Decimal) -> Complex:
    if x <= -1:
        raise UndefinedError("factorial of a negative number")
    if x == x.to_integral_value() and x <= 5_000:
        return Decimal(math.factorial(int(x))) * 1, ZERO
    return dec.log_factorial(x).exp(), ZERO


class Value(NamedTuple):
    """A value, the scale its rounding errors are relative to, and whether everything on the way to it was real."""

    number: Complex
    scale: Decimal
    real: bool


def evaluate(expr: Expr, point: dict[str, Complex], precision: int, budget: Budget, *, opaque: bool = True) -> Value:
    """The value of ``expr`` at one point."""
    with localcontext(dec.context(precision)):
        evaluator = Evaluator(budget, point, opaque=opaque)
        try:
            value = evaluator.value(expr)
        except DivisionByZero as error:
            raise UndefinedError("division by zero") from error
        except Overflow as error:
            raise OverflowedError("value too large") from error
        except InvalidOperation as error:
            raise UndefinedError("no value") from error
        return Value(value, evaluator.scale, not evaluator.left_reals)


def real_number(expr: Expr, budget: Budget) -> Decimal | None:
    """The real value of a constant expression, infinities included; None if it has none."""
    if expr.op == "const" and expr.name == "inf":
        return Decimal("Infinity")
    if expr.op == "mul" and len(expr.args) == 2 and expr.args[1].name == "inf" and expr.args[0].value == -1:
        return Decimal("-Infinity")
    if symbols(expr) or has(expr, "app", "pm", "mp", "dots"):
        return None
    try:
        value, scale, _ = evaluate(expr, {}, LOW, budget)
    except UndefinedError:
        return None
    return value[0] if abs(value[1]) <= Decimal("1e-40") * max(scale, abs(value[0])) else None


def _spread(name: str, salt: int, low: Fraction, high: Fraction) -> Decimal:
    share = Fraction(crc32(f"{salt}/{name}".encode()) % 1_000_003, 1_000_003)
    return to_decimal(low + share * (high - low))


def point_of(names: Iterable[str], kind: str, salt: int) -> dict[str, Complex]:
    """A value for each variable, the same in every run: ``real``, ``negative`` or ``integer``."""
    with localcontext(dec.context(HIGH)):
        if kind == "integer":
            return {name: (Decimal(2 + (crc32(f"{salt}/{name}".encode()) + salt) % 11), ZERO) for name in names}
        low, high = (Fraction(3, 10), Fraction(19, 10)) if kind == "real" else (Fraction(-17, 10), Fraction(-3, 10))
        return {name: (_spread(name, salt, low, high), ZERO) for name in names}


def free_names(*exprs: Expr) -> set[str]:
    """Variables and unknown functions: what a point has to give a value to."""
    names: set[str] = set()
    for expr in exprs:
        names |= symbols(expr) | {item.name for item in walk(expr) if item.op == "app"}
    return names


def slope_in(expr: Expr, variable: str, budget: Budget) -> Decimal | None:
    """The slope at positive values of the other variables, where ``expr`` is real and linear in ``variable``.

    None where the second difference does not vanish, or the first does.
    """
    point = point_of(free_names(expr), "real", 3)
    values = []
    for index in (1, 2, 3):
        try:
            value = evaluate(expr, {**point, variable: (Decimal(index), ZERO)}, LOW, budget)
        except (UndefinedError, UndecidedError):
            return None
        if not value.real:
            return None
        values.append(value.number[0])
    slope, next_slope = values[1] - values[0], values[2] - values[1]
    is_line = abs(slope) > Decimal("1e-20") and abs(next_slope - slope) < abs(slope) * Decimal("1e-30")
    return slope if is_line else None
