"""One category and one reason for each completion."""

from __future__ import annotations

from typing import Any

import pytest

from dftune.evaluate.classify import classify
from dftune.evaluate.grade import grade

LOOP = "So the answer is 7. " * 12


def row(
    completion: str, target: str | list[str] = "8", finish: str = "stop", prompt: str | None = None
) -> dict[str, Any]:
    """A graded completion as `dftune evaluate` stores it."""
    verdict = grade(target, completion)
    kept = {name: getattr(verdict, name) for name in ("answer", "verdict", "rule", "stage", "reason")}
    return {"target": target, "completion": completion, "finish_reason": finish, "prompt": prompt, **kept}


@pytest.mark.parametrize(
    ("completion", "finish", "category", "reason"),
    [
        (r"It is \boxed{8}.", "stop", "correct", "finished"),
        (r"It is \boxed{8}. Now", "length", "correct", "cut off"),
        (" \n", "stop", "empty", "stopped"),
        ("", "length", "empty", "cut off"),
        (LOOP, "length", "repetition loop", "cut off"),
        (LOOP, "stop", "repetition loop", "stopped"),
        ("First we factor the", "length", "truncated", "no answer yet"),
        (r"It is \boxed{7}. Let me check that", "length", "truncated", "answer in the box or tag"),
        (r"It is \boxed{7", "length", "truncated", "no answer yet"),
        ("Because of that we are done with all of it now.", "stop", "format failure", "no answer"),
        (r"It is \boxed{7", "stop", "format failure", "unclosed box"),
        (r"It is \boxed{6}. No, it is \boxed{7}.", "stop", "format failure", "several different answers"),
        (r"It is \boxed{7}, as I said: \boxed{7}.", "stop", "wrong", "other number"),
        (r"It is \boxed{7}.", "stop", "wrong", "other number"),
    ],
)
def test_the_first_category_that_holds_is_taken(completion: str, finish: str, category: str, reason: str) -> None:
    assert classify(row(completion, finish=finish)) == (category, reason)


def test_two_boxes_that_make_one_list_are_one_answer() -> None:
    listed = row(r"They are \boxed{3} and \boxed{4}.", target="5, 6")
    assert classify(listed).category == "wrong"


@pytest.mark.parametrize(
    ("completion", "prompt", "expected"),
    [
        ("The answer is 7.", r"Put it in \boxed{}.", ("format failure", "outside the box or tag")),
        ("<answer>7</answer>", r"Put it in \boxed{}.", ("format failure", "outside the box or tag")),
        ("<answer>7</answer>", "Use <answer> tags.", ("wrong", "other number")),
        ("The answer is 7.", "Solve this:", ("wrong", "other number")),
        ("The answer is 7.", None, ("wrong", "other number")),
    ],
)
def test_only_an_answer_outside_the_place_that_the_prompt_names_is_a_format_failure(
    completion: str, prompt: str | None, expected: tuple[str, str]
) -> None:
    assert classify(row(completion, prompt=prompt)) == expected


def test_an_answer_that_only_the_last_resort_finds_is_a_format_failure() -> None:
    found = row("There were 7 of them.\nAnd then nothing at all happened to anyone.")
    assert found["rule"] == "number"
    assert classify(found) == ("format failure", "last number taken")


def test_boxes_inside_a_thought_do_not_count_as_further_answers() -> None:
    thought = row(r"<think>Perhaps \boxed{6}.</think> It is \boxed{7}.")
    assert classify(thought) == ("wrong", "other number")


@pytest.mark.parametrize(
    ("target", "answer", "reason"),
    [
        (r"\frac{3}{4}", r"\frac{\sqrt{3}}{2}", "other number"),
        ("1,234", "12", "other number"),
        ("x+1", "x+2", "other expression"),
        ("(1, 2)", "(2, 1)", "other collection"),
        ("x > 3", "x > 4", "other relation"),
        (r"\text{Tuesday}", r"\text{Friday}", "other words"),
        ("(B)", "(C)", "other choice"),
        ("5", "x + 5", "other kind of object"),
        ("5", "x = 6", "other number"),
        ("(1, 2)", "3", "other kind of object"),
        (["(1, 2)", "5"], "3", "other number"),
        ("5", "((", "unreadable"),
    ],
)
def test_a_wrong_answer_is_told_by_its_kind(target: str | list[str], answer: str, reason: str) -> None:
    assert classify(row(rf"It is \boxed{{{answer}}}.", target=target)) == ("wrong", reason)


def test_an_ungraded_completion_keeps_the_graders_reason_up_to_its_details() -> None:
    found = {"verdict": "ungraded", "reason": "the reference answer cannot be read: it is empty", "completion": LOOP}
    assert classify(found) == ("ungraded", "the reference answer cannot be read")


def test_a_row_with_nothing_but_a_verdict_and_an_answer_can_be_sorted() -> None:
    assert classify({"verdict": "incorrect", "answer": None}) == ("format failure", "no answer")
    assert classify({"verdict": "incorrect", "answer": "3"}) == ("wrong", "other answer")
    assert classify({"verdict": "correct"}) == ("correct", "finished")


@pytest.mark.parametrize(
    "answer",
    ["9" * 1_000_000, "(" * 5_000, "2^" * 2_000 + "2", r"\frac{1}{" * 2_000, "\x00", "\ud800", ",".join("1" * 10_000)],
)
def test_hostile_answers_are_sorted_without_an_exception(answer: str) -> None:
    found = {"verdict": "incorrect", "answer": answer, "rule": "box", "target": "5", "completion": r"\boxed{" * 3_000}
    assert classify(found).category in ("format failure", "repetition loop")
    assert classify(found | {"completion": "short"}).category == "wrong"
