"""What of a problem's text counts when two texts are compared: words, numbers and operators, not notation."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_DIAGRAM = re.compile(r"\[asy\].*?\[/asy\]|\\begin\{asy\}.*?\\end\{asy\}", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[^}]*\}")
_SHORT_FRACTION = re.compile(r"\\[dtc]?frac\s*(\d)\s*(\d)")
_THOUSANDS = re.compile(r"(?<![\d,])\d{1,3}(?:(?:,|\{,\}|\\[,!:;]| ,)(?:\\!)?\s?\d{3})+(?!\d)")
_LAYOUT = re.compile(
    r"\\(?:left|right|bigl?|bigr?|displaystyle|textstyle|limits|quad|qquad|text(?:bf|it|rm|up|sc)?|math(?:rm|bf|it|sf|bb|cal)"
    r"|mbox|hbox|operatorname|rm|bf|it|item|dotsc?|dotsm|dotsb|cdots|ldots|vdots|ddots|hspace|vspace|nonumber|boldsymbol"
    r"|underline|noindent|circ)(?![a-z])"
)
# What data sets put around a problem: a request for the manner of the answer, a heading.
_AROUND = re.compile(
    r"(?:^|(?<=[.?!:\n]))[^.?!:\n]*(?:step[- ]by[- ]step|\\boxed|following (?:math |maths |mathematics )?problem)"
    r"[^.?!:\n]*(?:[.?!:\n]|$)"
    r"|^\s*(?:problem|question|example|exercise)\s*\d*\s*[.:)]"
    r"|^\s*\(?(?:(?:\d{4} )?(?:aime|amc|ahsme|hmmt|usamo|imo)\b[^.)\n]{0,30})\)?[.:)]?\s",
    re.MULTILINE,
)
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|[^\W\d_]+|[+*/=<>%|!-]")

# fmt: off
_UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
          "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS_NAMES = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on
_TENS = {name: 10 * tens for tens, name in enumerate(_TENS_NAMES, 2)}
_SMALL = {name: value for value, name in enumerate(_UNITS)} | _TENS
_LARGE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_SAME = {
    **{"leq": "<", "le": "<", "geq": ">", "ge": ">", "times": "*", "cdot": "*", "dfrac": "frac", "tfrac": "frac"},
    **{"cfrac": "frac", "neq": "ne", "percent": "%", "degrees": "degree", "varphi": "phi", "varepsilon": "epsilon"},
}

# Words that carry the grammar of a question and not its content.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an the of to in on at by for from with and or as is are was were be been has have had do does did that
        which who this these those it its they them their there then than if so such when while where what how many
        much each every all any some he she his her him will would can could may might must shall let given suppose
        find compute determine calculate evaluate value values express answer your you write simplify simplest form
        following please give enter we us our i my me possible result resulting across over into one""",
    )
)


def tokens(text: str) -> tuple[str, ...]:
    """The words, numbers and operators of a problem, in order.

    Headings and requests for the manner of the answer (``step by step``, ``boxed``) around a problem, case, markup,
    layout commands, brackets, commas, sub- and superscript marks and diagrams fall away; ``\\frac12`` and
    ``\\dfrac{1}{2}``, ``1,000`` and ``1000``, ``twenty-five`` and ``25`` come out alike.
    """
    text = unicodedata.normalize("NFKC", _DIAGRAM.sub(" ", text)).lower()
    bare = _AROUND.sub(" ", _AROUND.sub(" ", text))  # twice: a heading can follow a heading
    text = bare if len(bare.split()) >= 3 else text
    text = _SHORT_FRACTION.sub(r" frac \1 \2 ", _ENVIRONMENT.sub(" ", text))
    text = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    text = re.sub(r"\\not\s*=", " ne ", _LAYOUT.sub(" ", text))
    text = re.sub(r"\\[,;:! ]|~", " ", text).replace("−", "-")
    text = re.sub(r"([<>])=|[≤≥]", lambda match: match[1] or ("<" if match[0] == "≤" else ">"), text)
    found = [_SAME.get(token, token) for token in _TOKEN.findall(text)]
    return tuple(_number_words(found))


@lru_cache(maxsize=4096)
def _canonical(number: str) -> str:
    whole, _, decimals = number.partition(".")
    decimals = decimals.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{decimals}" if decimals else "")


def _number_words(found: list[str]) -> list[str]:
    """Numerals written out are put into digits; ``one`` alone is a pronoun as often as a number, and stays."""
    out: list[str] = []
    place = 0
    while place < len(found):
        token = found[place]
        if token[0].isdigit() or token[0] == ".":
            out.append(_canonical(token))
        elif token in _SMALL:
            value, place = _numeral(found, place)
            out.append(str(value) if token != "one" or value != 1 else token)
            continue
        else:
            out.append(token)
        place += 1
    return out


def _numeral(found: list[str], place: int) -> tuple[int, int]:
    """The value of the numeral that starts here, and the place after it."""
    total = part = 0
    last = None
    while place < len(found):
        token = found[place]
        if token in _SMALL and (last is None or last in _LARGE or (last in _TENS and 0 < _SMALL[token] < 10)):
            part += _SMALL[token]
        elif token in _LARGE and last is not None:
            part *= _LARGE[token]
            if _LARGE[token] > 100:
                total, part = total + part, 0
        elif token == "-" and last in _TENS and place + 1 < len(found) and 0 < _SMALL.get(found[place + 1], 0) < 10:
            place += 1
            continue
        else:
            break
        last = token
        place += 1
    return total + part, place


def is_number(token: str) -> bool:
    """Whether a token is a number."""
    return token[0].isdigit() or token[0] == "."


def is_content(token: str) -> bool:
    """Whether a token carries content: a word that is no stop word, and more than a letter of a formula."""
    return token[0].isalpha() and len(token) > 1 and token not in STOP_WORDS


def diagram_numbers(text: str) -> frozenset[str]:
    """The numbers in the diagrams of a problem: where a figure holds the data, the words can be the same for two."""
    return frozenset(number for diagram in _DIAGRAM.findall(text) for number in re.findall(r"\d+(?:\.\d+)?", diagram))
