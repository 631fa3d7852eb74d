import json
from pathlib import Path

import pytest

from dftune.evaluate.locate import Plan, locate, plan, recipe_section


@pytest.fixture
def run(tmp_path, monkeypatch):
    """runs/a with checkpoints at 2 and 4 and a final model of step 5; seen from the folder above runs."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/a")
    for name in (
        "checkpoints/step-2/model",
        "checkpoints/step-4/model",
        "checkpoints/.incomplete-step-5/model",
        "model",
    ):
        (folder / name).mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"name": "a", "kind": "train"}))
    (folder / "checkpoints/step-4/manifest.json").write_text(json.dumps({"files": {}}))
    events = [{"kind": "train", "step": 4}, {"kind": "train", "step": 5}, {"kind": "end", "step": 5}]
    (folder / "events.jsonl").write_text("".join(json.dumps({**event, "time": 0.0}) + "\n" for event in events))
    return folder


FINAL = Plan("runs/a/model", Path("runs/a"), 5)
FOURTH = Plan("runs/a/checkpoints/step-4/model", Path("runs/a"), 4)
SECOND = Plan("runs/a/checkpoints/step-2/model", Path("runs/a"), 2)


def test_a_run_stands_for_its_final_model_at_the_last_step(run):
    assert plan("runs/a") == [FINAL]
    assert plan("runs/a/") == [FINAL]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs/a/model", FINAL),
        ("runs/a/checkpoints/step-4", FOURTH),
        ("runs/a/checkpoints/step-4/model", FOURTH),
    ],
)
def test_a_model_of_a_run_goes_into_the_run_at_its_own_step(run, given, expected):
    assert plan(given) == [expected]


def test_a_model_of_a_run_is_known_from_inside_the_run_too(run, monkeypatch):
    monkeypatch.chdir("runs/a/checkpoints")
    (found,) = plan("step-4")
    assert (found.step, found.output.resolve()) == (4, Path.cwd().parent)
    assert locate(Path("step-2/model"))[1] == 2


def test_all_checkpoints_are_those_that_are_complete_and_the_final_model(run):
    assert plan("runs/a", all_checkpoints=True) == [SECOND, FOURTH, FINAL]


def test_one_checkpoint_can_be_chosen_by_its_step(run):
    assert plan("runs/a", step=4) == [FOURTH]
    assert plan("runs/a", step=5) == [FINAL]
    with pytest.raises(ValueError, match="no checkpoint of step 3; it has models of the steps 2, 4, 5"):
        plan("runs/a", step=3)


def test_the_final_model_stands_for_the_checkpoint_of_the_same_step(run):
    (run / "checkpoints/step-5/model").mkdir(parents=True)
    assert plan("runs/a", all_checkpoints=True) == [SECOND, FOURTH, FINAL]


def test_a_run_that_is_not_finished_is_an_error_that_names_its_checkpoints(run):
    (run / "model").rmdir()
    with pytest.raises(ValueError, match=r"no final model \(model/\); it has models of the steps 2, 4"):
        plan("runs/a")


def test_a_model_from_elsewhere_gets_a_folder_of_its_own_at_step_zero(run):
    assert plan("Qwen/Qwen2.5-Math-1.5B") == [Plan("Qwen/Qwen2.5-Math-1.5B", Path("runs/eval-Qwen2.5-Math-1.5B"), 0)]
    assert plan("models/my model") == [Plan("models/my model", Path("runs/eval-my-model"), 0)]


def test_the_output_can_be_chosen(run):
    assert plan("runs/a", Path("elsewhere"))[0].output == Path("elsewhere")
    assert plan("some/model", Path("elsewhere"))[0].output == Path("elsewhere")


@pytest.mark.parametrize("options", [{"step": 4}, {"all_checkpoints": True}])
def test_steps_are_refused_where_there_are_none_to_choose_from(run, options):
    with pytest.raises(ValueError, match="no run of dftune"):
        plan("some/model", **options)
    with pytest.raises(ValueError, match="give the run itself"):
        plan("runs/a/checkpoints/step-4", **options)


def test_the_recipes_section_is_found_from_any_model_of_the_run(run):
    (run / "recipe.yaml").write_text("evaluate:\n  max_tokens: 77\n")
    for given in ("runs/a", "runs/a/model", "runs/a/checkpoints/step-4"):
        assert recipe_section(given) == {"max_tokens": 77}
    assert recipe_section("some/model") == {}
