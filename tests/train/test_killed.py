"""kill -9 at any moment, again and again: always resumable, and in the end the unbroken run."""

import multiprocessing
import os
import random
import time

import pytest
from safetensors.torch import load_file
from tests.train.runs import assert_same_run, rows_of, run

from dftune.data.prepare import prepared
from dftune.recipe import Recipe
from dftune.train.checkpoint import list_checkpoints, verify
from dftune.train.loop import train

SETTINGS = ("train.checkpoint_every=2", "train.keep_checkpoints=2", "train.validate_every=6")


def train_on(recipe: Recipe) -> None:
    train(recipe, prepared(recipe), resume=True, say=lambda line: None)


def kill_at_random(recipe: Recipe, kills: int, rng: random.Random) -> int:
    """Start the run so often, and kill it once it has written a random number of further checkpoints and some ms.

    Returns:
        How many of the kills met a run that was not over.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dftune.train.loop", "transformers.models.qwen2.modeling_qwen2"])
    met = 0
    for _ in range(kills):
        process = context.Process(target=train_on, args=(recipe,))
        process.start()
        more = rng.randrange(3)
        seen = {path.name for path in list_checkpoints(recipe.output / "checkpoints")}
        deadline = time.monotonic() + 120
        while len({path.name for path in list_checkpoints(recipe.output / "checkpoints")} - seen) < min(more, 2):
            if not process.is_alive():
                break
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.4))
        met += process.is_alive()
        process.kill()
        process.join()
        for checkpoint in list_checkpoints(recipe.output / "checkpoints"):
            verify(checkpoint)
        if (recipe.output / "model").exists():
            load_file(recipe.output / "model" / "model.safetensors")
    return met


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_is_in_the_end_the_unbroken_one(make_recipe, kills):
    settings = (*SETTINGS, f"train.steps={24 * kills}")
    expected = run(make_recipe("unbroken", settings)[0]).path
    recipe, _ = make_recipe("broken", settings)
    assert kill_at_random(recipe, kills, random.Random(kills)) >= kills / 2
    train_on(recipe)
    assert_same_run(recipe.output, expected)
    left, right = (rows_of(path, "validation") for path in (recipe.output, expected))
    assert {step: row["nll"] for step, row in left.items()} == {step: row["nll"] for step, row in right.items()}
    assert not list((recipe.output / "checkpoints").glob(".incomplete-*"))


def test_neither_the_clock_nor_the_name_of_the_host_decides_anything_in_a_resume(make_recipe):
    """A run of another host, whose clock was years ahead."""
    expected = run(make_recipe("unbroken")[0]).path
    recipe, _ = make_recipe("moved")
    run(recipe)
    (recipe.output / "model").rename(recipe.output / "gone")
    events = recipe.output / "events.jsonl"
    events.write_text(events.read_text().replace('"time": 1', '"time": 9'))
    (recipe.output / ".lock").write_text(f"elsewhere, process {os.getpid()}")
    in_the_future = time.time() + 1e9
    for path in recipe.output.rglob("*"):
        os.utime(path, (in_the_future, in_the_future))
    run(recipe, resume=True)
    assert_same_run(recipe.output, expected)
