"""Packing: against a slower implementation, by hand, and what holds for any lengths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dftune.data.batches import Example, micro_batches
from dftune.data.packing import best_fit, in_order, length_sorted, unused_share

SIZES = st.lists(st.integers(1, 30), max_size=60)


def brute_force(sizes, budget, counts, most):
    """Best-fit decreasing by looking at every row for every item."""
    rows, room, number = [], [], []
    for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        fitting = [
            (room[row], row)
            for row in range(len(rows))
            if room[row] >= sizes[item] and (most is None or number[row] + counts[item] <= most)
        ]
        if fitting:
            row = min(fitting)[1]
        else:
            row = len(rows)
            rows.append([])
            room.append(budget)
            number.append(0)
        rows[row].append(item)
        room[row] -= sizes[item]
        number[row] += counts[item]
    return rows


@given(sizes=SIZES, budget=st.integers(30, 70), most=st.none() | st.integers(3, 6), data=st.data())
def test_best_fit_is_that_of_looking_at_every_row(sizes, budget, most, data):
    counts = data.draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes)))
    assert best_fit(sizes, budget, counts, most).lists() == brute_force(sizes, budget, counts, most)


@given(sizes=SIZES, budget=st.integers(30, 70), most=st.none() | st.integers(1, 6), open_rows=st.integers(1, 5))
def test_a_stream_is_packed_whole_within_the_limits_and_each_row_in_order(sizes, budget, most, open_rows):
    rows = list(in_order(iter(sizes), budget, most, open_rows))
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    for row in rows:
        assert sum(sizes[item] for item in row) <= budget
        assert most is None or len(row) <= most
        assert row == sorted(row)
    if open_rows == 1:
        assert [item for row in rows for item in row] == list(range(len(sizes)))


@given(sizes=SIZES, budget=st.integers(30, 70), most=st.none() | st.integers(1, 6))
def test_padded_batches_go_from_long_to_short_and_keep_to_the_budget_with_their_padding(sizes, budget, most):
    rows = length_sorted(sizes, budget, most=most)
    lengths = [[sizes[item] for item in row] for row in rows.lists()]
    assert [length for row in lengths for length in row] == sorted(sizes, reverse=True)
    assert all(len(row) * max(row) <= budget for row in lengths)
    assert most is None or all(len(row) <= most for row in lengths)


def test_a_stream_is_read_only_as_far_as_its_rows_need():
    def sizes():
        yield from (6, 5, 4, 5)
        raise AssertionError("read too far")

    rows = in_order(sizes(), 10, open_rows=1)
    assert next(rows) == [0]  # 6 and 5 do not fit into 10
    rows = in_order(sizes(), 10, open_rows=2)
    # 6 | 5 are open; 4 goes to 6 and 5 to 5
    with pytest.raises(AssertionError, match="too far"):
        next(rows)


def test_the_unused_share_worked_by_hand():
    sizes = [6, 5, 4, 3, 2]
    assert unused_share(sizes, 10, "best_fit") == 0  # [6 4] [5 3 2]
    assert unused_share([6, 5, 6], 10, "best_fit") == pytest.approx(13 / 30)
    # 6 alone (12 > 10), 5 and 4 in two rows of 5, 3 and 2 in two of 3
    assert unused_share(sizes, 10, "length_sorted") == pytest.approx(1 - 20 / 22)
    assert unused_share([], 10, "best_fit") == 0


@pytest.mark.parametrize("sizes", [[11], [0, 3]])
def test_what_does_not_fit_is_an_error(sizes):
    for pack in (best_fit, length_sorted, lambda *args: list(in_order(*args))):
        with pytest.raises(ValueError, match="a row takes 1 to 10"):
            pack(sizes, 10)


def test_a_hundred_thousand_examples_leave_almost_nothing_unused_and_come_out_the_same_twice():
    sizes = np.random.default_rng(0).integers(20, 2048, 100_000)
    first, second = best_fit(sizes, 8192), best_fit(sizes, 8192)
    np.testing.assert_array_equal(first.order, second.order)
    np.testing.assert_array_equal(first.starts, second.starts)
    assert sorted(first.order) == list(range(100_000))
    totals = np.add.reduceat(sizes[first.order], first.starts[:-1])
    assert totals.max() <= 8192
    assert 1 - sizes.sum() / (len(first) * 8192) < 0.001


@pytest.mark.parametrize("mode", ["best_fit", "in_order", "length_sorted"])
def test_every_mode_gives_forward_passes_with_the_same_examples(mode):
    examples = [Example(str(n), np.arange(n, dtype=np.int32), np.arange(n) > 0) for n in (5, 3, 7, 2, 6, 4)]
    batches = micro_batches(examples, max_tokens=10, packing=mode)
    assert sorted(name for batch in batches for name in batch.example_ids) == ["2", "3", "4", "5", "6", "7"]
    assert sum(batch.num_padding for batch in batches) == (2 if mode == "length_sorted" else 0)
    if mode == "in_order":
        assert [batch.example_ids for batch in batches] == [("5", "3"), ("7", "2"), ("6", "4")]
    same = {True: "best_fit", False: "length_sorted"}
    for flag, name in same.items():
        if name == mode:
            again = micro_batches(examples, max_tokens=10, packing=flag)
            assert [batch.example_ids for batch in again] == [batch.example_ids for batch in batches]
