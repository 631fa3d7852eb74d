"""Equality of two numbers or formulas."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from dftune.evaluate.answers import numeric
from dftune.evaluate.answers.budget import Budget, UndecidedError, UndefinedError
from dftune.evaluate.answers.decimals import Complex
from dftune.evaluate.answers.exact import Exact, NotRationalError, TooLargeError, field_value
from dftune.evaluate.answers.expr import Expr, has, is_scalar, mul, node, num, rebuild, symbols, walk
from dftune.evaluate.answers.numeric import HIGH, LOW, OverflowedError, Value
from dftune.evaluate.answers.vocabulary import UNIT_LETTERS, names

_INTEGER_ONLY = names("floor ceil factorial factorial2 binomial mod gcd lcm")
_INTEGER_NAMES = names("n m k l i j N M K L p q r a b c d f g h ell s t")
_MIN_DIGITS = 6
_MAX_EXTRA_DIGITS = 900
"""Digits before the point, or zeros after it, of irrational values that are still told apart."""


class Scalars:
    """Compares scalars and remembers which stage decided."""

    def __init__(self, budget: Budget, *, degrees_optional: bool = True) -> None:
        self.budget = budget
        self.degrees_optional = degrees_optional
        self.exact = Exact(budget)
        self.stage = "value"

    def same(self, gold: Expr, answer: Expr) -> bool:
        """Whether the two are equal as answers: percent, degrees and trailing units are conventions of writing."""
        if gold.op == "base" or answer.op == "base":
            self.stage = "value"
            return gold.op == answer.op and gold.name == answer.name and gold.args == answer.args
        if has(gold, "const", "dots") or has(answer, "const", "dots"):
            special = self.same_special(gold, answer)
            if special is not None:
                return special
        gold, answer = _drop_unit(gold, answer, compound=True), _drop_unit(answer, gold)
        return any(self.equal(one, other) for one, other in _conventions(gold, answer, self.degrees_optional))

    def same_special(self, gold: Expr, answer: Expr) -> bool | None:
        """Infinity and ellipses, which have no value."""
        if gold.op == "dots" or answer.op == "dots":
            return gold.op == answer.op
        infinite = [_infinity(expr) for expr in (gold, answer)]
        if any(infinite):
            return infinite[0] == infinite[1]
        if has(gold, "dots") or has(answer, "dots"):
            return self.same_shape(gold, answer)
        return None

    def same_shape(self, gold: Expr, answer: Expr) -> bool:
        """Equality of formulas with an ellipsis: the same tree, sums and products in any order."""
        self.budget.spend()
        if not (has(gold, "dots") or has(answer, "dots")):
            return self.equal(gold, answer)
        if gold.op == answer.op == "add" and (ends := _listed_ends(gold)) is not None:
            return ends == _listed_ends(answer)
        if gold.op != answer.op or gold.name != answer.name or len(gold.args) != len(answer.args):
            return False
        if not gold.args:
            return gold == answer
        if gold.op not in ("add", "mul"):
            return all(self.same_shape(one, other) for one, other in zip(gold.args, answer.args, strict=True))
        left = list(answer.args)
        for one in gold.args:
            match = next((index for index, other in enumerate(left) if self.same_shape(one, other)), None)
            if match is None:
                return False
            left.pop(match)
        return True

    def equal(self, gold: Expr, answer: Expr) -> bool:
        """Equality as formulas, or by the rule for decimals; formulas too large to evaluate may still be the same."""
        if gold == answer:
            self.stage = "value"
            return True
        try:
            return self.same_value(gold, answer)
        except UndecidedError:
            if _skeleton(gold) == _skeleton(answer):
                self.stage = "structure"
                return True
            raise

    def same_value(self, gold: Expr, answer: Expr) -> bool:
        """Equality of constants, or identity of formulas in variables."""
        if symbols(gold) or symbols(answer) or has(gold, "app") or has(answer, "app"):
            return self.same_formula(gold, answer)
        return self.same_constant(gold, answer)

    def same_constant(self, gold: Expr, answer: Expr) -> bool:
        """Exact rationals first; decimals with enough digits next; high precision last."""
        self.stage = "value"
        too_large = 0
        values: list[Fraction | None] = []
        if gold.op == answer.op == "literal":
            return gold.name == answer.name
        for expr in (gold, answer):
            too_large += expr.op == "literal"
            try:
                values.append(self.exact.value(expr))
            except TooLargeError:
                too_large += 1
                values.append(None)
            except UndefinedError:
                return False
        first, second = values
        if first is not None and second is not None and first == second:
            return True
        for (literal, value), (other, other_value) in (
            ((gold, first), (answer, second)),
            ((answer, second), (gold, first)),
        ):
            if self.stands_for(literal, value, other, other_value):
                self.stage = "decimal"
                return True
        if first is not None and second is not None:
            return False
        return self.same_number(gold, answer, too_large)

    def stands_for(self, literal: Expr, value: Fraction | None, other: Expr, other_value: Fraction | None) -> bool:
        """Whether a decimal literal is the other number, rounded or cut after at least six significant digits.

        A number that a finite decimal writes exactly is matched only by that decimal, except for the last digits of
        a floating-point print.
        """
        digits = literal_digits(literal)
        if digits < _MIN_DIGITS or (value is None and literal.op != "literal"):
            return False
        if other_value is not None and _terminates(other_value.denominator):
            if value is None or not 15 <= digits <= 18 or not other_value:
                return False
            return abs(value - other_value) <= abs(other_value) * Fraction(2, 10**15)
        try:
            (real, imaginary), _, _ = numeric.evaluate(other, {}, LOW, self.budget)
            (mine, _), _, _ = numeric.evaluate(literal, {}, LOW, self.budget)
        except (UndefinedError, UndecidedError):
            return False
        if imaginary or not real:
            return False
        unit = Decimal(10) ** (real.adjusted() - _MIN_DIGITS + 1)
        error = abs(mine - real)
        return error <= unit / 2 or (digits == _MIN_DIGITS and error < unit and abs(mine) <= abs(real))

    def same_number(self, gold: Expr, answer: Expr, too_large: int) -> bool:
        """Equality of constants at two precisions."""
        self.stage = "numeric"
        values: list[Value | None] = []
        for expr in (gold, answer):
            try:
                values.append(numeric.evaluate(expr, {}, LOW, self.budget))
            except OverflowedError:
                values.append(None)
            except UndefinedError:
                return False
        if values[0] is None or values[1] is None:
            if values[0] is None and values[1] is None:
                raise UndecidedError("both numbers are too large to compare")
            return False
        if not close(values[0], values[1], LOW):
            return False
        if too_large:
            raise UndecidedError("numbers too large to compare digit by digit")
        return self.equal_at(gold, answer, {}, _confirming(values[0])) is True

    def equal_at(
        self, gold: Expr, answer: Expr, point: dict[str, Complex], precision: int, *, opaque: bool = True
    ) -> bool | None:
        """Equality at one point; None where either side has no value."""
        try:
            one = numeric.evaluate(gold, point, precision, self.budget, opaque=opaque)
            other = numeric.evaluate(answer, point, precision, self.budget, opaque=opaque)
        except UndefinedError:
            return None
        return close(one, other, precision)

    def same_formula(self, gold: Expr, answer: Expr) -> bool:
        """Identity of two formulas in variables."""
        self.stage = "identity"
        try:
            for salt in (1, 2):
                if field_value(gold, salt, self.budget) != field_value(answer, salt, self.budget):
                    return False
            return True
        except (NotRationalError, UndefinedError, TooLargeError):
            pass
        self.stage = "points"
        if self.agree(gold, answer, opaque=True):
            return True
        return (has(gold, "app") or has(answer, "app")) and self.agree(gold, answer, opaque=False)

    def agree(self, gold: Expr, answer: Expr, *, opaque: bool) -> bool:
        """Whether the formulas agree at all points tried: reals, or integers where one is made for integers."""
        names = numeric.free_names(gold, answer)
        counting = any(_counts(item) for item in (*walk(gold), *walk(answer)))
        if not counting:
            return self.agree_at_reals(gold, answer, names, opaque=opaque)
        matches = 0
        for salt in range(14):
            verdict = self.equal_at(gold, answer, numeric.point_of(names, "integer", salt), LOW, opaque=opaque)
            if verdict is False:
                return False
            matches += verdict is True
        if matches < 4:
            raise UndecidedError("no point where both formulas have a value")
        rounded = {
            name for item in (*walk(gold), *walk(answer)) if item.name in ("floor", "ceil") for name in symbols(item)
        }
        return rounded <= _INTEGER_NAMES or self.agree_at_reals(gold, answer, names, opaque=opaque)

    def agree_at_reals(self, gold: Expr, answer: Expr, names: set[str], *, opaque: bool) -> bool:
        """Whether the formulas agree at points of positive reals, and do not differ as real functions elsewhere."""
        matches = 0
        for salt in (1, 2, 3):
            verdict = self.equal_at(gold, answer, numeric.point_of(names, "real", salt), LOW, opaque=opaque)
            if verdict is False:
                return False
            matches += verdict is True
        if not matches:
            raise UndecidedError("no point where both formulas have a value")
        for salt in (4, 5):
            if self.differ_as_reals(gold, answer, numeric.point_of(names, "negative", salt), opaque=opaque):
                return False
        point = numeric.point_of(names, "real", 1)
        try:
            digits = _confirming(numeric.evaluate(gold, point, LOW, self.budget, opaque=opaque))
        except UndefinedError:
            digits = HIGH
        return self.equal_at(gold, answer, point, digits, opaque=opaque) is not False

    def differ_as_reals(self, gold: Expr, answer: Expr, point: dict[str, Complex], *, opaque: bool) -> bool:
        """Whether both are real at a point of negative numbers and differ: x and |x| do, ln x^2 and 2 ln x do not."""
        try:
            one = numeric.evaluate(gold, point, LOW, self.budget, opaque=opaque)
            other = numeric.evaluate(answer, point, LOW, self.budget, opaque=opaque)
        except UndefinedError:
            return False
        return one.real and other.real and not close(one, other, LOW)


def close(one: Value, other: Value, precision: int) -> bool:
    """Relative equality; what cancelled in a sum is judged against the terms of that sum."""
    (a, scale_a, _), (b, scale_b, _) = one, other
    error = max(abs(a[0] - b[0]), abs(a[1] - b[1]))
    size = max(abs(a[0]), abs(a[1]), abs(b[0]), abs(b[1]), scale_a, scale_b)
    return error <= Decimal(10) ** (15 - precision if precision == LOW else 20 - precision) * size


def _confirming(value: Value) -> int:
    """Digits that show a difference of 1 beside the value, however large, and as many after a small one."""
    size = max(abs(value.number[0]), abs(value.number[1]))
    extra = abs(size.adjusted()) if size else 0
    if extra > _MAX_EXTRA_DIGITS:
        raise UndecidedError("numbers too large or too small to tell apart")
    return HIGH + extra


def _skeleton(expr: Expr) -> object:
    """The tree with the members of sums and products in one order."""
    parts = [_skeleton(arg) for arg in expr.args]
    if expr.op in ("add", "mul"):
        parts.sort(key=repr)
    return (expr.op, expr.name, expr.value, tuple(parts))


def literal_digits(expr: Expr) -> int:
    """Significant digits of a decimal literal, with its sign, percent mark and power of ten; 0 for anything else."""
    if expr.op in ("num", "literal"):
        return expr.digits
    if expr.op == "percent":
        return literal_digits(expr.args[0])
    if expr.op == "mul" and len(expr.args) == 2:
        first, second = expr.args
        if first.op == "num" and first.value == -1:
            return literal_digits(second)
        if second.op == "pow" and second.args[0].value == 10 and second.args[1].op == "num":
            return literal_digits(first)
    return 0


def _listed_ends(total: Expr) -> frozenset[str] | None:
    """First and last term of ``a_0 + a_1 + ... + a_k``, whichever way round; None for other sums with an ellipsis."""
    terms = [item for item in total.args if item.op != "dots"]
    if (
        any(item.op != "sym" or "_" not in item.name for item in terms)
        or len({item.name.split("_")[0] for item in terms}) != 1
    ):
        return None
    return frozenset((terms[0].name, terms[-1].name))


def _counts(item: Expr) -> bool:
    """Whether a formula with this node is meant for integers: n!, floor, sums to n, (-1)^n."""
    if item.op == "pow" and symbols(item.args[1]):
        base = item.args[0]
        return base.value is not None and base.value < 0
    return item.op == "fold" or (item.op == "call" and item.name in _INTEGER_ONLY and bool(symbols(item)))


def _terminates(denominator: int) -> bool:
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def _infinity(expr: Expr) -> int:
    """1 or -1 for an infinity, 0 for anything else."""
    if expr.op == "const" and expr.name == "inf":
        return 1
    if expr.op == "mul" and len(expr.args) == 2 and expr.args[1].op == "const" and expr.args[1].name == "inf":
        return -1 if expr.args[0].value is not None and expr.args[0].value < 0 else 1
    return 0


def _without(expr: Expr, op: str) -> Expr:
    return rebuild(expr, lambda item: item.args[0] if item.op == op else item)


def _outside_calls(expr: Expr) -> bool:
    """Whether a degree mark stands outside every function, where it is a unit and not a conversion."""
    if expr.op == "deg":
        return True
    return expr.op in ("add", "mul", "pow") and any(_outside_calls(arg) for arg in expr.args)


def _conventions(gold: Expr, answer: Expr, degrees_optional: bool) -> list[tuple[Expr, Expr]]:
    """The readings under which the two may be equal: a percent mark or degree sign that only one side has."""
    pairs = [(gold, answer)]
    top_percent = [
        expr.op == "percent" or (expr.op == "mul" and any(arg.op == "percent" for arg in expr.args))
        for expr in (gold, answer)
    ]
    degrees = [_outside_calls(expr) for expr in (gold, answer)]
    if top_percent[0] != top_percent[1]:
        pairs.append((_without(gold, "percent"), _without(answer, "percent")))
    if any(map(_bare_log, (gold, answer))):  # log without a base is natural, or decimal
        pairs.append((rebuild(gold, _to_decimal_log), rebuild(answer, _to_decimal_log)))
    if degrees_optional and degrees[0] != degrees[1]:
        pairs.append((_without(gold, "deg"), _without(answer, "deg")))
    return pairs


def _bare_log(expr: Expr) -> bool:
    return any(item.op == "call" and item.name == "log" and len(item.args) == 1 for item in walk(expr))


def _to_decimal_log(item: Expr) -> Expr:
    is_bare = item.op == "call" and item.name == "log" and len(item.args) == 1
    return node("call", item.args[0], num(10), name="log") if is_bare else item


def _drop_unit(expr: Expr, other: Expr, *, compound: bool = False) -> Expr:
    """``12 m`` as 12 when the other side has no variable at all; ``compound`` asks for a quotient such as m/s."""
    if expr.op != "mul" or symbols(other) or not symbols(expr):
        return expr
    kept: list[Expr] = []
    quotient = False
    for factor in expr.args:
        base, divides = factor, False
        while base.op == "pow":
            divides = divides or (base.args[1].value or 0) < 0
            base = base.args[0]
        if kept and base.op == "sym" and base.name in UNIT_LETTERS:  # 12 m, not N/2
            quotient = quotient or divides
        else:
            kept.append(factor)
    if not kept or any(symbols(factor) for factor in kept) or (compound and not quotient):
        return expr
    return mul(*kept)


def counted(expr: Expr, other: Expr) -> Expr:
    """``C_6^2``, ``C(6, 2)`` and ``A_6^2`` as the numbers of choices they are, beside a number."""
    if not (symbols(expr) or has(expr, "app")) or not is_scalar(other) or symbols(other) or has(other, "app"):
        return expr
    return rebuild(expr, _choices)


def _choices(item: Expr) -> Expr:
    size: Expr | None = None
    chosen: Expr | None = None
    if item.op == "pow" and item.args[0].op == "sym":
        letter, _, subscript = item.args[0].name.partition("_")
        size, chosen = num(int(subscript)) if subscript.isdecimal() and len(subscript) < 5 else None, item.args[1]
    elif item.op == "app" and len(item.args) == 2:
        letter, (size, chosen) = item.name, item.args
    if size is None or chosen is None or size.op != "num" or chosen.op != "num" or letter not in ("C", "A", "P"):
        return item
    ways = node("call", size, chosen, name="binomial")
    return ways if letter == "C" else mul(ways, node("call", chosen, name="factorial"))
