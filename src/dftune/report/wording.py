"""Numbers and names as people read them."""

from __future__ import annotations

import re
import unicodedata

from dftune.evaluate.metrics import Difference

MINUS = "\N{MINUS SIGN}"
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Unicode categories that do something to a screen rather than show something on it."""
_JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}\N{SOFT HYPHEN}"


def visible(text: str) -> str:
    """``text`` with everything that acts on a terminal or on the reading order written out as ``\\x1b`` or ``\\u202e``.

    Line breaks and tabs stay. Lone surrogates, which no file can hold, are written out as well.
    """
    text = text.replace("\r\n", "\n")
    return "".join(char if char in "\n\t" or not _acts(char) else _escaped(char) for char in text)


def _acts(char: str) -> bool:
    return char not in _JOINERS and unicodedata.category(char) in _HIDDEN


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def number(value: float, digits: int = 1) -> str:
    """A number with a true minus sign, and no sign on a rounded zero."""
    shown = f"{value:.{digits}f}"
    if float(shown) == 0:
        shown = shown.lstrip("-")
    return shown.replace("-", MINUS)


def setting(value: float) -> str:
    """A number of a recipe as recipes write it: ``0.5``, ``3e-5``."""
    if not 0 < abs(value) < 0.01:
        return f"{value:g}"
    mantissa, exponent = f"{value:.5e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def percent(share: float) -> str:
    """A share as per cent, without the sign."""
    return number(100 * share)


def signed(share: float) -> str:
    """A difference of shares in points, with its sign."""
    shown = number(100 * share)
    return shown if shown.startswith(MINUS) or float(shown) == 0 else f"+{shown}"


def interval(low: float, high: float) -> str:
    """Both ends in per cent or points."""
    return f"{percent(low)} to {percent(high)}"


def detectable(difference: Difference) -> str:
    """The smallest difference that is found reliably; a dash where none can be, for want of seeds or questions."""
    return percent(difference.detectable) if difference.detectable < 1 else "—"


def doubt(difference: Difference, num_comparisons: int | None = None) -> str:
    """Why a difference is not called one; empty where it is.

    Args:
        difference: corrected for its family.
        num_comparisons: of the family, to be named; None names the correction.
    """
    if difference.sign:
        return ""
    if difference.p >= 0.05 or difference.low <= 0 <= difference.high:
        return "within the noise"
    return "not clear after Holm" if num_comparisons is None else f"not clear among {num_comparisons} comparisons"


def p_value(value: float) -> str:
    """Two digits that matter."""
    return f"{value:.4f}" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def count(value: float) -> str:
    """A whole number with thousands separated."""
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def size(num_bytes: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:.1f} GiB"


def energy(joules: float) -> str:
    """Joules as watt-hours or kilowatt-hours; three digits that matter."""
    hours = joules / 3600
    return f"{hours:.3g} Wh" if hours < 999.5 else f"{hours / 1000:,.1f} kWh"


def plural(amount: int, thing: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{count(amount)} {thing}" if amount == 1 else f"{count(amount)} {thing}s"


def listed(names: list[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def one_line(text: str, limit: int = 200) -> str:
    """``text`` without control characters and line breaks, cut to ``limit`` characters."""
    flat = re.sub(r"\s+", " ", visible(text)).strip()
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"
