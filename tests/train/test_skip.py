"""Losses and gradients that are not finite: no weight moves, the batch is kept, and a limit ends the run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from tests.train.ranks import spawn
from tests.train.runs import rows_of, run

from dftune.data.prepare import prepared
from dftune.files import read_json, sha256_file
from dftune.recipe import Recipe
from dftune.train.checkpoint import list_checkpoints
from dftune.train.loop import train
from dftune.train.step import NonFiniteError
from dftune.train.world import World

# Not finite on one example alone: in its value, or in its gradient (the root of 0 has an infinite slope).
OBJECTIVE = """
from dftune.objectives import LossSum, objective


@objective(unit="token", separable="sequence")
def broken(tokens):
    total = -tokens.logps.sum()
    if {example!r} in tokens.example_ids:
        total = total + {fault}
    return LossSum(total)
"""
FAULTS = {"loss": "float('nan')", "gradient": "(0 * tokens.logps.sum()).sqrt()"}


@pytest.fixture
def breaking(make_recipe, tmp_path):
    """Makes a recipe with an objective that breaks on one example, which every third step or so visits."""

    def make(name: str, fault: str, *overrides: str) -> Recipe:
        plain, _ = make_recipe("plain")
        example = prepared(plain).train.example(3).id
        file = tmp_path / f"{fault}.py"
        file.write_text(OBJECTIVE.format(example=example, fault=FAULTS[fault]))
        settings = (f"objective.name={file}:broken", "train.batch_size=40", "train.checkpoint_every=1", *overrides)
        return make_recipe(name, settings)[0]

    return make


def contents(recipe: Recipe, step: int) -> list[str]:
    folder = recipe.output / "checkpoints" / f"step-{step}"
    return [sha256_file(file) for file in sorted(folder.rglob("*.safetensors"))]


def assert_skipped_once_and_ended_at_the_second(recipe: Recipe) -> None:
    (skipped,) = rows_of(recipe.output, "skipped").values()
    step, end = skipped["step"], list(rows_of(recipe.output, "end").values())[-1]
    assert end["status"] == "failed"
    assert end["step"] > step  # steps done; the one that failed is not
    if step > 1:
        assert contents(recipe, step) == contents(recipe, step - 1)
    assert contents(recipe, step + 1) != contents(recipe, step)
    assert step not in rows_of(recipe.output, "train")
    newest = list_checkpoints(recipe.output / "checkpoints")[0]
    assert newest.name == f"step-{end['step']}"
    assert read_json(newest / "state.json")["counters"]["skipped"] == 1
    assert {path.name for path in (recipe.output / "failed-batches").iterdir()} == {
        f"step-{step}.json",
        f"step-{end['step'] + 1}.json",
    }
    assert recipe.output / skipped["batch"] == recipe.output / "failed-batches" / f"step-{step}.json"
    assert not (recipe.output / "model").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_that_is_not_finite_moves_nothing_and_the_one_after_the_limit_ends_the_run(breaking, fault):
    recipe = breaking("run", fault, "train.max_skipped_steps=1", "train.steps=12")
    with pytest.raises(NonFiniteError, match=r"1 steps were skipped before it.*failed-batches/step-"):
        run(recipe)
    assert_skipped_once_and_ended_at_the_second(recipe)
    with pytest.raises(NonFiniteError, match="1 steps were skipped before it"):  # a resume does not forget
        run(recipe, resume=True)


def test_the_batch_that_was_saved_is_the_batch_of_the_step(breaking):
    recipe = breaking("run", "loss")
    with pytest.raises(NonFiniteError, match=r"failed-batches/step-"):
        run(recipe)
    (path,) = (recipe.output / "failed-batches").iterdir()
    saved = read_json(path)
    assert len(saved["examples"]) == 40
    split = prepared(recipe).train
    examples = {example.id: example for example in map(split.example, range(len(split)))}
    for row in saved["examples"]:
        assert np.array_equal(row["input_ids"], examples[row["id"]].input_ids)
        assert np.array_equal(row["completion_mask"], examples[row["id"]].completion_mask)
    assert split.example(3).id in [row["id"] for row in saved["examples"]]


def train_and_fail(world: World, folder: Path, recipe: Recipe) -> None:
    with pytest.raises(NonFiniteError):
        train(recipe, prepared(recipe), say=lambda line: None, world=world)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_what_is_not_finite_on_one_rank_is_skipped_by_all(breaking, tmp_path):
    recipe = breaking("two", "loss", "train.max_skipped_steps=1", "train.steps=12", "distributed.strategy=fsdp")
    prepared(recipe)
    spawn(2, tmp_path / "ranks", train_and_fail, recipe)
    assert_skipped_once_and_ended_at_the_second(recipe)


@pytest.mark.slow
def test_a_diverged_run_skips_to_its_limit_and_ends_with_status_1(make_recipe):
    overrides = ("optimizer.lr=1e30", "optimizer.warmup_ratio=0", "objective.name=sft", "train.max_skipped_steps=2")
    recipe, path = make_recipe()
    command = [sys.executable, "-m", "dftune", "train", str(path), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "2 steps were skipped before it" in done.stderr
    assert len(rows_of(recipe.output, "skipped")) == 2
    assert not (recipe.output / "model").exists()
