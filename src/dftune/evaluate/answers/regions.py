"""Sets of real numbers: intervals, inequalities, unions, complements, conditions."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from dftune.evaluate.answers.budget import Budget
from dftune.evaluate.answers.expr import Expr, add, divide, is_scalar, neg, num, substituted, sym, symbols
from dftune.evaluate.answers.numeric import real_number, slope_in
from dftune.evaluate.answers.shapes import both_signs
from dftune.evaluate.answers.vocabulary import names

_INEQUALITIES = names("< > ≤ ≥ ≠")
_FLIP = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "≠": "≠", "=": "="}
_INFINITY = Expr("const", name="inf")
_MAX_PIECES = 200


@dataclass(frozen=True)
class Piece:
    """One interval; a point is the closed interval from itself to itself."""

    low: Expr
    high: Expr
    low_closed: bool
    high_closed: bool
    low_value: Decimal
    high_value: Decimal

    def is_empty(self) -> bool:
        """Whether no number lies in it."""
        if self.low_value == self.high_value:
            return not (self.low_closed and self.high_closed)
        return self.low_value > self.high_value


Region = list[Piece]


def is_region(expr: Expr) -> bool:
    """Whether the expression can only mean a set of numbers: not ``(1, 2)``, which may be a point."""
    if expr.op in ("setop", "builder", "named"):
        return True
    if expr.op == "rel":
        names = expr.name.split()
        if any(name in _INEQUALITIES for name in names):
            return True
        return names == ["∈"] and expr.args[1].op in ("group", "setop", "named", "builder")
    if expr.op == "group" and len(expr.args) == 2:
        return expr.name in ("(]", "[)") or any(_is_infinite(arg) for arg in expr.args)
    return expr.op == "seq" and any(is_region(item) and item.op == "rel" for item in expr.args)


def _is_infinite(expr: Expr) -> bool:
    return expr == _INFINITY or expr == neg(_INFINITY)


def region_of(expr: Expr, budget: Budget) -> Region | None:
    """The set as sorted disjoint intervals, or None if it is not a set of numbers with known ends."""
    pieces = _pieces(expr, budget)
    return None if pieces is None or len(pieces) > _MAX_PIECES else merge(pieces)


def _interval(low: Expr, high: Expr, closed: tuple[bool, bool], budget: Budget) -> Region | None:
    budget.spend(5)
    low_value, high_value = real_number(low, budget), real_number(high, budget)
    if low_value is None or high_value is None:
        return None
    return [
        Piece(
            low, high, closed[0] and low_value.is_finite(), closed[1] and high_value.is_finite(), low_value, high_value
        )
    ]


def _everything() -> Region:
    return [Piece(neg(_INFINITY), _INFINITY, False, False, Decimal("-Infinity"), Decimal("Infinity"))]


def _pieces(expr: Expr, budget: Budget) -> Region | None:
    if expr.op == "rel":
        return _relation(expr, budget)
    if expr.op == "setop":
        return _set_operation(expr, budget)
    if expr.op == "builder":
        return _builder(expr, budget)
    if expr.op == "named":
        return _everything() if expr.name == "R" else [] if expr.name == "empty" else None
    if expr.op == "group" and expr.name == "{}":
        return _points(expr.args, budget)
    if expr.op == "group" and len(expr.args) == 2:
        return _interval(*expr.args, (expr.name[0] == "[", expr.name[1] == "]"), budget)
    if expr.op == "mul" and len(expr.args) == 2 and expr.args[0].op == "sym":  # a stray name before an interval
        return _pieces(expr.args[1], budget) if expr.args[1].op in ("group", "setop") else None
    if expr.op == "seq":
        return _listed(expr, budget)
    return _points((expr,), budget) if expr.op not in ("matrix", "text", "ratio") else None


def _points(items: tuple[Expr, ...], budget: Budget) -> Region | None:
    found: Region = []
    if len(items) > _MAX_PIECES:
        return None
    for item in items:
        point = _interval(item, item, (True, True), budget)
        if point is None or not point[0].low_value.is_finite():  # infinity is no point of the line
            return None
        found += point
    return found


def _listed(expr: Expr, budget: Budget) -> Region | None:
    """``x < 2 or x > 3`` is a union; "and" or a comma an intersection, unless nothing would be left."""
    if not any(item.op == "rel" for item in expr.args):
        return _points(expr.args, budget) if all(is_scalar(item) for item in expr.args) else None
    parts = [_pieces(item, budget) for item in expr.args]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    union = [piece for part in known for piece in part]
    if expr.name == "or":
        return union
    common = known[0]
    for part in known[1:]:
        common = intersect(common, part)
    return common or union


def _relation(expr: Expr, budget: Budget) -> Region | None:
    names = expr.name.split()
    if names[0] in ("∈", "∉") and len(names) == 1:
        inner = _pieces(expr.args[1], budget)
        return inner if inner is None or names[0] == "∈" else complement(merge(inner))
    if any(name not in _FLIP for name in names):
        return None
    unknown = {name for arg in expr.args for name in symbols(arg)}
    if len(unknown) != 1:
        return None
    result: Region | None = None
    for left, name, right in zip(expr.args, names, expr.args[1:], strict=False):
        part = _half_line(left, name, right, budget)
        if part is None:
            return None
        result = part if result is None else intersect(result, part)
    return result


def _half_line(left: Expr, name: str, right: Expr, budget: Budget) -> Region | None:
    if right.op == "sym" and not symbols(left):
        left, name, right = right, _FLIP[name], left
    if symbols(right):
        return None
    if left.op == "call" and left.name == "abs":
        return _around_zero(left.args[0], name, right, budget)
    if left.op != "sym":
        return _linear(left, name, right, budget)
    if name in ("<", "≤"):
        return _interval(neg(_INFINITY), right, (False, name == "≤"), budget)
    if name in (">", "≥"):
        return _interval(right, _INFINITY, (name == "≥", False), budget)
    point = _points(tuple(both_signs(right)), budget)
    return point if name == "=" or point is None else complement(point)


def _around_zero(inside: Expr, name: str, bound: Expr, budget: Budget) -> Region | None:
    """``|x - 1| < 3``, and its complement ``|x - 1| >= 3``."""
    if name not in ("<", "≤", ">", "≥"):
        return None
    relation = "<" if name in ("<", "≥") else "≤"
    below, above = _half_line(inside, relation, bound, budget), _half_line(inside, _FLIP[relation], neg(bound), budget)
    if below is None or above is None:
        return None
    between = intersect(below, above)
    return between if name in ("<", "≤") else complement(merge(between))


def _linear(left: Expr, name: str, right: Expr, budget: Budget) -> Region | None:
    """``2x + 1 < 5``, solved for its variable."""
    unknown = symbols(left)
    if len(unknown) != 1 or not is_scalar(left):
        return None
    variable = next(iter(unknown))
    slope = slope_in(left, variable, budget)
    if slope is None:
        return None
    start, second = (substituted(left, variable, num(value)) for value in (0, 1))
    solution = divide(add(right, neg(start)), add(second, neg(start)))
    return _half_line(sym(variable), name if slope > 0 else _FLIP[name], solution, budget)


def _builder(expr: Expr, budget: Budget) -> Region | None:
    variable, condition = expr.args
    region = _pieces(condition, budget)
    if region is None:
        return None
    if variable.op == "rel" and variable.name == "∈":
        domain = _pieces(variable.args[1], budget)
        return None if domain is None else intersect(region, domain)
    return region if variable.op == "sym" else None


def _set_operation(expr: Expr, budget: Budget) -> Region | None:
    left, right = (_pieces(arg, budget) for arg in expr.args)
    if left is None or right is None:
        return None
    if expr.name == "∪":
        return left + right
    return intersect(left, right if expr.name == "∩" else complement(merge(right)))


def merge(pieces: Region) -> Region:
    """Sort, drop what is empty, join what touches."""
    result: Region = []
    for piece in sorted((p for p in pieces if not p.is_empty()), key=lambda p: (p.low_value, not p.low_closed)):
        last = result[-1] if result else None
        touches = last is not None and (
            piece.low_value < last.high_value
            or (piece.low_value == last.high_value and (piece.low_closed or last.high_closed))
        )
        if last is None or not touches:
            result.append(piece)
        elif (piece.high_value, piece.high_closed) > (last.high_value, last.high_closed):
            result[-1] = Piece(
                last.low, piece.high, last.low_closed, piece.high_closed, last.low_value, piece.high_value
            )
    return result


def intersect(one: Region, other: Region) -> Region:
    """What lies in both."""
    found = []
    for a in one:
        for b in other:
            low = max((a, b), key=lambda p: (p.low_value, not p.low_closed))
            high = min((a, b), key=lambda p: (p.high_value, p.high_closed))
            piece = Piece(low.low, high.high, low.low_closed, high.high_closed, low.low_value, high.high_value)
            if not piece.is_empty():
                found.append(piece)
    return found


def complement(region: Region) -> Region:
    """The real numbers outside a merged region."""
    rest = _everything()
    for piece in region:
        below = Piece(neg(_INFINITY), piece.low, False, not piece.low_closed, Decimal("-Infinity"), piece.low_value)
        above = Piece(piece.high, _INFINITY, not piece.high_closed, False, piece.high_value, Decimal("Infinity"))
        rest = intersect(
            rest, [part for part in (below, above) if part.low_value.is_finite() or part.high_value.is_finite()]
        )
    return [piece for piece in rest if not piece.is_empty()]
