"""What language a text is in, as far as its script and its small words tell."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

_MATH = re.compile(r"\$\$.*?\$\$|\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\[A-Za-z]+|\[asy\].*?\[/asy\]", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{2,}")
_SCRIPTS = {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}
_LEAST_WORDS = 4
_LEAST_SHARE = 0.15
ENGLISH, OTHER_LATIN, TOO_SHORT = "English", "Latin script, not English", "too short to tell"
_ENGLISH = frozenset(
    re.findall(
        r"\w+",
        """the of to and in is that for it as with was on be by at this are from or an have not which you we if there
    what how many much find let then than each all when where who can will has had his her their they he she its do does
    into so if would could should over were been no only between given such any some more out up after""",
    )
)


def language(text: str) -> str:
    """English, another script by its name (Cyrillic), Chinese, Japanese, Korean, or that it cannot be told.

    Formulas are left out. A text in Latin letters is English where at least 15 % of its words are the commonest small
    words of English, and too short to tell with fewer than four words.
    """
    words = _WORD.findall(_MATH.sub(" ", text))
    letters = "".join(words)
    if not letters.isascii():
        scripts = Counter(_script(letter) for letter in letters)
        if scripts["Japanese"]:  # written with Han as well
            return "Japanese"
        script = max(scripts, key=lambda name: (scripts[name], name))
        if script != "Latin":
            return script
    if len(words) < _LEAST_WORDS:
        return TOO_SHORT
    share = sum(word.lower() in _ENGLISH for word in words) / len(words)
    return ENGLISH if share >= _LEAST_SHARE else OTHER_LATIN


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "unknown").split()[0]
    return _SCRIPTS.get(name, name.capitalize())
