"""What is left of a row that is too long."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig

from dftune.data.conversations import Row
from dftune.data.dataset import PreparedDataset
from dftune.data.prepare import prepare
from dftune.data.truncation import CUT_COMPLETION, CUT_LAST_ANSWERS, cut_left, cut_right

from .families import byte_level

END = "<|endoftext|>"


def decoded(recipe) -> list[tuple[str, str]]:
    """Prompt and completion of the training rows."""
    dataset = PreparedDataset.load(recipe.data.prepared)
    tokenizer = AutoTokenizer.from_pretrained(dataset.tokenizer_folder)
    rows = [(dataset.input_ids("train", i), dataset.completion_mask("train", i)) for i in range(len(dataset.train))]
    return [(tokenizer.decode(ids[~mask]), tokenizer.decode(ids[mask])) for ids, mask in rows]


def reasons(manifest) -> dict[str, int]:
    return {reason: entry["count"] for reason, entry in manifest["counts"]["dropped"].items()}


def cuts(manifest) -> dict[str, list[str]]:
    return {
        what: [where.rpartition(" ")[2] for where in cut["examples"]] for what, cut in manifest["truncated"].items()
    }


# One token a byte, a newline after the prompt, an end token after the completion.
ROWS = [
    {"problem": "abcdefg", "solution": "123"},
    {"problem": "abcdefgh", "solution": "123"},
    {"problem": "abcdefghijkl", "solution": "1234"},
    {"problem": "abcdefghijkl", "solution": "12345678901"},
    {"problem": "ab", "solution": "12345678901"},
]


def test_left_keeps_the_completion_and_cuts_the_start_of_the_prompt(make_recipe, write_rows, byte_model):
    recipe = make_recipe(write_rows(ROWS), byte_model, max_length=12, truncation="left")
    manifest = prepare(recipe)
    assert decoded(recipe) == [
        ("abcdefg\n", "123" + END),
        ("bcdefgh\n", "123" + END),
        ("ghijkl\n", "1234" + END),
    ]
    assert cuts(manifest) == {"prompt cut from the left": ["2", "3"]}
    assert reasons(manifest) == {"too long": 2}  # with the end token 12: no room for a token before it


def test_right_cuts_the_end_of_the_completion_which_then_has_no_end_token(make_recipe, write_rows, byte_model):
    recipe = make_recipe(write_rows(ROWS), byte_model, max_length=12, truncation="right")
    manifest = prepare(recipe)
    assert decoded(recipe) == [
        ("abcdefg\n", "123" + END),
        ("abcdefgh\n", "123"),
        ("ab\n", "123456789"),
    ]
    assert cuts(manifest) == {"completion cut at its end": ["2", "5"]}
    assert reasons(manifest) == {"completion cut away": 2}
    for index, count in enumerate((1, 0, 0)):
        ids = PreparedDataset.load(recipe.data.prepared).input_ids("train", index)
        assert (ids == AutoTokenizer.from_pretrained(byte_model).eos_token_id).sum() == count


@pytest.mark.parametrize(("truncation", "kept"), [("drop", 1), ("left", 3), ("right", 3)])
def test_every_row_is_kept_or_counted_in_every_mode(truncation, kept, make_recipe, write_rows, byte_model):
    recipe = make_recipe(write_rows(ROWS), byte_model, max_length=12, truncation=truncation)
    manifest = prepare(recipe)
    assert manifest["num_train"] == kept
    assert sum(reasons(manifest).values()) == 5 - kept
    if truncation == "drop":
        assert (manifest["truncated"], reasons(manifest)) == ({}, {"too long": 4})


def test_left_keeps_the_beginning_of_sequence_token(make_recipe, write_rows, tmp_path):
    folder = tmp_path / "llama"
    LlamaConfig(max_position_embeddings=512).save_pretrained(folder)
    byte_level(bos=True).save_pretrained(folder)
    rows = [{"problem": "word " * 30, "solution": "end"}]
    recipe = make_recipe(write_rows(rows), folder, max_length=12, truncation="left")
    prepare(recipe)
    dataset = PreparedDataset.load(recipe.data.prepared)
    tokenizer = AutoTokenizer.from_pretrained(dataset.tokenizer_folder)
    ids = dataset.input_ids("train", 0)
    assert len(ids) == 12
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.decode(ids[dataset.completion_mask("train", 0)]) == "end</s>"


def test_a_negative_is_cut_like_a_solution_and_never_shortens_the_prompt(make_recipe, write_rows, byte_model):
    rows = [{"id": "a", "problem": "abcd", "solution": "12", "n": ["34", "3456789", "12345678"]}]
    left = make_recipe(write_rows(rows), byte_model, max_length=9, truncation="left", columns={"negatives": "n"})
    manifest = prepare(left)
    assert manifest["truncated"] == {}
    assert {reason: d["count"] for reason, d in manifest["negatives"]["dropped"].items()} == {"too long": 2}
    folder = str(left.data.prepared.parent / "right")
    keys = {"max_length": 9, "truncation": "right", "columns": {"negatives": "n"}, "prepared": folder}
    right = make_recipe(write_rows(rows), byte_model, **keys)
    manifest = prepare(right)
    assert cuts(manifest) == {"negative cut at its end": ["1", "1"]}
    dataset = PreparedDataset.load(right.data.prepared)
    tokenizer = AutoTokenizer.from_pretrained(dataset.tokenizer_folder)
    group = dataset.train.group(0)
    assert [tokenizer.decode(one.input_ids[one.completion_mask]) for one in group] == [
        "12" + END,
        "34" + END,
        "3456",
        "1234",
    ]
    assert {tokenizer.decode(one.input_ids[~one.completion_mask]) for one in group} == {"abcd\n"}


def test_a_negative_that_equals_the_solution_once_both_are_cut_is_dropped(make_recipe, write_rows, byte_model):
    rows = [{"problem": "ab", "solution": "12345", "n": ["12346", "9"]}]
    recipe = make_recipe(write_rows(rows), byte_model, max_length=7, truncation="right", columns={"negatives": "n"})
    manifest = prepare(recipe)
    dropped = manifest["negatives"]["dropped"]
    assert {reason: entry["count"] for reason, entry in dropped.items()} == {"equal to the solution": 1}


def test_a_later_answer_cut_away_leaves_the_earlier_ones():
    row = Row([0, 1, 2, 3, 4, 5, 6, 7], ((2, 4), (6, 8)))
    assert cut_right(row, 7) == (Row([0, 1, 2, 3, 4, 5, 6], ((2, 4), (6, 7))), CUT_COMPLETION)
    assert cut_right(row, 6) == (Row([0, 1, 2, 3], ((2, 4),)), CUT_LAST_ANSWERS)
    assert cut_right(row, 2) is None


def test_an_earlier_answer_that_loses_its_start_is_trained_on_no_more():
    row = Row([9, 1, 2, 3, 4, 5, 6, 7], ((2, 4), (6, 8)))
    assert cut_left(row, 7, bos=9).row == Row([9, 2, 3, 4, 5, 6, 7], ((1, 3), (5, 7)))
    assert cut_left(row, 6, bos=9).row == Row([9, 3, 4, 5, 6, 7], ((4, 6),))
    assert cut_left(row, 6, bos=None).row == Row([2, 3, 4, 5, 6, 7], ((4, 6),))  # nothing comes before the 2
    assert cut_left(row, 3, bos=9).row == Row([9, 6, 7], ((1, 3),))
    assert cut_left(row, 2, bos=9) is None


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(2, 5)), min_size=1, max_size=4), st.data())
def test_what_is_left_is_a_part_of_the_row_and_what_is_trained_on_is_predicted_from_something(turns, data):
    ids: list[int] = []
    spans = []
    for prompt, completion in turns:
        start = len(ids) + prompt
        ids = list(range(start + completion))
        spans.append((start, start + completion))
    row = Row(ids, tuple(spans))
    if len(ids) < 3:
        return
    max_length = data.draw(st.integers(2, len(ids) - 1))
    trained = {token for start, stop in spans for token in ids[start:stop]}
    for cut in (cut_left(row, max_length, bos=None), cut_left(row, max_length, bos=0), cut_right(row, max_length)):
        if cut is None:
            continue
        assert len(cut.row.ids) <= max_length
        assert set(cut.row.ids) <= set(ids)
        assert cut.row.spans
        mask = np.zeros(len(cut.row.ids), bool)
        for start, stop in cut.row.spans:
            assert 0 < start < stop <= len(mask)
            mask[start:stop] = True
        assert {token for token, on in zip(cut.row.ids, mask, strict=True) if on} <= trained
