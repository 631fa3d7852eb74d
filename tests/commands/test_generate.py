import json

import pytest
from tests.generate.recipes import read, recipe_in
from tests.generate.scripted_server import ScriptedServer, status

from dftune import config
from dftune.cli import main
from dftune.data.tokenizer import load_tokenizer


@pytest.fixture
def recipe(tmp_path):
    """A recipe on disk; options are merged into its sections."""

    def make(**sections):
        path = tmp_path / "demo.yaml"
        path.write_text(config.dump(recipe_in(tmp_path, **sections)))
        return str(path)

    return make


def failure(capfd, *words):
    """What a command that is refused says."""
    status = main(list(words))
    said = capfd.readouterr().err
    assert status == 2, said
    assert "Traceback" not in said
    return said


def test_options_that_do_not_go_with_what_is_made_are_refused(recipe, capfd):
    path = recipe()
    assert "--scores goes with weighted, not with rft" in failure(capfd, "generate", path, "rft", "--scores", "x")
    assert "pairs makes none" in failure(capfd, "generate", path, "pairs", "--overwrite")
    assert "--public goes with --push-to-hub" in failure(capfd, "generate", path, "rft", "--public")
    assert "rollouts makes none" in failure(capfd, "generate", path, "rollouts", "--push-to-hub", "a/b")


def test_a_push_that_cannot_succeed_is_refused_before_anything_is_sampled(recipe, capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_notatoken")
    said = failure(capfd, "generate", recipe(), "negatives", "--push-to-hub", "owner/negatives")
    assert "the Hugging Face hub does not answer" in said
    assert not (tmp_path / "generated").exists()


def test_sets_without_rollouts_name_the_command_that_makes_them(recipe, capfd):
    said = failure(capfd, "generate", recipe(), "pairs")
    assert "there are no completions" in said
    assert "dftune generate RECIPE rollouts" in said


def test_an_unknown_key_of_the_section_names_the_nearest(recipe, capfd):
    said = failure(capfd, "generate", recipe(), "negatives", "generate.negatives.temprature=1")
    assert "generate.negatives.temprature: unknown key; did you mean generate.negatives.temperature?" in said


def test_an_objective_that_needs_no_reference_says_so(recipe, capfd):
    said = failure(capfd, "generate", recipe(), "reference")
    assert "sft with the options of this recipe needs no reference log-probabilities" in said


def test_output_and_the_recipes_folder_are_the_same_thing(recipe, tmp_path, capfd):
    other = tmp_path / "other"
    short = ["generate.rollouts.num_samples=1", "data.limit=2"]
    assert main(["generate", recipe(), "rollouts", "--device", "cpu", "--output", str(other), *short]) == 0
    assert len(read(other / "rollouts.samples.jsonl")) == 2
    assert not (tmp_path / "generated").exists()


def test_scores_of_a_file_weigh_the_rollouts(recipe, tmp_path, capfd):
    path = recipe(data={"limit": 3}, generate={"rollouts": {"num_samples": 2}, "keep_truncated": True})
    assert main(["generate", path, "rollouts", "--device", "cpu"]) == 0
    rollouts = read(tmp_path / "generated" / "rollouts.samples.jsonl")
    scores = tmp_path / "scores.jsonl"
    rows = [{"id": row["id"], "sample": row["sample"], "score": 3.0 * row["sample"]} for row in rollouts]
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    assert "no score for 1 of 6 completions" in failure(capfd, "generate", path, "weighted", "--scores", str(scores))
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["generate", path, "weighted", "--scores", str(scores), "generate.weighted.num_rows=6"]) == 0
    made = read(tmp_path / "generated" / "weighted.jsonl")
    names = [f"{row['id']}.1.{copy}" for row in rollouts if row["sample"] == 1 for copy in (0, 1)]
    assert [row["id"] for row in made] == names
    assert "train on it: data.source=" in capfd.readouterr().out


def test_completions_that_a_server_refused_are_no_set(recipe, tmp_path, capfd):
    server = ScriptedServer(load_tokenizer(recipe_in(tmp_path).model), faults=[status(400)])
    path = recipe(generate={"server": [server.url], "served_model": "tiny", "negatives": {"num_samples": 1}})
    try:
        assert main(["generate", path, "negatives"]) == 1
        said = capfd.readouterr()
        assert "Run the same command again: it asks for the missing ones only" in said.err
        assert not list((tmp_path / "generated").glob("negatives.parquet"))
        assert main(["generate", path, "negatives"]) == 0
    finally:
        server.close()
    assert (tmp_path / "generated" / "negatives.parquet").is_file()
