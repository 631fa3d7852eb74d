"""The shipped studies and sweeps: what they would run, and the data that they name."""

import filecmp
import importlib.util
from pathlib import Path

import pytest
import yaml

from dftune.files import read_jsonl
from dftune.study.config import load_study
from dftune.study.plan import Plan
from dftune.sweep.config import load_sweep

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
ALL = sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*.yaml"))


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("DFTUNE_DATA", raising=False)


def section(name: str, what: str) -> bool:
    return what in yaml.safe_load((RECIPES / name).read_text())


@pytest.mark.parametrize("name", [name for name in ALL if section(name, "study")])
def test_every_study_can_be_trained_as_it_stands(name):
    Plan(load_study(RECIPES / name)).check()


@pytest.mark.parametrize("name", [name for name in ALL if section(name, "sweep")])
def test_every_sweep_can_be_trained_as_it_stands(name):
    load_sweep(RECIPES / name).check()


def test_the_study_on_arithmetic_is_six_objectives_four_rates_three_seeds_and_two_conditions():
    plan = Plan(load_study(RECIPES / "studies" / "arithmetic.yaml"))
    cells = plan.first_cells
    assert len(cells) == 6 * 4 * 3 * 2
    assert {cell.key[1] for cell in cells} == {"right", "wrong-30"}


@pytest.mark.parametrize(
    ("name", "rates", "batch_sizes"),
    [
        ("learning-rate", (2e-4, 1e-4, 5e-5, 1e-5), (256,)),
        ("batch-size", (5e-5,), (32, 64, 128, 256)),
    ],
)
def test_a_published_grid_trains_each_objective_once_at_each_value_of_the_paper(name, rates, batch_sizes):
    recipe = load_sweep(RECIPES / "sweeps" / f"dynamic-ft-{name}.yaml")
    space = recipe.sweep.space
    points = [{key: space[key].value(place) for key, place in point.items()} for point in recipe.sweep.grid()]
    trials = [recipe.trial(number, point) for number, point in enumerate(points)]
    assert [(one.objective.name, one.optimizer.lr, one.train.batch_size) for one in trials] == [
        (objective, lr, batch_size) for objective in ("sft", "dynamic_ft") for lr in rates for batch_size in batch_sizes
    ]
    assert {one.data.max_length for one in trials} == {2048}


def test_the_data_of_the_study_are_what_the_script_writes(tmp_path):
    spec = importlib.util.spec_from_file_location("make_example_data", ROOT / "scripts" / "make_example_data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_study(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["choose.jsonl", "right.jsonl", "stories.jsonl", "wrong-30.jsonl"]
    assert filecmp.cmpfiles(tmp_path, RECIPES / "studies" / "data", names, shallow=False)[0] == names


def test_thirty_per_cent_of_the_wrong_demonstrations_are_wrong_and_no_problem_is_in_two_files():
    rows = {
        name: read_jsonl(RECIPES / "studies" / "data" / f"{name}.jsonl")
        for name in ("right", "wrong-30", "choose", "stories")
    }
    pairs = list(zip(rows["right"], rows["wrong-30"], strict=True))
    assert all(right["problem"] == wrong["problem"] for right, wrong in pairs)
    assert sum(right["answer"] != wrong["answer"] for right, wrong in pairs) == 300
    problems = [{row["problem"] for row in rows[name]} for name in ("right", "choose", "stories")]
    assert len(set.union(*problems)) == sum(map(len, problems)) == 1400
