"""From tokens to a syntax tree: a precedence parser that builds nodes and computes nothing."""

from __future__ import annotations

from dftune.evaluate.answers import vocabulary as words
from dftune.evaluate.answers.atoms import Atoms
from dftune.evaluate.answers.budget import UnreadableError
from dftune.evaluate.answers.expr import Expr, add, divide, mul, neg, node, num, power
from dftune.evaluate.answers.lexer import Token

RELATIONS = words.names("= < > ≤ ≥ ≠ ≈ ≡ ∈ ∉ ⊂ → ∼ ⟂ ∥")
_OVER, _RELATION, _SETOP, _RATIO, _SUM, _PRODUCT = 5, 10, 20, 25, 30, 40
_INFIX = {
    **dict.fromkeys(RELATIONS, _RELATION), **dict.fromkeys("∪∩∖", _SETOP), ":": _RATIO, **dict.fromkeys("+-±∓", _SUM),
    "*": _PRODUCT, "/": _PRODUCT, "mod": _PRODUCT, "choose": _OVER, "over": _OVER,
}  # fmt: skip
_SEPARATORS = frozenset((",", "and", "or", "quad", "\\\\", "⇒", "⇔", "col"))


def parse(tokens: list[Token]) -> Expr:
    """The tree of a whole answer.

    Raises:
        UnreadableError: the tokens are not an answer expression.
    """
    texts = {token.text for token in tokens}
    if "∪" in texts and texts & {"<", ">", "≤", "≥"} and not texts & {"(", "[", "\\{"}:  # x < 1 ∪ x > 2
        tokens = [Token("op", "or") if token == Token("op", "∪") else token for token in tokens]
    return Parser(tokens).whole()


class Parser(Atoms):
    """Operators, lists and relations; atoms (numbers, brackets, functions) are in `Atoms`."""

    def whole(self) -> Expr:
        """Everything, to the last token."""
        result = self.items()
        if self.position < len(self.tokens):
            raise UnreadableError(f"unexpected {self.tokens[self.position].text!r}")
        return result

    def items(self) -> Expr:
        """A list separated by commas, "and", "or"; a single item is returned as itself."""
        found: list[Expr] = []
        joined = ","
        expecting = True
        while True:
            token = self.peek()
            if token.kind == "op" and token.text in _SEPARATORS:
                self.position += 1
                expecting = True
                if token.text in ("⇒", "⇔") and found:
                    found = found if token.text == "⇔" else []
                elif token.text in ("and", "or"):
                    joined = token.text
            elif token.kind == "text" and token.text.lower() in words.CLAUSES:
                self.skip_clause()
            elif found and self.skip_remark():
                continue
            elif expecting and token.kind == "op" and token.text in ("=", "≈", "∼"):  # "= 5"
                self.position += 1
            elif self.ends_list(token, expecting=expecting):
                break
            else:
                found.append(self.expression(0))
                expecting = False
        if not found:
            raise UnreadableError("nothing to read")
        return found[0] if len(found) == 1 else node("seq", *found, name=joined)

    def ends_list(self, token: Token, *, expecting: bool) -> bool:
        """Whether the items stop before this token."""
        if token.kind == "close":
            return not (token.text == "]" and expecting and not self.brackets)  # ]0,1[ starts with a closing bracket
        bar = token.kind == "op" and token.text in ("|", ":")
        return not token.kind or self.closes_here(token) or (bar and self.in_braces() and not expecting)

    def skip_clause(self) -> None:
        """Skip "for all x", "where n is an integer": to the end of the item, or of the answer after "where"."""
        to_end = self.peek().text.lower() == "where"
        level = 0
        while self.peek().kind:
            token = self.peek()
            if level == 0 and (token.kind == "close" or (token.text in (",", "and", "or") and not to_end)):
                return
            level += (token.kind == "open") - (token.kind == "close")
            self.position += 1

    def expression(self, min_power: int) -> Expr:
        """Everything that binds at least as tightly as ``min_power``."""
        left = self.prefix()
        while True:
            token = self.peek()
            if token.kind == "op":
                following = self.operator(left, token.text, min_power)
                if following is None:
                    return left
                left = following
            elif token.kind == "sub" and left.op == "named":
                left = signed_set(left.name, self.next().text)
            elif token.kind == "sub":
                left = self.subscripted(left)
            elif token == Token("text", "to") and self.peek(1).kind == "num" and min_power <= _RATIO:  # 3 to 5
                left = self.ratio(left)
            elif token.kind == "text":
                if token.text.lower() in words.CLAUSES:
                    self.skip_clause()
                else:
                    self.skip_unit()
            elif token.kind == "magnitude":
                self.position += 1
                left = mul(left, num(10 ** words.MAGNITUDES[token.text]))
            elif min_power <= _PRODUCT and self.starts_operand(token) and not self.starts_next_quantity(token):
                left = self.product(left)
            else:
                return left

    def operator(self, left: Expr, text: str, min_power: int) -> Expr | None:  # noqa: PLR0911 - one case a kind
        """Apply an infix or postfix operator; None if it binds less tightly than asked for."""
        if text in ("^", "!", "%", "°", "'", "pmod"):
            return self.postfix(left, text)
        if text == "|":
            if self.bars or self.in_braces() or min_power > _PRODUCT:
                return None
            return self.product(left)
        if text == "not":
            return self.relation(left) if min_power <= _RELATION else None
        strength = _INFIX.get(text)
        if strength is None or strength < min_power or (text == ":" and self.in_braces()):
            return None
        if strength == _SUM:
            return self.sum(left)
        if strength == _PRODUCT:
            return self.product(left)
        if strength == _RELATION:
            return self.relation(left)
        if strength == _RATIO:
            return self.ratio(left)
        self.position += 1
        right = self.expression(strength + 1)
        if strength == _SETOP:
            return node("setop", left, right, name=text)
        return node("call", left, right, name="binomial") if text == "choose" else divide(left, right)

    def postfix(self, left: Expr, text: str) -> Expr:
        """Apply an operator that stands behind its operand."""
        self.position += 1
        if text == "!":
            if self.peek() == Token("op", "!"):
                self.position += 1
                return node("call", left, name="factorial2")
            return node("call", left, name="factorial")
        if text == "%":
            return node("percent", left)
        if text == "°":
            return node("deg", self.with_minutes(left))
        if text == "'":  # on a number: feet, inches, minutes
            return left if left.op in ("num", "add") else self.primed(left, 1)
        if text == "pmod":
            return node("call", left, self.argument(), name="pmod")
        return self.powered(left)

    def with_minutes(self, degrees: Expr) -> Expr:
        """Degrees with the minutes and seconds that follow: ``22^\\circ 30' 15''``."""
        terms = [degrees]
        for marks, parts in ((1, 60), (2, 3600)):
            start = self.position
            if self.peek().kind != "num":
                break
            amount = self.atom()
            self.position += self.peek() == Token("op", "^")
            if self.only_primes() != marks:
                self.position = start
                break
            terms.append(divide(amount, num(parts)))
        return add(*terms)

    def powered(self, left: Expr) -> Expr:
        """``left^...``; primes in the exponent rename a variable, ``v^2_0`` is ``v_0^2``."""
        if num_primes := self.only_primes():
            return self.primed(left, num_primes)
        if left.op == "named" and (mark := self.mark()):
            return signed_set(left.name, mark)
        if self.mark():  # x^* names something
            return left
        if self.peek().text == "{" and self.peek(1).kind == "text" and self.peek(2).text == "}":  # 15^{th}
            self.position += 3
            return left
        exponent = self.argument(whole_number=True)
        if self.peek().kind == "sub" and left.op == "sym":
            left = self.subscripted(left)
        if self.peek() == Token("op", "^"):  # 2^3^2 is 2^(3^2)
            self.position += 1
            self.enter()
            exponent = self.powered(exponent)
            self.level -= 1
        return power(left, exponent)

    def mark(self) -> str:
        """The ``*``, ``+``, ``-`` or ``{*}`` after ``^``, which is consumed; empty, and nothing consumed, otherwise."""
        braces = self.peek() == Token("open", "{")
        token = self.peek(1 if braces else 0)
        ends = self.peek(2).text == "}" if braces else self.peek(1).kind not in ("num", "sym", "const", "open", "cmd")
        if token.kind != "op" or token.text not in ("*", "+", "-") or not ends:
            return ""
        self.position += 3 if braces else 1
        return token.text

    def sum(self, left: Expr) -> Expr:
        """A sum, once its first term is read."""
        terms = [left]
        while self.peek().kind == "op" and self.peek().text in ("+", "-", "±", "∓"):
            sign = self.next().text
            term = self.expression(_SUM + 1)
            if sign == "-":
                term = neg(term)
            elif sign in ("±", "∓"):
                term = node("pm" if sign == "±" else "mp", term)
            terms.append(term)
        return add(*terms)

    def product(self, left: Expr) -> Expr:
        """A product, once its first factor is read; ``/`` divides by the next factor only."""
        factors = [left]
        while True:
            token = self.peek()
            if self.skip_remark() or self.skip_unit_fraction():
                continue
            if token.kind == "op" and token.text in ("*", "/", "mod"):
                self.position += 1
                factor = self.expression(_PRODUCT + 1)
                if token.text == "mod":
                    factors = [node("call", mul(*factors), factor, name="mod")]
                else:
                    factors.append(factor if token.text == "*" else power(factor, num(-1)))
            elif self.starts_next_quantity(token):
                return mul(*factors)
            elif self.starts_operand(token) or (token.text == "|" and not self.bars and not self.in_braces()):
                if token.kind == "num" and self.tokens[self.position - 1].kind == "num":
                    raise UnreadableError("two numbers without an operator between them")
                factor = self.expression(_PRODUCT + 1)
                if not is_condition(factor):  # 2x (x > 0)
                    factors.append(factor)
            else:
                return mul(*factors)

    def skip_remark(self) -> bool:
        """Skip a bracket that holds words only, or a reason: ``7 (since 3 + 4 = 7)``."""
        if self.peek() != Token("open", "(") or (self.peek(1).kind != "text" and self.peek(1) != Token("op", "≈")):
            return False
        clause = self.peek(1).text.lower() in words.CLAUSES | words.APPROXIMATIONS
        ahead, level = 1, 1
        while level and self.peek(ahead).kind:
            kind = self.peek(ahead).kind
            level += (kind == "open") - (kind == "close")
            if kind not in ("text", "close", "magnitude") and not clause:
                return False
            ahead += 1
        self.position += ahead
        return True

    def skip_unit_fraction(self) -> bool:
        """Skip ``\\frac{km}{h}`` and ``\\mu m``, which hold words and their powers only."""
        if self.peek() == Token("sym", "mu") and self.peek(1).kind == "text":
            self.position += 2
            return True
        if self.peek() != Token("cmd", "frac") or self.peek(1).text != "{" or self.peek(2).kind != "text":
            return False
        ahead, groups, power = 1, 0, False
        while groups < 2:
            token = self.peek(ahead)
            if not (token.kind == "text" or token.text in ("{", "}", "^", "*", "-") or (power and token.kind == "num")):
                return False
            power = token.text in ("^", "{", "-") and (power or token.text == "^")
            groups += token.text == "}" and self.peek(ahead + 1).text != "^"
            ahead += 1
        self.position += ahead
        return True

    def relation(self, left: Expr) -> Expr:
        """A chain of relations, once its first member is read."""
        parts, names = [left], []
        while True:
            token = self.peek()
            negated = token == Token("op", "not")
            if negated:
                self.position += 1
                token = self.peek()
            if token.kind != "op" or token.text not in RELATIONS:
                break
            self.position += 1
            names.append({"=": "≠", "∈": "∉"}.get(token.text, token.text) if negated else token.text)
            parts.append(self.expression(_RELATION + 1))
        if not names:
            raise UnreadableError("unexpected 'not'")
        return node("rel", *parts, name=" ".join(names))

    def ratio(self, left: Expr) -> Expr:
        """``a : b : c``, once its first member is read."""
        parts = [left]
        while self.peek() in (Token("op", ":"), Token("text", "to")):
            self.position += 1
            parts.append(self.expression(_RATIO + 1))
        return node("ratio", *parts)

    def prefix(self) -> Expr:
        """An operand with the signs and words before it."""
        self.skip_leading_text()
        token = self.peek()
        if token.kind == "op" and token.text in ("-", "+", "±", "∓"):
            negative = False
            while self.peek().kind == "op" and self.peek().text in ("-", "+"):
                negative ^= self.next().text == "-"
            if self.peek().kind == "op" and self.peek().text in ("±", "∓"):
                kind = "pm" if self.next().text == "±" else "mp"
                operand = node(kind, self.expression(_PRODUCT + 1))
            else:
                operand = self.expression(_PRODUCT + 1)
            return neg(operand) if negative else operand
        return self.atom()

    def skip_leading_text(self) -> None:
        """Skip words that only introduce an operand: "only x=0", "Minimum: 1", "Area = 5"."""
        start = self.position
        while self.peek().kind == "text" and self.peek().text.lower() not in words.CLAUSES:
            self.position += 1
        if self.position == start:
            return
        token = self.peek()
        if token.kind == "op" and token.text in (":", "=", "|") and self.position + 1 < len(self.tokens):
            self.position += 1
        elif not (self.starts_operand(token) or (token.kind == "op" and token.text in ("-", "±", "|"))):
            self.position = start

    def starts_next_quantity(self, token: Token) -> bool:
        """Whether a number follows words, as in "3 hours 20 minutes": a list, not a product."""
        return token.kind == "num" and self.position > 0 and self.tokens[self.position - 1].kind == "text"

    def starts_operand(self, token: Token) -> bool:
        """Whether an operand begins at this token."""
        if token.kind in ("num", "sym", "const", "func", "cmd", "named", "begin", "dots"):
            return True
        return token.kind == "open" and not self.closes_here(token)

    def script(self, raw: str) -> Expr:
        """A subscript that holds a formula, such as the base of a logarithm."""
        return Parser(self.relex(raw)).whole()


def is_condition(expr: Expr) -> bool:
    """Whether a bracket beside a value says when it holds: ``(x > 0)``, ``(k \\in \\mathbb{Z})``."""
    parts = expr.args if expr.op in ("seq", "group") else (expr,)
    return bool(parts) and all(part.op == "rel" for part in parts)


def signed_set(name: str, mark: str) -> Expr:
    """``\\mathbb{R}^+`` as an interval, ``\\mathbb{N}^*`` and ``\\mathbb{Z}_{>0}`` under one name each."""
    infinity = Expr("const", name="inf")
    if name == "R" and mark in ("+", ">0"):
        return node("group", num(0), infinity, name="()")
    if name == "R" and mark in ("-", "<0"):
        return node("group", neg(infinity), num(0), name="()")
    if name == "R" and mark in ("\\ge0", "\\geq0", "\\geqslant0"):
        return node("group", num(0), infinity, name="[)")
    positive = (name in ("N", "Z") and mark in ("+", ">0")) or (name, mark) == ("N", "*")
    return Expr("named", name="Z>0" if positive else f"{name}{mark}")
