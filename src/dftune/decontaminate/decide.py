"""Whether a training row and a benchmark row are the same problem, from their texts, numbers and answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property

from dftune.decontaminate.text import diagram_numbers, is_content, is_number, tokens
from dftune.evaluate.answers.judge import compare_answers

SAME_TEXT = "the same text"
SAME_ANSWER = "the same text up to wording, numbers and answer"
PARAPHRASE = "other words, the same numbers and answer"
ADDED = "the same text with something added to one, and no other answer"
OTHER_FORM = "the same text and numbers; another form of the answer is asked for"
NO_ANSWER = "nearly the same text and the same numbers; one has no answer to compare"
WRONG_ANSWER = "the same text but for words without content; the answers differ, so one is wrong"

MEANING = "near in meaning, the same numbers and answer"

OTHER_NUMBERS = "other numbers"
OTHER_TEXT = "other text"
OTHER_ANSWER = "another answer"

_SNIPPET = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_MAX_SNIPPETS = 200


class Problem:
    """A problem as it is compared.

    Attributes:
        text: as written.
        answers: reference answers, any of which is right; empty when not known.
        solution: a worked solution; empty when there is none.
    """

    def __init__(self, text: str, answers: Sequence[str] = (), solution: str = "") -> None:
        self.text, self.answers, self.solution = text, tuple(answers), solution

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Words, numbers and operators, in order."""
        return tokens(self.text)

    @cached_property
    def numbers(self) -> frozenset[str]:
        """The different numbers of the text, those of diagrams left out."""
        return frozenset(token for token in self.tokens if is_number(token))

    @cached_property
    def content(self) -> frozenset[str]:
        """The different words with content."""
        return frozenset(token for token in self.tokens if is_content(token))

    @cached_property
    def diagram(self) -> frozenset[str]:
        """The different numbers in its diagrams."""
        return diagram_numbers(self.text)


@dataclass(frozen=True)
class Decision:
    """The outcome for a pair.

    Attributes:
        same: whether the two are one problem.
        reason: why.
        covered: share of the benchmark's tokens that occur in the training row in the same order.
        covered_train: share of the training row's tokens that occur in the benchmark's, likewise.
        answers_agree: None where one of them has none, or they cannot be compared.
    """

    same: bool
    reason: str
    covered: float
    covered_train: float
    answers_agree: bool | None


def same_problem(train: Problem, benchmark: Problem) -> Decision:
    """Decide on a pair.

    Siblings, the same exercise with other numbers, another word or another question, are not the same problem. Numbers
    that only one text has make it one (but for a whole copy with a remark added and the same answer). Where the numbers
    are the same:

    1. the same tokens: the same (with diagrams of other numbers, the answers decide);
    2. equal answers: the same, when 85 % of both texts agree in order, or 75 % of one and 50 % of the other with two or
       more numbers, or 35 % of the words with four or more numbers (a paraphrase). An answer that many problems share
       (a choice, a word) says little: then 95 % is asked for;
    3. no answers to compare: the same, when 85 % of both agree and next to no word with content is exchanged for
       another, or when one text continues the other;
    4. other answers: the same, when nothing but words without content differs, or when one text asks for the answer in
       another form ("in the form a + b sqrt c, find a + b + c") and contains the other.
    """
    if train.tokens == benchmark.tokens and train.tokens:
        return _identical(train, benchmark)
    if train.numbers == benchmark.numbers:
        return _same_numbers(train, benchmark)
    if train.numbers < benchmark.numbers or benchmark.numbers < train.numbers:
        return _more_numbers(train, benchmark)
    return Decision(False, OTHER_NUMBERS, 0.0, 0.0, None)


def same_meaning(train: Problem, benchmark: Problem) -> Decision:
    """Decide on a pair that an embedding holds for alike: the same two or more numbers, and the same answer."""
    alignment = _Alignment(train.tokens, benchmark.tokens)
    agree = _agree(train, benchmark) if train.numbers == benchmark.numbers else None
    same = bool(agree) and len(train.numbers) >= 2 and not _common(benchmark.answers)
    reason = MEANING if same else OTHER_TEXT
    return Decision(same, reason, alignment.covered, alignment.covered_train, agree)


def _identical(train: Problem, benchmark: Problem) -> Decision:
    agree = _agree(train, benchmark)
    told_apart = bool(train.diagram and benchmark.diagram) and train.diagram != benchmark.diagram and agree is False
    return Decision(not told_apart, OTHER_NUMBERS if told_apart else SAME_TEXT, 1.0, 1.0, agree)


def _more_numbers(train: Problem, benchmark: Problem) -> Decision:
    """One text has all numbers of the other and more: a remark or a heading was added, or it is a sibling."""
    alignment = _Alignment(train.tokens, benchmark.tokens)
    agree = _agree(train, benchmark)
    whole = max(alignment.covered, alignment.covered_train) >= 0.95 and _shorter(train, benchmark) >= 12
    trusted = not _common(benchmark.answers) if agree else agree is None and alignment.is_extension
    same = whole and trusted
    reason = ADDED if same else OTHER_NUMBERS
    return Decision(same, reason, alignment.covered, alignment.covered_train, agree)


class _Alignment:
    """How far the tokens of a training row and of a benchmark row match in order."""

    def __init__(self, train: Sequence[str], benchmark: Sequence[str]) -> None:
        blocks = SequenceMatcher(None, train, benchmark, autojunk=False).get_matching_blocks()
        matched = sum(block.size for block in blocks)
        self.covered, self.covered_train = matched / max(1, len(benchmark)), matched / max(1, len(train))
        self.only_train = _unmatched(train, [(block.a, block.size) for block in blocks])
        self.only_benchmark = _unmatched(benchmark, [(block.b, block.size) for block in blocks])
        self.is_extension = len(blocks) <= 2
        """Whether one text is the other with something before or after it, unbroken; the last block is empty."""

    @property
    def num_exchanged(self) -> int:
        """Words and numbers that stand in one text where others stand in the other."""
        telling = [
            sum(is_content(token) or is_number(token) for token in part)
            for part in (self.only_train, self.only_benchmark)
        ]
        return max(telling)


def _same_numbers(train: Problem, benchmark: Problem) -> Decision:
    alignment = _Alignment(train.tokens, benchmark.tokens)
    agree = _agree(train, benchmark)
    same, reason = _by_answer(train, benchmark, alignment) if agree else _by_text(train, benchmark, alignment, agree)
    return Decision(same, reason, alignment.covered, alignment.covered_train, agree)


def _by_answer(train: Problem, benchmark: Problem, alignment: _Alignment) -> tuple[bool, str]:
    """The numbers and the answers are the same."""
    less, more = sorted((alignment.covered, alignment.covered_train))
    common = _common(benchmark.answers)
    if less >= (0.95 if common else 0.85):
        return True, SAME_ANSWER
    if common:
        return False, OTHER_TEXT
    if len(train.numbers) >= 2 and more >= 0.75 and less >= 0.5:
        return True, SAME_ANSWER
    shared, either = train.content & benchmark.content, train.content | benchmark.content
    if len(train.numbers) >= 4 and len(shared) >= 0.35 * max(1, len(either)):
        return True, PARAPHRASE
    return False, OTHER_TEXT


def _by_text(train: Problem, benchmark: Problem, alignment: _Alignment, agree: bool | None) -> tuple[bool, str]:
    """The numbers are the same, the answers differ (``agree`` is False) or cannot be compared (None)."""
    less, more = sorted((alignment.covered, alignment.covered_train))
    short = _shorter(train, benchmark)
    same_diagram = train.diagram == benchmark.diagram
    if less >= 0.95 and alignment.num_exchanged == 0 and short >= 12 and same_diagram:
        return True, WRONG_ANSWER if agree is False else NO_ANSWER
    if agree is None and len(train.numbers) >= 2:
        as_often = Counter(filter(is_number, train.tokens)) == Counter(filter(is_number, benchmark.tokens))
        if less >= 0.85 and as_often and alignment.num_exchanged <= 0.04 * short:
            return True, NO_ANSWER
        if more >= 0.95 and short >= 12 and alignment.is_extension:
            return True, ADDED
    if more >= 0.9 and len(benchmark.tokens) >= 20 and _other_form(train, benchmark, alignment):
        return True, OTHER_FORM
    return False, OTHER_TEXT if less < 0.85 else OTHER_ANSWER


def _shorter(train: Problem, benchmark: Problem) -> int:
    return min(len(train.tokens), len(benchmark.tokens))


def _unmatched(found: Sequence[str], blocks: Sequence[tuple[int, int]]) -> list[str]:
    matched = {place for start, size in blocks for place in range(start, start + size)}
    return [token for place, token in enumerate(found) if place not in matched]


def _agree(train: Problem, benchmark: Problem) -> bool | None:
    """Whether some answer of one equals some of the other; None where that cannot be told."""
    verdicts = [compare_answers(gold, own).equal for gold in benchmark.answers for own in train.answers]
    return True if any(verdicts) else None if not verdicts or None in verdicts else False


def _common(answers: Sequence[str]) -> bool:
    """Whether the answer is one that unlike problems share: a choice or a word, not a value."""
    bare = (re.sub(r"\\text\w*|[{}$]", "", answer).strip() for answer in answers)
    return any(re.fullmatch(r"[A-Za-z\s().,'-]*", answer) for answer in bare)


def _other_form(train: Problem, benchmark: Problem, alignment: _Alignment) -> bool:
    """Whether one asks for a number made out of the other's answer.

    Either what one text has over the other says so (``where a and b are integers, find a + b``), or the answer of the
    one stands in the solution of the other.
    """
    longer = max(alignment.only_train, alignment.only_benchmark, key=len)
    letters = {token for token in longer if len(token) == 1 and token.isalpha()}
    if "where" in longer and "+" in longer and len(letters) >= 2:
        return True
    return _stands_in(benchmark.answers, train.solution) or _stands_in(train.answers, benchmark.solution)


def _stands_in(answers: Sequence[str], solution: str) -> bool:
    telling = [answer for answer in answers if len(tokens(answer)) >= 3]  # a small number stands everywhere
    if not telling:
        return False
    snippets = [part for match in _SNIPPET.findall(solution) for part in match if part][-_MAX_SNIPPETS:]
    return any(compare_answers(answer, snippet).equal for answer in telling for snippet in snippets)
