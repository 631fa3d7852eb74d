import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.generate.recipes import read, recipe_in
from tests.generate.scripted_server import ScriptedServer, status

from dftune import config
from dftune.commands import grade as grade_command
from dftune.data.tokenizer import load_tokenizer
from dftune.demo.problems import generate
from dftune.environment import model_fingerprint
from dftune.evaluate.grade import grade
from dftune.evaluate.results import content_key
from dftune.generate.base import IncompleteError
from dftune.generate.recipe import SampleConfig
from dftune.generate.rollouts import sample


def samples(recipe, kind="rollouts"):
    return recipe.generate.folder / f"{kind}.samples.jsonl"


def with_rows(folder, rows, **data):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return recipe_in(folder, data={"source": str(path), **data}, generate={"rollouts": {"num_samples": 1}})


def test_every_completion_is_a_row_with_its_verdict_under_its_content_key(tmp_path):
    recipe = recipe_in(tmp_path)
    sample(recipe, "rollouts", device="cpu")
    rows = read(samples(recipe))
    problems = generate(12, seed=0, split="train")
    assert [(row["id"], row["sample"]) for row in rows] == [(one.id, k) for one in problems for k in range(4)]
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 40, "seed": 0, "stop": []}
    identity = model_fingerprint(Path(recipe.model.path))
    for row in rows:
        one = next(one for one in problems if one.id == row["id"])
        assert (row["problem"], row["target"], row["prompt"]) == (one.problem, one.answer, one.problem + "\n")
        assert row["key"] == content_key(identity, row["prompt"], sampling, row["sample"])
        assert row["verdict"] == grade(one.answer, row["completion"]).verdict
        assert "<|endoftext|>" not in row["completion"]
    assert {row["verdict"] for row in rows} == {"correct", "incorrect"}


def test_saved_rollouts_are_graded_again_by_the_command_that_regrades_evaluations(tmp_path, capsys):
    recipe = recipe_in(tmp_path)
    sample(recipe, "rollouts", device="cpu")
    before = samples(recipe).read_bytes()
    parser = argparse.ArgumentParser()
    grade_command.add_arguments(parser)
    assert grade_command.run(parser.parse_args([str(samples(recipe)), "--in-place"])) == 0
    assert samples(recipe).read_bytes() == before


def test_more_samples_and_problems_are_added_to_what_is_there(tmp_path):
    small = recipe_in(tmp_path, data={"limit": 5}, generate={"rollouts": {"num_samples": 2}})
    sample(small, "rollouts", device="cpu")
    before = {(row["id"], row["sample"]): row for row in read(samples(small))}
    large = recipe_in(tmp_path, data={"limit": 9}, generate={"rollouts": {"num_samples": 3}, "batch_size": 5})
    sample(large, "rollouts", device="cpu")
    after = {(row["id"], row["sample"]): row for row in read(samples(large))}
    assert len(before) == 10
    assert len(after) == 27
    assert {key: after[key] for key in before} == before


def test_asked_for_fewer_problems_the_file_stays_as_it_is(tmp_path):
    sample(recipe_in(tmp_path, data={"limit": 9}), "rollouts", device="cpu")
    recipe = recipe_in(tmp_path, data={"limit": 5})
    before = samples(recipe).read_bytes()
    found = sample(recipe, "rollouts", device="cpu")
    assert samples(recipe).read_bytes() == before
    assert len(found.problems.examples) == 5


def test_completions_of_other_settings_are_refused_until_they_are_overwritten(tmp_path):
    sample(recipe_in(tmp_path), "rollouts", device="cpu")
    other = recipe_in(tmp_path, generate={"rollouts": {"temperature": 0.5}})
    with pytest.raises(ValueError, match=r"sampling.temperature: 1.0 there, 0.5 asked for") as refused:
        sample(other, "rollouts", device="cpu")
    assert "--label" not in str(refused.value)  # an option of evaluate
    sample(other, "rollouts", device="cpu", overwrite=True)
    assert json.loads(samples(other).with_suffix(".json").read_text())["sampling"]["temperature"] == 0.5


def test_at_top_k_1_a_sample_is_the_greedy_completion(tmp_path):
    one = recipe_in(tmp_path, generate={"folder": str(tmp_path / "k1"), "rollouts": {"num_samples": 2, "top_k": 1}})
    greedy = recipe_in(
        tmp_path, generate={"folder": str(tmp_path / "greedy"), "rollouts": {"num_samples": 1, "temperature": 0}}
    )
    sample(one, "rollouts", device="cpu")
    sample(greedy, "rollouts", device="cpu")
    expected = {row["id"]: row["completion"] for row in read(samples(greedy))}
    assert all(row["completion"] == expected[row["id"]] for row in read(samples(one)))


def test_several_samples_at_temperature_zero_are_refused():
    with pytest.raises(ValueError, match="at temperature 0 all 4 samples"):
        config.validate({"temperature": 0}, SampleConfig, "test")


def test_a_system_message_comes_before_every_problem(tmp_path):
    prompt_format = {"base": "plain", "system_template": "<<{system}>>\n"}
    recipe = recipe_in(
        tmp_path,
        data={"prompt_format": prompt_format},
        generate={"negatives": {"num_samples": 1, "system": "You are an unhelpful assistant."}},
    )
    sample(recipe, "negatives", device="cpu")
    rows = read(samples(recipe, "negatives"))
    assert all(row["prompt"] == f"<<You are an unhelpful assistant.>>\n{row['problem']}\n" for row in rows)
    settings = json.loads(samples(recipe, "negatives").with_suffix(".json").read_text())
    assert settings["system"] == "You are an unhelpful assistant."


def test_a_format_without_a_place_for_the_system_message_is_refused_with_the_row(tmp_path):
    recipe = recipe_in(tmp_path, generate={"negatives": {"system": "Be brief."}})
    with pytest.raises(ValueError, match=r"train.jsonl, line 1: prompt format 'plain' has no place for the system"):
        sample(recipe, "negatives", device="cpu")


def test_the_prompt_of_a_conversation_is_that_of_training(tmp_path):
    said = [("user", "What is 2+3?"), ("assistant", "2+3=5. \\boxed{5}"), ("user", "And 5+4?")]
    messages = [{"role": role, "content": text} for role, text in said]
    row = {"id": "talk", "messages": [*messages, {"role": "assistant", "content": "5+4=9. \\boxed{9}"}]}
    later = {"base": "plain", "later_template": "\n{problem}\n"}
    recipe = with_rows(tmp_path, [row], columns={"messages": "messages"}, prompt_format=later)
    sample(recipe, "rollouts", device="cpu")
    (found,) = read(samples(recipe))
    tokenizer = load_tokenizer(recipe.model)
    assert found["prompt"] == f"What is 2+3?\n2+3=5. \\boxed{{5}}{tokenizer.eos_token}\nAnd 5+4?\n"
    assert (found["problem"], found["target"], found["history"]) == ("And 5+4?", "9", messages[:2])


def test_completions_without_a_reference_answer_are_ungraded(tmp_path):
    recipe = with_rows(tmp_path, [{"problem": "Tell me of pens.", "solution": "They write."}])
    sample(recipe, "rollouts", device="cpu")
    (row,) = read(samples(recipe))
    assert (row["verdict"], row["reason"]) == ("ungraded", "no reference answer")


def test_problems_are_filtered_and_deduplicated_as_prepare_does(tmp_path):
    same = {"problem": "1+1?", "solution": "\\boxed{2}", "source": "wanted"}
    rows = [{**same, "id": "a"}, {**same, "id": "b"}, {**same, "id": "c", "source": "other"}]
    rows += [{**same, "id": "d", "problem": " "}, {**same, "id": "e", "problem": "2+2?"}]
    recipe = with_rows(tmp_path, rows, sources=["wanted"])
    found = sample(recipe, "rollouts", device="cpu")
    assert [row["id"] for row in read(samples(recipe))] == ["a", "e"]
    assert {reason: one["count"] for reason, one in found.problems.counts["dropped"].items()} == {
        "exact duplicate": 1,
        "source not selected": 1,
        "empty problem or solution": 1,
    }


def test_a_set_that_is_still_to_be_made_is_no_source_of_problems(tmp_path):
    recipe = recipe_in(tmp_path, data={"source": str(tmp_path / "generated" / "rft.jsonl")})
    with pytest.raises(ValueError, match=r"no such file.*generate.problems.source"):
        sample(recipe, "rollouts", device="cpu")


def test_a_corrupt_row_and_a_missing_column_are_named(tmp_path):
    recipe = with_rows(tmp_path, [{"problem": "1+1?", "solution": "2"}])
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"problem": "1+2?", "solut')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: not valid JSON"):
        sample(recipe, "rollouts", device="cpu")
    with pytest.raises(ValueError, match=r"line 1: no column 'solution'; found: problem, output"):
        sample(with_rows(tmp_path, [{"problem": "1+1?", "output": "2"}]), "rollouts", device="cpu")


def test_a_broken_line_among_the_completions_is_named(tmp_path):
    recipe = recipe_in(tmp_path)
    sample(recipe, "rollouts", device="cpu")
    lines = samples(recipe).read_text().splitlines(keepends=True)
    samples(recipe).write_text("".join([lines[0], lines[1][:40] + "\n", *lines[2:]]))
    with pytest.raises(ValueError, match=r"rollouts.samples.jsonl, line 2: not valid JSON"):
        sample(recipe, "rollouts", device="cpu")


def test_a_new_model_has_nothing_to_sample(tmp_path):
    recipe = recipe_in(tmp_path)
    scratch = {"scratch": {"vocab_size": 300}}
    recipe = recipe.model_copy(update={"model": type(recipe.model).model_validate(scratch)})
    with pytest.raises(ValueError, match=r"new model.*Set generate.model"):
        sample(recipe, "rollouts", device="cpu")


def test_what_a_server_refuses_is_asked_again_by_the_next_call_and_nothing_else(tmp_path):
    tokenizer = load_tokenizer(recipe_in(tmp_path).model)
    server = ScriptedServer(tokenizer, faults=[None, None, status(400)])
    served = {"server": [server.url], "served_model": "tiny", "concurrency": 1, "samples_per_request": 2}
    recipe = recipe_in(tmp_path, generate={**served, "negatives": {"num_samples": 2}})
    try:
        with pytest.raises(IncompleteError, match="2 of 24 requests failed"):
            sample(recipe, "negatives", device="cpu", say=lambda line: None)
        before = {(row["id"], row["sample"]): row["completion"] for row in read(samples(recipe, "negatives"))}
        num_asked = len(server.bodies)
        sample(recipe, "negatives", device="cpu", say=lambda line: None)
    finally:
        server.close()
    after = {(row["id"], row["sample"]): row["completion"] for row in read(samples(recipe, "negatives"))}
    assert (len(before), len(after), len(server.bodies) - num_asked) == (22, 24, 1)
    assert {key: after[key] for key in before} == before
    assert all(asked["top_k"] == 50 for asked in server.bodies)


def test_a_chat_server_is_sent_the_system_message_and_the_problem(tmp_path):
    tokenizer = load_tokenizer(recipe_in(tmp_path).model)
    server = ScriptedServer(tokenizer)
    served = {"server": [server.url], "served_model": "tiny", "chat": True}
    recipe = recipe_in(tmp_path, generate={**served, "negatives": {"num_samples": 1, "system": "Be brief."}})
    try:
        sample(recipe, "negatives", device="cpu", say=lambda line: None)
    finally:
        server.close()
    asked = {tuple((one["role"], one["content"]) for one in body["messages"]) for body in server.bodies}
    problems = generate(12, seed=0, split="train")
    assert asked == {(("system", "Be brief."), ("user", one.problem)) for one in problems}


@pytest.mark.slow
def test_a_killed_generation_ends_in_the_bytes_of_an_unbroken_one(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    sections = {"negatives": {"num_samples": 6}}
    slow = recipe_in(tmp_path, num_problems=40, generate={"folder": str(broken), "batch_size": 3, **sections})
    path = tmp_path / "recipe.yaml"
    path.write_text(config.dump(slow))
    process = subprocess.Popen(
        [sys.executable, "-m", "dftune", "generate", str(path), "negatives", "--device", "cpu"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    file = samples(slow, "negatives")
    while process.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < 12):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = file.read_bytes().count(b"\n")
    assert 12 <= left < 240
    with file.open("ab") as partial:
        partial.write(b'{"id": "train-')
    sample(recipe_in(tmp_path, generate={"folder": str(broken), **sections}), "negatives", device="cpu")
    unbroken = recipe_in(tmp_path, generate={"folder": str(whole), **sections})
    sample(unbroken, "negatives", device="cpu")
    assert file.read_bytes() == samples(unbroken, "negatives").read_bytes()
