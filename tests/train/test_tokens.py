"""Cutting a batch of tokens and joining the parts again."""

from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.batches import random_tokens
from tests.tiny import make_examples

from dftune.data.batches import Example, micro_batches
from dftune.train.tokens import boundaries, cut, join


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(2, 4), min_size=1, max_size=4), st.data())
def test_groups_cut_apart_and_joined_are_the_batch_again(seed, sizes, data):
    tokens = random_tokens(seed, sizes)
    ends = tokens.group_ids[tokens.sequence_ids].bincount().cumsum(0).tolist()
    chosen = data.draw(st.sets(st.sampled_from(ends)))
    edges = [0, *sorted(chosen | {len(tokens.logps)})]
    joined = join([cut(tokens, slice(start, end)) for start, end in pairwise(edges)])
    for field in fields(tokens):
        left, right = getattr(joined, field.name), getattr(tokens, field.name)
        assert torch.equal(left, right) if isinstance(right, torch.Tensor) else left == right, field.name


def test_a_part_counts_its_own_sequences_and_groups_from_0():
    tokens = random_tokens(0, (2, 3, 2))
    lengths = tokens.sequence_ids.bincount().tolist()
    part = cut(tokens, slice(sum(lengths[:2]), sum(lengths[:5])))
    assert part.sequence_ids.bincount().tolist() == lengths[2:5]
    assert (part.num_sequences, part.num_groups) == (3, 1)
    assert part.group_ids.tolist() == [0, 0, 0]
    assert part.example_ids == ("e1",)
    assert torch.equal(part.is_chosen, tokens.is_chosen[2:5])


@pytest.mark.parametrize("scope", ["token", "sequence", "group", "batch"])
def test_edges_are_where_the_scope_allows_a_cut(scope):
    examples = [
        Example(one.id, one.input_ids, one.completion_mask, f"g{i // 2}", i % 2 == 0)
        for i, one in enumerate(make_examples(6))
    ]
    (batch,) = micro_batches(examples, max_tokens=1000)
    by_id = {example.id: int(example.completion_mask[1:].sum()) for example in examples}
    lengths = [by_id[name] for name in batch.example_ids]
    running = [sum(lengths[:i]) for i in range(7)]
    expected = {"token": None, "sequence": running, "group": running[::2], "batch": [0, running[-1]]}
    assert boundaries(batch, scope) == expected[scope]
