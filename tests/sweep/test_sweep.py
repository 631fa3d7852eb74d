"""Sweeps on a tiny model: what is searched, pruned, taken up again, and written out."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from tests.study.tiny import sections

from dftune.cli import main
from dftune.config import RecipeError
from dftune.files import read_json, read_jsonl, write_jsonl
from dftune.recipe import load_recipe
from dftune.report.groups import flatten
from dftune.sweep.config import Dimension, load_sweep
from dftune.sweep.page import render_page
from dftune.sweep.results import read_results
from dftune.sweep.run import begin, finish, work
from dftune.sweep.search import Search

SWEEP = {
    "space": {"optimizer.lr": {"low": 1e-6, "high": 1.0, "log": True}, "train.batch_size": {"values": [4, 8]}},
    "select": {"metric": "nll"},
    "num_trials": 12,
}


def write(folder: Path, sweep=None, **changes) -> Path:
    """The recipe of a sweep, in a file."""
    train = {"steps": 8, "validate_every": 1, **changes.pop("train", {})}
    values = {"name": "tiny", "output": str(folder / "sweep"), "sweep": {**SWEEP, **(sweep or {})}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**values, **sections(folder, objective={"name": "sft"}, train=train, **changes)}))
    return path


def refused(path, match, *overrides):
    with pytest.raises(ValueError, match=match):
        load_sweep(path, overrides).check()


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Twelve trials in this process, as one worker runs them."""
    folder = tmp_path_factory.mktemp("sweep")
    recipe = load_sweep(write(folder))
    recipe.check()
    work(recipe, 120.0)
    search = Search(recipe)
    return search, finish(search)


def test_twelve_trials_are_run_and_those_that_fall_behind_are_pruned(searched):
    search, found = searched
    assert [trial.number for trial in found.results.trials] == list(range(12))
    ends = Counter(trial.state for trial in found.results.trials)
    assert ends["pruned"] >= 3
    assert ends["complete"] >= 2
    assert ends.total() == 12
    for trial in found.results.trials:
        rows = read_jsonl(search.recipe.output / "trials" / f"trial-{trial.number:04d}" / "events.jsonl")
        steps = [row["step"] for row in rows if row["kind"] == "train"]
        validated = {row["step"]: row["nll"] for row in rows if row["kind"] == "validation"}
        assert rows[-1]["kind"] == "end"
        assert rows[-1]["status"] == {"pruned": "pruned", "complete": "finished", "fail": "failed"}[trial.state]
        if trial.state == "pruned":
            assert steps[-1] < 8
        if trial.state == "complete":
            assert steps[-1] == 8
            assert trial.value == validated[8]
        assert trial.curve == tuple((round(100 * s / 8), nll) for s, nll in validated.items() if 0 < s < 8)


def test_successive_halving_keeps_the_best_half_of_what_reached_a_rung(searched):
    """At 25 % and 50 %, a trial goes on if it is among the best half of those that were there, or the best of all."""
    _, found = searched
    for rung in (25, 50):
        reached: list[float] = []
        for trial in found.results.trials:  # one worker: in the order of their numbers
            curve = dict(trial.curve)
            if rung in curve:
                reached.append(curve[rung])
                went_on = max(curve) > rung or trial.state == "complete"
                best = sorted(reached)[: max(1, len(reached) // 2)]
                assert went_on == (curve[rung] <= best[-1]), (rung, trial.number)


def test_the_best_recipe_is_complete_and_is_that_of_the_best_trial(searched):
    search, found = searched
    ended = [trial for trial in found.results.trials if trial.state == "complete"]
    best = min(ended, key=lambda trial: trial.value)
    written, trial = load_recipe(found.best), search.recipe.output / "trials" / f"trial-{best.number:04d}"
    ours, theirs = (flatten(load_recipe(path).model_dump(mode="json")) for path in (found.best, trial / "recipe.yaml"))
    assert {key for key in ours if ours[key] != theirs[key]} == {"name", "output"}
    assert written.name == "tiny-best"
    assert written.optimizer.lr == best.values["optimizer.lr"]
    assert written.train.batch_size == best.values["train.batch_size"]


def test_the_page_and_the_json_hold_every_trial_and_load_nothing(searched):
    search, found = searched
    saved = read_json(search.recipe.output / "sweep.json")
    assert [trial["number"] for trial in saved["trials"]] == list(range(12))
    assert saved["best"] == found.results.best.number
    shares = saved["importances"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["optimizer.lr"] > 0.8  # six decades of it against batches of 4 and 8
    html = found.page.read_text()
    assert html.count('<tr><th scope="row">') == 12
    assert "Parallel coordinates" in html
    assert all(word not in html for word in ("http://", "https://", "<script", "src="))


def test_texts_of_the_recipe_are_escaped_in_the_page(tmp_path):
    sweep = {"space": {"data.limit": {"values": [20]}, "optimizer.lr": {"values": [1e-3]}}, "sampler": "grid"}
    recipe = load_sweep(write(tmp_path, {**sweep, "prune": None}, train={"validate_every": None}))
    shared = {**recipe.shared, "objective": {"name": "sft"}}
    recipe = recipe.model_copy(update={"name": "<b>&", "shared": shared})
    assert "<b>" not in render_page(read_results(Search(recipe)))


def test_a_sweep_that_is_prolonged_draws_what_it_would_have_drawn_at_once(searched, tmp_path):
    _, found = searched
    work(load_sweep(write(tmp_path), ["sweep.num_trials=5"]), 120.0)
    recipe = load_sweep(write(tmp_path), ["sweep.num_trials=8"])
    work(recipe, 120.0)
    trials = read_results(Search(recipe)).trials
    assert [trial.values for trial in trials] == [trial.values for trial in found.results.trials[:8]]
    assert [trial.value for trial in trials] == [trial.value for trial in found.results.trials[:8]]


def test_a_trial_that_a_dead_process_left_is_trained_on_from_its_checkpoint(tmp_path, capsys):
    """The first worker stops between the question and the answer; the trial keeps its number and its values."""
    recipe = load_sweep(write(tmp_path, train={"checkpoint_every": 2}), ["sweep.num_trials=2", "sweep.prune=null"])
    script = """
import os, sys
from pathlib import Path
from dftune.run import RunFolder
from dftune.sweep.config import load_sweep
from dftune.sweep.run import begin, work

log = RunFolder.log
def die(self, kind, step, **fields):
    log(self, kind, step, **fields)
    if kind == "checkpoint" and step == 4:
        os.kill(os.getpid(), 9)
RunFolder.log = die
recipe = load_sweep(Path(sys.argv[1]), ["sweep.num_trials=2", "sweep.prune=null"])
begin(recipe)
work(recipe, 120.0)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "recipe.yaml")], check=False)
    assert killed.returncode == -signal.SIGKILL
    (before,) = read_results(Search(recipe)).trials
    assert before.state == "running"
    assert main(["sweep", "status", str(recipe.output)]) == 0
    assert "left by a dead process" in capsys.readouterr().out
    work(recipe, 120.0)
    first, second = read_results(Search(recipe)).trials
    assert (first.state, second.state) == ("complete", "complete")
    assert first.values == before.values
    rows = read_jsonl(recipe.output / "trials" / "trial-0000" / "events.jsonl")
    assert [(row["step"], row["resumed"]) for row in rows if row["kind"] == "start"] == [(0, False), (4, True)]


def test_a_trial_that_fails_is_counted_and_the_search_goes_on(tmp_path):
    space = {"optimizer.lr": {"values": [1e30, 1e-3]}}
    recipe = load_sweep(write(tmp_path, {"space": space, "sampler": "grid", "prune": None}))
    work(recipe, 120.0)
    found = finish(Search(recipe))
    assert [(trial.state, trial.values) for trial in found.results.trials] == [
        ("fail", {"optimizer.lr": 1e30}),
        ("complete", {"optimizer.lr": 1e-3}),
    ]
    assert found.results.best.number == 1


def test_a_sweep_in_a_database_prunes_and_is_prolonged_like_one_in_a_journal(searched, tmp_path):
    _, found = searched
    path, database = write(tmp_path), f"sweep.storage=sqlite:///{tmp_path / 'trials.db'}"
    for num_trials in (4, 6):
        work(load_sweep(path, [database, f"sweep.num_trials={num_trials}"]), 120.0)
    recipe = load_sweep(path, [database, "sweep.num_trials=6"])
    trials = read_results(Search(recipe)).trials
    assert [(one.state, one.value, one.values, one.curve) for one in trials] == [
        (one.state, one.value, one.values, one.curve) for one in found.results.trials[:6]
    ]
    assert not (recipe.output / "journal.log").exists()
    elsewhere = load_sweep(path, [database, f"output={tmp_path / 'elsewhere'}"])
    with pytest.raises(ValueError, match="holds a sweep 'tiny' whose runs are not in"):
        Search(elsewhere)


def test_a_database_that_cannot_be_used_is_an_error_that_says_so(tmp_path):
    for url, match in (("nothing://here", "cannot be used"), (f"sqlite:///{tmp_path}/no/folder.db", "cannot be used")):
        with pytest.raises(ValueError, match=match):
            Search(load_sweep(write(tmp_path), [f"sweep.storage={url}"]))


ASK = """
import sys, time
from pathlib import Path
from dftune.sweep.config import load_sweep
from dftune.sweep.search import Search

recipe, here = load_sweep(Path(sys.argv[1]), sys.argv[3:]), Path(sys.argv[2])
(here / f"ready-{time.monotonic_ns()}").touch()
while len(list(here.glob("ready-*"))) < 4:
    time.sleep(0.001)
search = Search(recipe)
while (taken := search.take()) is not None:
    trial, claim = taken
    with search.board.claims.held(claim):
        print(trial.number, flush=True)
        search.tell(trial, float(trial.number), "COMPLETE")
"""


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_workers_that_start_together_on_a_fresh_storage_share_the_trials_and_none_fails(tmp_path, storage):
    options = [f"sweep.storage=sqlite:///{tmp_path / 'trials.db'}"] if storage == "sqlite" else []
    command = [sys.executable, "-c", ASK, str(write(tmp_path)), str(tmp_path), *options]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [worker.communicate(timeout=120)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    assert sorted(int(number) for numbers in said for number in numbers) == list(range(12))
    trials = read_results(Search(load_sweep(tmp_path / "recipe.yaml", options))).trials
    assert [trial.value for trial in trials] == [float(number) for number in range(12)]


def test_a_grid_tries_every_combination_once(tmp_path):
    space = {"objective.name": {"values": ["sft", "dynamic_ft"]}, "optimizer.lr": {"values": [1e-3, 1e-4]}}
    recipe = load_sweep(write(tmp_path, {"space": space, "sampler": "grid", "num_trials": None, "prune": None}))
    assert recipe.sweep.size == 4
    work(recipe, 120.0)
    tried = [tuple(trial.values.values()) for trial in read_results(Search(recipe)).trials]
    assert tried == [("sft", 1e-3), ("sft", 1e-4), ("dynamic_ft", 1e-3), ("dynamic_ft", 1e-4)]


@pytest.mark.parametrize(
    ("space", "match"),
    [
        ({"optimizer.lr": {"low": 1, "high": 0.1}}, "low < high"),
        ({"optimizer.lr": {"low": 0, "high": 0.1, "log": True}}, "log needs low > 0"),
        ({"optimizer.lr": {"values": [1e-3], "low": 1}}, "either values or a range"),
        ({"optimizer.lr": {"values": [1e-3, 1e-3]}}, "each once"),
        ({"train.batch_size": {"low": 1.5, "high": 4, "integer": True}}, "whole numbers"),
        ({"optimizer.lrr": {"values": [1e-3]}}, "no such key"),
        ({"evaluate.max_tokens": {"values": [8]}}, "cannot be searched"),
        ({"seed": {"values": [1, 2]}}, "cannot be searched"),
        ({"optimizer.lr": {"values": [1e-3, -1]}}, "greater than 0"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(tmp_path, space, match):
    refused(write(tmp_path, {"space": space}), match)


def test_what_cannot_be_chosen_or_pruned_by_is_refused(tmp_path):
    test = tmp_path / "test.jsonl"
    write_jsonl(test, [{"problem": "What is 900 + 1?", "answer": "901"}])
    path = write(tmp_path, evaluate={"benchmarks": [str(test)]})
    refused(
        path, "which evaluate.benchmarks tests on", "sweep.select.metric=accuracy", f"sweep.select.benchmark={test}"
    )
    refused(path, "the test benchmark aime24", "sweep.select.metric=accuracy", "sweep.select.benchmark=aime24")
    refused(path, "Set train.validate_every", "train.validate_every=null")
    refused(path, "num_trials: required", "sweep.num_trials=null")
    refused(path, "the sampler grid needs values", "sweep.sampler=grid")
    load_sweep(path, ["train.validate_every=null", "sweep.prune=null"]).check()
    path.write_text("name: x\n")
    with pytest.raises(RecipeError, match="trained by `dftune train`"):
        load_sweep(path)


def test_a_sweep_that_has_begun_may_be_prolonged_and_may_not_become_another(tmp_path):
    path = write(tmp_path)
    for overrides in ([], ["sweep.num_trials=20"], ["sweep.test=all"]):
        begin(load_sweep(path, overrides))
    with pytest.raises(ValueError, match=r"sweep\.seed: 0 then, 1 now"):
        begin(load_sweep(path, ["sweep.seed=1"]))
    with pytest.raises(ValueError, match="holds no sweep"):
        begin(load_sweep(path, [f"output={tmp_path}"]))


def test_whole_numbers_and_steps_are_drawn_as_asked():
    import optuna  # noqa: PLC0415

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    whole, steps = Dimension(low=1, high=64, log=True, integer=True), Dimension(low=0, high=0.1, step=0.05)
    drawn = [(whole.suggest(t, "a"), steps.suggest(t, "b")) for t in (study.ask() for _ in range(40))]
    assert all(isinstance(a, int) and 1 <= a <= 64 for a, _ in drawn)
    assert {round(b, 6) for _, b in drawn} == {0.0, 0.05, 0.1}
    assert sum(a <= 8 for a, _ in drawn) > 12  # on a linear scale 1 in 8 would be


@pytest.mark.slow
def test_two_workers_share_one_storage_and_the_death_of_one_or_of_both_loses_no_trial(tmp_path):
    path = write(tmp_path, {"test": "none"}, train={"steps": 40, "validate_every": 4, "checkpoint_every": 5})
    command = [sys.executable, "-m", "dftune", "sweep", str(path), "--workers", "2"]
    claims = tmp_path / "sweep" / "claims"
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (claims / "trial-0002.0").is_file():
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (claims / "trial-0006.0").is_file():
        assert time.monotonic() < end + 60
        time.sleep(0.05)
    holder = read_json(claims / "trial-0006.0")["pid"]
    os.kill(holder, signal.SIGKILL)
    assert second.wait(timeout=200) == 0
    trials = read_results(Search(load_sweep(path))).trials
    assert [trial.number for trial in trials] == list(range(12))
    assert {trial.state for trial in trials} <= {"complete", "pruned"}
    workers = {read_json(file)["pid"] for file in claims.glob("trial-*")}
    assert len(workers) >= 4
    for trial in trials:
        rows = read_jsonl(tmp_path / "sweep" / "trials" / f"trial-{trial.number:04d}" / "events.jsonl")
        assert sum(row["kind"] == "end" for row in rows) == 1
