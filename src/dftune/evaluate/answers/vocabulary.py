"""The commands and words the lexer knows."""

from __future__ import annotations


def names(text: str) -> frozenset[str]:
    """The words of ``text``, as a set."""
    return frozenset(text.split())


OPERATORS = {
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "pm": "±", "mp": "∓", "le": "≤", "leq": "≤", "leqslant": "≤",
    "leqq": "≤", "ge": "≥", "geq": "≥", "geqslant": "≥", "geqq": "≥", "lt": "<", "gt": ">", "ne": "≠", "neq": "≠",
    "approx": "≈", "approxeq": "≈", "simeq": "≈", "cong": "≈", "doteq": "≈", "sim": "∼", "equiv": "≡", "in": "∈",
    "notin": "∉", "subset": "⊂", "subseteq": "⊂", "cup": "∪", "cupdot": "∪", "bigcup": "∪", "sqcup": "∪", "cap": "∩",
    "bigcap": "∩", "setminus": "∖", "smallsetminus": "∖", "backslash": "∖", "mid": "|", "vert": "|", "lvert": "|",
    "rvert": "|", "|": "‖", "Vert": "‖", "lVert": "‖", "rVert": "‖", "to": "→", "rightarrow": "→", "colon": ":",
    "degree": "°", "prime": "'", "lor": "or", "vee": "or", "land": "and", "wedge": "and", "bmod": "mod", "mod": "mod",
    "pmod": "pmod", "choose": "choose", "over": "over", "implies": "⇒", "Rightarrow": "⇒", "Longrightarrow": "⇒",
    "iff": "⇔", "Leftrightarrow": "⇔", "Longleftrightarrow": "⇔", "longrightarrow": "→", "quad": "quad",
    "newline": "\\\\", "perp": "⟂", "parallel": "∥",
}  # fmt: skip

OPENERS = {"lfloor": "⌊", "lceil": "⌈", "langle": "⟨", "lbrace": "\\{", "{": "\\{", "lbrack": "[", "lparen": "("}
CLOSERS = {"rfloor": "⌋", "rceil": "⌉", "rangle": "⟩", "rbrace": "\\}", "}": "\\}", "rbrack": "]", "rparen": ")"}

FUNCTIONS = {
    **{name: name for name in (
        "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth", "arcsin", "arccos", "arctan",
        "arccot", "ln", "log", "exp", "gcd", "lcm", "max", "min", "floor", "ceil", "abs", "sign",
        "factorial", "binomial", "cbrt", "det", "cis", "arcsinh", "arccosh", "arctanh", "Re", "Im", "sqrt")},
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "tg": "tan", "ctg": "cot", "cosec": "csc", "lg": "lg",
    "sgn": "sign", "GCD": "gcd", "LCM": "lcm", "Max": "max", "Min": "min", "ceiling": "ceil", "binom": "binomial",
    "comb": "binomial", "choose": "binomial", "Abs": "abs", "arctg": "arctan", "asinh": "arcsinh", "acosh": "arccosh",
    "atanh": "arctanh", "Log": "log", "Ln": "ln", "Sin": "sin", "Cos": "cos", "Tan": "tan", "Sqrt": "sqrt",
}  # fmt: skip

GREEK = names(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)

# Commands whose argument is read as mathematics, without them.
TRANSPARENT = names(
    "mathbf boldsymbol bm mathcal mathfrak mathit mathsf mathnormal boxed fbox framebox vec overrightarrow underline "
    "ensuremath displaylines mathscr cancel mathop mathord"
)
TEXT_COMMANDS = names("text mbox textbf textrm textit textsf texttt textnormal emph hbox textsc textmd")
ROMAN_COMMANDS = names("mathrm operatorname rm mathtt")
DECORATIONS = {"hat": "hat", "widehat": "hat", "bar": "bar", "overline": "bar", "tilde": "tilde", "widetilde": "tilde"}
IGNORED = names(
    "angle measuredangle triangle square bigtriangleup star bullet checkmark blacksquare bf it cal rm sf tt em "
    "mathstrut hline hfill par small large Large normalsize strut qed because therefore bigstar "
)

CONNECTORS = {
    "and": "and", "or": "or", "percent": "%", "percents": "%", "degrees": "°", "degree": "°", "deg": "°",
    "infinity": "inf", "plus": "+", "minus": "-", "pi": "pi",
    "million": "million", "billion": "billion", "thousand": "thousand", "hundred": "hundred", "trillion": "trillion",
}  # fmt: skip
MAGNITUDES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

# From these words on, the text qualifies the answer and is not part of it.
CLAUSES = names("where for when if with since because as given assuming such which whenever provided")

APPROXIMATIONS = names("≈ approximately approx about roughly around nearly")
SHORT_WORDS = names(
    "cm mm km kg mg ml mL dm ft sq mi lb lbs oz hr hrs min sec mph kph kmh rad the of is are was to at by an yes no "
    "odd all any day days men per cup cups th st nd rd for has not be we he she it its up box boy one two six ten red "
    "dog cat car pie egg let our her his max sum gal pt qt yd yds kWh kW MHz Hz GHz kHz eV keV MeV GeV kJ kPa MPa Pa "
    "mol USD pm am nm if so as do on old new big set via bag bar bus can pen pig cow hen tea win won way sub cc units "
    "pts pcs cts cost tank sine sing sink sins logs logo secs cosy Rs RMB EUR GBP CNY INR"
)

# A lone letter after a number that may be a unit.
UNIT_LETTERS = names("m s g N J W V A K L C F h T l Omega")

NUMBER_WORDS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
