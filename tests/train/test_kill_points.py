"""kill -9 at chosen instants of a save, of a deletion and of the export: what is left, and the run taken up again."""

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from tests.train.runs import assert_same_run, rows_of, run

from dftune.data.prepare import prepared
from dftune.recipe import Recipe
from dftune.train.checkpoint import list_checkpoints, verify
from dftune.train.loop import train

SETTINGS = ("train.steps=6", "train.checkpoint_every=2", "train.keep_checkpoints=1")
# What Python is about to do, and the end of a path in it: the process is killed before it is done.
POINTS = {
    "all files of a checkpoint are written, none is synced": ("os.chmod", "/.incomplete-step-4/state.json"),
    "a checkpoint lacks its manifest alone": ("os.rename", "/.incomplete-step-4/manifest.json"),
    "a checkpoint has all but its name": ("os.rename", "/checkpoints/step-4"),
    "a checkpoint is complete and no row says so": ("open", "/events.jsonl"),
    "an old checkpoint is about to be deleted": ("os.rename", "/.incomplete-step-2"),
    "an old checkpoint is renamed to be deleted": ("shutil.rmtree", "/.incomplete-step-2"),
    "half of an old checkpoint is deleted": ("os.remove", "optimizer.safetensors"),
    "the final model has all but its name": ("os.rename", "/model"),
}
LEFT = {
    **dict.fromkeys(list(POINTS)[:3], ".incomplete-step-4"),
    **dict.fromkeys(list(POINTS)[5:7], ".incomplete-step-2"),
}


def train_until(recipe: Recipe, event: str, end: str) -> None:
    """Train, and die where Python raises the audit event on a path with this end."""

    def kill(name: str, arguments: tuple) -> None:
        if name != event:
            return
        path = Path(str(arguments[1] if name == "os.rename" else arguments[0]))  # the new name
        elsewhere = name == "open" and threading.current_thread().name != "checkpoint 4"
        if str(path).endswith(end) and not elsewhere and (name != "shutil.rmtree" or path.exists()):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    train(recipe, prepared(recipe), say=lambda line: None)


QUICK = ("a checkpoint has all but its name", "half of an old checkpoint is deleted")


@pytest.mark.parametrize(
    "point", [point if point in QUICK else pytest.param(point, marks=pytest.mark.slow) for point in POINTS]
)
def test_killed_there_it_leaves_whole_checkpoints_and_goes_on_to_the_same_end(make_recipe, point):
    expected = run(make_recipe("unbroken", SETTINGS)[0]).path
    recipe, _ = make_recipe("killed", SETTINGS)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dftune.train.loop", "transformers.models.qwen2.modeling_qwen2"])
    process = context.Process(target=train_until, args=(recipe, *POINTS[point]))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    checkpoints = recipe.output / "checkpoints"
    saved = list_checkpoints(checkpoints)
    assert saved
    for checkpoint in saved:
        verify(checkpoint)
    assert [path.name for path in checkpoints.glob(".*")] == ([LEFT[point]] if point in LEFT else [])
    assert not (recipe.output / "model").exists()
    said: list[str] = []
    run(recipe, resume=True, say=said.append)
    assert any(f"resumed from {saved[0]}" in line for line in said)
    assert [line.rpartition(": ")[2] for line in said if "half-done" in line] == [
        LEFT[one] for one in LEFT if one == point
    ]
    assert_same_run(recipe.output, expected)
    assert [path.name for path in checkpoints.iterdir()] == ["step-4"]
    assert rows_of(recipe.output, "checkpoint").keys() == {2, 4}  # a watcher goes by these rows
    assert not list(recipe.output.glob(".incomplete-*"))
