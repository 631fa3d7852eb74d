"""The list of prompt formats, and what a tokenizer makes of one."""

import argparse
import json

import pytest
import yaml
from tests.data.families import FAMILIES

from dftune.commands import formats
from dftune.data.prompts import FORMATS

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer = FAMILIES["byte-level-bos"]()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(path)
    return str(path)


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    formats.add_arguments(parser)
    return formats.run(parser.parse_args(arguments))


def test_every_format_is_listed_with_its_prompt_end_stops_and_source(capsys):
    assert run("--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(FORMATS)
    assert rows["cot"]["prompt"] == "Question: What is 1 + 1?\nAnswer:"
    assert rows["cot"]["stop"] == ["\n\nQuestion:"]
    assert rows["qwen-boxed"]["end_of_turn"] == "<|im_end|>"
    assert (rows["qwen-boxed"]["conversations"], rows["r1-zero"]["conversations"]) == (True, False)
    assert all(row["source"] and row["fingerprint"] for row in rows.values())
    run()
    shown = capsys.readouterr().out
    assert "  \u2502 Question: What is 1 + 1?\u23ce\n  \u2502 Answer:\n" in shown
    assert "stops at '\\n\\nQuestion:'; the completion begins with ' '" in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_chat_is_listed_where_a_tokenizer_is_given_and_asks_for_one_otherwise(folder, capsys):
    run("--tokenizer", folder, "--json")
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["chat", *FORMATS]
    with pytest.raises(ValueError, match="give --tokenizer FOLDER"):
        run("chat")
    with pytest.raises(ValueError, match="--show needs --tokenizer FOLDER"):
        run("--show", "plain")
    with pytest.raises(ValueError, match="did you mean qwen-boxed"):
        run("qwen-boxd")


def test_a_format_is_shown_with_special_tokens_and_what_is_trained_on(folder, capsys):
    run("--show", "chat", "--tokenizer", folder, "--solution", "It is 2.")
    lines = capsys.readouterr().out.splitlines()
    assert "trained on" in lines[0]
    assert lines[1].startswith("begins with the tokenizer's beginning-of-sequence token; ends with <|im_end|> (")
    assert lines[3:] == [
        "      prompt ┆ <s><|im_start|>user⏎",
        "             ┆ What is 1 + 1?<|im_end|>⏎",
        "             ┆ <|im_start|>assistant⏎",
        "  trained on ┃ It is 2.<|im_end|>",
    ]


def test_a_conversation_shows_every_answer_trained_on(folder, capsys):
    run("--show", "chat", "--tokenizer", folder, "--turns", "2", "--system", "Be brief.", "--json")
    found = json.loads(capsys.readouterr().out)
    trained = [line["text"] for line in found["lines"] if line["trained_on"]]
    assert trained == ["It is \\boxed{2}.<|im_end|>", "\\boxed{4}<|im_end|>"]
    assert found["lines"][0]["text"] == "<s><|im_start|>system⏎"
    assert found["lines"][2] == {"trained_on": False, "text": "<|im_start|>user⏎"}
    assert len(found["input_ids"]) == len(found["completion_mask"]) == len(found["tokens"])
    ends = [place for place, token in enumerate(found["tokens"]) if token == "<|im_end|>"]
    assert [found["completion_mask"][place] for place in ends] == [False, False, True, False, True]


def test_tokens_are_listed_one_by_one_and_control_characters_do_not_reach_the_terminal(folder, capsys):
    run("--show", "plain", "--tokenizer", folder, "--problem", "a\x1b[31m", "--solution", "b", "--tokens")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "a\\x1b[31m⏎" in shown
    listed = [line.split() for line in shown.partition("token\n")[2].splitlines()]
    assert [row[0] for row in listed] == [str(place) for place in range(len(listed))]
    assert [row[2] for row in listed if row[3:] == ["trained", "on"]] == ["b", "</s>"]


def test_a_format_of_ones_own_is_shown_and_its_keys_are_listed(folder, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"template": "P {problem}\nS", "stop": ["\nP"]}))
    run("--show", str(path), "--tokenizer", folder, "--solution", "x")
    assert "      prompt ┆ <s>P What is 1 + 1?⏎\n             ┆ S\n  trained on ┃ x</s>" in capsys.readouterr().out
    run("--keys")
    keys = capsys.readouterr().out
    for key in ("template", "later_template", "end_of_turn", "stop", "shots.num"):
        assert f"\n  {key}  (" in keys


def test_a_folder_without_a_tokenizer_says_what_it_must_hold(tmp_path):
    with pytest.raises(ValueError, match=r"holds no tokenizer: none of tokenizer\.json"):
        run("--show", "plain", "--tokenizer", str(tmp_path))
