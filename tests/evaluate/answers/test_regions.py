"""Sets of real numbers."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dftune.evaluate.answers.budget import Budget
from dftune.evaluate.answers.clean import clean
from dftune.evaluate.answers.lexer import readings
from dftune.evaluate.answers.parser import parse
from dftune.evaluate.answers.regions import complement, intersect, merge, region_of


def ends(text: str) -> list[str] | None:
    region = region_of(parse(readings(clean(text))[0]), Budget())
    if region is None:
        return None
    return [
        f"{'[' if p.low_closed else '('}{p.low_value:g},{p.high_value:g}{']' if p.high_closed else ')'}" for p in region
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x > 2", ["(2,Infinity)"]),
        ("2 < x", ["(2,Infinity)"]),
        (r"-1 \le x < 3", ["[-1,3)"]),
        ("3 > x > 1", ["(1,3)"]),
        (r"x \ne 2", ["(-Infinity,2)", "(2,Infinity)"]),
        ("x<1 or x>2", ["(-Infinity,1)", "(2,Infinity)"]),
        ("x>1 and x<2", ["(1,2)"]),
        (r"x > 0, x \ne 1", ["(0,1)", "(1,Infinity)"]),
        (r"(0,1) \cup [1,2)", ["(0,2)"]),
        (r"(0,1) \cup (1,2)", ["(0,1)", "(1,2)"]),
        (r"[0,3] \cap (1,5)", ["(1,3]"]),
        (r"\mathbb{R} \setminus \{0, 2\}", ["(-Infinity,0)", "(0,2)", "(2,Infinity)"]),
        (r"\{-1\} \cup [0,7)", ["[-1,-1]", "[0,7)"]),
        (r"\{x \mid 1 < x\}", ["(1,Infinity)"]),
        ("(3,3)", []),
        ("x < y", None),
        ("(a, 1)", None),
        ("]0,1[", ["(0,1)"]),
    ],
)
def test_descriptions_of_sets(text, expected):
    assert ends(text) == expected


interval = st.tuples(st.integers(-6, 6), st.integers(-6, 6), st.sampled_from(["()", "[]", "(]", "[)"]))


def contains(intervals, x) -> bool:
    """Membership, decided interval by interval from the definition."""
    return any(
        (low < x or (low == x and shape[0] == "[")) and (x < high or (x == high and shape[1] == "]"))
        for low, high, shape in intervals
    )


def region(intervals):
    pieces = []
    for low, high, shape in intervals:
        found = region_of(parse(readings(f"{shape[0]}{low},{high}{shape[1]}")[0]), Budget())
        assert found is not None
        pieces += found
    return merge(pieces)


def inside(pieces, x) -> bool:
    return any(
        (p.low_value < x or (p.low_value == x and p.low_closed))
        and (x < p.high_value or (x == p.high_value and p.high_closed))
        for p in pieces
    )


@given(st.lists(interval, max_size=4), st.lists(interval, max_size=4))
def test_union_intersection_and_complement_agree_with_membership(one, other):
    a, b = region(one), region(other)
    for half in range(-15, 16):
        x = half / 2
        in_a, in_b = contains(one, x), contains(other, x)
        assert inside(merge(a + b), x) == (in_a or in_b)
        assert inside(intersect(a, b), x) == (in_a and in_b)
        assert inside(complement(a), x) == (not in_a)


@given(st.lists(interval, max_size=5))
def test_merged_pieces_are_sorted_and_apart(intervals):
    pieces = region(intervals)
    for left, right in pairwise(pieces):
        assert left.high_value < right.low_value or (
            left.high_value == right.low_value and not left.high_closed and not right.low_closed
        )
