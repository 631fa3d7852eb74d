"""Forward passes in parts: who computes what, and what is refused. test_distributed.py compares what comes out."""

import dataclasses

import pytest
import torch
from tests.tiny import make_examples
from transformers import LlamaConfig

from dftune.data.batches import Example, micro_batches
from dftune.ops.ulysses import SequenceGroup, num_repeats
from dftune.train.sequence import check_heads, part_of


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_parts_hold_every_position_and_every_target_once_in_equal_shares(packing, size):
    for batch in micro_batches(make_examples(7, seed=2), max_tokens=60, packing=packing):
        parts = [part_of(batch, SequenceGroup(rank, size, None)) for rank in range(size)]
        assert len({part.input_ids.shape for part in parts}) == 1
        rows, length = batch.input_ids.shape
        for name in ("input_ids", "position_ids"):
            joined = torch.cat([getattr(part, name) for part in parts], 1)
            assert joined.shape[1] - length < size
            assert torch.equal(joined[:, :length], getattr(batch, name))
        places = torch.cat([part.places for part in parts])
        assert sorted(places.tolist()) == list(range(len(batch.targets)))
        for part in parts:  # the token at the place of a prediction is the one that stands there in the whole
            whole = batch.input_ids.flatten()[batch.positions[part.places]]
            assert torch.equal(part.input_ids.flatten()[part.positions], whole)
            assert torch.equal(part.targets, batch.targets[part.places])
            if packing:
                assert part.document_starts[-1] == part.input_ids.shape[1] * size
        assert rows == 1 or not packing


@pytest.mark.parametrize(
    ("heads", "key_value_heads", "size", "expected"),
    [(8, 8, 4, 1), (8, 2, 2, 1), (8, 2, 4, 2), (8, 1, 8, 8), (12, 4, 6, 3), (28, 4, 7, 7), (32, 8, 16, 2)],
)
def test_key_value_heads_are_repeated_until_each_rank_has_those_that_its_queries_look_at(
    heads, key_value_heads, size, expected
):
    repeats = num_repeats(heads, key_value_heads, size)
    assert repeats == expected
    held = torch.arange(key_value_heads).repeat_interleave(repeats).chunk(size)
    wanted = (torch.arange(heads) // (heads // key_value_heads)).chunk(size)
    for queries, keys in zip(wanted, held, strict=True):
        assert torch.equal(keys.repeat_interleave(len(queries) // len(keys)), queries)


def test_heads_that_cannot_be_divided_and_rotations_that_depend_on_the_length_are_refused():
    config = LlamaConfig(num_attention_heads=6, num_key_value_heads=2, hidden_size=48)
    check_heads(config, 3)
    with pytest.raises(ValueError, match=r"6 attention heads cannot be divided among .*sequence_parallel = 4"):
        check_heads(config, 4)
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ValueError, match=r"\(dynamic\) depends on the length.*sequence_parallel=1"):
        check_heads(config, 3)
    config.rope_parameters = {
        "full_attention": {"rope_type": "longrope"},
        "sliding_attention": {"rope_type": "default"},
    }
    with pytest.raises(ValueError, match=r"\(longrope\)"):
        check_heads(config, 2)


def test_a_forward_pass_in_parts_holds_as_many_tokens_as_all_of_them():
    (example,) = make_examples(1, longest=20)
    long = Example("long", example.input_ids.repeat(20), example.completion_mask.repeat(20))
    need = len(long)
    (batch,) = micro_batches([long], max_tokens=-(-need // 4), parts=4)
    assert batch.num_tokens == need
    with pytest.raises(ValueError, match=rf"in each of 4 processes .*to {need} tokens.*at least {-(-need // 4)},"):
        micro_batches([long, dataclasses.replace(long, id="other")], max_tokens=need // 4 - 1, parts=4)
