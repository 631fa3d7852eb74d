"""Two answer texts in, one outcome out: reading, the shortcuts that need no algebra, and the comparison."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import localcontext
from functools import lru_cache

from dftune.evaluate.answers.budget import (
    MAX_ANSWER_CHARS,
    Budget,
    BudgetSpentError,
    UndecidedError,
    UndefinedError,
    UnreadableError,
)
from dftune.evaluate.answers.clean import clean, strip_ends
from dftune.evaluate.answers.compare import Comparison
from dftune.evaluate.answers.decimals import context
from dftune.evaluate.answers.expr import Expr, node, num, rename, walk
from dftune.evaluate.answers.lexer import readings
from dftune.evaluate.answers.numeric import HIGH
from dftune.evaluate.answers.parser import parse, signed_set
from dftune.evaluate.answers.renaming import renamings, same_family
from dftune.evaluate.answers.shapes import unlabelled
from dftune.evaluate.answers.vocabulary import NUMBER_WORDS

_INTEGER = re.compile(r"-?\d{1,4000}")
_CHOICE = re.compile(
    r"[\s{(]*(?:(?:option|choice|answer)\s*:?[\s(]*)?([A-Za-z])\s*([)}.:\s]*)(.*)", re.DOTALL | re.IGNORECASE
)
_CHOICE_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox|boldsymbol|bf|rm)(?![A-Za-z])")
_LETTERS = re.compile(r"[A-J]{2,8}")
_LETTER_LIST = re.compile(r"[A-J](?:\s*(?:,|and|\s)\s*[A-J]){1,7}")
_TIME = re.compile(
    r"(\d{1,2})(?::(\d{2})(?::(\d{2}))?|(?=[\s\\text{]*[ap]\.?\s*\\?\s*m))\s*(?:(?:\\text\s*\{)?\s*([ap])\.?\s*\\?\s*m\.?\s*\}?)?",
    re.IGNORECASE,
)
_MARKED = re.compile(r"integer|\\(?:mathbb|mathbf)\s*\{?\s*[ZN]|\\in\s*\\?[ZN]\b|constant|parameter")
_TEXT_MARKUP = re.compile(r"\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf|emph)(?![A-Za-z])|[{}\\$*\"'`.,;:!?()]|~")
_NOT_WORDS = re.compile(r"[\d+*/^=<>_|]")
_NUMERAL_MARKUP = re.compile(r"\\(?:text|mathrm|textbf|mathbf|rm)(?![A-Za-z])|[\s{}()]")
_NUMERAL = re.compile(
    r"(\d[0-9A-Za-z]*(?:\.[0-9A-Za-z]+)?|[A-Z]{2,}[0-9A-Z]*)(?:_(?:base)?|inbase|,?base)(\d{1,2}|[a-z]{3,8})"
)
_RADIANS = re.compile(r"(?<![A-Za-z])rad(?:ian)?s?(?![A-Za-z])", re.IGNORECASE)
_NEGATION = re.compile(r"(?<!\\)\b(?:not|except|excluding|never)\b", re.IGNORECASE)
_ANNOUNCED = re.compile(r"^\s*(?:the\s+)?(?:final\s+)?answer\s+is\s+")
_WORDY = re.compile(r"[^\W\d_]{3,}")
_NAMED = {
    **dict.fromkeys(("no solution", "no solutions", "none", "no real solution", "no real solutions", "empty set",
                     "no values", "no integer solutions", "no such numbers", "there are no solutions"),
                    Expr("named", name="empty")),
    **dict.fromkeys(("all real numbers", "all reals", "real numbers", "all real values"), Expr("named", name="R")),
    **dict.fromkeys(("all positive real numbers", "positive real numbers", "all positive reals", "positive reals"),
                    signed_set("R", "+")),
    **dict.fromkeys(("all negative real numbers", "negative real numbers", "all negative reals", "negative reals"),
                    signed_set("R", "-")),
    **dict.fromkeys(("all nonnegative real numbers", "all non negative real numbers", "nonnegative real numbers",
                     "non negative real numbers"), signed_set("R", "\\ge0")),
    **dict.fromkeys(("infinite", "infinitely many", "infinity", "infinitely many solutions"),
                    Expr("const", name="inf")),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """``equal`` is None when the comparison could not be settled."""

    equal: bool | None
    stage: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """A cleaned answer with its possible syntax trees."""

    text: str
    trees: tuple[Expr, ...]
    error: str


def compare_answers(gold: str, answer: str) -> Outcome:
    """Whether ``answer`` equals ``gold``.

    A mistake of ours must not end a training run that uses the grader as its reward: an unforeseen arithmetic or lookup
    error leaves the one comparison undecided and says so in the reason.
    """
    try:
        return _compare(gold, answer)
    except RecursionError:
        return Outcome(None, "structure", "nested too deeply")
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        return Outcome(None, "error", f"internal error: {type(error).__name__}: {error}")


def _compare(gold: str, answer: str) -> Outcome:
    if len(gold) > MAX_ANSWER_CHARS or len(answer) > MAX_ANSWER_CHARS:
        same = gold.strip() == answer.strip()
        return Outcome(same, "text", "same text" if same else "answer too long to compare")
    mine, theirs = read(gold), read_prediction(answer)
    shortcut = _by_text(mine, theirs)
    if shortcut is not None:
        return shortcut
    if not mine.trees:
        return Outcome(None, "gold", f"the reference answer cannot be read: {mine.error}")
    if not theirs.trees:
        return Outcome(False, "parse", f"the answer cannot be read: {theirs.error}")
    return _by_trees(mine, theirs)


@lru_cache(maxsize=4096)
def _read_cached(text: str) -> Reading:
    return _read(text)


def read(text: str) -> Reading:
    """The reading of a reference answer; remembered, since many completions meet the same one."""
    return _read_cached(text) if len(text) < 2000 else _read(text)


def read_prediction(text: str) -> Reading:
    """The reading of an extracted answer."""
    return _read(text)


def _read(text: str) -> Reading:
    cleaned = clean(text)
    named = _NAMED.get(_word_key(cleaned)) if _WORDY.search(cleaned) else None
    if named is not None:
        return Reading(cleaned, (named,), "")
    if _WORDY.search(cleaned) and (key := _word_key(cleaned)) in NUMBER_WORDS:
        return Reading(cleaned, (num(NUMBER_WORDS.index(key)),), "")
    if _NEGATION.search(cleaned):  # "not 5" is a statement about 5, not 5
        return Reading(cleaned, (Expr("text", name=_squeezed(_TEXT_MARKUP.sub(" ", cleaned))),), "")
    numeral = _numeral(cleaned)
    if numeral is not None and not numeral[0].isdigit():  # with letters for digits
        return Reading(cleaned, (node("base", num(int(numeral[1])), name=numeral[0]),), "")
    trees, error = _parsed(cleaned)
    return Reading(cleaned, trees, error)


def _parsed(cleaned: str) -> tuple[tuple[Expr, ...], str]:
    trees: list[Expr] = []
    error = "it is empty"
    try:
        options = readings(cleaned)
    except UnreadableError as problem:
        return (), str(problem)
    for tokens in options:
        try:
            trees.append(parse(tokens))
        except UnreadableError as problem:
            error = str(problem)
        except RecursionError:
            error = "nested too deeply"
    return tuple(trees), "" if trees else error


def _by_text(gold: Reading, answer: Reading) -> Outcome | None:
    """The cases that are settled without algebra."""
    if not answer.text:
        return Outcome(False, "parse", "the answer is empty")
    if _squeezed(gold.text) == _squeezed(answer.text):
        return Outcome(True, "text", "same text")
    if _INTEGER.fullmatch(gold.text) and _INTEGER.fullmatch(answer.text):
        same = int(gold.text) == int(answer.text)
        return Outcome(same, "value", "same value" if same else "different values")
    choice = _same_choice(gold.text, answer.text)
    if choice is not None:
        return Outcome(choice, "choice", "same choice" if choice else "different choices")
    if _same_letters(gold.text, answer.text):
        return Outcome(True, "choice", "same choices")
    clock = _same_time(gold.text, answer.text)
    if clock is not None:
        return Outcome(clock, "time", "same time" if clock else "different times")
    if _is_clock(gold.text) or _is_clock(answer.text):
        return Outcome(False, "time", "only one is a time")
    numeral, other_numeral = _numeral(gold.text), _numeral(answer.text)
    if numeral is not None and other_numeral is not None:
        same = numeral == other_numeral
        return Outcome(same, "value", "same numeral" if same else "different numerals")
    if _is_words(gold) or _is_words(answer):
        mine, theirs = _word_key(gold.text), _word_key(answer.text)
        letters_only = not _NOT_WORDS.search(gold.text) and not _NOT_WORDS.search(answer.text)
        if mine and letters_only and mine == theirs:
            return Outcome(True, "words", "same words")
    return None


def _by_trees(gold: Reading, answer: Reading) -> Outcome:
    undecided = ""
    stage = "structure"
    budget = Budget()
    for mine in gold.trees:
        for theirs in answer.trees:
            comparison = Comparison(budget, degrees_optional=_RADIANS.search(gold.text + answer.text) is None)
            try:
                with localcontext(context(HIGH)):
                    equal = _same_up_to_names(comparison, mine, theirs, gold.text + " " + answer.text)
                if equal:
                    return Outcome(True, comparison.stage, f"equal by {comparison.stage}")
                stage = comparison.stage
            except UnreadableError as problem:
                return Outcome(False, "parse", f"the answer cannot be read: {problem}")
            except BudgetSpentError:
                undecided = undecided or "operation budget spent"
            except UndecidedError as problem:
                undecided = undecided or str(problem)
            except UndefinedError:
                stage = "value"
            except RecursionError:
                undecided = undecided or "nested too deeply"
    if undecided:
        return Outcome(None, stage, undecided)
    return Outcome(False, stage, "different " + ("values" if stage != "structure" else "answers"))


def _same_up_to_names(comparison: Comparison, gold: Expr, answer: Expr, text: str) -> bool:
    if comparison.same(gold, answer):
        return True
    stage = comparison.stage
    marked = _MARKED.search(text) is not None
    for names in renamings(gold, answer, marked=marked):
        renamed = rename(answer, names)
        if comparison.same(gold, renamed) or (
            marked and same_family(unlabelled(gold), unlabelled(renamed), comparison.budget)
        ):
            return True
    comparison.stage = stage
    return marked and same_family(unlabelled(gold), unlabelled(answer), comparison.budget)


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _same_choice(gold: str, answer: str) -> bool | None:
    """Multiple choice: decided when the reference is a letter, with or without its value; None otherwise."""
    mine, theirs = _choice(gold), _choice(answer)
    if mine is None:
        return None
    letter, value = mine
    if theirs is not None:
        return letter == theirs[0]
    if value and _squeezed(strip_ends(value)) == _squeezed(answer):
        return True
    return None


def _choice(text: str) -> tuple[str, str] | None:
    """``B``, ``(B)``, ``\\text{(B) } 12``, ``B. 12``: the letter and what follows it."""
    if len(text) > 300 or (found := _CHOICE.fullmatch(_CHOICE_MARKUP.sub("", text))) is None:
        return None
    letter, closing, rest = found.groups()
    closing, rest = closing.strip(), rest.strip(" {}()$")
    opened = "(" in found.group()[: found.start(1)]
    if letter.upper() > "J" or (rest and (not closing or rest[0] in "=+-*/^_<>")):
        return None
    if letter.islower() and (rest or not (opened or ")" in closing)):
        return None
    return letter.upper(), rest


def _numeral(text: str) -> tuple[str, str] | None:
    """Digits and base of a numeral such as ``1011_2``, ``\\text{2A}_{16}``, ``(1011)_{two}`` or ``1011 (base 2)``."""
    found = _NUMERAL.fullmatch(_NUMERAL_MARKUP.sub("", text)) if len(text) < 300 else None
    if found is None:
        return None
    digits, base = found.group(1).upper().lstrip("0"), found.group(2).lower()
    base = str(NUMBER_WORDS.index(base)) if base in NUMBER_WORDS else base
    if not base.isdigit() or not 2 <= int(base) <= 36:
        return None
    return (digits, base) if all(char == "." or int(char, 36) < int(base) for char in digits) else None


def _same_letters(gold: str, answer: str) -> bool:
    """``ABC`` and ``A, B, C`` name the same choices."""
    plain = [_CHOICE_MARKUP.sub("", re.sub(r"[{}()]", " ", text)).strip() for text in (gold, answer)]
    for joined, listed in (plain, plain[::-1]):
        if _LETTERS.fullmatch(joined) and _LETTER_LIST.fullmatch(listed):
            return sorted(joined) == sorted(re.findall("[A-J]", listed))
    return False


def _same_time(gold: str, answer: str) -> bool | None:
    """Times of day; the half of the day may be left out. None unless both look like one and say so, or are equal."""
    mine, theirs = _TIME.fullmatch(gold), _TIME.fullmatch(answer)
    if mine is None or theirs is None:
        return None
    half, other_half = (found.group(4).lower() if found.group(4) else "" for found in (mine, theirs))
    same = [int(part or 0) for part in mine.groups()[:3]] == [int(part or 0) for part in theirs.groups()[:3]]
    if same and (half == other_half or not half or not other_half):
        return True
    return False if half or other_half or same else None


def _is_clock(text: str) -> bool:
    """Hours and minutes of a half day: never a ratio, as ``10:05`` may be."""
    found = _TIME.fullmatch(text)
    return found is not None and found.group(2) is not None and found.group(4) is not None


def _is_words(reading: Reading) -> bool:
    return (
        any(tree.op == "text" or any(item.op == "text" for item in walk(tree)) for tree in reading.trees)
        or (not reading.trees and _WORDY.search(reading.text) is not None)
        or any(tree.op == "named" for tree in reading.trees)
    )


def _word_key(text: str) -> str:
    plain = _ANNOUNCED.sub("", _TEXT_MARKUP.sub(" ", text).replace("-", " ").casefold())
    return " ".join(word for word in plain.split() if word not in ("a", "an", "the"))
