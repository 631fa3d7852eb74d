"""Intervals hold the truth, nothing is found where nothing is, and what is detectable is found: by simulation.

The worlds and the truth are those of benchmarks/intervals.py, which prints the table of docs/evaluation.md. The slow
test asserts 93 to 97 % (one standard error is 0.5 points); the quick ones allow for chance (1.1 points at 400).
"""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.intervals import WORLDS, World, accuracy_coverage, detectable, paired_figures

from dftune.evaluate.metrics import accuracy_estimate, paired_difference

CLUSTERED = "clusters of 1 to 5, 4 samples, 150 questions"
QUICK = {
    "one sample": World(100),
    "n samples": World(60, 8),
    "clusters": World(90, 1, cluster_sizes=(1, 2, 3, 4, 5)),
}


@pytest.mark.parametrize("name", QUICK)
def test_the_interval_of_the_accuracy_holds_the_truth_about_95_times_in_100(name: str) -> None:
    assert 0.92 <= accuracy_coverage(QUICK[name], 400, seed=3) <= 0.98


@pytest.mark.parametrize("name", QUICK)
def test_the_interval_of_a_difference_holds_the_truth_and_equal_models_are_rarely_called_better(name: str) -> None:
    found = paired_figures(QUICK[name], 300, seed=4)
    assert 0.92 <= found.coverage <= 0.985
    assert found.better <= 0.05
    assert found.worse <= 0.05


def test_ignoring_clusters_would_cover_too_little() -> None:
    world = World(150, 4, cluster_sizes=(5,), shared=1.0)
    generator, alone, kept = np.random.default_rng(5), 0, 0
    for _ in range(300):
        shares = world.shares(world.chances(generator), generator)
        plain, clustered = (accuracy_estimate(shares, 600, clusters=names) for names in (None, world.clusters()))
        alone += plain.low <= world.truth <= plain.high
        kept += clustered.low <= world.truth <= clustered.high
    assert alone / 300 < 0.8
    assert kept / 300 >= 0.92


@pytest.mark.slow
def test_with_three_seeds_intervals_hold_the_truth_and_equal_objectives_are_rarely_called_better() -> None:
    """300 questions, and seeds that differ by a standard deviation of 5 points on either side."""
    generator, repetitions = np.random.default_rng(17), 1500
    found = np.zeros(4)
    for _ in range(repetitions):
        shared, other = (0.2 + 0.6 * generator.beta(0.9, 0.6, (300, 1)) for _ in range(2))  # mean 0.56, never clipped
        sides = []
        for easy in (shared, np.where(generator.random((300, 1)) < 0.75, shared, other)):
            chances = easy + generator.normal(0, 0.05, (1, 3)).clip(-0.2, 0.2)
            sides.append((generator.random((300, 3)) < chances).astype(float).tolist())
        estimate, difference = accuracy_estimate(sides[0]), paired_difference(*sides, seeds_match=True)
        found += [
            estimate.low <= 0.56 <= estimate.high,
            difference.low <= 0 <= difference.high,
            difference.sign > 0,
            difference.sign < 0,
        ]
    accuracy, paired, better, worse = found / repetitions
    assert 0.93 <= accuracy <= 0.97
    assert 0.93 <= paired <= 0.97
    assert max(better, worse) <= 0.04


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["one sample, 500 questions", "8 samples, 100 questions", "16 samples, 30 questions", CLUSTERED]
)
def test_coverage_false_findings_and_power_are_as_documented(name: str) -> None:
    world = WORLDS[name]
    assert 0.93 <= accuracy_coverage(world, 2000, seed=10) <= 0.97
    none = paired_figures(world, 2000, seed=11)
    assert 0.93 <= none.coverage <= 0.97
    assert none.better <= 0.035
    assert none.worse <= 0.035
    some = paired_figures(world, 1000, seed=13, gain=detectable(world, seed=12))
    assert 0.72 <= some.better <= 0.86
