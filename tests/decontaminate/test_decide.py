import json
from pathlib import Path
from typing import Any

import pytest

from dftune.decontaminate.decide import Problem, same_problem

# Pairs written for this test after the kinds that occur between public training sets and benchmarks.
PAIRS = [json.loads(line) for line in (Path(__file__).parent / "pairs.jsonl").read_text().split("\n") if line]
TRIANGLE = (
    "Triangle $ABC$ has $AB = 13$, $BC = 14$ and $CA = 15$. Point $D$ lies on $BC$ so that $AD$ bisects angle $A$. "
    "Point $E$ is the foot of the perpendicular from $D$ to side $AB$. "
)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair["same"]], ids=lambda pair: pair["kind"])
def test_the_same_problem_is_found(pair: dict[str, Any]) -> None:
    decision = same_problem(Problem(pair["problem"], [pair["answer"]]), Problem(pair["benchmark"], [pair["gold"]]))
    assert (decision.same, decision.reason) == (True, pair["reason"])


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if not pair["same"]], ids=lambda pair: pair["kind"])
def test_a_sibling_is_another_problem(pair: dict[str, Any]) -> None:
    assert not same_problem(Problem(pair["problem"], [pair["answer"]]), Problem(pair["benchmark"], [pair["gold"]])).same


def test_the_benchmarks_answer_inside_the_solution_shows_another_form_of_the_question() -> None:
    text = TRIANGLE + "If $L$ is the length of $AD$, what is the whole number nearest to $L$?"
    benchmark = Problem(TRIANGLE + "What is the length of $AD$?", [r"\frac{3\sqrt{91}}{2}"])
    known = Problem(text, ["14"], r"By Stewart, $AD = \frac{3\sqrt{91}}{2}$, which is about $14.31$.")
    unknown = Problem(text, ["14"], "It is about $14.31$ by Stewart.")
    assert [same_problem(row, benchmark).same for row in (known, unknown)] == [True, False]


def test_without_an_answer_next_to_the_same_words_are_needed() -> None:
    one = "In the right triangle $ABC$ with angle $B = 90$ we have $AB = 2$. What is the cosine of the angle $A$?"
    other = one.replace("cosine", "tangent")
    assert same_problem(Problem(one), Problem(one.replace("What is", "Find"), ["2"])).same
    assert not same_problem(Problem(one), Problem(other, ["2"])).same


def test_shares_are_of_each_text() -> None:
    decision = same_problem(Problem("alpha beta gamma delta epsilon zeta", ["1"]), Problem("alpha beta gamma", ["2"]))
    assert (decision.covered, decision.covered_train, decision.answers_agree) == (1.0, 0.5, False)
