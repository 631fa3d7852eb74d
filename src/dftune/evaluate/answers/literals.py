"""Numbers as written: integers, decimals, e-notation, repeating decimals."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

from dftune.evaluate.answers.budget import MAX_LITERAL_DIGITS, UnreadableError
from dftune.evaluate.answers.expr import Expr, num

_REPEATING = re.compile(r"(\d*)\.(\d*)\((\d+)\)")
_SCIENTIFIC = re.compile(r"(\d*)\.?(\d*)(?:[eE]([+-]?\d+))?")


def parse_number(text: str) -> Expr:
    """A ``num`` node, or a ``literal`` node for a number too long to compute with."""
    repeating = _REPEATING.fullmatch(text)
    if repeating:
        return num(_repeating_value(*repeating.groups()))
    found = _SCIENTIFIC.fullmatch(text)
    if found is None:
        raise UnreadableError("unreadable number")
    whole, fraction, exponent = found.group(1), found.group(2), found.group(3) or "0"
    if not whole and not fraction:
        raise UnreadableError("number without digits")
    if len(exponent) > 9 or len(whole) + len(fraction) + abs(int(exponent)) > MAX_LITERAL_DIGITS:
        is_whole = int(exponent) >= len(fraction) if len(exponent) <= 9 else True
        return Expr(
            "literal", name=_canonical(whole, fraction, exponent), digits=0 if is_whole else len(whole + fraction)
        )
    value = Fraction(Decimal(f"{whole or '0'}.{fraction}e{exponent}"))
    is_decimal = "." in text or "e" in text or "E" in text
    return num(value, _significant(whole, fraction) if is_decimal else 0)


def _significant(whole: str, fraction: str) -> int:
    return max(1, len((whole + fraction).lstrip("0")))


def _repeating_value(whole: str, start: str, cycle: str) -> Fraction:
    if len(whole) + len(start) + len(cycle) > 2000:
        raise UnreadableError("repeating decimal too long")
    shift = 10 ** len(start)
    head = int((whole + start) or "0")
    return Fraction(head, shift) + Fraction(int(cycle), shift * (10 ** len(cycle) - 1))


def _canonical(whole: str, fraction: str, exponent: str) -> str:
    """One spelling per value: ``0.dddd e n`` with no zeros at either end."""
    if len(exponent) > 9:
        raise UnreadableError("exponent too long")
    digits = whole + fraction
    stripped = digits.lstrip("0")
    position = len(whole) - (len(digits) - len(stripped)) + int(exponent)
    stripped = stripped.rstrip("0")
    return f"0.{stripped}e{position}" if stripped else "0"
