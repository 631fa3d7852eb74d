import pytest

from dftune.decontaminate.text import diagram_numbers, tokens


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac12 + \dfrac{3}{4}", r"\frac{1}{2} + \frac 34"),
        (r"$1,000$ people", "1000 people"),
        (r"10{,}000", r"10,\!000"),
        ("twenty-five cats", "25 cats"),
        ("one hundred positive integers", "100 positive integers"),
        ("three thousand two hundred five", "3205"),
        (r"a_{1}, a_{2}, \ldots", r"$a_1,$ $a_2,$ $\dots$"),
        (r"\left( x \leq 5 \right)", r"(x \le 5)"),
        ("x ≤ 5", r"x <= 5"),
        (r"z \neq i", r"z\not= i"),
        (r"\begin{align*} x &= 2 \end{align*}", "x = 2"),
        (r"\mathbf{v} \cdot \text{w}", r"v \times w"),
        ("Find x. [asy] draw((0,0)--(3,4)); [/asy]", "Find x."),
        (
            r"Solve the following math problem. Find the sum of 2 and 3. Put your answer within \boxed{}.",
            "Find the sum of 2 and 3.",
        ),
        ("Problem 7. (AMC 12A, 2019) Find the sum of 2 and 3.", "Find the sum of 2 and 3."),
        ("2.50 dollars", "2.5 dollars"),
    ],
)
def test_two_notations_of_one_thing_have_the_same_tokens(one: str, other: str) -> None:
    assert tokens(one) == tokens(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(2,000)", "(2,0,0)"),
        ("x + y", "x - y"),
        ("sin A", "cos A"),
        ("twenty five-cent coins", "25 cent coins"),
        ("0.5", "5"),
    ],
)
def test_different_things_have_different_tokens(one: str, other: str) -> None:
    assert tokens(one) != tokens(other)


def test_a_problem_that_is_all_instruction_is_not_emptied() -> None:
    assert tokens("Solve step by step.") == ("solve", "step", "by", "step")


def test_the_numbers_of_a_diagram_are_known_apart_from_those_of_the_text() -> None:
    assert diagram_numbers("Find 7. [asy] draw((0,0)--(10,3.5)); [/asy]") == {"0", "10", "3.5"}
