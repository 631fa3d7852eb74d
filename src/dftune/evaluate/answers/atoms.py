"""The parser's operands: numbers, variables, fractions, roots, functions."""

from __future__ import annotations

import re
from abc import abstractmethod

from dftune.evaluate.answers import vocabulary as words
from dftune.evaluate.answers.brackets import CLOSING, Brackets
from dftune.evaluate.answers.budget import UnreadableError
from dftune.evaluate.answers.expr import Expr, add, divide, node, num, power, rebuild, rename, sym, walk
from dftune.evaluate.answers.lexer import Token, tokenize
from dftune.evaluate.answers.literals import parse_number

_NUMBER_FIRST = re.compile(r"(\d+)\+([A-Za-z]+)")
_INVERSE = ["^", "{", "-", "1", "}", "("]
_FUNCTION_LETTERS = words.names("f g h F G H phi Phi psi Psi")


class Atoms(Brackets):
    """Reads one operand at a time; `Parser` adds the operators."""

    @abstractmethod
    def script(self, raw: str) -> Expr:
        """The formula in a subscript, such as the base of a logarithm."""

    @abstractmethod
    def starts_operand(self, token: Token) -> bool:
        """Whether an operand begins at this token."""

    @staticmethod
    def relex(raw: str) -> list[Token]:
        """Tokens of raw text inside a token, such as a subscript."""
        return tokenize(raw, grouped=False)

    def atom(self) -> Expr:  # noqa: PLR0911, PLR0912 - one case a kind of token
        """One operand, without the operators around it."""
        token = self.next()
        kind, text = token
        if kind == "num":
            return self.number(text)
        if kind == "sym":
            return self.variable(text)
        if kind == "const":
            if (text == "i" and self.peek().kind == "sub") or (text == "e" and self.peek().kind == "sub"):
                return self.variable(text)
            return Expr("const", name=text)
        if kind == "func":
            return self.call(text)
        if kind == "cmd":
            return self.command(text)
        if kind == "open":
            return self.bracket(text)
        if kind == "close" and text == "]":
            return self.bracket("]")
        if kind == "op" and text in ("|", "‖"):
            return self.absolute(text)
        if kind == "named":
            return Expr("named", name=text)
        if kind == "dots":
            return Expr("dots")
        if kind == "begin":
            return self.environment(text)
        if kind == "text":
            return self.text(text)
        raise UnreadableError(f"unexpected {text!r}" if text else "unexpected end")

    def text(self, first: str) -> Expr:
        """Words side by side."""
        found = [first]
        while self.peek().kind == "text":
            found.append(self.next().text)
        return Expr("text", name=" ".join(found))

    def number(self, text: str) -> Expr:
        """A number: with a base as its subscript, followed by a proper fraction, or plain."""
        value = parse_number(text)
        token = self.peek()
        if token.kind == "sub":
            self.position += 1
            return in_base(text, token.text)
        if value.op != "num" or value.digits or value.value is None:
            return value
        return self.mixed(value)

    def mixed(self, whole: Expr) -> Expr:
        """``1\\frac{4}{5}`` and ``1 4/5``: a whole number directly before a proper fraction of literals."""
        start = self.position
        token = self.peek()
        if token == Token("cmd", "frac"):
            self.position += 1
            top, bottom = self.argument(), self.argument()
            part = divide(top, bottom)
        elif token.kind == "num" and self.peek(1) == Token("op", "/") and self.peek(2).kind == "num":
            top, bottom = parse_number(token.text), parse_number(self.peek(2).text)
            self.position += 3
            part = divide(top, bottom)
        else:
            return whole
        values = (top.value, bottom.value)
        if values[0] is None or values[1] is None or not 0 < values[0] < values[1] or top.digits or bottom.digits:
            self.position = start
            return whole
        return add(whole, part)

    def variable(self, name: str) -> Expr:
        """A variable with its subscripts and primes, or the application of a function."""
        result = sym(name)
        if name in _FUNCTION_LETTERS and [self.peek(ahead).text for ahead in range(6)] == _INVERSE:
            self.position += 5
            result = sym(name + "^{-1}")
        while self.peek().kind == "sub" or (self.peek().kind == "op" and self.peek().text == "'"):
            result = (
                self.subscripted(result) if self.peek().kind == "sub" else self.primed(result, len(self.next().text))
            )
        if self.peek() == Token("open", "(") and self.looks_like_application(name):
            self.position += 1
            inside = self.inside("(", ")")
            return node("app", *(inside.args if inside.op == "seq" else (inside,)), name=result.name)
        return result

    def looks_like_application(self, name: str) -> bool:
        """``f(...)`` for the usual function names, and ``a(3)``, ``x(t)``, ``T(m, n)``; not ``n(n+1)``."""
        if name in _FUNCTION_LETTERS:
            return True
        index = self.position + 1
        expects_argument = True
        while index < len(self.tokens):
            token = self.tokens[index]
            if token.text == ")" and token.kind == "close":
                return not expects_argument
            if token.kind == "sub" and not expects_argument:
                pass
            elif expects_argument != (token.kind in ("sym", "num")) or (not expects_argument and token.text != ","):
                return False
            else:
                expects_argument = not expects_argument
            index += 1
        return False

    def subscripted(self, left: Expr) -> Expr:
        """The variable with the subscript that comes next."""
        raw = self.next().text
        if swapped := _NUMBER_FIRST.fullmatch(raw):  # a_{1+n} is a_{n+1}
            raw = f"{swapped.group(2)}+{swapped.group(1)}"
        if left.op in ("sym", "const"):
            return sym(f"{left.name}_{raw}")
        if left.op == "pow" and left.args[0].op == "sym":
            return power(sym(f"{left.args[0].name}_{raw}"), left.args[1])
        if left.op == "num" and left.value is not None and left.value.denominator == 1 and not left.digits:
            return in_base(str(left.value), raw)  # (1011)_2
        raise UnreadableError("subscript without a variable")

    def only_primes(self) -> int:
        """The number of primes in ``'`` or ``{''}``, which is consumed; 0, and nothing consumed, for anything else."""
        index = self.position
        braces = self.peek().text == "{"
        index += braces
        count = 0
        while index < len(self.tokens) and self.tokens[index].text == "'":
            index += 1
            count += 1
        if not count or (braces and self.peek(index - self.position).text != "}"):
            return 0
        self.position = index + braces
        return count

    def primed(self, left: Expr, count: int) -> Expr:
        """The variable with this many primes."""
        if left.op != "sym":
            raise UnreadableError("prime without a variable")
        return sym(left.name + "'" * count)

    def argument(self, *, whole_number: bool = False) -> Expr:
        """What a command takes: a brace group, or one token (one digit of a number, as LaTeX does)."""
        token = self.peek()
        if token == Token("open", "{"):
            self.position += 1
            return self.inside("{", "}")
        if token.kind == "num":
            if whole_number or len(token.text) == 1:
                self.position += 1
                return parse_number(token.text)
            self.tokens[self.position] = Token("num", token.text[1:])
            return parse_number(token.text[0])
        if token.kind == "op" and token.text in ("-", "+") and whole_number:
            self.position += 1
            operand = self.argument(whole_number=True)
            return operand if token.text == "+" else node("mul", num(-1), operand)
        with_frame = self.enter()
        result = self.atom()
        self.level -= with_frame
        return result

    def command(self, name: str) -> Expr:
        """A LaTeX command that takes arguments."""
        if name == "frac":
            top, bottom = self.argument(), self.argument()
            return _derivative(top, bottom) or divide(top, bottom)
        if name == "sqrt":
            return self.root()
        if name == "cbrt":
            return node("call", self.argument(whole_number=True), num(3), name="root")
        if name == "binom":
            return node("call", self.argument(), self.argument(), name="binomial")
        if name in ("sum", "prod"):
            return self.fold(name)
        raise UnreadableError(f"{name} is not supported")

    def root(self) -> Expr:
        """A root; its command is consumed."""
        degree = num(2)
        if self.peek() == Token("open", "["):
            self.position += 1
            degree = self.inside("[", "]")
        return node("call", self.argument(whole_number=True), degree, name="root")

    def fold(self, name: str) -> Expr:
        """``\\sum_{k=1}^{n} body``, with the limits in either order."""
        lower: str | None = None
        upper: Expr | None = None
        for _ in range(2):
            if self.peek().kind == "sub":
                lower = self.next().text
            elif self.peek() == Token("op", "^"):
                self.position += 1
                upper = self.argument(whole_number=True)
        variable, equals, first = (lower or "").partition("=")
        if upper is None or not equals:
            raise UnreadableError(f"{name} without limits")
        bound = self.script(variable)
        if bound.op == "const":
            bound = sym(bound.name)
        if bound.op != "sym":
            raise UnreadableError(f"{name} over something that is not a variable")
        body = rebuild(self.expression(40), lambda item: self.indexed(item, bound.name))
        taken = {name for item in walk(body) for name in re.findall(r"[A-Za-z]+", item.name)}
        if bound.name != "k" and "k" not in taken:  # the letter of the index does not matter
            body, bound = rename(body, {bound.name: "k"}), sym("k")
        return node("fold", body, bound, self.script(first), upper, name=name)

    def indexed(self, item: Expr, index: str) -> Expr:
        """The index of a sum inside its terms: ``i`` as a variable, ``a_i`` as a function of it."""
        if item.op == "const" and item.name == index:
            return sym(index)
        base, mark, subscript = item.name.partition("_")
        if item.op != "sym" or not mark or index not in re.findall(r"[A-Za-z]+", subscript):
            return item
        place = rebuild(self.script(subscript), lambda part: sym(index) if part.name == index else part)
        return node("app", place, name=base)

    def call(self, name: str) -> Expr:
        """A known function: its base, exponent and arguments, ``\\log_2^2 x`` or ``sin(x)``."""
        base = self.script(self.next().text) if self.peek().kind == "sub" else None
        exponent: Expr | None = None
        if self.peek() == Token("op", "^"):
            self.position += 1
            exponent = self.argument(whole_number=True)
        if base is None and self.peek().kind == "sub":
            base = self.script(self.next().text)
        if name == "sqrt":
            result = self.root()
        else:
            arguments = self.call_arguments()
            result = _known_call(name, base, arguments)
        if exponent is None:
            return result
        inverse = exponent == num(-1) or (exponent.op == "mul" and exponent.args == (num(-1), num(1)))
        if inverse and name in ("sin", "cos", "tan", "cot", "sinh", "cosh", "tanh"):
            return node("call", *result.args, name=f"arc{name}")
        return power(result, exponent)

    def call_arguments(self) -> tuple[Expr, ...]:
        """What is in the brackets after a function, or the product that follows: ``\\sin 2x``."""
        token = self.peek()
        if token.kind == "open" and token.text in ("(", "[", "{", "\\{"):
            self.position += 1
            inner = self.inside(token.text, CLOSING[token.text])
            return inner.args if inner.op == "seq" else (inner,)
        self.enter()
        factors = [self.expression(41)]
        while self.starts_operand(self.peek()) and self.peek().kind not in ("func", "open", "begin", "named"):
            factors.append(self.expression(41))
        self.level -= 1
        return (factors[0],) if len(factors) == 1 else (node("mul", *factors),)

    def skip_unit(self) -> None:
        """Skip words after an operand with their powers and quotients: ``cm^2``, ``m/s``, ``miles per hour``."""
        while self.peek().kind == "text" and self.peek().text.lower() not in words.CLAUSES:
            self.position += 1
            if self.peek() == Token("op", "^"):
                self.position += 1
                self.argument(whole_number=True)
            if self.peek().kind == "sub":
                self.position += 1
            if self.peek().kind == "op" and self.peek().text in ("/", "*", "-") and self.peek(1).kind == "text":
                self.position += 1


def in_base(numeral: str, subscript: str) -> Expr:
    """A numeral with the base that its subscript names: ``1011_2``, ``1011_{two}``, ``1011_{(2)}``."""
    base = subscript.lower().strip("()").removeprefix("base")
    base = str(words.NUMBER_WORDS.index(base)) if base in words.NUMBER_WORDS else base
    if not base.isdigit() or len(base) > 2:
        raise UnreadableError("number with a subscript that is not a base")
    return node("base", num(int(base)), name=numeral.lstrip("0") or "0")


def _known_call(name: str, base: Expr | None, arguments: tuple[Expr, ...]) -> Expr:
    if name == "log" and base is None and len(arguments) == 2:
        return node("call", arguments[0], arguments[1], name="log")
    if name == "log" and base is not None:
        return node("call", *arguments, base, name="log")
    if name == "lg":
        return node("call", *arguments, num(10), name="log")
    if name == "exp":
        return power(Expr("const", name="e"), arguments[0])
    if name == "cbrt":
        return node("call", arguments[0], num(3), name="root")
    if name == "cis":
        cosine, sine = (node("call", *arguments, name=part) for part in ("cos", "sin"))
        return add(cosine, node("mul", Expr("const", name="i"), sine))
    return node("call", *arguments, name=name)


def _derivative(top: Expr, bottom: Expr) -> Expr | None:
    """``\\frac{dv}{dt}`` is a name, the same as ``v'``; ``\\frac{d^2v}{dt^2}`` is ``v''``."""
    if top.op != "mul" or bottom.op != "mul" or len(top.args) != 2 or len(bottom.args) != 2:
        return None
    mark, order = top.args[0], 1
    if mark.op == "pow" and mark.args[1].value is not None and mark.args[1].value in (2, 3):
        order, mark = int(mark.args[1].value), mark.args[0]
    if mark != sym("d") or bottom.args[0] != sym("d") or top.args[1].op not in ("sym", "app"):
        return None
    return sym(top.args[1].name + "'" * order)
