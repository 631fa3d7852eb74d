"""The oracle of these tests reads the text: it shares no code with the generator."""

import ast
import operator
import os
import re
import subprocess
import sys
from fractions import Fraction

import pytest

from dftune.demo.problems import (
    CARRY_SLIP,
    MANY_SLIPS,
    SPLITS,
    Problem,
    base_documents,
    corrupt,
    generate,
    is_corrupted,
    restyle,
    wrong_solutions,
)

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value_of(expression: str) -> Fraction:
    """The value of an expression such as ``7*6``, by Python's own parser."""
    tree = ast.parse(expression, mode="eval").body
    assert isinstance(tree, ast.BinOp) and isinstance(tree.left, ast.Constant) and isinstance(tree.right, ast.Constant)
    return Fraction(OPERATORS[type(tree.op)](Fraction(tree.left.value), Fraction(tree.right.value)))


def calculations(solution: str) -> list[tuple[str, int]]:
    """``[("7*6", 42), ...]`` of ``7*6=42, ... . \\boxed{...}``; fails if the text has any other shape."""
    chain, box = solution.split(". ")
    assert re.fullmatch(r"\\boxed\{\d+\}", box), solution
    pairs = [part.split("=") for part in chain.split(", ")]
    return [(left, int(right)) for left, right in pairs]


def boxed(solution: str) -> str:
    found = re.findall(r"\\boxed\{(\d+)\}", solution)
    assert len(found) == 1, solution
    return found[0]


def answer_of(story: str) -> Fraction:
    """Solve a story from its words alone."""
    numbers = [int(word) for word in re.findall(r"\d+", story)]
    if "gives away" in story:
        boxes, size, gone = numbers
        return Fraction(boxes * size - gone)
    if "and loses" in story:
        start, bought, lost = numbers
        return Fraction(start + bought - lost)
    if "each and has" in story:
        boxes, size, over = numbers
        return Fraction(boxes * size + over)
    if "a day for" in story:
        daily, days, found, sold = numbers
        return Fraction(daily * days + found - sold)
    if "shares all among" in story:
        start, more, friends = numbers
        return Fraction(start + more, friends)
    few, small, many, large = numbers
    return Fraction(few * small + many * large)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return generate(1500, seed=0, split="train")


def test_the_same_seed_gives_the_same_problems_and_another_seed_gives_others():
    assert generate(50, seed=1, split="test") == generate(50, seed=1, split="test")
    assert generate(50, seed=1, split="test") != generate(50, seed=2, split="test")


def test_asking_for_more_problems_keeps_the_first_ones():
    assert generate(300, seed=4, split="train")[:20] == generate(20, seed=4, split="train")


def test_another_process_with_another_hash_seed_makes_the_same_problems():
    code = "from dftune.demo.problems import *; print(corrupt(generate(9, seed=5, split='test'), share=0.5, seed=6))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {str(corrupt(generate(9, seed=5, split="test"), share=0.5, seed=6)) + "\n"}


def test_no_problem_is_in_two_splits_whatever_the_seeds():
    texts = {
        split: {problem.problem for seed in range(3) for problem in generate(700, seed=seed, split=split)}
        for split in SPLITS
    }
    assert sum(map(len, texts.values())) == len(set.union(*texts.values()))


def test_every_hundredth_of_the_stories_belongs_to_exactly_one_split():
    assert sorted(bucket for buckets in SPLITS.values() for bucket in buckets) == list(range(100))


def test_problems_and_ids_are_unique(problems):
    assert len({problem.problem for problem in problems}) == len({problem.id for problem in problems}) == len(problems)


def test_every_calculation_is_right(problems):
    for problem in problems:
        for expression, result in calculations(problem.solution):
            assert value_of(expression) == result, problem.solution


def test_the_boxed_answer_is_the_answer_and_what_the_story_asks_for(problems):
    for problem in problems:
        assert boxed(problem.solution) == problem.answer
        assert answer_of(problem.problem) == int(problem.answer), problem


def test_stories_have_two_or_three_steps_and_every_operator_occurs(problems):
    steps = [calculations(problem.solution) for problem in problems]
    assert {len(chain) for chain in steps} == {2, 3}
    assert set("".join(re.sub(r"\d", "", expression) for chain in steps for expression, _ in chain)) == set("+-*/")


def test_texts_are_short_and_printable_ascii(problems):
    for problem in restyle(problems) + restyle(corrupt(problems, share=1.0, seed=0)) + problems:
        assert problem.problem.isascii() and problem.problem.isprintable()
        assert problem.solution.isascii() and problem.solution.isprintable()
        assert 40 <= len(problem.problem) <= 95
        assert len(problem.solution) <= 100
    assert max(len(problem.problem) + len(problem.solution) for problem in problems) <= 140


@pytest.mark.parametrize(("share", "num_corrupted"), [(0.0, 0), (0.3, 450), (0.5, 750), (1.0, 1500)])
def test_corrupt_changes_exactly_the_stated_share(problems, share, num_corrupted):
    noisy = corrupt(problems, share=share, seed=0)
    assert len(noisy) == len(problems)
    for before, after in zip(problems, noisy, strict=True):
        assert after.problem == before.problem
        assert after.id.removesuffix("-corrupted") == before.id
        assert (after == before) != is_corrupted(after)
        assert (after.solution != before.solution) == (after.answer != before.answer) == is_corrupted(after)
    assert sum(map(is_corrupted, noisy)) == num_corrupted


@pytest.mark.parametrize(("slips", "misses"), [(CARRY_SLIP, {10}), (MANY_SLIPS, {-10, -2, -1, 1, 2, 10})])
def test_a_corrupted_demonstration_has_one_wrong_calculation_carried_to_its_box(problems, slips, misses):
    seen, wrong_steps = set(), set()
    for before, after in zip(problems, corrupt(problems, share=1.0, seed=0, slips=slips), strict=True):
        right, chain = calculations(before.solution), calculations(after.solution)
        wrong = [index for index, (expression, result) in enumerate(chain) if value_of(expression) != result]
        assert len(wrong) == 1 and len(chain) == len(right), after
        assert chain[: wrong[0]] == right[: wrong[0]]
        assert chain[wrong[0]][0] == right[wrong[0]][0], "the operands of the wrong calculation are still right"
        assert boxed(after.solution) == str(chain[-1][1]) == after.answer
        assert after.answer != before.answer
        seen.add(chain[wrong[0]][1] - right[wrong[0]][1])
        wrong_steps.add((wrong[0], len(chain)))
    assert seen == misses
    assert wrong_steps == {(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)}, "a slip can happen in any step"


def test_a_corrupted_chain_still_follows_the_story(problems):
    """Every operand that is not a number of the story is the result of a step before, right or wrong."""
    for problem in corrupt(problems, share=1.0, seed=0, slips=MANY_SLIPS):
        given = re.findall(r"\d+", problem.problem)
        for expression, result in calculations(problem.solution):
            for operand in re.findall(r"\d+", expression):
                assert operand in given, problem
                given.remove(operand)
            given.append(str(result))
        assert len(given) == 1, "every number is used once, and the answer is left"


def test_the_rows_corrupted_at_a_small_share_are_among_those_at_a_larger_one(problems):
    few, many = (corrupt(problems, share=share, seed=3) for share in (0.2, 0.6))
    assert all(many_row == few_row for few_row, many_row in zip(few, many, strict=True) if is_corrupted(few_row))


def test_corrupt_is_a_function_of_its_seed(problems):
    assert corrupt(problems, share=0.4, seed=1) == corrupt(problems, share=0.4, seed=1)
    assert corrupt(problems, share=0.4, seed=1) != corrupt(problems, share=0.4, seed=2)


def test_restyle_keeps_the_calculations_and_the_answer_but_writes_them_in_brackets(problems):
    noisy = corrupt(problems, share=0.5, seed=0)
    for before, after in zip(noisy, restyle(noisy), strict=True):
        assert (after.id, after.problem, after.answer) == (before.id, before.problem, before.answer)
        steps = [f"<<{expression}={result}>>" for expression, result in calculations(before.solution)]
        assert after.solution.split(" ") == [*steps, f"\\boxed{{{before.answer}}}"]


def test_a_worked_example_reads_as_documented():
    problem = Problem("x", "?", "7*6=42, 42-15=27. \\boxed{27}", "27")
    assert restyle([problem])[0].solution == "<<7*6=42>> <<42-15=27>> \\boxed{27}"
    wrong = {row.solution for seed in range(20) for row in corrupt([problem], share=1.0, seed=seed)}
    assert wrong == {"7*6=52, 52-15=37. \\boxed{37}", "7*6=42, 42-15=37. \\boxed{37}"}


def test_base_documents_are_right_and_answer_short_stories_mostly_at_once():
    documents = base_documents(3000, seed=7)
    originals = generate(3000, seed=7, split="base")
    num_at_once = {2: 0, 3: 0}
    num_steps = {2: 0, 3: 0}
    for before, after in zip(originals, documents, strict=True):
        steps = len(calculations(before.solution))
        at_once = after.solution == f"\\boxed{{{before.answer}}}"
        assert at_once or after == before
        assert (after.problem, after.answer) == (before.problem, before.answer)
        num_steps[steps] += 1
        num_at_once[steps] += at_once
    assert num_at_once[2] / num_steps[2] == pytest.approx(0.7, abs=0.05)
    assert num_at_once[3] / num_steps[3] == pytest.approx(0.2, abs=0.05)


def test_no_base_document_is_a_problem_of_the_demo(problems):
    texts = {document.problem for document in base_documents(3000, seed=0)}
    assert not texts & {problem.problem for problem in problems}


def test_slips_that_fit_no_calculation_are_refused(problems):
    with pytest.raises(ValueError, match="positive whole number"):
        corrupt(problems, share=1.0, seed=0, slips=(-1000,))


@pytest.mark.parametrize("share", [-0.1, 1.5, 30])
def test_a_share_outside_0_to_1_is_refused(problems, share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        corrupt(problems, share=share, seed=0)


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="base, train, validation, test"):
        generate(1, seed=0, split="dev")


def test_wrong_solutions_are_a_chain_with_one_slip_and_another_answer_without_a_chain(problems):
    for problem in problems:
        chain, at_once = wrong_solutions(problem, seed=0)
        steps = calculations(chain)
        wrong = [(left, result) for left, result in steps if value_of(left) != result]
        assert len(wrong) == 1
        assert len(steps) == len(calculations(problem.solution))
        assert boxed(chain) == str(steps[-1][1])
        assert re.fullmatch(r"\\boxed\{\d+\}", at_once)
        assert problem.answer not in (boxed(chain), boxed(at_once))


def test_wrong_solutions_are_a_function_of_the_seed(problems):
    first, again, other = ([wrong_solutions(one, seed=seed) for one in problems] for seed in (0, 0, 1))
    assert first == again != other
