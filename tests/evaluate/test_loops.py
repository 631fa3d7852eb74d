"""Loops are found, and real solutions are none."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dftune.evaluate.loops import loop_kind

DATA = Path(__file__).parents[2] / "../shared/data"
STEPS = "First we factor the quadratic, then we look at the sign of each factor on the number line. "


@pytest.mark.parametrize(
    "text",
    [
        STEPS + "So the answer is 7. " * 12,
        STEPS + "0" * 150,
        STEPS + "\\frac{1}{2}+" * 20 + "\\fr",  # cut inside a period
        STEPS + "and so on\n" * 15 + "\n\n",
    ],
)
def test_an_end_that_repeats_itself_exactly_is_a_loop(text: str) -> None:
    assert loop_kind(text) == "exact"


def test_a_paragraph_of_2000_characters_three_times_over_is_a_loop() -> None:
    generator = random.Random(0)
    paragraph = "".join(generator.choice("abcdefghij klmnop") for _ in range(2_000))
    assert loop_kind(STEPS + 3 * paragraph) == "exact"
    assert loop_kind(STEPS + 2 * paragraph) is None


def test_a_loop_that_varies_a_word_is_found() -> None:
    generator = random.Random(0)
    lines = [
        "Wait, let me check that " + generator.choice(["once more", "again"]) + " very carefully." for _ in range(60)
    ]
    assert loop_kind(STEPS + " ".join(lines)) == "nearly"


def test_a_loop_that_counts_is_found() -> None:
    lines = [f"Step {index}: add the number {index} to the running total of all terms so far." for index in range(80)]
    assert loop_kind(STEPS + " ".join(lines)) == "counting"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7 7 7 7 7 7",
        STEPS + "1/7 = 0.142857142857142857142857...",
        STEPS + "So x = 1, x = 2 or x = 3. " * 2,
        "a" * 99,
    ],
)
def test_short_repetitions_are_no_loops(text: str) -> None:
    assert loop_kind(text) is None


def test_a_loop_that_ended_long_ago_is_none() -> None:
    assert (
        loop_kind("So the answer is 7. " * 12 + STEPS + "Therefore the product of the two roots is minus six.") is None
    )


def test_the_cost_does_not_grow_with_the_length() -> None:
    # Only the tail is looked at, so what stands before it cannot matter, a megabyte of it included.
    text = STEPS + "So the answer is 7. " * 12
    assert loop_kind("x" * 1_000_000 + text) == loop_kind(text) == "exact"


def solutions() -> Iterator[str]:
    for name in ("cot_train_mix", "math500", "minerva_math", "olympiadbench", "gsm8k_train"):
        for line in (DATA / f"{name}.jsonl").open(encoding="utf-8"):
            row = json.loads(line)
            if row.get("solution"):
                yield str(row["solution"])


@pytest.mark.skipif(not (DATA / "cot_train_mix.jsonl").is_file(), reason="the shared data are not there")
def test_no_real_solution_is_called_a_loop_whole_or_cut_anywhere() -> None:
    generator, num, found = random.Random(0), 0, []
    for text in solutions():
        num += 1
        found += [part for part in (text, text[: generator.randint(1, len(text))]) if loop_kind(part)]
    assert num > 11_000
    assert found == []
