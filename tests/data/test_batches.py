"""Which examples a step holds, and how they share rows."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dftune.data.batches import Example, micro_batches, step_indices
from tests.tiny import make_examples


def visits(num_examples: int, batch_size: int, num_total: int, seed: int = 0) -> list[int]:
    steps = -(-num_total // batch_size)
    common = {"num_examples": num_examples, "batch_size": batch_size, "seed": seed, "num_total": num_total}
    return [index for step in range(steps) for index in step_indices(step, **common)]


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 5))
def test_every_epoch_visits_every_example_once_even_when_a_step_spans_two(num_examples, batch_size, seed):
    order = visits(num_examples, batch_size, 3 * num_examples, seed)
    for epoch in range(3):
        assert sorted(order[epoch * num_examples : (epoch + 1) * num_examples]) == list(range(num_examples))


def test_epochs_and_seeds_have_orders_of_their_own():
    order = visits(50, 10, 100)
    assert order[:50] != order[50:]
    assert order != visits(50, 10, 100, seed=1)
    assert order == visits(50, 10, 100)


def test_the_order_of_examples_does_not_depend_on_the_batch_size():
    assert visits(30, 7, 60) == visits(30, 11, 60)


def test_the_last_step_holds_what_is_left():
    assert len(step_indices(2, num_examples=10, batch_size=4, seed=0, num_total=10)) == 2


@given(st.integers(1, 12), st.integers(20, 90), st.one_of(st.none(), st.integers(1, 4)), st.booleans())
def test_no_forward_pass_is_over_its_limits_and_no_example_is_lost(num, max_tokens, max_examples, packing):
    examples = make_examples(num, seed=num)
    batches = micro_batches(examples, max_tokens=max_tokens, max_examples=max_examples, packing=packing)
    assert sorted(i for batch in batches for i in batch.example_ids) == sorted(e.id for e in examples)
    assert sum(batch.num_tokens for batch in batches) == sum(map(len, examples))
    for batch in batches:
        assert batch.input_ids.numel() <= max_tokens
        assert max_examples is None or batch.num_sequences <= max_examples
        assert packing is (batch.document_starts is not None)
        if packing:
            assert batch.num_padding == 0


def test_best_fit_fills_rows_worked_by_hand():
    # lengths 6 5 4 3 2 into rows of 10: [6 4], [5 3 2]
    examples = [Example(str(n), np.zeros(n, np.int32), np.arange(n) > 0) for n in (2, 3, 4, 5, 6)]
    batches = micro_batches(examples, max_tokens=10)
    assert [batch.example_ids for batch in batches] == [("6", "4"), ("5", "3", "2")]


def test_positions_restart_in_every_document():
    (batch,) = micro_batches(make_examples(3), max_tokens=100)
    starts = batch.document_starts
    assert starts[0] == 0
    assert starts[-1] == batch.input_ids.shape[1]
    for start, end in pairwise(starts):
        assert batch.position_ids[0, start:end].tolist() == list(range(end - start))


def test_an_example_longer_than_a_forward_pass_is_named_with_the_remedy():
    with pytest.raises(ValueError, match=r"examples \['e0'.*micro_batch_tokens = 3.*Raise it to at least"):
        micro_batches(make_examples(1), max_tokens=3)


def test_an_example_without_a_token_to_train_on_is_named():
    masked = Example("empty", np.zeros(5, np.int32), np.zeros(5, bool))
    with pytest.raises(ValueError, match=r"\['empty'\] have no token to train on"):
        micro_batches([masked], max_tokens=100)
