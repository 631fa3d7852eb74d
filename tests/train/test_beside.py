"""What runs beside training: real watchers in processes of their own, and what the loop makes of their results."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from tests.track.readers import read_tensorboard
from tests.train.runs import assert_same_run, rows_of, run

from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.runner import evaluate
from dftune.files import append_jsonl, read_json, read_jsonl, write_jsonl
from dftune.report.load import read_run
from dftune.run import RunFolder
from dftune.train.beside import Beside
from dftune.train.checkpoint import list_checkpoints, prune
from dftune.watch.ledger import claimed


@pytest.fixture
def watched(make_recipe, tmp_path):
    """A recipe of 9 steps with a watcher, on eight additions."""
    path = tmp_path / "sums.jsonl"
    write_jsonl(path, ({"id": str(i), "problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(8)))

    def make(name, *overrides):
        evaluate_section = f"evaluate={json.dumps({'benchmarks': [str(path)], 'max_tokens': 8})}"
        own = ("train.steps=9", "watch.enabled=true", "watch.poll_s=0.05", evaluate_section)
        return make_recipe(name, (*own, *overrides))

    return make


def steps_of(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in list_checkpoints(folder / "checkpoints"))


def score(folder, step, accuracy):
    row = {"kind": "evaluation", "step": step, "time": 0.0, "source": "watch", "benchmark": "sums"}
    append_jsonl(folder / "events.jsonl", [{**row, "protocol": "greedy", "accuracy": accuracy}])


@pytest.mark.slow  # a watcher takes seconds to start
def test_what_a_watcher_found_is_what_evaluating_the_checkpoints_afterwards_finds(watched):
    recipe, _ = watched("run")
    run(recipe)
    beside = {
        path.parent.name: [read_jsonl(path), read_json(path.with_suffix(".json"))]
        for path in sorted(recipe.output.glob("evals/step-*/sums.greedy.jsonl"))
    }
    assert sorted(beside) == ["step-3", "step-6", "step-9"]
    found = rows_of(recipe.output, "evaluation")
    config = EvaluateConfig(benchmarks=recipe.evaluate.benchmarks, max_tokens=8)
    models = {3: "checkpoints/step-3/model", 6: "checkpoints/step-6/model", 9: "model"}
    for step, model in models.items():
        (after,) = evaluate(
            str(recipe.output / model),
            config.benchmarks,
            config,
            recipe.output,
            step=step,
            overwrite=True,
            device="cpu",
        )
        assert found[step]["accuracy"] == after.accuracy
        again = [read_jsonl(after.completions), read_json(after.completions.with_suffix(".json"))]
        for settings in (beside[f"step-{step}"][1], again[1]):
            settings.pop("seconds")
        for row in (*beside[f"step-{step}"][0], *again[0]):
            row.pop("mean_logp"), row.pop("mean_entropy")
        assert beside[f"step-{step}"] == again
    assert {row["source"] for row in found.values()} == {"watch"}
    assert "1 models loaded, 2 swapped" in (recipe.output / "logs" / "watch.log").read_text()


@pytest.mark.slow  # a watcher and an exporter take seconds to start
def test_what_training_and_its_watcher_find_stands_in_one_tracked_run_under_the_steps_of_the_checkpoints(watched):
    pytest.importorskip("tensorboard")
    recipe, _ = watched("run", "track.to=[tensorboard]", "track.poll_s=0.05")
    run(recipe)
    tracked = read_tensorboard(recipe.output / "track" / "tensorboard")
    assert [step for step, _ in tracked["train/loss"]] == list(range(1, 10))
    found = rows_of(recipe.output, "evaluation")
    assert tracked["eval/sums/greedy/accuracy"] == [(step, found[step]["accuracy"]) for step in (3, 6, 9)]


@pytest.mark.slow  # a watcher takes seconds to start
def test_a_run_with_a_watcher_is_the_run_without_one(watched):
    with_one, _ = watched("with")
    without, _ = watched("without", "watch.enabled=false")
    run(with_one)
    run(without)
    assert_same_run(with_one.output, without.output)
    assert read_run(with_one.output).status == "finished"
    assert RunFolder(with_one.output).finished()  # though its last rows are evaluations


@pytest.mark.slow  # a watcher takes seconds to start
def test_a_watcher_that_fails_is_said_and_training_goes_on(watched, tmp_path):
    recipe, _ = watched("run", f"watch.benchmarks=[{tmp_path / 'nowhere.jsonl'}]", "data.decontaminate.action=skip")
    said = []
    run(recipe, said.append)
    assert RunFolder(recipe.output).finished()
    (line,) = [line for line in said if "the watcher ended" in line]
    assert "nowhere.jsonl" in line
    assert f"Take it up with: dftune watch {recipe.output}" in line
    assert steps_of(recipe.output) == [3, 6]


def test_checkpoints_stay_until_they_are_evaluated_and_go_then(watched):
    recipe, _ = watched("run", "train.keep_checkpoints=1", "train.checkpoint_every=1", "watch.enabled=false")
    recipe = recipe.model_copy(update={"watch": recipe.watch.model_copy(update={"enabled": True})})
    folder = RunFolder(recipe.output)
    beside = Beside(recipe.model_copy(update={"watch": recipe.watch.model_copy(update={"enabled": False})}))
    for step in (1, 2, 3, 4):
        (folder.checkpoints / f"step-{step}" / "model").mkdir(parents=True)
        folder.log("checkpoint", step, path=f"checkpoints/step-{step}")
    beside.start(folder, lambda: 4)
    beside.recipe = recipe
    assert beside.spared() == {1, 2, 3, 4}
    score(folder.path, 1, 0.5)
    score(folder.path, 3, 0.5)
    prune(folder.checkpoints, 1, beside.spared())
    assert steps_of(folder.path) == [2, 4]
    beside.end()


def test_a_checkpoint_that_is_being_evaluated_is_not_deleted(watched):
    recipe, _ = watched("run", "watch.enabled=false", "train.keep_checkpoints=1")
    folder = RunFolder(recipe.output)
    beside = Beside(recipe)
    for step in (1, 2, 3):
        (folder.checkpoints / f"step-{step}").mkdir(parents=True)
    beside.start(folder, lambda: 3)
    with claimed(folder.path, 1) as mine:
        assert mine
        prune(folder.checkpoints, 1, beside.spared())
        assert steps_of(folder.path) == [1, 3]
    prune(folder.checkpoints, 1, beside.spared())
    assert steps_of(folder.path) == [3]
    beside.end()


def test_the_best_checkpoints_by_held_out_nll_are_kept_beside_the_newest(watched):
    best = ("train.keep_best.metric=validation/nll", "train.keep_best.number=2", "train.validate_every=1")
    recipe, _ = watched("run", *best, "watch.enabled=false", "train.keep_checkpoints=1", "train.checkpoint_every=1")
    run(recipe)
    nll = {step: row["nll"] for step, row in rows_of(recipe.output, "validation").items() if 0 < step < 9}
    assert set(steps_of(recipe.output)) == {8, *sorted(nll, key=nll.__getitem__)[:2]}


@pytest.mark.slow  # a watcher takes seconds to start
def test_training_stops_early_on_what_the_watcher_found(watched):
    stop = ("watch.stop.metric=eval/sums/greedy/accuracy", "watch.stop.patience=2", "train.checkpoint_every=1")
    recipe, _ = watched("run", *stop, "train.steps=400", "train.log_every=7", "optimizer.lr=1e-9")
    said = []
    run(recipe, said.append)
    (reason,) = rows_of(recipe.output, "stop").values()
    step = reason["step"]
    assert step < 400
    assert reason["reason"].startswith("eval/sums/greedy/accuracy has not been better than 0 of step 1 in")
    assert any(line.startswith(f"stopped at step {step} of 400: ") for line in said)
    assert rows_of(recipe.output, "end")[step]["status"] == "finished"
    assert step in rows_of(recipe.output, "validation")
    assert step in rows_of(recipe.output, "evaluation")  # the final model, under the step where it stopped
    resumed = []
    run(recipe, resumed.append, resume=True)
    assert resumed == [f"{recipe.output} is finished; nothing to resume."]


def test_the_machine_is_sampled_while_it_trains(watched):
    recipe, _ = watched("run", "watch.enabled=false", "track.system_every_s=0.05", "train.steps=40")
    run(recipe)
    rows = [row for row in read_jsonl(recipe.output / "events.jsonl") if row["kind"] == "system"]
    assert len(rows) > 2
    assert all(row["rss_bytes"] > 50e6 and row["cpu_percent"] >= 0 for row in rows)
    assert read_jsonl(recipe.output / "events.jsonl")[-1]["kind"] == "end"


@pytest.mark.slow  # a watcher takes seconds to start
def test_a_killed_trainer_ends_its_watcher_and_the_resumed_run_evaluates_the_rest(watched, tmp_path):
    recipe, _ = watched("run", "train.steps=100", "train.checkpoint_every=10")
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command = [sys.executable, "-m", "dftune", "train", str(path), "--no-evaluate"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    events = recipe.output / "events.jsonl"
    while not events.is_file() or '"evaluation"' not in events.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    done = {row["step"] for row in read_jsonl(events, partial_last_line=True) if row["kind"] == "evaluation"}
    assert not RunFolder(recipe.output).is_running()
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    rows = [row for row in read_jsonl(events) if row["kind"] == "evaluation"]
    steps = [row["step"] for row in rows]
    assert sorted(set(steps)) == [*range(10, 100, 10), 100]
    assert len(steps) == len(set(steps))
    assert done <= set(steps)


@pytest.mark.slow  # a watcher takes seconds to start
def test_ctrl_c_ends_the_watcher_too(watched, tmp_path):
    recipe, _ = watched("run", "train.steps=2000", "train.checkpoint_every=5")
    path = tmp_path / "whole.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command = [sys.executable, "-m", "dftune", "train", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    events = recipe.output / "events.jsonl"
    while not events.is_file() or '"evaluation"' not in events.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert rows_of(recipe.output, "end")
    before = events.stat().st_size
    time.sleep(1)
    assert events.stat().st_size == before
