"""What a study's recipe expands to, and what is refused before anything is trained."""

import pytest
import yaml
from tests.study.tiny import study_values

from dftune.config import RecipeError
from dftune.demo.run import BASE_MODEL
from dftune.files import write_jsonl
from dftune.report.groups import flatten
from dftune.study.board import State
from dftune.study.config import load_study, make_study, merged
from dftune.study.plan import Plan
from dftune.study.select import choose

TWO = [{"name": "sft"}, {"name": "dynamic_ft", "lrs": [1e-3, 1e-2]}]


def plan_of(folder, study=None, **changes):
    study = {"objectives": TWO, "lrs": [1e-4, 1e-3], "seeds": [0, 1, 2], "select": {"metric": "nll"}, **(study or {})}
    return Plan(make_study(study_values(folder, study, **changes), "test"))


def refused(plan_or_folder, match, study=None, **changes):
    with pytest.raises(ValueError, match=match):
        plan_of(plan_or_folder, study, **changes).check()


def test_a_cell_is_the_shared_recipe_with_its_objective_rate_and_seed_and_nothing_else(tmp_path):
    cells = list(plan_of(tmp_path, {"stages": "grid"}).grid((0, 1, 2)))
    assert len(cells) == 2 * 2 * 3
    assert len({cell.name for cell in cells}) == len(cells)
    rates = {(cell.key[2], cell.lr) for cell in cells}
    assert rates == {("sft", 1e-4), ("sft", 1e-3), ("dynamic_ft", 1e-3), ("dynamic_ft", 1e-2)}
    first = flatten(cells[0].recipe.model_dump(mode="json"))
    for cell in cells:
        other = flatten(cell.recipe.model_dump(mode="json"))
        differing = {key for key in first | other if first.get(key) != other.get(key)}
        allowed = {"name", "output", "seed", "optimizer.lr"}
        assert {key for key in differing if not key.startswith("objective.")} <= allowed
        assert cell.recipe.optimizer.lr == cell.lr
        assert cell.recipe.seed == cell.seed
        assert cell.recipe.output == tmp_path / "study" / "cells" / cell.name


def test_models_and_conditions_change_their_own_keys(tmp_path):
    study = {
        "models": {"narrow": {}, "wide": {"scratch": {"hidden_size": 32}}},
        "conditions": {"all": {}, "few": {"data.limit": 20}},
        "stages": "grid",
    }
    cells = {cell.name: cell for cell in plan_of(tmp_path, study).grid((0,))}
    assert len(cells) == 2 * 2 * 2 * 2
    one = cells["wide-few-sft-lr1e-4-s0"].recipe
    assert one.model.scratch.hidden_size == 32
    assert one.model.scratch.vocab_size == 300
    assert one.data.limit == 20
    assert cells["narrow-all-sft-lr1e-4-s0"].recipe.data.limit is None
    assert len({cell.recipe.data.prepared for cell in cells.values()}) == 4


def test_the_benchmarks_wait_for_the_choice_of_the_learning_rate(tmp_path):
    test = tmp_path / "test.jsonl"
    write_jsonl(test, [{"problem": "What is 900 + 1?", "answer": "901"}])
    plan = plan_of(tmp_path, evaluate={"benchmarks": [str(test)]})
    tasks = plan.tasks({})
    assert [task.kind for task in tasks] == ["prepare"] + ["tune"] * 4  # a new model has no base to evaluate
    assert not any(task.tests for task in tasks)
    assert all(task.selects for task in tasks if task.kind == "tune")
    values = {"sft-lr1e-4": 2.0, "sft-lr1e-3": 1.0, "dynamic_ft-lr1e-3": 1.5, "dynamic_ft-lr1e-2": 3.0}
    states = {f"tune.{name}-s0": State("done", value=value) for name, value in values.items()}
    runs = [task for task in plan.tasks(states) if task.kind == "run"]
    names = {f"run.{name}-s{seed}" for name in ("sft-lr1e-3", "dynamic_ft-lr1e-3") for seed in (0, 1, 2)}
    assert {task.name for task in runs} == names
    assert all(task.tests and not task.selects for task in runs)
    del states["tune.sft-lr1e-3-s0"]
    assert not any(task.kind == "run" for task in plan.tasks(states))


def test_a_base_model_is_evaluated_once_for_all_its_runs(tmp_path):
    test = tmp_path / "test.jsonl"
    write_jsonl(test, [{"problem": "What is 900 + 1?", "answer": "901"}])
    changes = {"model": {"scratch": None, "path": str(BASE_MODEL)}, "evaluate": {"benchmarks": [str(test)]}}
    study = {"conditions": {"all": {}, "few": {"data.limit": 20}}}
    tasks = plan_of(tmp_path, study, **changes).tasks({})
    assert [task.name for task in tasks if task.kind == "base"] == ["base.base"]
    study = {"conditions": {"plain": {}, "other": {"data.prompt_format": "alpaca"}}}
    tasks = plan_of(tmp_path, study, **changes).tasks({})
    assert sorted(task.name for task in tasks if task.kind == "base") == ["base.base", "base.base-other"]


def test_the_best_rate_is_that_of_the_best_mean_and_a_failed_run_rules_its_rate_out():
    key = ("", "", "sft")
    found = {1e-4: [0.5, 0.7], 1e-3: [0.9, 0.1], 1e-2: [0.95, None]}
    assert choose(key, found, higher=True).lr == 1e-4  # 0.6 against 0.5
    assert choose(key, found, higher=False).lr == 1e-3
    assert choose(key, found, higher=True).at_edge == "smallest"
    assert dict(choose(key, found, higher=True).values)[1e-2] is None
    assert choose(key, {1e-4: [1.0], 1e-3: [1.0]}, higher=True).lr == 1e-4
    assert choose(key, {1e-4: [None]}, higher=True).lr is None
    assert choose(key, {1e-4: [0.1], 1e-3: [0.9], 1e-2: [0.2]}, higher=True).at_edge is None


@pytest.mark.parametrize(
    ("study", "match"),
    [
        ({"objectives": [{"name": "sft"}, {"name": "dynamic_ft", "lrs": [1e-3]}]}, r"sft 2, dynamic_ft 1"),
        ({"select": None}, "study.select"),
        ({"select": {"metric": "nll", "protocol": "avg@2"}}, "protocol goes with the metric accuracy"),
        ({"select": {"metric": "accuracy", "protocol": "maj@2"}}, "study.select.protocol"),
        ({"objectives": [{"name": "sft"}, {"name": "sft"}]}, "give variants a label each"),
        ({"objectives": [{"name": "sft", "overrides": {"train.batch_size": 16}}]}, "everything else equal"),
        ({"seeds": [1, 1]}, "twice"),
        ({"objectives": [{"name": "dft"}]}, "ambiguous"),
        ({"objectives": [{"name": "sft", "options": {"floor": 1}}]}, "not an option of sft"),
        ({"conditions": {"a/b": {}}}, "cannot be used as a file name"),
        ({"conditions": {"a": {"train.stepz": 3}}}, "did you mean train.steps"),
        ({"conditions": {"a": {"seed": 3}}}, r"study.conditions.a.seed: a study names its seeds"),
        ({"objectives": [{"name": "psft"}]}, "Set train.inner_loop"),
    ],
)
def test_what_would_not_be_a_fair_comparison_is_refused(tmp_path, study, match):
    refused(tmp_path, match, study)


@pytest.mark.parametrize(
    "changes",
    [{"objective": {"name": "sft"}}, {"optimizer": {"lr": 1e-3}}, {"data": {"prepared": "elsewhere"}}],
)
def test_keys_that_the_study_decides_may_not_stand_in_the_recipe(tmp_path, changes):
    refused(tmp_path, "leave it out", **changes)


def test_an_objective_may_say_how_its_steps_are_computed(tmp_path):
    study = {"objectives": [{"name": "psft", "overrides": {"train.inner_loop": 2}}, {"name": "sft"}]}
    plan = plan_of(tmp_path, study)
    plan.check()
    assert {cell.key[2]: cell.recipe.train.inner_loop for cell in plan.first_cells} == {"psft": 2, "sft": 1}


def test_negatives_and_equal_tokens_contradict_each_other(tmp_path):
    study = {"objectives": [{"name": "sft"}, {"name": "dpo"}]}
    columns = {"columns": {"negatives": "wrong"}}
    refused(tmp_path, "sees more tokens", study, data=columns)
    plan_of(tmp_path, {**study, "equal": ["examples", "steps"]}, data=columns).check()


@pytest.mark.parametrize("benchmark", ["math500", "gsm8k:100", "copies/gsm8k_test.jsonl"])
def test_a_learning_rate_is_not_chosen_by_a_published_test(tmp_path, benchmark):
    refused(tmp_path, "the test benchmark", {"select": {"metric": "accuracy", "benchmark": benchmark}})


def test_a_learning_rate_is_not_chosen_by_problems_of_the_tests(tmp_path):
    test, other = tmp_path / "test.jsonl", tmp_path / "other.jsonl"
    write_jsonl(test, [{"problem": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(900, 910)])
    write_jsonl(other, [{"problem": f"what is {n} +  1?", "answer": str(n + 1)} for n in range(908, 912)])
    evaluate = {"benchmarks": [str(test)]}
    refused(
        tmp_path, "shares 2 of its 4", {"select": {"metric": "accuracy", "benchmark": str(other)}}, evaluate=evaluate
    )
    refused(tmp_path, "shares 10", {"select": {"metric": "accuracy", "benchmark": str(test)}}, evaluate=evaluate)
    refused(tmp_path, "data.validation is 0", data={"validation": 0})


def test_a_learning_rate_is_not_chosen_by_samples_that_cannot_be_drawn(tmp_path):
    study = {"select": {"metric": "accuracy", "protocol": "avg@4"}}
    refused(tmp_path, "temperature above 0", study, evaluate={"temperature": 0.0})
    plan_of(tmp_path, study).check()


def test_nobody_trains_on_the_problems_that_the_choice_goes_by(tmp_path):
    choose_by = tmp_path / "choose.jsonl"
    write_jsonl(choose_by, [{"problem": "What is 900 + 1?", "answer": "901"}])
    plan = plan_of(tmp_path, {"select": {"metric": "accuracy", "benchmark": str(choose_by)}})
    assert {cell.recipe.data.decontaminate.benchmarks for cell in plan.first_cells} == {(str(choose_by),)}


def test_a_study_that_has_begun_may_grow_and_may_not_become_another(tmp_path):
    plan_of(tmp_path).begin()
    plan_of(tmp_path, {"seeds": [0, 1, 2, 3]}).begin()
    assert Plan.of_folder(tmp_path / "study").recipe.study.seeds == (0, 1, 2, 3)
    with pytest.raises(ValueError, match=r"train\.steps: 4 then, 5 now"):
        plan_of(tmp_path, train={"steps": 5}).begin()
    with pytest.raises(ValueError, match="holds no study"):
        Plan.of_folder(tmp_path)


def test_every_problem_of_the_file_is_reported_at_once(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"name": "a b", "seed": 1, "study": {"objectives": [], "lr": [1]}}))
    with pytest.raises(RecipeError) as caught:
        load_study(path)
    said = str(caught.value)
    for part in ("'a b'", "seed: a study names its seeds", "study.objectives", "did you mean study.lrs"):
        assert part in said
    path.write_text("name: x\n")
    with pytest.raises(RecipeError, match="trained by `dftune train`"):
        load_study(path)


def test_overrides_go_into_sections_and_replace_values():
    values = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert merged(values, {"a.b": 3, "d": [2]}) == {"a": {"b": 3, "c": 2}, "d": [2]}
    assert merged(values, {"a": {"e": {"f": 4}}}) == {"a": {"b": 1, "c": 2, "e": {"f": 4}}, "d": [1]}
    assert merged({}, {"x.y.z": 1}) == {"x": {"y": {"z": 1}}}
    assert values == {"a": {"b": 1, "c": 2}, "d": [1]}
