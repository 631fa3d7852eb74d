"""The demo at a small scale: the whole flow on the model that the package carries."""

import pytest
from transformers import AutoModelForCausalLM

from dftune.data.dataset import PreparedDataset
from dftune.demo.problems import CORRUPTED_SUFFIX
from dftune.demo.run import BASE_MODEL, NUM_SAMPLES, OBJECTIVES, REGIMES, Scale, make_study, run_demo
from dftune.files import read_json, read_jsonl
from dftune.study.plan import Plan

TINY = Scale(share=0.02, num_validation=10, num_test=8, seeds=(0,))


def test_the_base_model_is_small_and_safe_to_load():
    files = {file.name: file.stat().st_size for file in BASE_MODEL.iterdir()}
    assert sum(files.values()) < 5e6
    assert {name.rpartition(".")[2] for name in files} <= {"json", "safetensors", "jinja"}
    assert AutoModelForCausalLM.from_pretrained(BASE_MODEL).config.model_type == "qwen2"


def test_runs_that_are_compared_differ_in_the_objective_alone(tmp_path):
    cells = Plan(make_study(tmp_path, Scale())).first_cells
    recipes = [cell.recipe.model_dump(mode="json") for cell in cells]
    assert len(recipes) == len(REGIMES) * len(OBJECTIVES) * 2
    for recipe in recipes:
        twins = [r for r in recipes if (r["seed"], r["data"]) == (recipe["seed"], recipe["data"])]
        assert [twin["objective"]["name"] for twin in twins] == list(OBJECTIVES)
        for twin in twins:
            assert {key for key in twin if twin[key] != recipe[key]} <= {"name", "output", "objective"}


@pytest.mark.slow
def test_the_demo_trains_evaluates_and_reports_and_is_taken_up_where_it_was(tmp_path):
    said: list[str] = []
    report = run_demo(tmp_path, workers=1, scale=TINY, say=said.append)
    assert "dynamic_ft" in report.read_text()
    assert any("| base" in line for line in said)
    runs = sorted((tmp_path / "cells").iterdir())
    rates = {"noisy": "3e-4", "new-notation": "5e-4"}
    assert [run.name for run in runs] == sorted(
        f"{r.name}-{o}-lr{rates[r.name]}-s0" for r in REGIMES for o in OBJECTIVES
    )
    for run in [*runs, tmp_path / "base" / "base"]:
        for protocol, num in (("greedy", 8), ("sample", 8 * NUM_SAMPLES)):
            (rows,) = (run / "evals").glob(f"*/arithmetic.{protocol}.jsonl")
            assert len(read_jsonl(rows)) == num
    noisy = PreparedDataset.load(tmp_path / "prepared" / "noisy")
    wrong = sum(name.endswith(CORRUPTED_SUFFIX) for split in (noisy.train, noisy.validation) for name in split.ids)
    assert wrong == pytest.approx(0.5 * (len(noisy.train) + len(noisy.validation)), abs=1)
    before = read_json(runs[0] / "manifest.json")["started"]
    run_demo(tmp_path, workers=1, scale=TINY, say=said.append)
    assert read_json(runs[0] / "manifest.json")["started"] == before
