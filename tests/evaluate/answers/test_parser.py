"""How answers are read."""

from fractions import Fraction

import pytest

from dftune.evaluate.answers.budget import Budget, UnreadableError
from dftune.evaluate.answers.clean import clean
from dftune.evaluate.answers.exact import Exact
from dftune.evaluate.answers.expr import Expr, add, divide, mul, neg, node, num, power, sym
from dftune.evaluate.answers.lexer import readings
from dftune.evaluate.answers.parser import parse

X, Y, N = sym("x"), sym("y"), sym("n")
PI = Expr("const", name="pi")


def tree(text: str) -> Expr:
    return parse(readings(clean(text))[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2x", mul(num(2), X)),
        ("-x^2", neg(power(X, num(2)))),
        ("x^2y", mul(power(X, num(2)), Y)),
        (r"\frac43", divide(num(4), num(3))),
        (r"\frac{x}{y}", divide(X, Y)),
        ("x/y/2", mul(X, power(Y, num(-1)), power(num(2), num(-1)))),
        (r"1\frac{1}{2}", add(num(1), divide(num(1), num(2)))),
        (r"2\frac{x}{2}", mul(num(2), divide(X, num(2)))),
        (r"\sin 2x", node("call", mul(num(2), X), name="sin")),
        (r"\sin^{-1} x", node("call", X, name="arcsin")),
        (r"\sin x \cos y", mul(node("call", X, name="sin"), node("call", Y, name="cos"))),
        (r"\log_2 x", node("call", X, num(2), name="log")),
        ("|x|", node("call", X, name="abs")),
        ("x_{12}'", sym("x_12'")),
        ("v^2_0", power(sym("v_0"), num(2))),
        (r"\frac{dy}{dx}", sym("y'")),
        ("n(n+1)", mul(N, add(N, num(1)))),
        ("f(x)", node("app", X, name="f")),
        ("2\\text{ cm}^2", num(2)),
        ("5 apples", num(5)),
        (r"\mathbf{x}", X),
        ("(x)", X),
    ],
)
def test_formulas(text, expected):
    assert tree(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(1,2)", node("group", num(1), num(2), name="()")),
        ("]1,2]", node("group", num(1), num(2), name="(]")),
        ("[1,2[", node("group", num(1), num(2), name="[)")),
        (r"\{1,2\}", node("group", num(1), num(2), name="{}")),
        ("1, 2 and 3", node("seq", num(1), num(2), num(3), name="and")),
        ("1:2", node("ratio", num(1), num(2))),
        ("x<y\\le 2", node("rel", X, Y, num(2), name="< ≤")),
        (r"\{x : x>2\}", node("builder", X, node("rel", X, num(2), name=">"))),
        (r"\pm x", node("pm", X)),
        ("12_{5}", node("base", num(5), name="12")),
        (r"\begin{pmatrix}1&x\\n&2\end{pmatrix}", node("matrix", node("seq", num(1), X), node("seq", N, num(2)))),
        (r"\text{the red line}", Expr("text", name="the red line")),
        (r"f(x)=x, \text{ for all } x", node("rel", node("app", X, name="f"), X, name="=")),
    ],
)
def test_structures(text, expected):
    assert tree(text) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("007", Fraction(7)),
        (".5", Fraction(1, 2)),
        ("-1./3", Fraction(-1, 3)),
        ("4.5e33", Fraction(45 * 10**32)),
        ("1,234,567", Fraction(1234567)),
        (r"11,\! 111,\! 100", Fraction(11111100)),
        (r"1\,234", Fraction(1234)),
        (r"0.\overline{36}", Fraction(4, 11)),
        ("0.1666...", Fraction(1, 6)),
        (r"0.1\dot{6}", Fraction(1, 6)),
        ("2^3^2", Fraction(512)),
        ("6/2(3)", Fraction(9)),
        ("7!!", Fraction(105)),
        ("5!/3!", Fraction(20)),
        (r"\binom{10}{3}", Fraction(120)),
        (r"\sqrt[3]{\frac{8}{27}}", Fraction(2, 3)),
        (r"\sum_{k=1}^{10} k^2", Fraction(385)),
        (r"\gcd(144, 2988, 37116)", Fraction(36)),
        ("12\\%", Fraction(12, 100)),
        ("3 million", Fraction(3_000_000)),
    ],
)
def test_numbers(text, value):
    assert Exact(Budget()).value(tree(text)) == value


def test_a_comma_between_digits_has_two_readings():
    assert len(readings("1,234")) == 2
    assert len(readings("1, 234")) == 1
    assert len(readings("(1,234)")) == 1


@pytest.mark.parametrize(
    "text", ["", "1 +", "x^", ")", r"\frac{1}", "1 2 3", r"\int_0^1 x", "5_x", "=" * 9, "(" * 400 + ")" * 400]
)
def test_what_is_no_answer_is_unreadable(text):
    with pytest.raises(UnreadableError):
        tree(text)
