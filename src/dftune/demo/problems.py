"""The demo's problem set: short arithmetic stories with a chain of thought and a boxed answer.

A problem is a story of two or three steps ("Tom has 7 boxes of 6 pens and gives away 15. How many pens are left?"), its
solution the chain of calculations and the answer:

    7*6=42, 42-15=27. \\boxed{27}

Everything is a function of the seed; nothing is read or downloaded. A story belongs to one split, decided by a hash of
its text, so no seed and no number of problems can carry a test problem into the training data.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dftune.files import fingerprint

SPLITS = {"base": range(70), "train": range(70, 85), "validation": range(85, 90), "test": range(90, 100)}
"""Which hundredths of all stories a split owns: ``base`` trains the base model, the others belong to the demo."""

CORRUPTED_SUFFIX = "-corrupted"
CARRY_SLIP = (10,)
"""Ten too many: one consistent mistake, as of an author who carries one too often. What the demo uses."""
MANY_SLIPS = (-10, -2, -1, 1, 2, 10)
"""Mistakes of many kinds, each of them rare."""

ANSWER_ONLY_SHARES = {2: 0.7, 3: 0.2}
"""What share of ``base_documents`` gives the answer without the calculations, by the number of steps."""

_NAMES = ("Tom", "Ann", "Sam", "Mia", "Ben", "Eva", "Leo", "Zoe", "Max", "Ida", "Kim", "Joe")
_ITEMS = ("pens", "eggs", "books", "coins", "cards", "apples", "stamps", "shells", "marbles", "pears")
_BOXES = ("boxes", "bags", "packs", "jars")
_STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


@dataclass(frozen=True)
class Problem:
    """A problem and a demonstration of how to solve it."""

    id: str
    """Stable: the split and a hash of the text; ends in ``-corrupted`` where the demonstration is wrong."""
    problem: str
    solution: str
    """The chain of calculations and the boxed answer."""
    answer: str
    """What ``solution`` puts in the box: right, unless the demonstration is corrupted."""


@dataclass(frozen=True)
class _Result:
    """An operand that is the result of an earlier step."""

    step: int


@dataclass(frozen=True)
class _Step:
    left: int | _Result
    operator: str
    right: int | _Result


def generate(num: int, *, seed: int, split: str) -> list[Problem]:
    """Make different problems, the first ``n`` of which do not depend on ``num``.

    Args:
        num: how many.
        seed: another seed draws other problems of the same split.
        split: one of ``SPLITS``; problems of different splits never have the same text, whatever the seeds.

    Raises:
        ValueError: the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not known. Use one of {', '.join(SPLITS)}.")
    rng = random.Random(f"{split}:{seed}")
    problems: dict[str, Problem] = {}
    while len(problems) < num:
        story, steps = rng.choice(_STORIES)(rng)
        digest = fingerprint(story)
        results = _calculate(steps)
        assert results is not None, f"a result is not a positive whole number: {story}"
        if int(digest, 16) % 100 in SPLITS[split] and _is_readable(steps, results):
            problems[story] = Problem(f"{split}-{digest}", story, _write(steps, results), str(results[-1]))
    return list(problems.values())


def base_documents(num: int, *, seed: int) -> list[Problem]:
    """What the base model reads: right solutions, of which some show the calculations and some the answer alone.

    Stories of two steps are mostly answered at once (``ANSWER_ONLY_SHARES``), which a small model gets wrong. So the
    base model can calculate, but left to itself it often does not, like a large one without a chain of thought.
    """
    documents = []
    for problem in generate(num, seed=seed, split="base"):
        share = ANSWER_ONLY_SHARES[len(_read(problem.solution))]
        at_once = random.Random(f"style:{seed}:{problem.id}").random() < share
        documents.append(replace(problem, solution=f"\\boxed{{{problem.answer}}}") if at_once else problem)
    return documents


def corrupt(
    problems: Sequence[Problem], *, share: float, seed: int, slips: Sequence[int] = CARRY_SLIP
) -> list[Problem]:
    """Put a wrong calculation into a share of the demonstrations, and carry it to a wrong boxed answer.

    In each chosen demonstration one calculation gets a wrong result; the calculations after it are right for the
    numbers they are given. The order is kept, the rows that change keep their problem, and their ids end in
    ``-corrupted``. With one seed, the rows corrupted at a small share are among those corrupted at a larger one.

    Args:
        problems: right demonstrations, as ``generate`` makes them.
        share: between 0 and 1; ``round(share * len(problems))`` demonstrations change.
        seed: decides which demonstrations change, and in which calculation.
        slips: by how much a wrong result may miss. Results stay positive whole numbers.

    Raises:
        ValueError: the share is not between 0 and 1, or no slip fits a demonstration.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, expected a number between 0 and 1. Use 0.3 to corrupt 30 % of the rows.")
    order = list(range(len(problems)))
    random.Random(f"rows:{seed}").shuffle(order)
    chosen = set(order[: round(share * len(problems))])
    return [_with_a_slip(problem, seed, slips) if i in chosen else problem for i, problem in enumerate(problems)]


def is_corrupted(problem: Problem) -> bool:
    """Whether ``corrupt`` changed this demonstration."""
    return problem.id.endswith(CORRUPTED_SUFFIX)


def restyle(problems: Sequence[Problem]) -> list[Problem]:
    """Write the same demonstrations in a notation that the base model has never met.

    ``7*6=42, 42-15=27. \\boxed{27}`` becomes ``<<7*6=42>> <<42-15=27>> \\boxed{27}``.
    """
    return [replace(problem, solution=_in_brackets(problem)) for problem in problems]


def _in_brackets(problem: Problem) -> str:
    calculations = [f"<<{match[0]}>>" for match in _STEP.finditer(problem.solution)]
    return f"{' '.join(calculations)} \\boxed{{{problem.answer}}}"


def wrong_solutions(problem: Problem, *, seed: int, slips: Sequence[int] = MANY_SLIPS) -> tuple[str, str]:
    """Two ways to get a problem wrong: a chain with a wrong calculation, and another wrong answer without a chain.

    Args:
        problem: with a right demonstration.
        seed: decides which calculations go wrong, and how.
        slips: as for ``corrupt``.

    Raises:
        ValueError: no slip fits the demonstration.
    """
    steps = _read(problem.solution)
    first, second = (_wrong_results(problem, f"{kind}:{seed}", slips) for kind in ("chain", "at-once"))
    return _write(steps, first), f"\\boxed{{{second[-1]}}}"


def _with_a_slip(problem: Problem, seed: int, slips: Sequence[int]) -> Problem:
    results = _wrong_results(problem, f"slip:{seed}", slips)
    solution = _write(_read(problem.solution), results)
    return Problem(problem.id + CORRUPTED_SUFFIX, problem.problem, solution, str(results[-1]))


def _wrong_results(problem: Problem, draw: str, slips: Sequence[int]) -> list[int]:
    """The results of each step after one slip that changes the answer."""
    steps = _read(problem.solution)
    candidates = [wrong for wrong in _all_slips(steps, slips) if str(wrong[-1]) != problem.answer]
    if not candidates:
        raise ValueError(
            f"no slip of {list(slips)} keeps every result of {problem.solution!r} a positive whole number and "
            "changes its answer. Add a small positive slip, such as 1."
        )
    return random.Random(f"{draw}:{problem.id}").choice(candidates)


def _all_slips(steps: Sequence[_Step], slips: Sequence[int]) -> Iterator[list[int]]:
    """Every list of results with exactly one wrong calculation and positive whole numbers only."""
    for index in range(len(steps)):
        for slip in slips:
            results = _calculate(steps, wrong_step=index, slip=slip)
            if results is not None:
                yield results


def _calculate(steps: Sequence[_Step], *, wrong_step: int | None = None, slip: int = 0) -> list[int] | None:
    """The result of each step, or None where one is not a positive whole number."""
    results: list[int] = []
    for index, step in enumerate(steps):
        left, right = _value(step.left, results), _value(step.right, results)
        if step.operator == "/" and left % right:
            return None
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[step.operator]
        result += slip if index == wrong_step else 0
        if result <= 0:
            return None
        results.append(result)
    return results


def _value(operand: int | _Result, results: Sequence[int]) -> int:
    return results[operand.step] if isinstance(operand, _Result) else operand


def _write(steps: Sequence[_Step], results: Sequence[int]) -> str:
    calculations = [
        f"{_value(step.left, results)}{step.operator}{_value(step.right, results)}={result}"
        for step, result in zip(steps, results, strict=True)
    ]
    return f"{', '.join(calculations)}. \\boxed{{{results[-1]}}}"


def _read(solution: str) -> list[_Step]:
    """The steps of a right solution. A number that equals an earlier result is that result (see ``_is_readable``)."""
    steps: list[_Step] = []
    results: dict[int, _Result] = {}
    for left, operator, right, result in _STEP.findall(solution):
        steps.append(_Step(results.get(int(left), int(left)), operator, results.get(int(right), int(right))))
        results[int(result)] = _Result(len(steps) - 1)
    return steps


def _is_readable(steps: Sequence[_Step], results: Sequence[int]) -> bool:
    """Whether a number of the story can be told from a result by its value alone."""
    return _read(_write(steps, results)) == list(steps)


# The stories. Every one draws its numbers so that results are positive whole numbers.


def _give_away(rng: random.Random) -> _Story:
    name, item, box = _words(rng)
    boxes, size = rng.randint(3, 9), rng.randint(4, 12)
    gone = rng.randint(2, boxes * size - 1)
    story = f"{name} has {boxes} {box} of {size} {item} and gives away {gone}. How many {item} are left?"
    return story, (_Step(boxes, "*", size), _Step(_Result(0), "-", gone))


def _buy_and_lose(rng: random.Random) -> _Story:
    name, item, _ = _words(rng)
    start, bought = rng.randint(11, 89), rng.randint(11, 89)
    lost = rng.randint(11, start + bought - 1)
    story = f"{name} has {start} {item}, buys {bought} more and loses {lost}. How many {item} are left?"
    return story, (_Step(start, "+", bought), _Step(_Result(0), "-", lost))


def _pack_and_find(rng: random.Random) -> _Story:
    name, item, box = _words(rng)
    boxes, size, found = rng.randint(3, 9), rng.randint(4, 12), rng.randint(11, 89)
    story = f"{name} fills {boxes} {box} with {size} {item} each and has {found} {item} over. How many in all?"
    return story, (_Step(boxes, "*", size), _Step(_Result(0), "+", found))


def _two_kinds(rng: random.Random) -> _Story:
    name, item, box = _words(rng)
    other = rng.choice([word for word in _BOXES if word != box])
    few, small, many, large = rng.randint(2, 9), rng.randint(3, 9), rng.randint(2, 9), rng.randint(3, 12)
    story = f"{name} has {few} {box} of {small} {item} and {many} {other} of {large}. How many {item} in all?"
    return story, (_Step(few, "*", small), _Step(many, "*", large), _Step(_Result(0), "+", _Result(1)))


def _work_and_spend(rng: random.Random) -> _Story:
    name, item, _ = _words(rng)
    days, daily, gift = rng.randint(3, 9), rng.randint(4, 12), rng.randint(11, 59)
    spent = rng.randint(11, days * daily + gift - 1)
    story = f"{name} gets {daily} {item} a day for {days} days, finds {gift} and sells {spent}. How many are left?"
    return story, (_Step(daily, "*", days), _Step(_Result(0), "+", gift), _Step(_Result(1), "-", spent))


def _share_out(rng: random.Random) -> _Story:
    name, item, _ = _words(rng)
    friends, each = rng.randint(2, 9), rng.randint(4, 20)
    start = rng.randint(2, friends * each - 1)
    story = f"{name} has {start} {item}, gets {friends * each - start} and shares all among {friends}. How many each?"
    return story, (_Step(start, "+", friends * each - start), _Step(_Result(0), "/", friends))


def _words(rng: random.Random) -> tuple[str, str, str]:
    return rng.choice(_NAMES), rng.choice(_ITEMS), rng.choice(_BOXES)


_Story = tuple[str, tuple[_Step, ...]]
_STORIES: tuple[Callable[[random.Random], _Story], ...] = (
    _give_away,
    _buy_and_lose,
    _pack_and_find,
    _two_kinds,
    _work_and_spend,
    _share_out,
)
