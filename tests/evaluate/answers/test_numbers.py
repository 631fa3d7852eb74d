"""Exact and high-precision values, against printed digits and an independent library."""

from decimal import Decimal, localcontext
from fractions import Fraction

import pytest

from dftune.evaluate.answers import decimals as dec
from dftune.evaluate.answers.budget import Budget
from dftune.evaluate.answers.clean import clean
from dftune.evaluate.answers.exact import Exact, TooLargeError, exact_root, field_value, integer_root
from dftune.evaluate.answers.lexer import readings
from dftune.evaluate.answers.numeric import evaluate
from dftune.evaluate.answers.parser import parse


def tree(text: str):
    return parse(readings(clean(text))[0])


@pytest.mark.parametrize(
    ("text", "digits"),
    [  # from printed tables
        (r"\pi", "3.14159265358979323846264338327950288419716939937510"),
        ("e", "2.71828182845904523536028747135266249775724709369995"),
        (r"\sqrt{2}", "1.41421356237309504880168872420969807856967187537694"),
        (r"\ln 2", "0.69314718055994530941723212145817656807550013436025"),
        (r"\sin 1", "0.84147098480789650665250232163029899962256306079837"),
        (r"\cos 1", "0.54030230586813971740093660744297660373231042061792"),
        (r"\frac{1+\sqrt5}{2}", "1.61803398874989484820458683436563811772030917980576"),
    ],
)
def test_constants_have_their_printed_digits(text, digits):
    value = evaluate(tree(text), {}, 50, Budget()).number
    assert abs(value[0] - Decimal(digits)) < Decimal("1e-47") and not value[1]


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        (r"\sin(1000+\sqrt2)", lambda m: m.sin(1000 + m.sqrt(2))),
        (r"\sin(3+4i)", lambda m: m.sin(m.mpc(3, 4))),
        (r"\cos(2-i)", lambda m: m.cos(m.mpc(2, -1))),
        (r"\tan 1.5", lambda m: m.tan(m.mpf(3) / 2)),
        (r"\arcsin 2", lambda m: m.asin(2)),
        (r"\arcsin(0.3+0.4i)", lambda m: m.asin(m.mpc("0.3", "0.4"))),
        (r"\arctan 100", lambda m: m.atan(100)),
        (r"\arctan(1+2i)", lambda m: m.atan(m.mpc(1, 2))),
        (r"\ln(-2)", lambda m: m.log(-2)),
        (r"\ln(3-4i)", lambda m: m.log(m.mpc(3, -4))),
        (r"(1+2i)^{1/3}", lambda m: m.mpc(1, 2) ** (m.mpf(1) / 3)),
        (r"2^{i}", lambda m: m.power(2, m.mpc(0, 1))),
        (r"\sqrt{-3+4i}", lambda m: m.sqrt(m.mpc(-3, 4))),
        (r"\sinh 2", lambda m: m.sinh(2)),
        (r"e^{-\pi}", lambda m: m.exp(-m.pi)),
        (r"\log_3 7", lambda m: m.log(7) / m.log(3)),
        (r"\sin 20^\circ", lambda m: m.sin(m.pi / 9)),
        (r"(\frac12)!", lambda m: m.factorial(m.mpf(1) / 2)),
        (r"\sum_{n=0}^{\infty}\frac{1}{n!}", lambda m: m.e),
    ],
)
def test_functions_agree_with_mpmath(text, formula):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        expected = mpmath.mpc(formula(mpmath))
        real, imaginary = (Decimal(mpmath.nstr(part, 50)) for part in (expected.real, expected.imag))
    value = evaluate(tree(text), {}, 50, Budget()).number
    with localcontext(dec.context(60)):
        assert max(abs(value[0] - real), abs(value[1] - imaginary)) < Decimal("1e-44") * max(
            1, abs(real), abs(imaginary)
        )


def test_real_odd_roots_of_negative_numbers_are_real():
    for text in (r"\sqrt[3]{-2}", "(-2)^{1/3}"):
        value = evaluate(tree(text), {}, 50, Budget()).number
        assert value[0] < 0 and not value[1]
    assert exact_root(Fraction(-8, 27), 3) == Fraction(-2, 3)
    assert exact_root(Fraction(-4), 2) is None


@pytest.mark.parametrize("value", [0, 1, 2, 26, 27, 28, 10**40, 10**40 - 1, 3**200, 3**200 + 1])
@pytest.mark.parametrize("degree", [1, 2, 3, 5, 40])
def test_integer_root_is_the_floor_of_the_root(value, degree):
    root = integer_root(value, degree)
    assert root**degree <= value < (root + 1) ** degree


@pytest.mark.parametrize("text", ["10^{10^{10}}", "(10^6)!", r"\binom{10^9}{10^8}", "((9!)!)!"])
def test_numbers_beyond_the_limit_are_refused_before_they_are_computed(text):
    with pytest.raises(TooLargeError):
        Exact(Budget()).value(tree(text))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("(x+y)^3", "x^3+3x^2y+3xy^2+y^3", True),
        (r"\frac{x^2-1}{x-1}", "x+1", True),
        ("(x+1)^{100000}", "(x+1)^{100000}+1", False),
        (r"\frac{1}{x}+\frac{1}{y}", r"\frac{x+y}{xy}", True),
        ("x^2", "x^3", False),
    ],
)
def test_rational_functions_are_told_apart_modulo_a_prime(one, other, same):
    for salt in (1, 2, 3):
        values = [field_value(tree(text), salt, Budget()) for text in (one, other)]
        assert (values[0] == values[1]) == same
