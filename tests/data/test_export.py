"""Prepared rows in the formats of other training code, and back through our own sources."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from pyarrow import parquet

from dftune.data.dataset import PreparedDataset
from dftune.data.export import export
from dftune.data.prepare import prepare

ROWS = [
    {"id": f"r{n}", "problem": f"What is {n} + 1?", "solution": f"It is \\boxed{{{n + 1}}}.", "source": "sums"}
    for n in range(9)
]
SUFFIX = " Let's think step by step and output the final answer within \\boxed{}."


def exported(recipe, kind: str, folder: Path) -> dict[str, int]:
    prepare(recipe)
    return export(kind, PreparedDataset.load(recipe.data.prepared), recipe.data, folder)


def prepared_texts(recipe, split: str = "train") -> list[tuple]:
    table = parquet.read_table(recipe.data.prepared / f"{split}.parquet")
    return [(row["problem"], row["solution"], row["answer"]) for row in table.to_pylist()]


def test_chat_jsonl_holds_instruction_and_output_of_exactly_the_prepared_rows(
    make_recipe, write_rows, byte_model, tmp_path
):
    recipe = make_recipe(write_rows(ROWS), byte_model, validation=2, limit=6)
    assert exported(recipe, "chat-jsonl", tmp_path / "out") == {"train.jsonl": 4, "validation.jsonl": 2}
    for split in ("train", "validation"):
        lines = [json.loads(line) for line in (tmp_path / "out" / f"{split}.jsonl").read_text().splitlines()]
        expected = [{"instruction": p, "output": s} for p, s, _ in prepared_texts(recipe, split)]
        assert lines == expected
    again = make_recipe(tmp_path / "out", byte_model, prepared=str(tmp_path / "again"))
    assert "instruction and output" in prepare(again)["recognised"]
    assert prepared_texts(again) == prepared_texts(recipe)


def test_verl_parquet_has_the_columns_that_the_published_preparation_wrote(
    make_recipe, write_rows, byte_model, tmp_path
):
    recipe = make_recipe(write_rows(ROWS), byte_model, validation=2)
    exported(recipe, "verl-parquet", tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    assert list(loaded.features) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    rows = list(loaded)
    for index, (row, (problem, solution, answer)) in enumerate(zip(rows, prepared_texts(recipe), strict=True)):
        assert row == {
            "data_source": "rows.jsonl",
            "prompt": [{"role": "user", "content": problem + SUFFIX}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": answer},
            "extra_info": {"split": "train", "index": index, "answer": solution, "question": problem},
        }
    again = make_recipe(tmp_path / "out", byte_model, prepared=str(tmp_path / "again"))
    assert "recognised by its columns as verl" in prepare(again)["recognised"]
    assert prepared_texts(again) == prepared_texts(recipe)


def test_a_row_without_an_answer_has_none_in_verls_columns(make_recipe, write_rows, byte_model, tmp_path):
    rows = [*ROWS, {"problem": "Prove it.", "solution": "Clear."}]
    recipe = make_recipe(write_rows(rows), byte_model)
    exported(recipe, "verl-parquet", tmp_path / "out")
    found = parquet.read_table(tmp_path / "out" / "train.parquet")["reward_model"].to_pylist()
    assert found[-1] == {"style": "rule", "ground_truth": None}


def test_real_and_generated_come_back_with_the_same_negatives_and_numbers(
    make_recipe, write_rows, byte_model, tmp_path
):
    rows = [
        {**row, "generated_0": f"bad {n}", "generated_2": "worse" * (100 * (n == 3) + 1)} for n, row in enumerate(ROWS)
    ]
    columns = {"negatives": "generated_"}
    recipe = make_recipe(write_rows(rows), byte_model, columns=columns, validation=1)
    exported(recipe, "generated", tmp_path / "out")
    table = parquet.read_table(tmp_path / "out" / "train.parquet")
    assert table.column_names == ["id", "real", "generated_0", "generated_1", "generated_2"]
    first = table.to_pylist()[0]
    problem, solution, _ = prepared_texts(recipe)[0]
    assert first["real"] == [{"role": "user", "content": problem}, {"role": "assistant", "content": solution}]
    assert first["generated_1"] is None
    assert first["generated_0"][1]["content"].startswith("bad ")
    again = make_recipe(tmp_path / "out", byte_model, columns=columns, prepared=str(tmp_path / "again"))
    prepare(again)
    before, after = (PreparedDataset.load(each.data.prepared).train for each in (recipe, again))
    assert before.ids == after.ids
    for name in ("numbers", "tokens", "offsets", "starts"):
        assert (getattr(before.negatives, name) == getattr(after.negatives, name)).all()
    assert (before.negatives.numbers == 2).sum() == len(before) - 1  # the one too long was left out


def test_earlier_messages_are_kept_where_the_format_has_a_place_and_refused_where_not(
    make_recipe, write_rows, chat_model, tmp_path
):
    talk = [
        {"role": role, "content": content}
        for role, content in (("user", "hi"), ("assistant", "hello"), ("user", "1 + 1?"), ("assistant", "2"))
    ]
    recipe = make_recipe(
        write_rows([{"messages": talk}]), chat_model, columns={"messages": "messages"}, prompt_format="chat"
    )
    with pytest.raises(ValueError, match=r"line 1: a conversation of several messages does not go into instruction"):
        exported(recipe, "chat-jsonl", tmp_path / "chat")
    assert not (tmp_path / "chat").exists()
    exported(recipe, "verl-parquet", tmp_path / "verl")
    (row,) = parquet.read_table(tmp_path / "verl" / "train.parquet").to_pylist()
    assert row["prompt"] == [*talk[:2], {"role": "user", "content": "1 + 1?" + SUFFIX}]


def test_a_used_folder_missing_negatives_and_a_changed_source_are_refused(
    make_recipe, write_rows, byte_model, tmp_path
):
    recipe = make_recipe(write_rows(ROWS), byte_model)
    with pytest.raises(ValueError, match="has no negatives"):
        exported(recipe, "generated", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"mine is not empty"):
        exported(recipe, "chat-jsonl", tmp_path / "mine")
    write_rows(ROWS[1:])
    with pytest.raises(ValueError, match="have changed since"):
        export("chat-jsonl", PreparedDataset.load(recipe.data.prepared), recipe.data, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mine", "prepared", "rows.jsonl"]


def test_the_command_exports_and_refuses_an_unknown_format_before_anything_else(write_rows, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\ndata: {{source: {write_rows(ROWS)}, prompt_format: plain, max_length: 99, prepared: {tmp_path}/p}}\n"
        "model: {scratch: {vocab_size: 300, hidden_size: 32, num_heads: 2, num_kv_heads: 1}}\n"
        "objective: {name: sft}\noptimizer: {lr: 1.0e-3}\ntrain: {steps: 1}\n"
    )
    command = [sys.executable, "-m", "dftune", "prepare", str(recipe), "--export"]
    bad = subprocess.run([*command, "csv", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert bad.returncode != 0
    assert "there is no format 'csv'; expected one of chat-jsonl, verl-parquet, generated" in bad.stderr
    assert not (tmp_path / "p").exists()
    good = subprocess.run([*command, "chat-jsonl", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert "train.jsonl (9 rows)" in good.stdout
    assert len((tmp_path / "out" / "train.jsonl").read_text().splitlines()) == 9
