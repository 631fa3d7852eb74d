import hashlib
import json
import random
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from transformers import AutoTokenizer

from dftune.data.dataset import PreparedDataset
from dftune.data.prepare import prepare, prepared
from dftune.data.tokenizer import tokenizer_fingerprint, train_tokenizer

from .conftest import FIXTURES

GSM8K = Path(__file__).parents[2] / "../shared/data/gsm8k_train.jsonl"
END = "<|endoftext|>"


def texts_of(folder: Path, split: str) -> list[dict]:
    return parquet.read_table(folder / f"{split}.parquet").to_pylist()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def sized(problem: int, solution: int, **values) -> dict:
    """A row of a certain length, different from others of that length by its id."""
    return {"problem": "p" * problem, "solution": "s" * solution, **values}


def test_a_row_becomes_prompt_completion_and_end_token_of_which_the_prompt_is_masked(
    make_recipe, write_rows, byte_model
):
    recipe = make_recipe(write_rows([{"id": 1, "problem": "hi", "solution": "abc", "answer": 4}]), byte_model)
    prepare(recipe)
    (row,) = texts_of(recipe.data.prepared, "train")
    tokenizer = AutoTokenizer.from_pretrained(byte_model)
    expected = tokenizer.convert_tokens_to_ids(["h", "i", "Ċ", "a", "b", "c", END])
    assert row == {
        "id": "1",
        "source": None,
        "problem": "hi",
        "solution": "abc",
        "answer": "4",
        "input_ids": expected,
        "completion_mask": [False, False, False, True, True, True, True],
    }


@pytest.mark.parametrize("prompt_format", ["plain", "deepseek-math", "metamath", "chat", "qwen-boxed"])
def test_what_is_masked_is_the_rendered_prompt_and_the_rest_is_the_completion(
    prompt_format, make_recipe, chat_model, stories
):
    boxed = "{}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    expected = {
        "plain": ("{}\n", "", END),
        "deepseek-math": (f"User: {boxed}\n\nAssistant:", " ", END),
        "metamath": (
            "Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\n{}\n\n### Response:\n",
            "",
            END,
        ),
        "chat": ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "", "<|im_end|>"),
        "qwen-boxed": (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"{boxed}<|im_end|>\n<|im_start|>assistant\n",
            "",
            "<|im_end|>",
        ),
    }[prompt_format]
    recipe = make_recipe(FIXTURES / "stories.jsonl", chat_model, prompt_format=prompt_format, validation=10)
    prepare(recipe)
    dataset = PreparedDataset.load(recipe.data.prepared)
    tokenizer = AutoTokenizer.from_pretrained(dataset.tokenizer_folder)
    by_id = {row["id"]: row for row in stories}
    for split, count in (("train", 30), ("validation", 10)):
        assert len(dataset.ids(split)) == count
        for index, name in enumerate(dataset.ids(split)):
            ids, mask = dataset.input_ids(split, index), dataset.completion_mask(split, index)
            assert tokenizer.decode(ids[~mask]) == expected[0].format(by_id[name]["problem"])
            assert tokenizer.decode(ids[mask]) == expected[1] + by_id[name]["solution"] + expected[2]
            assert np.flatnonzero(mask).tolist() == list(range((~mask).sum(), len(ids)))


def test_every_row_is_kept_or_counted_and_the_statistics_are_those_of_the_tokens(make_recipe, write_rows, byte_model):
    # One token a byte, a newline after the prompt, an end token after the completion.
    rows = [sized(10, 20), sized(30, 40), sized(50, 60), sized(10, 20), sized(0, 5), sized(5, 0), sized(300, 211)]
    recipe = make_recipe(write_rows(rows), byte_model, validation=1)
    manifest = prepare(recipe)
    where = f"{recipe.data.source}, line"
    assert manifest["counts"] == {
        "rows_read": 7,
        "kept": 3,
        "dropped": {
            "exact duplicate": {"count": 1, "examples": [f"{where} 4"]},
            "empty problem or solution": {"count": 2, "examples": [f"{where} 5", f"{where} 6"]},
            "too long": {"count": 1, "examples": [f"{where} 7"]},
        },
    }
    assert (manifest["num_train"], manifest["num_validation"]) == (2, 1)
    assert manifest["tokens"] == {
        "prompt": {"min": 11, "mean": 31.0, "median": 31.0, "p95": 49.0, "max": 51, "sum": 93},
        "completion": {"min": 21, "mean": 41.0, "median": 41.0, "p95": 59.0, "max": 61, "sum": 123},
        "total": {"min": 32, "mean": 72.0, "median": 72.0, "p95": 108.0, "max": 112, "sum": 216},
    }
    assert json.loads((recipe.data.prepared / "manifest.json").read_text()) == manifest


def test_the_longest_example_that_fits_is_kept_and_one_token_more_is_too_long(make_recipe, write_rows, byte_model):
    rows = [sized(10, 20, id="fits"), sized(10, 21, id="over"), sized(11, 20, id="prompt")]
    recipe = make_recipe(write_rows(rows), byte_model, max_length=32)
    prepare(recipe)
    assert [row["id"] for row in texts_of(recipe.data.prepared, "train")] == ["fits"]


def test_too_long_can_be_an_error_that_names_the_rows(make_recipe, write_rows, byte_model):
    rows = [sized(9, 9, id="ok"), *(sized(9, 90 + number, id=f"long-{number}") for number in range(7))]
    recipe = make_recipe(write_rows(rows), byte_model, max_length=64, truncation="error")
    with pytest.raises(
        ValueError, match=r"7 of 8 examples .*max_length=64.*long-0, .*long-4 and 2 more.*truncation=drop"
    ):
        prepare(recipe)
    assert not recipe.data.prepared.exists()


def test_a_completion_without_a_token_to_train_on_is_counted_and_so_is_one_that_ends_early(
    make_recipe, write_rows, byte_model
):
    rows = [sized(3, 3), {"problem": "q", "solution": END}, {"problem": "q", "solution": f"a{END}b"}]
    rows.append({"problem": "q", "solution": f"a{END}"})  # the one end token, already there
    recipe = make_recipe(write_rows(rows), byte_model)
    dropped = prepare(recipe)["counts"]["dropped"]
    assert {reason: entry["examples"][0].rpartition(" ")[2] for reason, entry in dropped.items()} == {
        "no token to train on": "2",
        "end-of-turn token inside the solution": "3",
    }
    dataset = PreparedDataset.load(recipe.data.prepared)
    assert [int(dataset.completion_mask("train", index).sum()) for index in range(2)] == [4, 2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"rows\.jsonl holds no rows"),
        ([sized(100, 5, id=1), sized(100, 6, id=2)], r"none of the 2 rows .* is left: 2 too long"),
        ([{"problem": "q", "solution": END}], r"none of the 1 rows .* is left: 1 no token to train on"),
        ([sized(0, 1), sized(0, 2)], r"none of the 2 rows .* is left: 2 empty problem or solution"),
    ],
)
def test_when_nothing_is_left_the_reasons_are_told(rows, message, make_recipe, write_rows, byte_model):
    recipe = make_recipe(write_rows(rows), byte_model, max_length=20)
    with pytest.raises(ValueError, match=message):
        prepare(recipe)
    assert not recipe.data.prepared.exists()


def test_when_nothing_is_left_for_a_new_tokenizer_the_reasons_are_told(make_recipe, write_rows):
    rows = [{"problem": "The quick brown fox jumps over it", "solution": "yes"}, {"problem": "q", "solution": END}]
    with pytest.raises(ValueError, match=r"none of the 2 rows .* is left: 1 too long, 1 no token to train on"):
        prepare(make_recipe(write_rows(rows), max_length=20))


def test_broken_json_in_line_seven_leaves_nothing_behind(make_recipe, write_rows, stories, byte_model):
    path = write_rows(stories)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:6], '{"problem": \n', *lines[7:]]))
    recipe = make_recipe(path, byte_model)
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 7: not valid JSON"):
        prepare(recipe)
    assert [entry.name for entry in recipe.data.prepared.parent.iterdir()] == ["rows.jsonl"]


def test_max_length_beyond_the_context_is_refused_before_reading(make_recipe, byte_model):
    recipe = make_recipe("no-such-file.jsonl", byte_model, max_length=513)
    with pytest.raises(ValueError, match=r"data\.max_length=513 is longer than the context of .*bytes, 512 tokens"):
        prepare(recipe)
    new = {"scratch": {"max_position_embeddings": 100}}
    with pytest.raises(ValueError, match=r"longer than model\.scratch\.max_position_embeddings, 100 tokens"):
        prepare(make_recipe("no-such-file.jsonl", new, max_length=101))


@pytest.mark.parametrize("prompt_format", ["chat", "qwen-boxed"])
def test_a_format_the_tokenizer_cannot_end_is_refused_before_reading(prompt_format, make_recipe, byte_model):
    for model in (byte_model, None):
        with pytest.raises(ValueError, match=f"prompt format '{prompt_format}'"):
            prepare(make_recipe("no-such-file.jsonl", model, prompt_format=prompt_format))


def test_exactly_the_rows_with_the_smallest_hashes_are_held_out_in_any_order(
    make_recipe, write_rows, stories, byte_model, tmp_path
):
    def digest(row):
        return hashlib.sha256(row["id"].encode()).hexdigest()

    expected = {row["id"] for row in sorted(stories, key=digest)[:13]}
    for number in range(3):
        rows = random.Random(number).sample(stories, len(stories))
        folder = str(tmp_path / f"prepared-{number}")
        recipe = make_recipe(write_rows(rows), byte_model, validation=13, prepared=folder)
        prepare(recipe)
        dataset = PreparedDataset.load(recipe.data.prepared)
        assert set(dataset.ids("validation")) == expected
        assert dataset.ids("train") == tuple(row["id"] for row in rows if row["id"] not in expected)


def test_holding_out_every_row_is_refused(make_recipe, byte_model):
    for model in (byte_model, None):
        with pytest.raises(ValueError, match=r"validation=40 leaves nothing to train on: .*: 40\."):
            prepare(make_recipe(FIXTURES / "stories.jsonl", model, validation=40))


@pytest.mark.parametrize("new_model", [False, True])
def test_the_limit_counts_rows_that_pass_every_other_filter(new_model, make_recipe, write_rows, byte_model):
    rows = [sized(9, 9, id="0")]
    for number in range(1, 8):
        text = "".join(chr(33 + (7 * number + i * i) % 90) for i in range(100 if number % 2 else 20))
        rows.append({"id": str(number), "problem": text, "solution": "s"})
    recipe = make_recipe(write_rows(rows), None if new_model else byte_model, max_length=60, limit=3)
    manifest = prepare(recipe)
    assert [row["id"] for row in texts_of(recipe.data.prepared, "train")] == ["0", "2", "4"]
    dropped = {reason: entry["count"] for reason, entry in manifest["counts"]["dropped"].items()}
    assert sum(dropped.values()) == 5
    assert dropped["too long"] >= 2
    assert dropped["beyond data.limit"] >= 1


@pytest.mark.parametrize("new_model", [False, True])
def test_preparing_twice_gives_the_same_bytes(new_model, make_recipe, byte_model, tmp_path):
    folders = []
    for name in ("first", "second"):
        recipe = make_recipe(
            FIXTURES / "stories.jsonl", None if new_model else byte_model, validation=5, prepared=str(tmp_path / name)
        )
        prepare(recipe)
        folders.append(files_of(recipe.data.prepared))
    assert folders[0] == folders[1]
    assert {"train.parquet", "validation.parquet", "manifest.json", "tokenizer/tokenizer.json"} <= folders[0].keys()


def test_a_new_tokenizer_is_trained_on_exactly_the_rows_that_are_trained_on(make_recipe, write_rows, stories):
    long = {"id": "long", "problem": "zebra quiz " * 9, "solution": "".join(map(chr, range(200, 700)))}
    recipe = make_recipe(write_rows([*stories, long]), validation=8)
    manifest = prepare(recipe)
    assert manifest["counts"]["dropped"]["too long"]["count"] == 1
    rows = texts_of(recipe.data.prepared, "train")
    assert len(rows) == 32
    again = train_tokenizer([text for row in rows for text in (row["problem"] + "\n", row["solution"])], 300)
    assert tokenizer_fingerprint(again) == manifest["tokenizer_fingerprint"]
    saved = AutoTokenizer.from_pretrained(recipe.data.prepared / "tokenizer")
    assert tokenizer_fingerprint(saved) == manifest["tokenizer_fingerprint"]


def test_the_tokenizer_of_a_checkpoint_is_saved_with_its_chat_template(make_recipe, chat_model):
    recipe = make_recipe(FIXTURES / "stories.jsonl", chat_model, prompt_format="chat")
    manifest = prepare(recipe)
    saved = AutoTokenizer.from_pretrained(recipe.data.prepared / "tokenizer")
    assert saved.chat_template == AutoTokenizer.from_pretrained(chat_model).chat_template
    assert tokenizer_fingerprint(saved) == manifest["tokenizer_fingerprint"]


def test_what_is_prepared_already_is_left_as_it_is(make_recipe, byte_model):
    recipe = make_recipe(FIXTURES / "stories.jsonl", byte_model)
    stages = []
    first = prepare(recipe, progress=lambda stage, *_: stages.append(stage))
    before = {path: path.stat().st_mtime_ns for path in recipe.data.prepared.rglob("*")}
    assert "already prepared" not in stages
    assert prepare(recipe, progress=lambda stage, *_: stages.append(stage)) == first
    assert stages[-1] == "already prepared"
    assert {path: path.stat().st_mtime_ns for path in recipe.data.prepared.rglob("*")} == before


def test_other_settings_need_force_and_are_named(make_recipe, byte_model):
    prepare(make_recipe(FIXTURES / "stories.jsonl", byte_model))
    other = make_recipe(FIXTURES / "stories.jsonl", byte_model, max_length=300, validation=3)
    with pytest.raises(ValueError, match="prepared otherwise") as caught:
        prepare(other)
    assert "data.max_length: prepared with 512, the recipe has 300" in str(caught.value)
    assert "data.validation: prepared with 0, the recipe has 3" in str(caught.value)
    assert "--force" in str(caught.value)
    assert prepare(other, force=True)["num_validation"] == 3
    assert PreparedDataset.load(other.data.prepared).manifest["num_validation"] == 3
    assert [entry.name for entry in other.data.prepared.parent.iterdir()] == ["prepared"]


def test_changed_rows_need_force(make_recipe, write_rows, stories, byte_model):
    recipe = make_recipe(write_rows(stories), byte_model)
    prepare(recipe)
    write_rows([*stories, sized(5, 5)])
    with pytest.raises(ValueError, match="the rows of the source, or the tokenizer's files, have changed"):
        prepare(recipe)
    assert prepare(recipe, force=True)["counts"]["rows_read"] == 41


@pytest.mark.parametrize("name", ["train.parquet", "validation.parquet", "tokenizer"])
def test_a_dataset_that_lost_a_part_is_prepared_again(name, make_recipe, byte_model):
    recipe = make_recipe(FIXTURES / "stories.jsonl", byte_model)
    prepare(recipe)
    complete = files_of(recipe.data.prepared)
    lost = recipe.data.prepared / name
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    prepare(recipe)
    assert files_of(recipe.data.prepared) == complete


def test_a_folder_of_something_else_is_never_replaced(make_recipe, byte_model):
    recipe = make_recipe(FIXTURES / "stories.jsonl", byte_model)
    recipe.data.prepared.mkdir()
    prepare(recipe)  # an empty folder may be used
    (recipe.data.prepared / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is no prepared dataset"):
        prepare(make_recipe(FIXTURES / "stories.jsonl", byte_model, validation=1), force=True)
    assert (recipe.data.prepared / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("prepared_before", [False, True])
@pytest.mark.parametrize(("limit", "room"), [(40, 100), (40, 9000), (1, 5500)])  # the last: no room for tokenizer.json
def test_a_full_disk_leaves_what_was_there_and_nothing_half_written(
    prepared_before, limit, room, make_recipe, byte_model
):
    recipe = make_recipe(FIXTURES / "stories.jsonl", byte_model, limit=limit)
    if prepared_before:
        prepare(make_recipe(FIXTURES / "stories.jsonl", byte_model, max_length=500))
    before = files_of(recipe.data.prepared.parent)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # no file may grow beyond this
    try:
        with pytest.raises(OSError, match=r"The disk is full: .*prepared needs up to \d.* free\. Nothing") as caught:
            prepare(recipe, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(recipe.data.prepared) in str(caught.value)
    assert files_of(recipe.data.prepared.parent) == before
    assert len(list(recipe.data.prepared.parent.iterdir())) == prepared_before
    prepare(recipe, force=True)  # and with room again it works


def test_prepared_reads_the_source_once_and_then_the_folder(make_recipe, write_rows, stories, byte_model):
    path = write_rows(stories)
    recipe = make_recipe(path, byte_model)
    first = prepared(recipe)
    path.unlink()
    assert prepared(recipe).ids("train") == first.ids("train") == tuple(row["id"] for row in stories)
    with pytest.raises(ValueError, match=r"data\.max_length: prepared with 512, the recipe has 100"):
        prepared(make_recipe(path, byte_model, max_length=100))


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.is_file(), reason="needs ../shared/data/gsm8k_train.jsonl")
def test_gsm8k_is_prepared_whole_with_a_vocabulary_of_its_own(make_recipe):
    model = {"scratch": {"vocab_size": 2048, "max_position_embeddings": 1024}}
    recipe = make_recipe(GSM8K, model, validation=500)
    started = time.monotonic()
    manifest = prepare(recipe)
    seconds = time.monotonic() - started
    counts = manifest["counts"]
    assert counts["rows_read"] == 7473
    assert manifest["num_validation"] == 500
    assert set(counts["dropped"]) <= {"too long"}
    num_dropped = sum(entry["count"] for entry in counts["dropped"].values())
    assert manifest["num_train"] + 500 + num_dropped == 7473
    assert num_dropped < 75  # under one in a hundred
    dataset = PreparedDataset.load(recipe.data.prepared)
    tokenizer = AutoTokenizer.from_pretrained(dataset.tokenizer_folder)
    assert len(tokenizer) == 2048
    assert dataset.train.tokens.max() < 2048
    source = {row["id"]: row for row in map(json.loads, GSM8K.read_bytes().splitlines())}
    for row in texts_of(recipe.data.prepared, "validation"):
        assert row["answer"] == source[row["id"]]["answer"]
        assert tokenizer.decode(np.array(row["input_ids"])[~np.array(row["completion_mask"])]) == row["problem"] + "\n"
    assert seconds < 120
