"""Bring the many ways of typing the same formula into one: Unicode, spacing commands, delimiters, separators."""

from __future__ import annotations

import re
import unicodedata

_SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣʸᵃᵇᵏᵐᵗ", "0123456789+-=()nixyabkmt", strict=True))
_SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓₙₖₘᵢⱼ", "0123456789+-=()aeoxnkmij", strict=True))
_VULGAR = {
    char: unicodedata.normalize("NFKC", char).split("⁄")
    for char in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"
}  # fmt: skip
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ϵ": "epsilon", "ζ": "zeta", "η": "eta",
    "θ": "theta", "ϑ": "theta", "κ": "kappa", "λ": "lambda", "μ": "mu", "µ": "mu", "ν": "nu", "ξ": "xi", "π": "pi",
    "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "ϕ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega",
    "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi",
    "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_CHARS = {
    **{char: f"\\{name} " for char, name in _GREEK.items()},
    **dict.fromkeys("−–—‐‑‒﹣－", "-"), **dict.fromkeys("⋅·∙•", "\\cdot "), **dict.fromkeys("“”„«»", '"'),
    **dict.fromkeys("‘’′", "'"), "″": "''", "×": "\\times ", "✕": "\\times ", "÷": "\\div ", "∕": "/", "⁄": "/",
    "≤": "\\le ", "⩽": "\\le ", "≦": "\\le ", "≥": "\\ge ", "⩾": "\\ge ", "≧": "\\ge ", "≠": "\\ne ",
    "≈": "\\approx ", "≅": "\\approx ", "≡": "\\equiv ", "∞": "\\infty ", "√": "\\sqrt ", "∛": "\\cbrt ",
    "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∉": "\\notin ", "∖": "\\setminus ", "∅": "\\emptyset ",
    "°": "\\degree ", "º": "\\degree ", "±": "\\pm ", "∓": "\\mp ", "…": "\\ldots ", "⋯": "\\ldots ",
    "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "⟨": "\\langle ", "⟩": "\\rangle ",
    "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}", "ℂ": "\\mathbb{C}",
    "→": "\\to ", "⇒": "\\Rightarrow ", "∨": "\\lor ", "∧": "\\land ", "∣": "|", "∶": ":", "∑": "\\sum ",
    "∏": "\\prod ", "∠": "\\angle ", "，": ",", "。": ".", "；": ";", "、": ",", "€": "\\$", "£": "\\$", "¥": "\\$",
    "\u00a0": " ", "\u3000": " ", "¬": "", "🌟": "", "％": "%",
}  # fmt: skip

_INVISIBLE = re.compile(
    "[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe0f\ufeff"
    "\ud800-\udfff]"
)  # fmt: skip
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_SUPER_RUN = re.compile(f"[{''.join(_SUPER)}]+")
_SUB_RUN = re.compile(f"[{''.join(_SUB)}]+")
_VULGAR_CHAR = re.compile(f"[{''.join(_VULGAR)}]")

_RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:d|t|c|s|nice|x)frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:d|t)binom(?![A-Za-z])", r"\\binom"),
        # \left. and \right. are invisible delimiters; other \left, \right, \big only size what follows
        (r"\\(?:left|right)\s*\.", " "),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits)(?![A-Za-z])", ""),
        (r"\\(?:hspace|vspace|tag|label|phantom|hphantom|vphantom|color|textcolor)\*?\s*\{[^{}]*\}", " "),
        # separators of thousands: 10{,}000  10,\!080  11,\! 111  1\,234  1\ 234
        (r"(?<=\d)\{,\}(?=\d{3})", ""),
        (r"\{([:,])\}", r"\1"),
        (r"(?<=\d),\s*\\!\s*(?=\d{3}(?!\d))", ""),
        (r"(?<=\d)\\[,;:! ]\s*(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\[,;:!>]|\\(?:thinspace|medspace|enspace|negthinspace|nobreak|noindent)(?![A-Za-z])|~", " "),
        (r"(?<!\\)\\ ", " "),
        (r"\\q?quad(?![A-Za-z])", " \\\\quad "),
        (r"\\([%#&_])", r"\1"),
        (r"\\?\$", " "),
        (r"(?<!\\)\\[()\[\]]", " "),
        (r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![A-Za-z])|\{\s*o\s*\})", r"\\degree "),
        (r"\^\s*\{?\s*(?:\\degree)\s*\}?", r"\\degree "),
        (r"\\degree\s*(?:\\(?:mathrm|text)\s*\{\s*)?[CF](?![A-Za-z])\s*\}?", r"\\degree "),
        (r"(\d)\s*[xX]\s*(?=10\s*\^|10\*\*)", r"\1\\times "),
        (r"\*\*", "^"),
        (r"\b(?:np|numpy|math|sympy|sp|cmath)\.(?=[a-z])", ""),
        (r"<=|=<", r"\\le "),
        (r">=", r"\\ge "),
        (r"(?<=\s)!=", r"\\ne "),
        (r"\.\.\.+|\\(?:cdots|dots|ldots|dotsc|dotsb|dotsm|hdots)(?![A-Za-z])", r"\\ldots "),
        (r":=", "="),
    )
]  # fmt: skip


def clean(text: str) -> str:
    """Rewrite ``text`` in the ASCII LaTeX that the lexer reads.

    Nothing of mathematical meaning is dropped: only delimiters, sizes, spaces, currency signs, and characters that
    have no place in text (NUL, lone surrogates, direction marks).
    """
    text = _INVISIBLE.sub("", text)
    if _NOT_ASCII.search(text):
        text = _from_unicode(text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return strip_ends(text)


def strip_ends(text: str) -> str:
    """Drop punctuation, spaces and line breaks around an answer; a leading decimal point stays."""
    text = text.strip()
    while text and text[-1] in ".,;:\\" and not text.endswith("\\ldots"):
        text = text[:-1].rstrip()
    while text and (text[0] in ",;:" or (text[0] == "." and not text[1:2].isdigit() and text[1:2] != "\\")):
        text = text[1:].lstrip()
    return text


def _from_unicode(text: str) -> str:
    text = _VULGAR_CHAR.sub(lambda found: "\\frac{{{}}}{{{}}}".format(*_VULGAR[found.group()]), text)
    text = _SUPER_RUN.sub(lambda found: "^{" + "".join(_SUPER[char] for char in found.group()) + "}", text)
    text = _SUB_RUN.sub(lambda found: "_{" + "".join(_SUB[char] for char in found.group()) + "}", text)
    return _NOT_ASCII.sub(lambda found: _one_char(found.group()), text)


def _one_char(char: str) -> str:
    if char in _CHARS:
        return _CHARS[char]
    folded = unicodedata.normalize("NFKC", char)
    if folded == char:
        return char
    return "".join(_CHARS.get(part, part) for part in folded)
