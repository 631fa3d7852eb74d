import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from dftune.data.dataset import PreparedDataset
from dftune.data.prepare import prepare
from dftune.recipe import Recipe

from .conftest import FIXTURES


@pytest.fixture
def recipe(make_recipe, byte_model) -> Recipe:
    made = make_recipe(FIXTURES / "stories.jsonl", byte_model, validation=10)
    prepare(made)
    return made


@pytest.fixture
def folder(recipe) -> Path:
    return recipe.data.prepared


@pytest.mark.parametrize("split", ["train", "validation"])
def test_examples_are_those_of_the_parquet_file(split, folder):
    rows = parquet.read_table(folder / f"{split}.parquet").to_pylist()
    dataset = PreparedDataset.load(folder)
    assert dataset.ids(split) == tuple(row["id"] for row in rows)
    assert dataset.lengths(split).tolist() == [len(row["input_ids"]) for row in rows]
    for index, row in enumerate(rows):
        assert dataset.input_ids(split, index).tolist() == row["input_ids"]
        assert dataset.completion_mask(split, index).tolist() == row["completion_mask"]


def test_examples_are_views_of_flat_arrays_that_cannot_be_written(folder):
    dataset = PreparedDataset.load(folder)
    ids = dataset.input_ids("train", 3)
    assert ids.dtype == np.int32
    assert dataset.completion_mask("train", 3).dtype == np.bool_
    assert np.shares_memory(ids, dataset.train.tokens)
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_a_file_of_several_row_groups_is_read_as_one(folder):
    before = PreparedDataset.load(folder)
    table = parquet.read_table(folder / "train.parquet")
    parquet.write_table(table, folder / "train.parquet", row_group_size=4)
    after = PreparedDataset.load(folder)
    assert after.ids("train") == before.ids("train")
    np.testing.assert_array_equal(after.train.tokens, before.train.tokens)
    np.testing.assert_array_equal(after.train.mask, before.train.mask)
    np.testing.assert_array_equal(after.train.offsets, before.train.offsets)


def test_no_held_out_rows_is_an_empty_split(make_recipe, byte_model):
    recipe = make_recipe(FIXTURES / "stories.jsonl", byte_model)
    prepare(recipe)
    dataset = PreparedDataset.load(recipe.data.prepared)
    assert (len(dataset.train), len(dataset.validation)) == (40, 0)
    assert dataset.lengths("validation").shape == (0,)


def test_a_missing_folder_manifest_or_table_says_to_prepare(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no prepared dataset at .*nowhere\. Run `dftune prepare RECIPE`"):
        PreparedDataset.load(tmp_path / "nowhere")
    (folder / "validation.parquet").unlink()
    with pytest.raises(ValueError, match=r"lacks .*validation\.parquet\. Run `dftune prepare"):
        PreparedDataset.load(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"it has no manifest\.json\. Run `dftune prepare"):
        PreparedDataset.load(folder)


def test_a_table_with_other_rows_than_the_manifest_says_is_refused(folder):
    shutil.copy(folder / "validation.parquet", folder / "train.parquet")
    with pytest.raises(
        ValueError, match=r"train\.parquet holds 10 rows and manifest\.json says 30.*Run `dftune prepare"
    ):
        PreparedDataset.load(folder)


@pytest.mark.parametrize("damage", [b"", b"PAR1 and nothing else"])
def test_a_damaged_table_is_refused(damage, folder):
    (folder / "train.parquet").write_bytes(damage)
    with pytest.raises(ValueError, match=r"train\.parquet cannot be read .*Run `dftune prepare"):
        PreparedDataset.load(folder)


def test_a_manifest_of_something_else_or_of_another_version_is_refused(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({"kind": "train"}))
    with pytest.raises(ValueError, match="not the manifest of a prepared dataset"):
        PreparedDataset.load(folder)
    del manifest["tokens"], manifest["counts"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="lacks counts, tokens"):
        PreparedDataset.load(folder)


def test_the_recipe_it_was_prepared_with_matches_and_the_folder_may_have_moved(
    recipe, make_recipe, byte_model, tmp_path
):
    recipe.data.prepared.rename(tmp_path / "moved")
    moved = make_recipe(FIXTURES / "stories.jsonl", byte_model, validation=10, prepared=str(tmp_path / "moved"))
    PreparedDataset.load(tmp_path / "moved").check_matches(moved)


def test_every_setting_that_differs_is_named(folder, make_recipe, byte_model):
    other = make_recipe(
        "other.jsonl", byte_model, validation=10, prompt_format="cot", columns={"problem": "question"}, limit=5
    )
    with pytest.raises(ValueError, match="prepared with other settings") as caught:
        PreparedDataset.load(folder).check_matches(other)
    named = [line.strip().partition(":")[0] for line in str(caught.value).splitlines()[1:-1]]
    assert named == ["data.columns.problem", "data.limit", "data.prompt_format", "data.source"]


def test_a_copy_of_the_tokenizer_matches_and_another_tokenizer_does_not(
    folder, make_recipe, byte_model, chat_model, tmp_path
):
    dataset = PreparedDataset.load(folder)
    shutil.copytree(byte_model, tmp_path / "copy")
    dataset.check_matches(make_recipe(FIXTURES / "stories.jsonl", tmp_path / "copy", validation=10))
    with pytest.raises(ValueError, match=r"model: prepared with the tokenizer of .*bytes, the recipe has of .*chat"):
        dataset.check_matches(make_recipe(FIXTURES / "stories.jsonl", chat_model, validation=10))
    with pytest.raises(ValueError, match=r"the recipe has trained for model\.scratch"):
        dataset.check_matches(make_recipe(FIXTURES / "stories.jsonl", None, validation=10))


def test_the_size_of_a_new_model_may_change_but_not_its_vocabulary(make_recipe):
    scratch = {"vocab_size": 300, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1}
    recipe = make_recipe(FIXTURES / "stories.jsonl", {"scratch": scratch})
    prepare(recipe)
    dataset = PreparedDataset.load(recipe.data.prepared)
    dataset.check_matches(make_recipe(FIXTURES / "stories.jsonl", {"scratch": {**scratch, "hidden_size": 64}}))
    with pytest.raises(ValueError, match=r"model\.scratch\.vocab_size: prepared with 300, the recipe has 310"):
        dataset.check_matches(make_recipe(FIXTURES / "stories.jsonl", {"scratch": {**scratch, "vocab_size": 310}}))
