"""Printed numbers: what was written, and which exact values it can stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

_NUMBER = r"[+\-\N{MINUS SIGN}]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d)\.?)"
_CELL = re.compile(
    rf"(?P<number>{_NUMBER})\s*(?:/\s*(?P<total>\d+))?(?P<unit>\s*%|\s+[a-zA-Z]{{1,9}})?"
    rf"(?:\s*(?:±|\+/-|\\pm)\s*[\d.]+\s*%?)?"
    rf"(?:\s*\(?(?P<gain>[+\-\N{{MINUS SIGN}}↑↓]\s*\d+(?:\.\d+)?)\s*%?\)?)?"
)
_BOLD = re.compile(r"\*\*(?P<stars>.+?)\*\*|__(?P<lines>.+?)__|<(?:b|strong)>(?P<tag>.+?)</|\\textbf\{(?P<tex>.+?)\}")
_MARKUP = re.compile(r"\*\*|__|`|\$|</?(?:b|i|u|strong|em|br|sup|sub)\s*/?>|\\textbf\{|\\underline\{|\}")


@dataclass(frozen=True)
class Interval:
    """The exact values that something printed can stand for, both ends included."""

    low: Fraction
    high: Fraction

    def __sub__(self, other: Interval) -> Interval:
        return Interval(self.low - other.high, self.high - other.low)

    def over(self, other: Interval) -> Interval | None:
        """The quotient; None where the divisor may be 0."""
        if other.low <= 0 <= other.high:
            return None
        ends = [a / b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Interval(min(ends), max(ends))

    def meets(self, other: Interval) -> bool:
        """Whether there is a value in both."""
        return self.low <= other.high and other.low <= self.high


def mean(parts: Iterable[Interval]) -> Interval:
    """The mean of at least one."""
    found = list(parts)
    return Interval(
        sum((part.low for part in found), Fraction()) / len(found),
        sum((part.high for part in found), Fraction()) / len(found),
    )


@dataclass(frozen=True)
class Printed:
    """A number as it was printed.

    Attributes:
        text: without markup.
        value: the number.
        decimals: digits after the point.
        total: of a count such as 142/5000.
        percent: written with a per cent sign.
        gain: a change that stands beside it, as in ``64.9 (+1.2)``.
    """

    text: str
    value: Decimal
    decimals: int
    total: int | None = None
    percent: bool = False
    gain: Printed | None = None

    @property
    def exact(self) -> Fraction:
        """The number as a fraction."""
        return Fraction(self.value)

    @property
    def unit(self) -> Fraction:
        """One in the last digit."""
        return Fraction(1, 10**self.decimals)

    @property
    def interval(self) -> Interval:
        """What rounds to it, half a unit of the last digit to either side."""
        return Interval(self.exact - self.unit / 2, self.exact + self.unit / 2)

    def like(self, value: Fraction, *, signed: bool = False) -> str:
        """Another value with as many decimals, half rounded away from zero."""
        return show(value, self.decimals, signed=signed)


def show(value: Fraction, decimals: int, *, signed: bool = False) -> str:
    """A fraction as a decimal number, half rounded away from zero."""
    units = int(abs(value) * 10**decimals + Fraction(1, 2))
    shown = str(Decimal(units).scaleb(-decimals))
    sign = "-" if value < 0 and units else "+" if signed else ""
    return sign + shown


def number(text: str) -> Printed:
    """A bare number such as ``+15.66``."""
    plain = text.replace("\N{MINUS SIGN}", "-").replace("↑", "+").replace("↓", "-").replace(",", "").replace(" ", "")
    return Printed(text, Decimal(plain), len(plain.partition(".")[2]))


def parse(text: str) -> Printed | None:
    """The number in a cell; None where the cell holds none, or more than a number."""
    shown = strip_markup(text)
    match = _CELL.fullmatch(shown)
    if match is None or not re.search(r"\d", match["number"]):
        return None
    found = number(match["number"])
    return Printed(
        shown,
        found.value,
        found.decimals,
        total=int(match["total"]) if match["total"] else None,
        percent=(match["unit"] or "").strip() == "%",
        gain=number(match["gain"]) if match["gain"] else None,
    )


def strip_markup(text: str) -> str:
    """Text without the marks of bold, italics and code."""
    return _MARKUP.sub("", text).strip().strip("*").strip()


def is_bold(text: str) -> bool:
    """Whether the whole cell is set in bold."""
    match = _BOLD.search(text)
    inner = next((part for part in match.groups() if part), "") if match else ""
    return bool(inner) and strip_markup(inner) == strip_markup(text)
