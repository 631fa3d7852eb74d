"""Find the answer a completion commits to."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from dftune.evaluate.answers.lexer import balanced
from dftune.evaluate.answers.vocabulary import names

_TAIL_CHARS = 20_000
"""Phrases and last lines are looked for in this much of the end of a completion; boxes and tags anywhere."""
_MAX_BOXES = 50


@dataclass(frozen=True)
class Extraction:
    """``answer`` as written, and the name of the ``rule`` that found it."""

    answer: str
    rule: str


_END_OF_TURN = re.compile(
    r"<\|(?:im_end|eot_id|endoftext|end_of_text|end|im_start)\|>|<\|im_start\|>|</s>|<end_of_turn>"
)
_BOX = re.compile(r"(?:\\?(?:begin)?boxed|\x08oxed|\\fbox|\\framebox)\s*(?=\{)|\\boxed\s*(?=[^\s{A-Za-z])")
_BARE_BOX = re.compile(r"\$?\\?[-+\w.,/]+")
_TAG = re.compile(r"<answer>\s*(.*?)\s*(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_HEADING = re.compile(r"[\s*]*(?:step|part|case|solution|conclusion|summary|final|answer|verif|check)", re.IGNORECASE)
_PHRASE = re.compile(
    r"(?:final\s+answer|\banswers?|correct\s+(?:option|choice|answer)|答案|the\s+solution\s+set)"
    r"(?:\s+(?:to|for|of)\s+[^.\n:]{1,60}?)?[\s*_]*"
    r"(?:(?:is|are|was|be|should\s+be|must\s+be|would\s+be|will\s+be|equals|是|为)(?![A-Za-z])\s*[:：]?|[:：=]|(?=\$|\\\[|\\\())[\s*_]*"
    r"|^[ \t*]*A:[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_FINAL = re.compile(r"final\s+answer", re.IGNORECASE)
_DISPLAY = re.compile(r"\$\$.{0,2000}?\$\$|\\\[.{0,2000}?\\\]|\\begin\{(\w{1,20}\*?)\}.{0,2000}?\\end\{\1\}", re.DOTALL)
_CHOICE = re.compile(r"\W{0,4}([A-J])\W{0,3}(?:$|[.,:;)]\s*\D|\s+(?:because|since|as|it|is|which|for|so)\b)")
_CHOSEN = re.compile(r"\b(?i:choose|select|pick|option|choice|go\s+with)\s*:?\s*\(?([A-J])\)?(?=[\s.,]|$)")
_RIGHT = re.compile(
    r"(?:^|[\s,])(?:option\s+|choice\s+)?\(([A-J])\)\s+is\s+(?:the\s+)?(?:right|correct|best)\b", re.IGNORECASE
)
_AFFIRMED = re.compile(r"\W{0,3}(yes|no|true|false)\W{0,2}(?:$|[,.;:!](?:\s|$))", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<![A-Z]\.[A-Z])(?<=[^\s.])[.!?。](?=\s+[A-Z<*\\$]|\s*$)")
_FILLER = re.compile(r"\s*I hope (?:it|this) is correct\.?\s*|\s*Hope (?:it|this) helps[.!]*\s*", re.IGNORECASE)
_COPULA = re.compile(
    r"\b(?:is|are|equals|was|be|get|gives|obtain|have|has|it's|be|were)\b(?:\s+(?:equal\s+to|exactly|just|only|simply|about|approximately|therefore|thus|then))*\s*:?\s+",
    re.IGNORECASE,
)
_MATH = re.compile(
    r"\$\$(?P<a>.{1,2000}?)\$\$|\$(?P<b>(?!\d[\d,.]*\s(?!\$))[^$]{1,2000}?)\$(?!\d)"
    r"|\\\((?P<c>.{1,2000}?)\\\)|\\\[(?P<d>.{1,2000}?)\\\]",
    re.DOTALL,
)
_BOLD = re.compile(r"\*\*([^*\n]{0,200}[\d$\\][^*\n]{0,200}(?<!:))\*\*")
_NOT_BUT = re.compile(r"not\b.{0,200}\bbut(?:\s+rather)?\s+", re.IGNORECASE)
_CONTRAST = re.compile(r",\s+(?:and\s+)?not\s[^,]{1,100}$")
_LIST_GLUE = re.compile(r"\s*(?:,|;|and|or|,\s*and|,\s*or)\s*", re.IGNORECASE)
_NUMBER = re.compile(
    r"\d{1,3}:\d{1,3}(?:\s*[ap]\.?m\b\.?)?"
    r"|-?(?:[$€£]\s?)?-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?(?:\s*/\s*\d+)?\s*(?:\\?%|percent\b|°)?"
)
_LEADING_NUMBER = re.compile(r"-?\\?[$€£]?\s?-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+)?(?:\s*\\?%)?(?=[\s.,;]|$)")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_LATEX_TEXT = re.compile(r"\\(?:text|mbox|textbf|mathrm|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+")
_NOT_PROSE = names("sqrt sin cos tan log ln exp pi percent and or infinity inf degrees theta alpha beta gcd")
_BETWEEN_BOXES = re.compile(
    r"(?:[A-Za-z]+\s*){0,3}?(?P<glue>,?\s*\band\b|,?\s*\bor\b|[,;&])\s*(?:[A-Za-z](?:_?\{?\w\}?)?\s*=\s*)?"
)
_MARKUP = re.compile(r"\\(?:text|mbox|textbf|mathrm)(?![A-Za-z])|\\q?quad(?![A-Za-z])|\\[()\[\],;! ]|[{}$]")


def extract(completion: str, *, strict: bool = False) -> Extraction | None:
    """The last committed answer of a completion, or None.

    Rules are tried in order; the first that finds something wins: ``box``, ``tag``, and, unless ``strict``, ``hash``,
    ``phrase``, ``line``, ``number``. What stands before the last ``</think>`` counts only if nothing follows it.

    Args:
        completion: what the model wrote, of any length.
        strict: accept a box or an answer tag only.
    """
    if "<" in completion:
        completion = _first_turn(completion)
        before, mark, after = completion.rpartition("</think>")
        if mark:
            return _by_rules(after, strict) or _by_rules(before, strict)
    return _by_rules(completion, strict)


def _first_turn(completion: str) -> str:
    """Text up to the first end-of-turn mark that follows some text."""
    for found in _END_OF_TURN.finditer(completion):
        if completion[: found.start()].strip():
            return completion[: found.start()]
    return completion


def _by_rules(text: str, strict: bool) -> Extraction | None:
    for name, rule in _RULES[: 2 if strict else None]:
        answer = rule(text, strict)
        if answer is not None and answer.strip():
            return Extraction(answer.strip(), name)
    return None


def _box(text: str, strict: bool) -> str | None:
    """The last box with something in it, with the boxes it is listed with: ``\\boxed{1}`` and ``\\boxed{2}``."""
    found = []
    for start, inside in reversed(_box_starts(text)):
        content, after = _box_content(text, inside)
        if strict and after is None:
            continue
        if content.strip():
            found.append((start, len(text) if after is None else after, content))
        if len(found) == _MAX_BOXES:
            break
    if not found:
        return None
    first, _, answer = found[0]
    for start, after_box, content in found[1:]:
        glue = _glue(text[after_box:first]) if after_box <= first else None
        if glue is None:
            break
        answer = f"{content} {glue} {answer}"
        first = start
    return answer


def _box_starts(text: str) -> list[tuple[int, int]]:
    """Start and end of the last box commands; the search goes back from the end in growing steps."""
    size = 4_096
    while True:
        offset = max(0, len(text) - size)
        found = [(m.start() + offset, m.end() + offset) for m in _BOX.finditer(text[offset:])]
        if len(found) > _MAX_BOXES or offset == 0 or (found and size > 60_000):
            return found[-_MAX_BOXES:]
        size *= 4


def _box_content(text: str, end: int) -> tuple[str, int | None]:
    """The inside of a box and the position after it; the rest of the line, and None, if it is never closed."""
    if end < len(text) and text[end] != "{":
        bare = _BARE_BOX.match(text, end)
        return (bare.group(), bare.end()) if bare else ("", end)
    inner, after = balanced(text, end)
    if text[after - 1] == "}" and len(inner) == after - end - 2:
        return inner, after
    line = inner.split("\n", 1)[0]
    return re.sub(r"\$+\s*\.?$|\\[)\]]\s*\.?$", "", line.strip()), None


def _glue(between: str) -> str | None:
    if len(between) > 60 or "\n\n" in between:
        return None
    found = _BETWEEN_BOXES.fullmatch(_MARKUP.sub(" ", between).strip())
    if found is None:
        return None
    return "or" if "or" in found.group("glue") else ","


def _tag(text: str, strict: bool) -> str | None:
    start = text.lower().rfind("<answer>")
    if start < 0:
        return None
    found = _TAG.match(text, start)
    if found is None or (strict and not text[: found.end()].lower().endswith("</answer>")):
        return None
    return found.group(1)


def _hash(text: str, strict: bool) -> str | None:
    """What follows ``####``, unless that is the heading of a section."""
    _, mark, rest = text[-_TAIL_CHARS:].rpartition("####")
    line, _, below = rest.strip().partition("\n")
    is_heading = below.strip() and (_HEADING.match(line) or _prose_words(line) > 2)
    return line if mark and not is_heading else None


def _phrase(text: str, strict: bool) -> str | None:
    """What follows the last "the answer is", "Final answer:", "A:"; the last that something follows."""
    text = _one_line_displays(text[-_TAIL_CHARS:])
    for found in reversed(list(_PHRASE.finditer(text))):
        rest = text[found.end() :].lstrip()
        line = _FILLER.sub(" ", rest.split("\n", 1)[0]).strip()
        answer = _from_statement(line)
        if answer:
            return answer
    return None


def _line(text: str, strict: bool) -> str | None:
    """The last line: as a whole when it is a bare answer, else the formula or value it states."""
    lines = [line.strip() for line in _one_line_displays(text[-_TAIL_CHARS:]).strip().split("\n") if line.strip()]
    while lines:
        line = _FILLER.sub(" ", lines[-1]).strip()
        if line and not re.fullmatch(r"[-*_=#`~\s]+", line):
            break
        lines.pop()
    if not lines:
        return None
    choice = _CHOICE.match(line) or _CHOSEN.search(line) or _RIGHT.search(line)
    if choice and choice.end() > 1:
        return choice.group(1)
    bold = _BOLD.findall(line)
    if bold and _prose_words(bold[-1]) <= 2:
        return str(bold[-1]).strip()
    num_words = _prose_words(line)
    formulas = list(_MATH.finditer(line))
    if 0 < num_words <= 2 and formulas and not re.search(r"\d", _MATH.sub(" ", line)):  # Thus, $2^6 = 64$.
        return _joined_formulas(line, formulas)
    if num_words <= 2 and len(line) < 10_000:
        return (_stated(line) if num_words and _COPULA.search(line) else None) or _undecorated(line)
    affirmed = _AFFIRMED.match(line)
    if affirmed:
        return affirmed.group(1)
    sentences = [part.strip() for part in _split_sentences(line) if part.strip()]
    for sentence in reversed(sentences):
        answer = _stated(sentence)
        if answer is not None:
            return answer
    return None


def _number(text: str, strict: bool) -> str | None:
    found = _NUMBER.findall(text[-_TAIL_CHARS:])
    return found[-1].strip().rstrip(",") if found else None


def _one_line_displays(text: str) -> str:
    return _DISPLAY.sub(lambda found: found.group().replace("\n", " "), text)


def _split_sentences(line: str) -> list[str]:
    ends = [found.end() for found in _SENTENCE_END.finditer(line) if not _inside_math(line, found.start())]
    return [line[start:end] for start, end in zip([0, *ends], [*ends, len(line)], strict=True)]


def _inside_math(line: str, position: int) -> bool:
    before = line[:position]
    if before.count("\\(") > before.count("\\)") or before.count("\\[") > before.count("\\]"):
        return True
    return any(found.start() < position < found.end() - 1 for found in _MATH.finditer(line))


def _undecorated(text: str) -> str:
    text = text.strip().strip("*_`\"' ").strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip("*_`\"' ")
    return re.sub(
        r"^(?:[-•]\s+|[=≈>~]+\s*|[→⇒]\s*|\d{1,2}[.)]\s+(?=[A-Za-z])|\\?(?:Rightarrow|therefore)\s*)", "", text
    )


def _prose_words(text: str) -> int:
    return sum(word.lower() not in _NOT_PROSE for word in _WORD.findall(_LATEX_TEXT.sub(" ", text)))


def _from_statement(line: str) -> str | None:
    """The answer in what follows a phrase."""
    line = _NOT_BUT.sub("", line, count=1) if line[:3].lower() == "not" else _CONTRAST.sub("", line)
    choice = _CHOICE.match(line) or _AFFIRMED.match(line)
    if choice:
        return choice.group(1)
    sentence = _undecorated(_split_sentences(line)[0])
    if _prose_words(sentence) <= 5 and not sentence.lower().startswith(("the ", "that ", "we ", "there ")):
        return sentence
    return _stated(sentence) or sentence


def _stated(sentence: str) -> str | None:
    """The value a sentence of prose states: after its last "is", its last formula, its last number."""
    copulas = list(_COPULA.finditer(sentence))
    rest = ""
    if copulas:
        rest = _undecorated(sentence[copulas[-1].end() :].rstrip(" .!"))
        choice = _CHOICE.match(rest)
        if choice and len(rest) <= 3:
            return choice.group(1)
        leading = _LEADING_NUMBER.match(rest)
        if leading and _prose_words(rest) > 2:
            return leading.group()
        derived = len(_MATH.findall(rest)) > 1 and _prose_words(rest) > 0  # $x^2=4$ and since $x>0$, $x=2$
        if rest and not derived and _prose_words(rest) <= 2 and (re.search(r"\d|\\|\$", rest) or len(rest) <= 3):
            return rest
    formulas = list(_MATH.finditer(sentence))
    if formulas:
        return _joined_formulas(sentence, formulas)
    numbers = _NUMBER.findall(sentence)
    if numbers:
        return str(numbers[-1]).strip().rstrip(",")
    return rest if copulas and 0 < _prose_words(rest) <= 2 else None


def _joined_formulas(sentence: str, formulas: list[re.Match[str]]) -> str:
    """The last formula, with those it is listed with: ``$3$, $5$ and $7$``."""
    parts = [_formula(formulas[-1])]
    for before, after in zip(reversed(formulas[:-1]), reversed(formulas[1:]), strict=True):
        glue = sentence[before.end() : after.start()]
        if not _LIST_GLUE.fullmatch(glue):
            break
        parts.append(" or " if "or" in glue else ", ")
        parts.append(_formula(before))
    return "".join(reversed(parts))


def _formula(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group is not None).strip()


_RULES: tuple[tuple[str, Callable[[str, bool], str | None]], ...] = (
    ("box", _box),
    ("tag", _tag),
    ("hash", _hash),
    ("phrase", _phrase),
    ("line", _line),
    ("number", _number),
)
RULE_NAMES = tuple(name for name, _ in _RULES)
