import argparse
import json
from pathlib import Path

import pytest
import yaml

from dftune.commands import prepare

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def recipe(tmp_path) -> Path:
    values = {
        "name": "stories",
        "data": {
            "source": str(FIXTURES / "stories.jsonl"),
            "prompt_format": "plain",
            "max_length": 512,
            "validation": 10,
            "prepared": str(tmp_path / "prepared"),
        },
        "model": {"scratch": {"vocab_size": 300, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1}},
        "objective": {"name": "sft"},
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 1},
    }
    path = tmp_path / "stories.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    return prepare.run(parser.parse_args([str(argument) for argument in arguments]))


def test_it_prints_counts_statistics_and_an_example_whose_parts_are_told_apart(recipe, capsys):
    assert run(recipe) == 0
    printed = capsys.readouterr().out
    assert f"stories: prepared in {recipe.parent / 'prepared'}" in printed
    lines = printed.splitlines()
    numbers = {line[:16].strip(): line[16:].split() for line in lines if line[:16].strip()}
    assert numbers["rows read"] == ["40"]
    assert numbers["training rows"] == ["30"]
    assert numbers["held-out rows"] == ["10"]
    assert numbers["tokens"] == ["min", "mean", "median", "p95", "max", "sum"]
    prompt = next(number for number, line in enumerate(lines) if line.startswith("--- prompt: "))
    completion = next(number for number, line in enumerate(lines) if line.startswith("--- completion: "))
    assert "not trained on" in lines[prompt]
    assert "trained on, <|endoftext|> among them" in lines[completion]
    name = lines[prompt - 1].removeprefix("first training example, ")
    rows = [json.loads(line) for line in (FIXTURES / "stories.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["id"] == name]
    assert "\n".join(lines[prompt + 1 : completion]) == row["problem"] + "\n"
    assert "\n".join(lines[completion + 1 : -1]) == row["solution"] + "<|endoftext|>"


def test_every_dropped_row_is_printed_with_its_reason(recipe, capsys):
    assert run(recipe, "data.max_length=200") == 0
    printed = capsys.readouterr().out
    manifest = json.loads((recipe.parent / "prepared" / "manifest.json").read_text())
    dropped = manifest["counts"]["dropped"]["too long"]
    assert dropped["count"] >= 1
    (line,) = [line for line in printed.splitlines() if line.startswith("  too long")]
    assert line.split()[:3] == ["too", "long", f"-{dropped['count']}"]
    assert dropped["examples"][0] in line


def test_what_was_cut_is_printed_with_the_place(recipe, capsys):
    assert run(recipe, "data.max_length=200", "data.truncation=left") == 0
    printed = capsys.readouterr().out
    manifest = json.loads((recipe.parent / "prepared" / "manifest.json").read_text())
    cut = manifest["truncated"]["prompt cut from the left"]
    assert cut["count"] >= 1
    (line,) = [line for line in printed.splitlines() if line.startswith("cut: prompt cut from the left")]
    assert line.split()[6] == str(cut["count"])
    assert cut["examples"][0] in line


def test_a_conversation_is_printed_with_every_answer_told_apart(recipe, tmp_path, capsys):
    said = ["1 + 1?", "2", "Twice?", "4"]
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
    source = tmp_path / "talks.jsonl"
    source.write_text(json.dumps({"id": "a", "messages": messages}) + "\n")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"template": "{problem}\n", "later_template": "\n{problem}\n"}))
    keys = ("data.columns.messages=messages", "data.validation=0", f"data.prompt_format={tmp_path / 'mine.yaml'}")
    assert run(recipe, f"data.source={source}", *keys) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = lines[lines.index("first training example, a") + 1 : -1]
    rules = [line.rstrip("-").strip() for line in shown if line.startswith("---")]
    assert [rule.partition(":")[0] for rule in rules] == ["--- prompt", "--- completion"] * 2
    assert {rule.partition(": ")[2] for rule in rules[1::2]} == {"2 tokens, trained on, <|endoftext|> among them"}
    assert all(rule.endswith("tokens, not trained on") for rule in rules[::2])
    assert [line for line in shown if not line.startswith("---")] == [
        "1 + 1?",
        "",
        "2<|endoftext|>",
        "",
        "Twice?",
        "",
        "4<|endoftext|>",
    ]


def test_the_second_time_it_says_that_nothing_was_to_do_and_force_replaces(recipe, capsys):
    run(recipe)
    capsys.readouterr()
    assert run(recipe) == 0
    assert "stories: already prepared in" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"data\.validation: prepared with 10, the recipe has 11"):
        run(recipe, "data.validation=11")
    assert run(recipe, "data.validation=11", "--force") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("held-out rows")]
    assert line.split()[-1] == "11"


def test_control_characters_in_data_do_not_reach_the_terminal(recipe, tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"problem": "a\x1b[31mb\rc", "solution": "d\x07"}) + "\n")
    run(recipe, f"data.source={source}", "data.validation=0")
    printed = capsys.readouterr().out
    assert "a\\x1b[31mb\\rc" in printed
    assert not {"\x1b", "\r", "\x07"} & set(printed)


def test_a_long_example_is_cut_with_the_number_of_characters_left_out(recipe, tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"problem": "p", "solution": "word " * 400}) + "\n")
    run(recipe, f"data.source={source}", "data.validation=0", "data.max_length=2048")
    # 2,000 characters and the 13 of <|endoftext|>, of which 1,500 are shown
    assert "(513 more characters)" in capsys.readouterr().out


def test_negatives_are_counted_with_their_reasons_and_the_first_is_shown(recipe, tmp_path, capsys):
    rows = [
        {"id": "a", "prompt": "1 + 1?", "chosen": "2", "rejected_0": "3", "rejected_1": "2 "},
        {"id": "b", "prompt": "2 + 2?", "chosen": "4", "rejected_0": "5", "rejected_1": "6"},
    ]
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ("data.columns.problem=prompt", "data.columns.solution=chosen", "data.columns.negatives=rejected_")
    assert run(recipe, f"data.source={source}", "data.validation=0", *columns) == 0
    lines = capsys.readouterr().out.splitlines()
    (read,) = [line.split() for line in lines if line.startswith("negatives read")]
    (equal,) = [line.split() for line in lines if line.startswith("  equal to the solution")]
    (kept,) = [line.split() for line in lines if line.startswith("negatives  ")]
    (tokens,) = [line.split() for line in lines if line.startswith("  negative ")]
    assert read == ["negatives", "read", "4"]
    assert equal[4:] == ["-1", "e.g.", f"{source},", "line", "1,", "negative", "1"]
    assert kept == ["negatives", "3", "1", "to", "2", "a", "row"]
    assert tokens == ["negative", "2", "2.0", "2", "2", "2", "6"]
    place = next(number for number, line in enumerate(lines) if line.startswith("--- negative a#0: 2 tokens"))
    assert lines[place + 1] == "3<|endoftext|>"
