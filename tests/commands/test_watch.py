"""The command itself, as it is typed."""

import os
import subprocess
import sys
import time

import pytest
from tests.watch.folders import FakeTraining, write_problems

from dftune.commands.train import _evaluate
from dftune.recipe import Recipe


def watch(*arguments):
    command = [sys.executable, "-m", "dftune", "watch", *map(str, arguments), "--poll-s", "0.05"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow  # it takes seconds to start
def test_it_waits_for_a_run_that_has_not_begun_and_gives_way_to_other_processes(tmp_path):
    problems = write_problems(tmp_path / "sums.jsonl")
    process = watch(tmp_path / "run", "--policy", "newest", "--nice", "7")
    assert process.stderr.readline() == f"waiting for a run in {tmp_path / 'run'}\n"
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == 7
    training = FakeTraining(tmp_path / "run", problems)
    training.checkpoint(10, "7")
    while not training.evaluations():
        assert process.poll() is None
        time.sleep(0.05)
    training.checkpoint(20, "8")
    training.end(30, "7")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0
    assert sorted(training.evaluations()) == [(10, 0.75), (20, 0.25), (30, 0.75)]
    assert "step 20: sums greedy 25.0 % (4.6 to 69.9)" in said
    assert said.splitlines()[-1] == "3 evaluated, 1 models loaded, 2 swapped"


@pytest.mark.slow
def test_the_recipe_s_section_counts_where_the_command_line_is_silent_and_failures_show_in_the_status(tmp_path):
    problems = write_problems(tmp_path / "sums.jsonl")
    training = FakeTraining(tmp_path / "run", problems, watch={"policy": "newest", "benchmarks": [f"{problems}:2"]})
    training.checkpoint(10, "7")
    training.checkpoint(20, "8")
    (training.checkpoint(30, "8") / "model" / "config.json").unlink()
    process = watch(training.path, "--once")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert training.evaluations() == [(20, 0.5), (10, 0.5)]
    assert "step 30 could not be evaluated and is left" in said


def test_once_wants_a_run_that_has_begun(tmp_path):
    process = watch(tmp_path / "run", "--once")
    assert "holds no run that has begun" in process.communicate(timeout=120)[1]
    assert process.returncode == 2


def test_the_end_of_training_takes_over_what_the_watcher_found(make_recipe, tmp_path, capsys):
    problems = write_problems(tmp_path / "sums.jsonl")
    training = FakeTraining(tmp_path / "run", problems)
    training.end(30, "7")
    recipe, _ = make_recipe(overrides=(f"evaluate.benchmarks=[{problems}]", "evaluate.max_tokens=20"))
    assert isinstance(recipe, Recipe)
    _evaluate(recipe, training.path)
    _evaluate(recipe, training.path)
    assert training.evaluations() == [(30, 0.75)]
    assert capsys.readouterr().out.count("75.0 %") == 2
