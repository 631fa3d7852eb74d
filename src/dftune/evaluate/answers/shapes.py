"""What an answer is made of: members of a list, entries of a tuple, named values, both signs of a plus-minus."""

from __future__ import annotations

from itertools import pairwise

from dftune.evaluate.answers.budget import UnreadableError
from dftune.evaluate.answers.expr import Expr, add, has, is_scalar, mul, neg, node, num, rebuild, symbols
from dftune.evaluate.answers.relations import split_label

_MAX_SIGNS = 3
_MAX_FILLED = 1000
_ARTICLES = ("a", "an", "the")


def normal(expr: Expr) -> Expr:
    """Compute with matrices, and read a list of lists as one."""
    return rebuild(expr, _fold_matrices) if has(expr, "matrix", "group", "app") else expr


def _fold_matrices(expr: Expr) -> Expr:
    if expr.op == "app" and len(expr.args) > 1 and expr.name.isupper() and all(arg.op != "sym" for arg in expr.args):
        return node("group", *expr.args, name="()")  # the point A(1, 2)
    rows_only = expr.name == "[]" and all(arg.op == "group" and arg.name == "[]" for arg in expr.args)
    if expr.op == "group" and len(expr.args) > 1 and rows_only and len({len(arg.args) for arg in expr.args}) == 1:
        return node("matrix", *(node("seq", *arg.args) for arg in expr.args))
    matrices = [arg for arg in expr.args if arg.op == "matrix"]
    if expr.op == "add" and len(matrices) == len(expr.args) and len({_shape(arg) for arg in matrices}) == 1:
        rows = zip(*(arg.args for arg in matrices), strict=True)
        return node(
            "matrix",
            *(
                node("seq", *(add(*cells) for cells in zip(*(row.args for row in group), strict=True)))
                for group in rows
            ),
        )
    if expr.op == "mul" and len(matrices) == 1 and all(arg.op == "matrix" or is_scalar(arg) for arg in expr.args):
        factor = mul(*(arg for arg in expr.args if arg.op != "matrix"))
        return node("matrix", *(node("seq", *(mul(factor, cell) for cell in row.args)) for row in matrices[0].args))
    return expr


def _shape(matrix: Expr) -> tuple[int, ...]:
    return tuple(len(row.args) for row in matrix.args)


def vector_items(expr: Expr) -> list[Expr] | None:
    """The entries of a tuple, of a column or of a row."""
    if expr.op == "group" and expr.name != "{}":
        return list(expr.args)
    if expr.op == "matrix":
        if all(len(row.args) == 1 for row in expr.args):
            return [row.args[0] for row in expr.args]
        return list(expr.args[0].args) if len(expr.args) == 1 else None
    return None


def as_list(expr: Expr) -> list[Expr] | None:
    """The members of a list or set; both values of a plus-minus; None for a single answer."""
    if expr.op == "seq":
        members = [member for item in filled(expr.args) for member in as_list(item) or [item]]
        return without_conditions(members)
    if expr.op == "group" and expr.name == "{}":
        return [member for item in filled(expr.args) for member in (as_list(item) or [item])]
    if expr.op == "named" and expr.name == "empty":
        return []
    label = split_label(expr)
    if label is not None:
        return as_list(label.value) if expr.name == "∈" or has_sign(label.value) else None
    if has_sign(expr) and (is_scalar(expr) or vector_items(expr) is not None):
        return both_signs(expr)
    return None


def filled(items: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """``0, 1, ..., 9`` written out: an arithmetic progression of integers given by two members and its last."""
    if len(items) < 4 or items[-2].op != "dots" or any(item.op != "num" for item in (*items[:-2], items[-1])):
        return items
    shown = [item.value for item in items[:-2] if item.value is not None]
    step, last = shown[1] - shown[0], items[-1].value
    if last is None or not step or any(b - a != step for a, b in pairwise(shown)):
        return items
    count = (last - shown[0]) / step
    if count.denominator != 1 or not len(shown) <= count <= _MAX_FILLED:
        return items
    return tuple(num(shown[0] + step * index) for index in range(int(count) + 1))


def is_set_of_sets(expr: Expr) -> bool:
    """Whether the expression is a set of several sets: ``{{1}, {2}}``."""
    return is_set(expr) and len(expr.args) > 1 and all(is_set(arg) for arg in expr.args)


def is_set(expr: Expr) -> bool:
    """Whether the expression is a set with its members listed."""
    return expr.op == "group" and expr.name == "{}"


def has_sign(expr: Expr) -> bool:
    """Whether a plus-minus sign occurs."""
    return has(expr, "pm", "mp")


def both_signs(expr: Expr) -> list[Expr]:
    """All readings of the plus-minus signs: each on its own, unless a minus-plus ties them together."""
    count = sum(1 for _ in _signs(expr))
    if count > _MAX_SIGNS:
        raise UnreadableError("too many plus-minus signs")
    if has(expr, "mp"):
        choices = [tuple([True] * count), tuple([False] * count)]
    else:
        choices = [tuple(bool(bits >> index & 1) for index in range(count)) for bits in range(1 << count)]
    return [_with_signs(expr, choice) for choice in choices]


def _signs(expr: Expr) -> list[Expr]:
    found = [expr] if expr.op in ("pm", "mp") else []
    return found + [sign for arg in expr.args for sign in _signs(arg)]


def _with_signs(expr: Expr, choice: tuple[bool, ...]) -> Expr:
    remaining = list(choice)

    def decide(item: Expr) -> Expr:
        if item.op not in ("pm", "mp"):
            return item
        plus = remaining.pop() == (item.op == "pm")
        return item.args[0] if plus else neg(item.args[0])

    return rebuild(expr, decide)


_CONDITIONS = frozenset(("<", ">", "≤", "≥", "≠", "∈"))


def without_conditions(items: list[Expr]) -> list[Expr]:
    """The members without those that only restrict a variable of the others: ``k \\in \\mathbb{Z}``, ``x > 0``."""
    limits = [item for item in items if _restricts(item)]
    values = [item for item in items if not _restricts(item)]
    used = {name for item in values for name in symbols(item)}
    return [item for item in items if item not in limits or not symbols(item) & used] if values else items


def _restricts(item: Expr) -> bool:
    if item.op != "rel" or not set(item.name.split()) <= _CONDITIONS:
        return False
    return item.name != "∈" or item.args[1].op == "named" or item.args[1].name in ("Z", "N", "R", "Q")


def unlabelled(expr: Expr) -> Expr:
    """The value without its label."""
    label = split_label(expr)
    return expr if label is None else label.value


def unlabelled_values(items: list[Expr]) -> list[Expr]:
    """Members without their labels; a plus-minus behind a label gives both values."""
    found = []
    for item in items:
        label = split_label(item)
        value = item if label is None or label.arguments else label.value
        found.extend(as_list(value) or [value])
    return found


def assignments(items: list[Expr]) -> dict[str, Expr] | None:
    """The values by name, when every member is ``name = value`` with names of different quantities."""
    if not items:
        return None
    if len(items) == 1:
        label = split_label(items[0])
        if label is None or len(label.parts) < 2:
            return None
        parts = vector_items(label.value)
        if parts is None or len(parts) != len(label.parts):
            return None
        return dict(zip(label.parts, parts, strict=True)) if len(set(label.parts)) == len(parts) else None
    found: dict[str, Expr] = {}
    for item in items:
        label = split_label(item)
        if label is None or not label.label:
            return None
        name = label.label + (
            f"({','.join(map(str, item.args[0].args))})" if item.args[0].op == "app" and not label.arguments else ""
        )
        if name in found:
            return None
        found[name] = label.value
    stems = {name.split("_")[0] for name in found}
    return found if len(stems) > 1 or len(found) == 1 or "(" in next(iter(found)) else None


def common_value(expr: Expr) -> Expr | None:
    """The value that ``x = y = z = 0`` gives to several names."""
    names, value = expr.args[:-1], expr.args[-1] if expr.args else None
    chain = expr.op == "rel" and set(expr.name.split()) == {"="} and len(names) > 1
    return value if chain and all(name.op == "sym" for name in names) else None


def word_key(expr: Expr) -> str:
    """Words without case, articles and punctuation; a lone variable counts as a letter."""
    if expr.op == "mul" and all(arg.op == "sym" and len(arg.name) == 1 for arg in expr.args):  # II, read as I times I
        return "".join(arg.name for arg in expr.args).lower()
    if expr.op not in ("text", "sym", "const"):
        return ""
    kept = [word for word in expr.name.lower().replace("-", " ").split() if word not in ("a", "an", "the")]
    return " ".join(kept) or expr.name.lower()
