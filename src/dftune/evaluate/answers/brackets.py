"""The parser's cursor over the tokens, and everything that stands between brackets."""

from __future__ import annotations

from abc import ABC, abstractmethod

from dftune.evaluate.answers.budget import UnreadableError
from dftune.evaluate.answers.expr import Expr, add, mul, neg, node
from dftune.evaluate.answers.lexer import Token
from dftune.evaluate.answers.vocabulary import names

_END = Token("", "")
CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "⌊": "⌋", "⌈": "⌉", "⟨": "⟩"}
_LISTS = names("aligned align gathered split eqnarray equation gather alignedat")
_MAX_LEVEL = 150
"""Open brackets and arguments; each costs a few frames of Python's call stack."""


class Brackets(ABC):
    """Reads groups, tuples, intervals, sets, absolute values and environments."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.bars = 0
        self.level = 0
        self.brackets: list[str] = []

    @abstractmethod
    def items(self) -> Expr:
        """A list of expressions up to a closing bracket or the end."""

    @abstractmethod
    def expression(self, min_power: int) -> Expr:
        """One expression of operators that bind at least as tightly as ``min_power``."""

    def peek(self, ahead: int = 0) -> Token:
        """The next token, or one further on; an empty one past the end."""
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else _END

    def next(self) -> Token:
        """Consume and return the next token."""
        token = self.peek()
        self.position += 1
        return token

    def in_braces(self) -> bool:
        """Whether the innermost open bracket is a brace, where a bar or colon starts a condition."""
        return bool(self.brackets) and self.brackets[-1] in ("\\{", "{")

    def closes_here(self, token: Token) -> bool:
        """Whether an opening bracket closes an interval written as in ``[0,1[`` or ``]0,1[``."""
        if token != Token("open", "[") or not self.brackets or self.brackets[-1] not in ("]", "[", "("):
            return False
        after = self.peek(1)
        return after.kind in ("", "close") or (after.kind == "op" and after.text in ("∪", "∩", ",", "and", "or", "∖"))

    def enter(self) -> int:
        """Count one more level of nesting; refuses what the call stack should not hold."""
        self.level += 1
        if self.level > _MAX_LEVEL:
            raise UnreadableError("nested too deeply")
        return 1

    def leave(self, bars: int) -> None:
        """Undo `enter` for a bracket, and restore the bars that were open outside it."""
        self.brackets.pop()
        self.bars = bars
        self.level -= 1

    def inside(self, opening: str, closing: str) -> Expr:
        """The items up to the closing bracket, which may be missing at the very end."""
        self.enter()
        bars, self.bars = self.bars, 0
        self.brackets.append(opening)
        result = self.items()
        self.brackets.pop()
        self.bars = bars
        self.level -= 1
        if self.peek().kind == "close" and self.peek().text == closing:
            self.position += 1
        elif self.peek().kind:
            raise UnreadableError(f"expected {closing!r}")
        return result

    def bracket(self, opening: str) -> Expr:
        """What an opening bracket, already consumed, begins: a group, a tuple, an interval, a set, a floor."""
        self.enter()
        bars, self.bars = self.bars, 0
        self.brackets.append(opening)
        if self.peek().kind == "close":  # () [] {} hold nothing
            closing = self.next().text
            self.leave(bars)
            return Expr("named", name="empty") if opening in ("\\{", "{") else Expr("group", name=f"{opening}{closing}")
        braced = opening in ("(", "[") and self.peek().text == "{"
        inner = self.items()
        if braced and inner.op == "group" and inner.name == "{}":  # \left( {1,2} \right)
            inner = node("seq", *inner.args, name=",")
        condition = self.condition() if opening in ("\\{", "{") else None
        closing = self.close(opening)
        self.leave(bars)
        if condition is not None:
            return node("builder", inner, condition)
        return self.grouped(opening, closing, inner)

    def condition(self) -> Expr | None:
        """What follows the bar or colon in ``{x : x > 2}``."""
        token = self.peek()
        if token.kind != "op" or token.text not in (":", "|"):
            return None
        self.position += 1
        return self.items()

    def close(self, opening: str) -> str:
        """Consume and return the bracket that closes ``opening``; the end of the text closes everything."""
        token = self.next()
        wanted = CLOSING.get(opening, "[")
        if token == _END:
            return wanted
        allowed = (")", "]", "[") if opening in ("(", "[", "]") else (wanted,)
        if token.text not in allowed or (token.kind != "close" and token.text != "["):
            raise UnreadableError(f"expected {wanted!r}")
        return token.text

    @staticmethod
    def grouped(opening: str, closing: str, inner: Expr) -> Expr:
        """The node for a bracket with these ends: one item in brackets is that item."""
        if opening in ("⌊", "⌈"):
            return node("call", inner, name="floor" if opening == "⌊" else "ceil")
        parts = inner.args if inner.op == "seq" else (inner,)
        if opening in ("\\{", "{"):
            return inner if len(parts) == 1 and opening == "{" else node("group", *parts, name="{}")
        if opening == "⟨":
            return node("group", *parts, name="()")
        # ]a,b[ is the open interval (a,b)
        shape = ("(" if opening in ("(", "]") else "[") + (")" if closing in (")", "[") else "]")
        if opening == "(" and closing == "[":
            shape = "()"
        if len(parts) == 1:
            return inner
        return node("group", *parts, name=shape)

    def absolute(self, mark: str) -> Expr:
        """An absolute value; its first bar is consumed."""
        self.enter()
        self.bars += 1
        inner = self.expression(0)
        self.bars -= 1
        self.level -= 1
        if self.peek() != Token("op", mark):
            raise UnreadableError("bar without its partner")
        self.position += 1
        return node("call", inner, name="abs")

    def environment(self, name: str) -> Expr:
        """A matrix, or the list of rows that an aligned environment holds."""
        rows: list[Expr] = []
        row: list[Expr] = []
        self.enter()
        self.brackets.append("begin")
        if name in _LISTS:
            self.tokens[self.position :] = [item for item in self.tokens[self.position :] if item.text != "col"]
        while True:
            token = self.peek()
            if token.kind in ("end", ""):
                self.position += 1
                break
            if token.kind == "op" and token.text in ("col", "\\\\", ",", "and", "quad"):
                self.position += 1
                if token.text == "\\\\" and row:
                    rows.append(node("seq", *row))
                    row = []
            else:
                row.append(self.expression(0))
        self.brackets.pop()
        self.level -= 1
        if row:
            rows.append(node("seq", *row))
        if not rows:
            raise UnreadableError("empty environment")
        if name in _LISTS or (name == "cases" and all(len(item.args) == 1 for item in rows)):
            flat = [cell for item in rows for cell in item.args]
            return flat[0] if len(flat) == 1 else node("seq", *flat, name=",")
        return determinant([list(item.args) for item in rows]) if name == "vmatrix" else node("matrix", *rows)


def determinant(rows: list[list[Expr]]) -> Expr:
    """The determinant of a square matrix, by its first row.

    Raises:
        UnreadableError: the matrix is not square, or has more than four rows.
    """
    size = len(rows)
    if size > 4 or any(len(row) != size for row in rows):
        raise UnreadableError("determinant of a matrix that is not square, or has more than four rows")
    if size == 1:
        return rows[0][0]
    minors = (determinant([row[:column] + row[column + 1 :] for row in rows[1:]]) for column in range(size))
    terms = (mul(entry, minor) for entry, minor in zip(rows[0], minors, strict=True))
    return add(*(neg(term) if column % 2 else term for column, term in enumerate(terms)))
