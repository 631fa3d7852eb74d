"""Which examples a step holds, and how they share rows."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dftune.data.batches import Example, micro_batches, step_indices, step_visits
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


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 5))
def test_a_visit_carries_the_epoch_it_belongs_to(num_examples, batch_size, seed):
    common = {"num_examples": num_examples, "batch_size": batch_size, "seed": seed, "num_total": 2 * num_examples + 1}
    steps = range(-(-common["num_total"] // batch_size))
    found = [visit for step in steps for visit in step_visits(step, **common)]
    assert [epoch for epoch, _ in found] == [0] * num_examples + [1] * num_examples + [2]
    assert [index for _, index in found] == visits(num_examples, batch_size, common["num_total"], seed)


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


def make_group(name: str, *lengths: int) -> list[Example]:
    """A completion and its negatives, of one prompt token and these lengths together."""
    return [
        Example(
            name if number == 0 else f"{name}#{number - 1}",
            np.full(length, number, np.int32),
            np.arange(length) > 0,
            group=name,
            is_chosen=number == 0,
        )
        for number, length in enumerate(lengths)
    ]


@given(
    sizes=st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=4), min_size=1, max_size=10),
    num_alone=st.integers(0, 4),
    limits=st.fixed_dictionaries(
        {
            "max_tokens": st.integers(36, 90),
            "max_examples": st.one_of(st.none(), st.integers(4, 9)),
            "packing": st.booleans(),
        }
    ),
    order=st.randoms(use_true_random=False),
)
def test_no_group_is_split_no_example_lost_and_no_limit_exceeded(sizes, num_alone, limits, order: random.Random):
    groups = [make_group(f"g{number}", *lengths) for number, lengths in enumerate(sizes)]
    examples = [example for group in groups for example in group] + make_examples(num_alone, longest=9)
    order.shuffle(examples)
    batches = micro_batches(examples, **limits)
    by_id = {example.id: example for example in examples}
    assert sorted(name for batch in batches for name in batch.example_ids) == sorted(by_id)
    names = [name for batch in batches for name in batch.group_example_ids]
    assert sorted(names) == sorted(
        [f"g{number}" for number in range(len(groups))] + [f"e{i}" for i in range(num_alone)]
    )
    for batch in batches:
        assert batch.input_ids.numel() <= limits["max_tokens"]
        assert batch.num_sequences <= (limits["max_examples"] or 99)
        assert batch.num_units("group") == batch.num_groups == len(batch.group_example_ids)
        members = [by_id[name] for name in batch.example_ids]
        found = [batch.group_example_ids[group] for group in batch.group_ids]
        assert found == [member.group or member.id for member in members]
        assert batch.is_chosen.tolist() == [member.is_chosen for member in members]
        assert batch.group_ids.dtype == torch.int64


def test_best_fit_over_whole_groups_worked_by_hand():
    # b needs 3+3 and c 2+2+2 tokens, a 5, into rows of 11: [b a] (b came first of the sixes), [c]
    examples = [*make_group("a", 5), *make_group("b", 3, 3), *make_group("c", 2, 2, 2)]
    first, second = micro_batches(examples, max_tokens=11)
    assert first.example_ids == ("b", "b#0", "a")
    assert first.group_example_ids == ("b", "a")
    assert first.group_ids.tolist() == [0, 0, 1]
    assert first.is_chosen.tolist() == [True, False, True]
    assert first.document_starts == [0, 3, 6, 11]
    assert second.example_ids == ("c", "c#0", "c#1")
    assert second.group_ids.tolist() == [0, 0, 0]
    assert [batch.num_units("sequence") for batch in (first, second)] == [3, 3]


def test_padded_groups_worked_by_hand():
    # Rows as long as the longest: b, 6 + 2 tokens, takes 2 rows of 6; a, 5 tokens, would make 18; c, 4 + 4 tokens, 8
    examples = [*make_group("a", 5), *make_group("b", 2, 6), *make_group("c", 4, 4)]
    first, second = micro_batches(examples, max_tokens=17, packing=False)
    assert (first.group_example_ids, tuple(first.input_ids.shape)) == (("b",), (2, 6))
    assert (second.group_example_ids, tuple(second.input_ids.shape)) == (("a", "c"), (3, 5))
    assert second.group_ids.tolist() == [0, 1, 1]


def test_a_group_visited_twice_in_a_step_is_two_groups_of_one_id():
    first, second = make_group("a", 4, 3), make_group("a", 4, 5)
    (batch,) = micro_batches([*first, *second], max_tokens=100)
    assert batch.group_example_ids == ("a", "a")
    assert batch.group_ids.tolist() == [0, 0, 1, 1]
    assert batch.is_chosen.tolist() == [True, False, True, False]


def test_without_groups_nothing_is_grouped():
    for batch in micro_batches(make_examples(5), max_tokens=30):
        assert batch.group_ids is None
        assert batch.is_chosen is None
        assert (batch.num_groups, batch.group_example_ids) == (0, ())


def test_every_tensor_of_a_forward_pass_moves_with_it():
    (batch,) = micro_batches(make_group("a", 4, 3), max_tokens=100)
    moved = batch.to(torch.device("meta"))
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            assert getattr(moved, name).device.type == "meta", name
        else:
            assert getattr(moved, name) == value


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"max_tokens": 8},
            r"groups \['b'\] do not fit into train\.micro_batch_tokens = 8: .*up to 9 tokens\. .*least 9",
        ),
        (
            {"max_tokens": 14, "packing": False},
            r"groups \['b'\] .*micro_batch_tokens = 14: .*up to 15 tokens, padding included\. Raise it to at least 15",
        ),
        (
            {"max_tokens": 99, "max_examples": 2},
            r"groups \['b'\] have up to 3 examples, and train\.micro_batch_size = 2",
        ),
    ],
)
def test_a_group_that_does_not_fit_is_named_with_the_remedy(limits, message):
    with pytest.raises(ValueError, match=message) as caught:
        micro_batches([*make_group("a", 3, 3), *make_group("b", 5, 2, 2)], **limits)
    assert "data.num_negatives" in str(caught.value)


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
