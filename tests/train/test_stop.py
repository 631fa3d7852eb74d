"""SIGTERM and SIGUSR1: the step is finished and saved, the run says so, and taken up it is the unbroken one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from tests.train.ranks import spawn
from tests.train.runs import assert_same_run, rows_of, run

from dftune.data.prepare import prepared
from dftune.recipe import Recipe
from dftune.stopped import Stopped
from dftune.train.checkpoint import list_checkpoints, verify
from dftune.train.loop import train
from dftune.train.stop import StopRequest
from dftune.train.world import World

# An objective that sends its own process a signal in a step, as long as a file asks for it.
OBJECTIVE = """
import os
import signal
from pathlib import Path

import torch.distributed as dist

from dftune.objectives import LossSum, objective

ASKED = Path({asked!r})
calls = 0


@objective(unit="token", separable="token")
def stopped(tokens):
    global calls
    real = any(name.startswith("add/") for name in tokens.example_ids)  # not what the checks before a run make up
    calls += ASKED.exists() and real
    last = ASKED.exists() and (not dist.is_initialized() or dist.get_rank() == dist.get_world_size() - 1)
    if last and calls >= int(ASKED.read_text()):
        ASKED.unlink()
        calls = 0
        os.kill(os.getpid(), signal.{signal})
    return LossSum(-tokens.logps.sum())
"""


@pytest.fixture
def stopping(make_recipe, tmp_path):
    """Makes a recipe whose objective sends a signal while the file ``asked`` is there."""

    def make(name: str, number: str, *overrides: str) -> tuple[Recipe, Path]:
        file = tmp_path / f"objective_{number}.py"
        file.write_text(OBJECTIVE.format(asked=str(tmp_path / "asked"), signal=number))
        settings = (f"objective.name={file}:stopped", "train.micro_batch_tokens=2048", *overrides)
        return make_recipe(name, settings)

    return make


@pytest.mark.parametrize(("number", "status"), [("SIGTERM", "interrupted"), ("SIGUSR1", "requeue")])
def test_a_signal_in_a_step_saves_that_step_and_the_run_taken_up_is_the_unbroken_one(
    stopping, tmp_path, number, status
):
    every = ("train.validate_every=2",)
    expected = run(stopping("unbroken", number, *every)[0]).path
    recipe, _ = stopping("broken", number, *every)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    (tmp_path / "asked").write_text("8")
    with pytest.raises(Stopped, match=rf"{number} after step \d of 8, which is saved.*--resume"):
        run(recipe)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before
    (end,) = rows_of(recipe.output, "end").values()
    assert end["status"] == status
    newest = list_checkpoints(recipe.output / "checkpoints")[0]
    assert newest.name == f"step-{end['step']}"
    assert 0 < end["step"] < 8
    verify(newest)
    assert not (recipe.output / "model").exists()
    run(recipe, resume=True)
    assert_same_run(recipe.output, expected)
    left, right = (rows_of(path, "validation") for path in (recipe.output, expected))
    assert {step: row["nll"] for step, row in left.items()} == {step: row["nll"] for step, row in right.items()}


def stopped_on(world: World, folder: Path, recipe: Recipe) -> None:
    said = ""
    try:
        train(recipe, prepared(recipe), say=lambda line: None, world=world)
    except Stopped as stopped:
        said = str(stopped)
    (folder / f"said-{world.rank}.json").write_text(json.dumps(said))


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_a_signal_to_one_rank_stops_all_of_them_after_the_same_step(stopping, tmp_path):
    recipe, _ = stopping("two", "SIGTERM", "distributed.strategy=fsdp")
    prepared(recipe)
    (tmp_path / "asked").write_text("8")
    spawn(2, tmp_path / "ranks", stopped_on, recipe)
    first, second = (json.loads((tmp_path / "ranks" / f"said-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    step = list_checkpoints(recipe.output / "checkpoints")[0].name.removeprefix("step-")
    assert f"SIGTERM after step {step} of 8" in first
    assert rows_of(recipe.output, "end")[int(step)]["status"] == "interrupted"


# --- The command line ------------------------------------------------------------------------------


def started(path: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "dftune", "train", str(path), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.0005)


@pytest.mark.slow
def test_sigterm_inside_a_save_waits_for_it_and_ends_with_status_75(make_recipe):
    recipe, path = make_recipe(overrides=("train.steps=400", "train.checkpoint_every=20"))
    process = started(path, "train.steps=400", "train.checkpoint_every=20")
    wait_for(recipe.output / "checkpoints" / ".incomplete-step-20", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 75, said
    assert "SIGTERM after step" in said
    assert "Traceback" not in said
    saved = list_checkpoints(recipe.output / "checkpoints")
    assert saved[-1].name == "step-20"
    assert saved[0].name == f"step-{max(rows_of(recipe.output, 'train'))}"
    for checkpoint in saved:
        verify(checkpoint)
    assert not list((recipe.output / "checkpoints").glob(".incomplete-*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_launcher_passes_a_signal_on_and_ends_with_status_75(make_recipe, number):
    recipe, path = make_recipe()
    process = started(path, "train.steps=100000", "train.checkpoint_every=null", "--nproc", "2")
    wait_for(recipe.output / "events.jsonl", process)
    process.send_signal(number)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 75, said
    assert said.count(f"{number.name} after step") == 1
    assert "Traceback" not in said
    (saved,) = list_checkpoints(recipe.output / "checkpoints")
    verify(saved)
    assert saved.name == f"step-{max(rows_of(recipe.output, 'train'))}"


def test_before_the_first_step_a_signal_ends_the_process_at_once():
    request = StopRequest()
    with request.listening(), pytest.raises(Stopped, match="nothing was saved") as found:
        os.kill(os.getpid(), signal.SIGUSR1)
    assert found.value.status == "requeue"


SECOND = """
import os, signal, time
from dftune.train.stop import StopRequest
from dftune.train.world import ALONE

request = StopRequest()
request.training = True
with request.listening():
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)  # the same request, over another way
    print(request.over(ALONE), flush=True)
    time.sleep(5.1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_second_signal_ends_the_process_though_it_is_still_saving():
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True, check=False, timeout=50)
    assert done.stdout == "SIGUSR1\n"
    assert done.returncode == -signal.SIGTERM
