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


def test_the_study_on_arithmetic_is_six_objectives_three_rates_three_seeds_and_two_conditions():
    plan = Plan(load_study(RECIPES / "studies" / "arithmetic.yaml"))
    cells = plan.first_cells
    assert len(cells) == 6 * 3 * 3 * 2
    assert {cell.key[1] for cell in cells} == {"right", "wrong-30"}


def test_the_published_grids_are_those_of_the_paper():
    learning_rate, batch_size = (
        load_sweep(RECIPES / "sweeps" / f"dynamic-ft-{name}.yaml") for name in ("learning-rate", "batch-size")
    )
    assert learning_rate.sweep.space["optimizer.lr"].values == (2e-4, 1e-4, 5e-5, 1e-5)
    assert batch_size.sweep.space["train.batch_size"].values == (32, 64, 128, 256)
    for sweep in (learning_rate, batch_size):
        assert sweep.sweep.size == 8
        assert sweep.trial(0, sweep.first).data.max_length == 2048


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
