"""Recipes: strict, safe, and every mistake at once."""

from pathlib import Path

import pytest
import yaml

from dftune import config
from dftune.config import RecipeError, read_yaml
from dftune.recipe import Recipe, load_recipe

GOOD = """\
name: a
data: {source: x.jsonl, prepared: p}
model: {path: m}
objective: {name: sft}
optimizer: {lr: 2e-5}
train: {steps: 3}
"""


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_an_exponent_without_a_dot_is_a_number(recipe):
    assert yaml.safe_load("2e-5") == "2e-5"  # what PyYAML makes of it
    assert load_recipe(recipe(GOOD)).optimizer.lr == 2e-5


def test_overrides_reach_any_key_in_the_types_of_yaml(recipe):
    found = load_recipe(
        recipe(GOOD),
        [
            "optimizer.lr=5e-4",
            "objective.name=power",
            "objective.alpha=2",
            "data.sources=[a, b]",
            "train.packing=false",
        ],
    )
    assert found.optimizer.lr == 5e-4
    assert (found.objective.name, found.objective.options) == ("power", {"alpha": 2.0, "p_min": None, "p_max": None})
    assert found.data.sources == ("a", "b")
    assert found.train.packing is False


def test_every_problem_is_reported_at_once_with_the_nearest_key(recipe):
    text = GOOD.replace("{steps: 3}", "{steps: three, batchsize: 4}") + "name: b\nsede: 1\n"
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(text), ["optimizer.lr=fast", "nonsense"])
    message = str(caught.value)
    for part in (
        "6 problems",
        "name: given twice, in lines 1 and 7",
        "'nonsense': overrides are written key=value",
        "train.steps: ",
        "found 'three'",
        "train.batchsize: unknown key; did you mean train.batch_size?",
        "optimizer.lr: ",
        "sede: unknown key; did you mean seed?",
    ):
        assert part in message


def test_a_key_in_the_wrong_section_is_pointed_to_its_own(recipe):
    with pytest.raises(RecipeError, match=r"lr: unknown key; did you mean optimizer\.lr\?"):
        load_recipe(recipe(GOOD + "lr: 1\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("- a\n", "expected a mapping of keys to values, found list"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("1: 2\n", "key 1 is not a string"),
    ],
)
def test_yaml_that_is_broken_or_dangerous_is_refused(recipe, text, expected):
    with pytest.raises(RecipeError, match=expected):
        load_recipe(recipe(text))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("model: {}", "give either model.path or model.scratch"),
        ("model: {path: m, scratch: {}}", "give either model.path or model.scratch"),
        ("model: {scratch: {hidden_size: 30, num_heads: 4}}", "hidden_size 30 must be a multiple of num_heads 4"),
        ("train: {steps: 1, epochs: 1}", "give either train.epochs or train.steps"),
        ("name: ../../etc", "'../../etc' cannot be used as a file name"),
        ("optimizer: {lr: 0}", "greater than 0, found 0"),
        ("objective: {name: dft}", "ambiguous"),
    ],
)
def test_contradictions_are_refused(recipe, line, expected):
    kept = [old for old in GOOD.splitlines() if old.partition(":")[0] != line.partition(":")[0]]
    with pytest.raises(RecipeError, match=expected):
        load_recipe(recipe("\n".join([*kept, line])))


def test_the_resolved_recipe_loads_as_itself(recipe, tmp_path):
    first = load_recipe(recipe(GOOD), ["objective.name=power"])
    again = tmp_path / "again.yaml"
    again.write_text(config.dump(first))
    assert load_recipe(again) == first
    assert "alpha: 0.5" in again.read_text()


def test_a_missing_recipe_names_those_beside_it(recipe, tmp_path):
    recipe(GOOD)
    with pytest.raises(FileNotFoundError, match=r"There is no recipe .*nothing.*Recipes beside it: recipe\.yaml"):
        load_recipe(tmp_path / "nothing")


def test_the_extension_may_be_left_out(recipe):
    assert load_recipe(recipe(GOOD).with_suffix("")).name == "a"


def test_every_key_is_documented():
    described = "\n".join(config.describe(Recipe))
    for key in config.key_names(Recipe):
        assert key in described
    for entry in config.describe(Recipe):
        assert not entry.endswith(("\n      ", ": ")), f"no documentation: {entry}"


def test_every_shipped_recipe_is_valid(request):
    found = sorted((request.config.rootpath / "recipes").rglob("*.yaml"))
    assert found
    for path in found:
        values = read_yaml(path, [])
        assert values["name"] == path.stem
        if not values.keys() & {"study", "sweep"}:  # of which tests/study/test_recipes.py knows more
            load_recipe(path)
