"""Coverage of the 95 % intervals, false findings and power, on simulated benchmarks whose truth is known.

    python benchmarks/intervals.py [--repetitions 4000] [--seed 0]

prints the table of docs/evaluation.md; tests/evaluate/test_coverage.py asserts the same of fewer repetitions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dftune.evaluate.metrics import Difference, accuracy_estimate, paired_difference

Array = np.ndarray
Generator = np.random.Generator


@dataclass(frozen=True)
class World:
    """Where the questions come from, and how often each is asked.

    Attributes:
        num_questions: drawn afresh in every repetition: the truth is that of the super-population.
        num_samples: completions a question.
        a, b: of the Beta distribution of a question's chance to be answered; the mean is ``a / (a + b)``.
        cluster_sizes: sizes that clusters take in turn; empty, every question is on its own.
        shared: share of a question's chance that its cluster decides, where there are clusters.
    """

    num_questions: int
    num_samples: int = 1
    a: float = 0.9
    b: float = 0.6
    cluster_sizes: tuple[int, ...] = ()
    shared: float = 0.7

    @property
    def truth(self) -> float:
        """Accuracy over all questions there could be."""
        return self.a / (self.a + self.b)

    def clusters(self) -> list[int] | None:
        """Cluster of each question."""
        if not self.cluster_sizes:
            return None
        names: list[int] = []
        while len(names) < self.num_questions:
            number = names[-1] + 1 if names else 0
            names += [number] * self.cluster_sizes[number % len(self.cluster_sizes)]
        return names[: self.num_questions]

    def chances(self, generator: Generator) -> Array:
        """The chance of each question, (questions,): its own draw, or its cluster's with probability ``shared``."""
        own = generator.beta(self.a, self.b, self.num_questions)
        names = self.clusters()
        if names is None:
            return own
        common = generator.beta(self.a, self.b, names[-1] + 1)[names]
        return np.where(generator.random(self.num_questions) < self.shared, common, own)

    def shares(self, chances: Array, generator: Generator) -> list[list[float]]:
        """Share of correct samples of each question, one column."""
        return [[float(share)] for share in generator.binomial(self.num_samples, chances) / self.num_samples]


def accuracy_coverage(world: World, repetitions: int, seed: int) -> float:
    """Share of repetitions in which the interval of the accuracy holds the truth."""
    generator, covered = np.random.default_rng(seed), 0
    for _ in range(repetitions):
        shares = world.shares(world.chances(generator), generator)
        found = accuracy_estimate(shares, len(shares) * world.num_samples, clusters=world.clusters())
        covered += found.low <= world.truth <= found.high
    return covered / repetitions


@dataclass(frozen=True)
class PairedFigures:
    """What repeated comparisons of two models came to."""

    coverage: float
    better: float
    worse: float


def paired_figures(world: World, repetitions: int, seed: int, gain: float = 0.0) -> PairedFigures:
    """Compare two models whose chances on a question are related, the first ``gain`` better on average.

    Three quarters of the questions have the same chance for both; on the rest the two are drawn separately. The gain is
    made by letting the first model answer a wrong sample rightly with probability ``gain / (1 - mean)``.
    """
    generator = np.random.default_rng(seed)
    found = [_compare(world, generator, gain) for _ in range(repetitions)]
    return PairedFigures(
        coverage=float(np.mean([one.low <= gain <= one.high for one in found])),
        better=float(np.mean([one.sign > 0 for one in found])),
        worse=float(np.mean([one.sign < 0 for one in found])),
    )


def detectable(world: World, seed: int, repetitions: int = 100, rounds: int = 3) -> float:
    """The true difference at which the difference stated as detectable is, on average, that very one."""
    generator, gain = np.random.default_rng(seed), 0.0
    for _ in range(rounds):  # the variance grows a little with the difference
        gain = float(np.mean([_compare(world, generator, gain).detectable for _ in range(repetitions)]))
    return gain


def _compare(world: World, generator: Generator, gain: float) -> Difference:
    theirs = world.chances(generator)
    ours = np.where(generator.random(world.num_questions) < 0.75, theirs, world.chances(generator))
    ours = ours + (1 - ours) * gain / (1 - world.truth)
    sides = [world.shares(chances, generator) for chances in (ours, theirs)]
    return paired_difference(sides[0], sides[1], seeds_match=True, clusters=world.clusters())


SIZES = (1, 2, 3, 4, 5)
WORLDS = {
    "one sample, 500 questions": World(500),
    "one sample, 100 questions": World(100),
    "one sample, 30 questions": World(30),
    "8 samples, 500 questions": World(500, 8),
    "8 samples, 100 questions": World(100, 8),
    "16 samples, 30 questions": World(30, 16),
    "clusters of 1 to 5, one sample, 300 questions": World(300, 1, cluster_sizes=SIZES),
    "clusters of 1 to 5, 4 samples, 150 questions": World(150, 4, cluster_sizes=SIZES),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    print("| benchmark | coverage of the accuracy | of the difference | called better | called worse | power |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, world in WORLDS.items():
        accuracy = accuracy_coverage(world, args.repetitions, args.seed)
        none = paired_figures(world, args.repetitions, args.seed + 1)
        gain = detectable(world, args.seed + 2)
        some = paired_figures(world, args.repetitions, args.seed + 3, gain)
        cells = [accuracy, none.coverage, none.better, none.worse, some.better]
        print(
            f"| {name} | {' | '.join(f'{100 * cell:.1f} %' for cell in cells)} at {100 * gain:.1f} points |", flush=True
        )


if __name__ == "__main__":
    main()
