"""Complex numbers over `decimal`, at whatever precision the current context has."""

from __future__ import annotations

from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, getcontext, localcontext
from functools import lru_cache

from dftune.evaluate.answers.budget import UndecidedError, UndefinedError

Complex = tuple[Decimal, Decimal]
ZERO, ONE, TWO = Decimal(0), Decimal(1), Decimal(2)
_MAX_ARGUMENT = 40
"""Decimal exponent up to which trigonometric arguments are reduced."""


def context(precision: int) -> Context:
    """A fresh context; overflow and invalid operations raise, underflow gives zero."""
    return Context(prec=precision, Emax=10**12, Emin=-(10**12), traps=[DivisionByZero, InvalidOperation, Overflow])


@lru_cache(maxsize=16)
def _pi(precision: int) -> Decimal:
    scale = 10 ** (precision + 10)
    value = 4 * (4 * _arctan_inverse(5, scale) - _arctan_inverse(239, scale))
    with localcontext(context(precision + 10)):
        return Decimal(value) / Decimal(scale)


def _arctan_inverse(n: int, scale: int) -> int:
    term = scale // n
    total, k, square = term, 1, n * n
    while term:
        term //= -square
        total += term // (2 * k + 1)
        k += 1
        if abs(term) <= 1:
            break
    return total


def pi() -> Decimal:
    """pi, rounded to the current precision (Machin's formula in integers)."""
    return +_pi(getcontext().prec)


def is_real(a: Complex) -> bool:
    """Whether the imaginary part is exactly zero."""
    return not a[1]


def add(a: Complex, b: Complex) -> Complex:
    """a + b."""
    return a[0] + b[0], a[1] + b[1]


def mul(a: Complex, b: Complex) -> Complex:
    """a b."""
    if not a[1] and not b[1]:
        return a[0] * b[0], ZERO
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def inverse(a: Complex) -> Complex:
    """1 / a."""
    if not a[1]:
        if not a[0]:
            raise UndefinedError("division by zero")
        return ONE / a[0], ZERO
    norm = a[0] * a[0] + a[1] * a[1]
    return a[0] / norm, -a[1] / norm


def magnitude(a: Complex) -> Decimal:
    """|a|."""
    return abs(a[0]) if not a[1] else (a[0] * a[0] + a[1] * a[1]).sqrt()


def _reduced(x: Decimal) -> Decimal:
    """x modulo 2 pi, in [-pi, pi]."""
    if x and x.adjusted() > _MAX_ARGUMENT:
        raise UndecidedError("argument of a trigonometric function too large")
    extra = max(0, x.adjusted()) if x else 0
    with localcontext() as wide:
        wide.prec += extra + 5
        turn = 2 * pi()
        return x - turn * (x / turn).to_integral_value()


def sin_cos(x: Decimal) -> tuple[Decimal, Decimal]:
    """Sine and cosine of a real number: reduce, halve, sum the series, double."""
    precision = getcontext().prec
    with localcontext() as wide:
        wide.prec += 12
        halvings = 6
        y = _reduced(x) / (1 << halvings)
        square = -y * y
        sine, cosine = y, ONE
        term, k = y, 1
        smallest = Decimal(10) ** (-precision - 12)
        while term and abs(term) > smallest * max(abs(y), smallest):
            term = term * square / ((2 * k) * (2 * k + 1))
            sine += term
            k += 1
        cosine = (ONE - sine * sine).sqrt()
        for _ in range(halvings):
            sine, cosine = TWO * sine * cosine, ONE - TWO * sine * sine
    return +sine, +cosine


def arctan(x: Decimal) -> Decimal:
    """Arc tangent of a real number: halve the angle four times, then sum the series."""
    precision = getcontext().prec
    with localcontext() as wide:
        wide.prec += 12
        if abs(x) > 1:
            half = pi() / 2
            result = (half if x > 0 else -half) - arctan(ONE / x)
        else:
            y = +x
            for _ in range(4):
                y = y / (ONE + (ONE + y * y).sqrt())
            square, term, k = -y * y, y, 1
            result = y
            smallest = Decimal(10) ** (-precision - 12)
            while term and abs(term) > smallest * abs(y):
                term *= square
                k += 2
                result += term / k
            result *= 16
    return +result


def argument(a: Complex) -> Decimal:
    """The angle of a complex number, in (-pi, pi]."""
    real, imaginary = a
    if not imaginary:
        if not real:
            raise UndefinedError("angle of zero")
        return ZERO if real > 0 else pi()
    if not real:
        return pi() / 2 if imaginary > 0 else -pi() / 2
    angle = arctan(imaginary / real)
    if real > 0:
        return angle
    return angle + pi() if imaginary > 0 else angle - pi()


def exp(a: Complex) -> Complex:
    """e^a."""
    if abs(a[0]) > 10**12:
        raise UndecidedError("exponent too large")
    size = a[0].exp()
    if not a[1]:
        return size, ZERO
    sine, cosine = sin_cos(a[1])
    return size * cosine, size * sine


def log(a: Complex) -> Complex:
    """Principal natural logarithm."""
    if not a[1] and a[0] > 0:
        return a[0].ln(), ZERO
    size = magnitude(a)
    if not size:
        raise UndefinedError("logarithm of zero")
    return size.ln(), argument(a)


def sqrt(a: Complex) -> Complex:
    """Principal square root."""
    if not a[1]:
        return (a[0].sqrt(), ZERO) if a[0] >= 0 else (ZERO, (-a[0]).sqrt())
    size = magnitude(a)
    real = ((size + a[0]) / 2).sqrt()
    imaginary = ((size - a[0]) / 2).sqrt()
    return real, imaginary if a[1] > 0 else -imaginary


def integer_power(a: Complex, n: int) -> Complex:
    """a^n for an integer n."""
    if n < 0:
        return integer_power(inverse(a), -n)
    if not a[1]:
        if not a[0] and not n:
            raise UndefinedError("0^0")
        return a[0] ** n, ZERO
    if n.bit_length() > 64:
        raise UndecidedError("exponent too large")
    result: Complex = (ONE, ZERO)
    while n:
        if n & 1:
            result = mul(result, a)
        a = mul(a, a)
        n >>= 1
    return result


def power(a: Complex, b: Complex) -> Complex:
    """Principal a^b."""
    if not b[1] and b[0] == b[0].to_integral_value() and b[0].adjusted() < 40:
        return integer_power(a, int(b[0]))
    if not a[0] and not a[1]:
        if b[0] > 0:
            return ZERO, ZERO
        raise UndefinedError("power of zero")
    return exp(mul(b, log(a)))


def sine(a: Complex) -> Complex:
    """sin a."""
    if not a[1]:
        return sin_cos(a[0])[0], ZERO
    s, c = sin_cos(a[0])
    grow, shrink = a[1].exp(), (-a[1]).exp()
    return s * (grow + shrink) / 2, c * (grow - shrink) / 2


def cosine(a: Complex) -> Complex:
    """cos a."""
    if not a[1]:
        return sin_cos(a[0])[1], ZERO
    s, c = sin_cos(a[0])
    grow, shrink = a[1].exp(), (-a[1]).exp()
    return c * (grow + shrink) / 2, -s * (grow - shrink) / 2


def arctangent(a: Complex) -> Complex:
    """arctan a."""
    if not a[1]:
        return arctan(a[0]), ZERO
    turned = (-a[1], a[0])
    above, below = log(add((ONE, ZERO), turned)), log(add((ONE, ZERO), (-turned[0], -turned[1])))
    difference = add(above, (-below[0], -below[1]))
    return difference[1] / 2, -difference[0] / 2


def arcsine(a: Complex) -> Complex:
    """arcsin a, by -i log(i a + sqrt(1 - a^2))."""
    if not a[1] and abs(a[0]) < 1:
        return arctan(a[0] / (ONE - a[0] * a[0]).sqrt()), ZERO
    if not a[1] and abs(a[0]) == 1:
        return a[0] * pi() / 2, ZERO
    root = sqrt(add((ONE, ZERO), mul((-a[0], -a[1]), a)))
    value = log(add((-a[1], a[0]), root))
    return value[1], -value[0]


def log_factorial(x: Decimal) -> Decimal:
    """ln x! for real x > -1: shift upwards, then Stirling's series with its first twenty terms."""
    shift = ZERO
    while x < 60:
        x += 1
        shift += x.ln()
    total = (x + Decimal("0.5")) * x.ln() - x + (2 * pi()).ln() / 2
    for k, (top, bottom) in enumerate(_BERNOULLI, 1):
        total += Decimal(top) / bottom / (2 * k * (2 * k - 1)) / x ** (2 * k - 1)
    return total - shift


_BERNOULLI = [
    (1, 6), (-1, 30), (1, 42), (-1, 30), (5, 66), (-691, 2730), (7, 6), (-3617, 510), (43867, 798), (-174611, 330),
    (854513, 138), (-236364091, 2730), (8553103, 6), (-23749461029, 870), (8615841276005, 14322),
    (-7709321041217, 510), (2577687858367, 6), (-26315271553053477373, 1919190), (2929993913841559, 6),
    (-261082718496449122051, 13530),
]  # fmt: skip
