"""Cut cleaned answer text into tokens."""

from __future__ import annotations

import re
from typing import NamedTuple

from dftune.evaluate.answers import vocabulary as words
from dftune.evaluate.answers.budget import MAX_TOKENS, UnreadableError


class Token(NamedTuple):
    """``kind`` is num, sym, const, func, op, open, close, sub, text, named, cmd, begin or end."""

    kind: str
    text: str


_NUMBER = (
    r"(?P<repeat>\d*\.\d*(?:\\(?:overline|bar)\s*\{\d+\}|\\dot\s*\{?\d\}?(?:\d*\\dot\s*\{?\d\}?)?)"
    r"|(?<![\d.])0\.\d*\(\d+\)(?!\s*[\d(^]))"
    r"|(?P<running>\d*\.\d{2,}\s*\\ldots)"
    r"|(?P<num>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+(?![\d.]))?)"
)
_REST = (
    r"|(?P<space>\s+)|(?P<command>\\[A-Za-z]+|\\[^A-Za-z])|(?P<letters>[A-Za-z]+|[^\W\d_]+)"
    r"|(?P<op>[-+*/^!%=<>|:;,'&?@\"`#])|(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<sub>_)|(?P<other>.)"
)
_PLAIN = re.compile(_NUMBER + _REST, re.DOTALL)
_GROUPED = re.compile(
    r"(?P<grouped>(?<![\d.])\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?![\d])(?:\.\d+)?)|" + _NUMBER + _REST, re.DOTALL
)
_THOUSANDS = re.compile(r"\d[ ,]\d{3}(?!\d)")
_PAIR = re.compile(r"(?<=[(\[{])\s*-?\d{1,3},\d{3}\s*(?=[)\]\\}])")
_FUNCTION_AND_LETTER = re.compile(r"(sin|cos|tan|cot|sec|csc|ln|log)([a-zA-Z])")
_ENVIRONMENT = re.compile(r"\s*\{([A-Za-z]+)\*?\}")
_COLUMNS = re.compile(r"\s*(?:\[[a-z]\])?\s*\{[\s|clr@{}]*\}")
_ROW_SKIP = re.compile(r"\s*\[-?[\d.]+\s*(?:pt|em|ex|mm|cm)\]")
_SUBSCRIPT = re.compile(r"\s*(?:(\d+)|(\\[A-Za-z]+)|([^\s{\\]))")
_DECOR = re.compile(r"\\(?:text|mathrm|mathbf|operatorname|rm|mbox|textbf)(?![A-Za-z])|[\s{}\\$]")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_VOWEL = re.compile("[aeiouyAEIOUY]")


def readings(text: str) -> list[list[Token]]:
    """Token lists of ``text``: with ``1,234`` as one number, and, where that differs, as a list of two."""
    if _THOUSANDS.search(text) and not _PAIR.search(text):
        return [tokenize(text, grouped=True), tokenize(text, grouped=False)]
    return [tokenize(text, grouped=False)]


def tokenize(text: str, *, grouped: bool) -> list[Token]:
    """Tokens of cleaned text."""
    return _Lexer(text, grouped).run(in_text=False)


def balanced(text: str, start: int) -> tuple[str, int]:
    """The inside of the brace group that opens at ``start``, and the position after it; the rest if unclosed."""
    depth = 0
    for found in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(found.group(), 0)
        if depth == 0:
            return text[start + 1 : found.start()], found.end()
    return text[start + 1 :], len(text)


class _Lexer:
    def __init__(self, text: str, grouped: bool, level: int = 0) -> None:
        if level > 8:
            raise UnreadableError("text commands nested too deeply")
        self.text = text
        self.pattern = _GROUPED if grouped else _PLAIN
        self.grouped = grouped
        self.level = level
        self.tokens: list[Token] = []

    def emit(self, kind: str, text: str) -> None:
        self.tokens.append(Token(kind, text))

    def run(self, *, in_text: bool) -> list[Token]:
        position = 0
        while position < len(self.text):
            found = self.pattern.match(self.text, position)
            if found is None:  # the last alternative takes any character
                raise UnreadableError("unreadable character")
            if len(self.tokens) > MAX_TOKENS:
                raise UnreadableError("too many symbols")
            position = found.end()
            kind = found.lastgroup or "other"
            if kind == "space":
                continue
            if kind == "command":
                position = self.command(found.group()[1:], position)
            elif kind == "letters":
                self.letters(found.group(), position, in_text)
            elif kind == "sub":
                position = self.subscript(position)
            else:
                self.simple(kind, found.group())
        return self.tokens

    def simple(self, kind: str, text: str) -> None:
        if kind in ("num", "open", "close"):
            self.emit(kind, text)
        elif kind == "grouped":
            self.emit("num", text.replace(",", "").replace(" ", ""))
        elif kind == "repeat":
            self.emit("num", _repeating(text))
        elif kind == "running":
            self.emit("num", _running(text))
        elif text == '"':
            return
        elif kind == "op":
            self.emit("op", {"&": "col", ";": ","}.get(text, text))
        elif text == "\\":
            self.emit("op", "∖")
        else:
            self.emit("text", text)

    def letters(self, run: str, position: int, in_text: bool) -> None:
        follows = self.text[position : position + 2].lstrip()[:1]
        lower = run.lower()
        if lower in words.CONNECTORS and (len(run) > 1):
            self.connector(words.CONNECTORS[lower])
        elif run in ("inf", "Inf", "oo"):
            self.emit("const", "inf")
        elif run == "in" and follows and follows in "[({\\":
            self.emit("op", "∈")
        elif run in words.FUNCTIONS and not (run in ("min", "max", "det", "sec", "Min", "Max") and follows != "("):
            self.emit("func", words.FUNCTIONS[run])
        elif in_text:
            self.emit("text", run)
        elif len(run) == 1:
            self.single(run)
        elif run in words.GREEK:
            self.emit("sym", run)
        elif (found := _FUNCTION_AND_LETTER.fullmatch(run)) and run not in words.SHORT_WORDS:
            self.emit("func", found.group(1))
            self.single(found.group(2))
        elif _is_word(run):
            self.emit("text", run)
        else:
            for letter in run:
                self.single(letter)

    def connector(self, meaning: str) -> None:
        kind = "const" if meaning in ("inf", "pi") else "magnitude" if meaning in words.MAGNITUDES else "op"
        self.emit(kind, meaning)

    def single(self, letter: str) -> None:
        self.emit("const" if letter in ("e", "i") else "sym", letter)

    def subscript(self, position: int) -> int:
        raw, position = self.argument(position)
        self.emit("sub", _DECOR.sub("", raw) if "=" not in raw else raw)
        return position

    def argument(self, position: int) -> tuple[str, int]:
        """The raw text of a command's argument: a brace group, a number, a command or one character."""
        while True:
            while position < len(self.text) and self.text[position].isspace():
                position += 1
            if position < len(self.text) and self.text[position] == "{":
                return balanced(self.text, position)
            found = _SUBSCRIPT.match(self.text, position)
            if found is None:
                return "", position
            position = found.end()
            if not found.group(2) or found.group(2)[1:] not in words.TEXT_COMMANDS | words.ROMAN_COMMANDS:
                return found.group().strip(), position

    def nested(self, raw: str, *, in_text: bool) -> None:
        inner = _Lexer(raw, self.grouped, self.level + 1)
        self.tokens.extend(inner.run(in_text=in_text))

    def command(self, name: str, position: int) -> int:
        if name in words.TEXT_COMMANDS:
            raw, position = self.argument(position)
            self.nested(raw, in_text=True)
        elif name in words.ROMAN_COMMANDS:
            raw, position = self.argument(position)
            raw = raw.strip()
            is_unit = raw in words.UNIT_LETTERS and any(token.kind == "num" for token in self.tokens)
            self.nested(raw, in_text=len(raw) > 1 or (is_unit and all(token.kind != "sym" for token in self.tokens)))
        elif name == "mathbb":
            raw, position = self.argument(position)
            self.emit("named", raw.strip())
        elif name in words.DECORATIONS:
            raw, position = self.argument(position)
            raw = _DECOR.sub("", raw)
            if len(raw) > 1:
                self.nested(raw, in_text=False)
            elif raw in ("i", "j", "k") and words.DECORATIONS[name] == "hat":  # unit vectors, as \\mathbf{i}
                self.single(raw)
            else:
                self.emit("sym", f"{words.DECORATIONS[name]}:{raw}")
        elif name in ("dot", "ddot"):
            raw, position = self.argument(position)
            self.nested(raw, in_text=False)
            self.tokens.extend([Token("op", "'")] * (1 if name == "dot" else 2))
        elif name in ("begin", "end"):
            position = self.environment(name, position)
        elif name == "\\":
            skip = _ROW_SKIP.match(self.text, position)
            self.emit("op", "\\\\")
            position = skip.end() if skip else position
        else:
            self.plain_command(name)
        return position

    def environment(self, name: str, position: int) -> int:
        found = _ENVIRONMENT.match(self.text, position)
        if found is None:
            raise UnreadableError("environment without a name")
        position = found.end()
        if name == "begin" and found.group(1) in ("array", "tabular"):
            columns = _COLUMNS.match(self.text, position)
            position = columns.end() if columns else position
        self.emit(name, found.group(1))
        return position

    def plain_command(self, name: str) -> None:  # noqa: PLR0911, PLR0912 - a table of cases
        if name.startswith("var") and name[3:] in words.GREEK:
            name = name[3:]
        if name in words.OPENERS:
            return self.emit("open", words.OPENERS[name])
        if name in words.CLOSERS:
            return self.emit("close", words.CLOSERS[name])
        if name in words.OPERATORS:
            return self.emit("op", words.OPERATORS[name])
        if name in ("pi", "infty"):
            return self.emit("const", "pi" if name == "pi" else "inf")
        if name in ("emptyset", "varnothing"):
            return self.emit("named", "empty")
        if name in ("R", "Z", "N", "Q", "Reals", "reals"):
            return self.emit("named", name[0].upper())
        if name in ("AA", "angstrom", "micro", "ohm"):
            return self.emit("text", name)
        if name == "not":
            return self.emit("op", "not")
        if name == "ldots":
            return self.emit("dots", "…")
        if name in ("frac", "sqrt", "cbrt", "binom", "sum", "prod", "int", "lim"):
            return self.emit("cmd", name)
        if name in words.FUNCTIONS:
            return self.emit("func", words.FUNCTIONS[name])
        if name in words.TRANSPARENT or name in words.IGNORED or not name[0].isalpha():
            return None
        return self.emit("sym", "ell" if name == "l" else name)


def _is_word(run: str) -> bool:
    titled = run[0].isupper() and run[1:].islower()
    if (
        run in words.SHORT_WORDS
        or run.lower() in words.CLAUSES
        or (titled and run.lower() in words.SHORT_WORDS and _VOWEL.search(run))
    ):
        return True
    return len(run) >= (3 if titled else 4) and not run.isupper() and _VOWEL.search(run) is not None


def _repeating(text: str) -> str:
    """``0.1\\overline{6}``, ``0.1\\dot{6}`` and ``0.1(6)`` as ``0.1(6)``."""
    whole, _, fraction = text.partition(".")
    if "dot" in fraction:
        start, _, rest = fraction.partition("\\dot")
        cycle = re.sub(r"\D", "", rest)
    else:
        found = re.fullmatch(r"(\d*)\D+(\d+)\D*", fraction)
        if found is None:
            raise UnreadableError("unreadable repeating decimal")
        start, cycle = found.groups()
    return f"{whole or '0'}.{start}({cycle})"


def _running(text: str) -> str:
    """``0.1666...`` as the repeating decimal it shows; other decimals keep the digits that are there."""
    digits = text.split("\\", maxsplit=1)[0].strip()
    whole, _, fraction = digits.partition(".")
    for length in range(1, 7):
        cycle = fraction[-length:]
        repeats = 3 if length == 1 else 2
        if len(fraction) >= repeats * length and fraction.endswith(cycle * repeats):
            start = fraction
            while start.endswith(cycle):
                start = start[:-length]
            return f"{whole or '0'}.{start}({cycle})"
    return digits
