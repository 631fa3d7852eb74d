"""Quantiles and intervals that every statistic here rests on, without numpy or scipy: grading imports this."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from math import sqrt
from statistics import NormalDist


def wilson_interval(num_correct: int, num_total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    With ``p = num_correct / n`` and ``z`` the normal quantile of ``(1 + confidence) / 2``, the interval is

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    It stays inside [0, 1] and has a sensible width at 0 and at 1, where the textbook ``p +- z s.e.`` has none.

    Args:
        num_correct: successes, 0 to ``num_total``.
        num_total: independent trials; 0 gives (0, 1), since nothing is known.
        confidence: coverage, strictly between 0 and 1.

    Wilson 1927, JASA 22(158).
    """
    if not 0 <= num_correct <= num_total:
        raise ValueError(
            f"num_correct={num_correct} of num_total={num_total} is not a proportion. "
            "Pass 0 <= num_correct <= num_total."
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence} is outside (0, 1). Pass for example 0.95.")
    if num_total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    p = num_correct / num_total
    centre = p + z * z / (2 * num_total)
    half_width = z * sqrt(p * (1.0 - p) / num_total + z * z / (4 * num_total**2))
    scale = 1.0 + z * z / num_total
    low = 0.0 if num_correct == 0 else max(0.0, (centre - half_width) / scale)
    high = 1.0 if num_correct == num_total else min(1.0, (centre + half_width) / scale)
    return low, high


def wilson_at(share: float, num_effective: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval of a share known as well as from ``num_effective`` independent trials, at any quantile."""
    shrink = 1 + quantile**2 / num_effective
    centre = (share + quantile**2 / (2 * num_effective)) / shrink
    reach = quantile / shrink * math.sqrt(share * (1 - share) / num_effective + quantile**2 / (4 * num_effective**2))
    return max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach))


def satterthwaite_degrees(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of variances: ``V^2 / sum_i V_i^2 / df_i`` (Satterthwaite 1946)."""
    total = sum(part for part, _ in parts)
    if total <= 0:
        return parts[0][1]
    return total**2 / sum(part**2 / degrees for part, degrees in parts)


@lru_cache(maxsize=4096)
def student_t_quantile(probability: float, degrees: float) -> float:
    """The value that a Student t variable with ``degrees`` (fractions allowed) stays below with ``probability``.

    Bisection on the distribution function ``1 - I_x(degrees/2, 1/2) / 2`` at ``x = degrees / (degrees + t^2)``.
    """
    if probability < 0.5:
        return -student_t_quantile(1 - probability, degrees)
    if degrees > 1e6:
        return NormalDist().inv_cdf(probability)
    low, high = 0.0, 1.0
    while student_t_cdf(high, degrees) < probability:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_t_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def student_t_cdf(t: float, degrees: float) -> float:
    """Probability that a Student t variable with ``degrees`` (fractions allowed) stays below ``t >= 0``."""
    if degrees > 1e6:
        return NormalDist().cdf(t)
    return 1 - _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t)) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function by Lentz's continued fraction (DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    d = 1 / (1 - (a + b) * x / (a + 1))
    c, fraction = 1.0, d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for coefficient in (even, odd):
            d = 1 / (1 + coefficient * d)
            c = 1 + coefficient / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * fraction / a
