"""Exact values: rational numbers of bounded size, and identities of rational functions modulo a large prime."""

from __future__ import annotations

import math
from fractions import Fraction
from zlib import crc32

from dftune.evaluate.answers.budget import MAX_BITS, Budget, UndecidedError, UndefinedError
from dftune.evaluate.answers.expr import Expr

PRIME = 2**127 - 1
_MAX_FACTORIAL = 20_000


class TooLargeError(UndecidedError):
    """The exact value exists but is too large to hold."""


class NotRationalError(Exception):
    """The expression is not built from rational operations alone."""


class Exact:
    """Evaluates expressions to fractions.

    ``value`` is None where the expression is not known to be rational, and raises `TooLargeError` where it is, but
    beyond the size that is computed.
    """

    def __init__(self, budget: Budget, variables: dict[str, Fraction] | None = None) -> None:
        self.budget = budget
        self.variables = variables or {}

    def value(self, expr: Expr) -> Fraction | None:
        """The rational value of ``expr``, or None."""
        self.budget.spend()
        op = expr.op
        if op == "num":
            return expr.value
        if op == "sym":
            return self.variables.get(expr.name)
        if op in ("add", "mul"):
            return self.combined(expr)
        if op == "pow":
            return self.power(expr.args[0], expr.args[1])
        if op == "percent":
            inner = self.value(expr.args[0])
            return None if inner is None else inner / 100
        if op == "call":
            values = [self.value(arg) for arg in expr.args]
            known = [value for value in values if value is not None]
            return self.call(expr.name, known) if len(known) == len(values) else None
        if op == "fold":
            return self.fold(expr)
        return None

    def combined(self, expr: Expr) -> Fraction | None:
        """A sum or product; a rational one may hide irrational parts, which then gives None."""
        total = Fraction(0 if expr.op == "add" else 1)
        for arg in expr.args:
            value = self.value(arg)
            if value is None:
                return None
            total = total + value if expr.op == "add" else total * value
            self.check(total)
        return total

    def check(self, value: Fraction) -> Fraction:
        """Refuse values that later operations would make slow; big ones cost more of the budget."""
        bits = value.numerator.bit_length() + value.denominator.bit_length()
        if bits > MAX_BITS:
            raise TooLargeError("number too large to compute exactly")
        self.budget.spend(bits // 256)
        return value

    def power(self, base: Expr, exponent: Expr) -> Fraction | None:
        """``base ** exponent`` where it is rational."""
        bottom = self.value(base)
        if bottom is None:
            return None
        top = self.value(exponent)
        if top is None:
            return None
        if top.denominator != 1:
            root = exact_root(bottom, top.denominator)
            if root is None:
                return None
            bottom, top = root, Fraction(top.numerator)
        return self.integer_power(bottom, top.numerator)

    def integer_power(self, base: Fraction, exponent: int) -> Fraction:
        """``base ** exponent`` after a look at the size it will have."""
        if base == 0 and exponent < 0:
            raise UndefinedError("division by zero")
        if base == 0 and exponent == 0:
            raise UndefinedError("0^0")
        if abs(base) in (0, 1):
            return base if exponent % 2 else abs(base)
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent) > 2 * MAX_BITS:
            raise TooLargeError("power too large to compute exactly")
        return self.check(base**exponent)

    def call(self, name: str, values: list[Fraction]) -> Fraction | None:
        """The functions that take rationals to rationals."""
        whole = [int(value) for value in values if value.denominator == 1]
        integers = len(whole) == len(values) and bool(values)
        if name == "root" and integers and len(values) == 2 and 0 < whole[1] <= 64:
            return exact_root(values[0], whole[1])
        if name == "root" and len(values) == 2 and values[1].denominator == 1 and 0 < values[1] <= 64:
            return exact_root(values[0], int(values[1]))
        if name in ("floor", "ceil") and len(values) == 1:
            return Fraction(math.floor(values[0]) if name == "floor" else math.ceil(values[0]))
        if name == "abs" and len(values) == 1:
            return abs(values[0])
        if name in ("max", "min") and values:
            return max(values) if name == "max" else min(values)
        if name == "mod" and len(values) == 2 and values[1]:
            return values[0] % values[1]
        if name == "sign" and len(values) == 1:
            return Fraction((values[0] > 0) - (values[0] < 0))
        if integers and name in ("gcd", "lcm"):
            return Fraction(math.gcd(*whole) if name == "gcd" else math.lcm(*whole))
        if integers:
            return self.counting(name, whole)
        return None

    def counting(self, name: str, values: list[int]) -> Fraction | None:
        """Factorials and binomial coefficients."""
        if name == "binomial" and len(values) == 2:
            n, k = values
            if not 0 <= k <= n:
                return Fraction(0) if n >= 0 else None
            k = min(k, n - k)
            if k * n.bit_length() > MAX_BITS:
                raise TooLargeError("binomial coefficient too large to compute exactly")
            return self.check(Fraction(math.comb(n, k)))
        if name in ("factorial", "factorial2") and len(values) == 1 and values[0] >= 0:
            if values[0] > _MAX_FACTORIAL:
                raise TooLargeError("factorial too large to compute exactly")
            if name == "factorial":
                return self.check(Fraction(math.factorial(values[0])))
            return self.check(Fraction(math.prod(range(values[0], 0, -2))))
        return None

    def fold(self, expr: Expr) -> Fraction | None:
        """A sum or product with rational limits, term by term."""
        body, variable, low, high = expr.args
        first, last = self.value(low), self.value(high)
        if first is None or last is None or first.denominator != 1 or last.denominator != 1:
            return None
        total = Fraction(0 if expr.name == "sum" else 1)
        outer = self.variables
        index = int(first)
        try:
            while index <= last:
                self.variables = {**outer, variable.name: Fraction(index)}
                value = self.value(body)
                if value is None:
                    return None
                total = self.check(total + value if expr.name == "sum" else total * value)
                index += 1
        finally:
            self.variables = outer
        return total


def exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The rational ``degree``-th root of ``value``; real for negative values and odd degrees."""
    if value < 0:
        if degree % 2 == 0:
            return None
        positive = exact_root(-value, degree)
        return None if positive is None else -positive
    if degree > value.numerator.bit_length() + value.denominator.bit_length():  # only 0 and 1 have such roots
        return value if value in (0, 1) else None
    top, bottom = integer_root(value.numerator, degree), integer_root(value.denominator, degree)
    return Fraction(top, bottom) if top**degree == value.numerator and bottom**degree == value.denominator else None


def integer_root(value: int, degree: int) -> int:
    """The largest integer whose ``degree``-th power is at most ``value``."""
    if value < 2 or degree == 1:
        return value
    if degree == 2:
        return math.isqrt(value)
    guess = 1 << -(-value.bit_length() // degree)
    while True:
        better = ((degree - 1) * guess + value // guess ** (degree - 1)) // degree
        if better >= guess:
            return guess
        guess = better


def field_value(expr: Expr, salt: int, budget: Budget) -> int:
    """The value modulo `PRIME` of a rational function, each variable replaced by a number made of its name.

    Two rational functions with the same value at two such points are identical, up to a chance below 2^-100 times
    their degree; this needs neither expansion nor large numbers.

    Raises:
        NotRationalError: the expression holds something other than rational operations with integer exponents.
        UndefinedError: a denominator vanishes at this point.
    """
    budget.spend()
    op = expr.op
    if op == "num" and expr.value is not None:
        return expr.value.numerator * _inverse(expr.value.denominator) % PRIME
    if op == "sym":
        mixed = crc32(f"{salt}:{expr.name}".encode()) + 2
        return pow(mixed, 5, PRIME) + salt
    if op == "add":
        return sum(field_value(arg, salt, budget) for arg in expr.args) % PRIME
    if op == "mul":
        product = 1
        for arg in expr.args:
            product = product * field_value(arg, salt, budget) % PRIME
        return product
    if op == "pow":
        exponent = Exact(budget).value(expr.args[1])
        if exponent is None or exponent.denominator != 1:
            raise NotRationalError
        base = field_value(expr.args[0], salt, budget)
        if exponent < 0:
            return pow(_inverse(base), -int(exponent), PRIME)
        return pow(base, int(exponent), PRIME)
    if op == "percent":
        return field_value(expr.args[0], salt, budget) * _inverse(100) % PRIME
    raise NotRationalError


def _inverse(value: int) -> int:
    if value % PRIME == 0:
        raise UndefinedError("division by zero")
    return pow(value, -1, PRIME)
