import os
import pty
import signal
import subprocess
import sys

import pytest
from tests.watch.folders import FakeTraining, write_problems

from dftune.files import append_jsonl
from dftune.run import RunFolder
from dftune.watch.overview import Follower, cells, find, overview, sparkline


def train_row(step, time, loss=1.0):
    return {"kind": "train", "step": step, "time": time, "loss": loss, "nll": 2 * loss, "tokens_per_s": 1234.4}


START = {"kind": "start", "step": 0, "time": 0.0, "num_steps": 100, "resumed": False}
SCORE = {"kind": "evaluation", "time": 0.0, "source": "watch", "benchmark": "sums", "protocol": "greedy"}


def test_the_time_left_follows_the_last_steps_of_this_session():
    rows = [START, train_row(10, 5.0), {**START, "time": 1000.0}, train_row(10, 1010.0), train_row(20, 1030.0)]
    found = overview("run", rows, running=True)
    assert (found.state, found.step, found.left_s) == ("running", 20, 80 * 20 / 10)
    assert cells(found)[-2:] == ["1,234", "2:40"]
    assert overview("run", [START, train_row(1, 1.0)], running=True).left_s is None


@pytest.mark.parametrize(
    ("rows", "running", "state"),
    [
        ([], False, "waiting"),
        ([START], True, "running"),
        ([START], False, "stopped"),
        ([START, {"kind": "end", "step": 5, "time": 9.0, "status": "failed"}], False, "failed"),
        (
            [
                START,
                {"kind": "end", "step": 5, "time": 9.0, "status": "finished"},
                {**SCORE, "step": 5, "accuracy": 0.5},
            ],
            True,
            "finished",
        ),
        ([START, {"kind": "end", "step": 5, "time": 9.0, "status": "interrupted"}, START], True, "running"),
    ],
)
def test_the_state_is_read_off_the_lock_and_the_last_start_or_end(rows, running, state):
    assert overview("run", rows, running=running).state == state


def test_accuracy_so_far_is_that_of_the_newest_evaluated_step():
    checkpoints = [{"kind": "checkpoint", "step": step, "time": 0.0} for step in (10, 20, 30)]
    scores = [{**SCORE, "step": 20, "accuracy": 0.75}, {**SCORE, "step": 10, "accuracy": 0.5}]
    found = overview("run", [START, train_row(30, 1.0), *checkpoints, *scores], running=False)
    assert cells(found)[6:8] == ["sums greedy 75.0 % at 20", "2/3"]


def test_a_sparkline_averages_and_scales():
    assert sparkline([0.0, 7.0]) == "▁█"
    assert sparkline([3.0, 3.0, 3.0]) == "▁▁▁"
    assert sparkline([0.0, 2.0, 8.0, 8.0], width=2) == "▁█"
    assert sparkline([1.0, float("nan"), 2.0]) == "▁█"
    assert sparkline([]) == ""


def test_a_run_is_running_while_a_process_holds_its_lock(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert not folder.is_running()
    code = (
        "import sys, pathlib; from dftune.run import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder.path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    assert folder.is_running()
    holder.kill()
    holder.wait()
    assert not folder.is_running()
    with folder.lock():
        assert folder.is_running()
    assert not folder.is_running()  # though the process named in it lives


def test_a_follower_reads_on(tmp_path):
    training = FakeTraining(tmp_path / "run", write_problems(tmp_path / "sums.jsonl"))
    follower = Follower(training.path)
    assert follower.look().step == 0
    append_jsonl(training.path / "events.jsonl", [train_row(10, 1.0)])
    assert follower.look().step == 10


def test_runs_are_found_in_a_folder_and_what_is_none_is_refused(tmp_path):
    problems = write_problems(tmp_path / "sums.jsonl")
    runs = [FakeTraining(tmp_path / "runs" / name, problems).path for name in ("b", "a")]
    assert find([tmp_path / "runs", runs[0]]) == [runs[1], runs[0]]
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.yaml").touch()
    assert find([tmp_path / "study"]) == []  # begun, and no run yet
    (tmp_path / "studies" / "study").mkdir(parents=True)
    (tmp_path / "studies" / "study" / "study.yaml").touch()
    assert find([tmp_path / "studies"]) == []
    cell = FakeTraining(tmp_path / "study" / "cells" / "sft-s0", problems).path
    trial = FakeTraining(tmp_path / "sweep" / "trials" / "trial-0", problems).path
    assert find([tmp_path / "study"]) == [cell]
    assert find([tmp_path]) == [cell, trial]  # runs two levels down are of a folder of folders
    with pytest.raises(ValueError, match="is no folder"):
        find([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no training run"):
        find([tmp_path / "empty"])


def test_without_a_terminal_top_prints_once(tmp_path):
    training = FakeTraining(tmp_path / "run", write_problems(tmp_path / "sums.jsonl"))
    append_jsonl(training.path / "events.jsonl", [train_row(10, 1.0), train_row(20, 11.0, loss=0.5)])
    command = [sys.executable, "-m", "dftune", "top", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    head, _, line = done.stdout.splitlines()
    assert head.split()[:4] == ["run", "state", "step", "loss"]
    assert line.split() == ["run", "stopped", "20/100", "20", "%", "0.5000", "█▁", "1.0000", *"---", "1,234", "-"]


def test_on_a_terminal_the_table_is_drawn_until_ctrl_c(tmp_path):
    training = FakeTraining(tmp_path / "run", write_problems(tmp_path / "sums.jsonl"))
    append_jsonl(training.path / "events.jsonl", [train_row(10, 1.0)])
    control, terminal = pty.openpty()
    command = [sys.executable, "-m", "dftune", "top", str(tmp_path), "--every", "0.05"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    while b"10/100" not in shown:
        shown += os.read(control, 4096)
    append_jsonl(training.path / "events.jsonl", [train_row(20, 2.0)])
    while b"20/100" not in shown:
        shown += os.read(control, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    os.close(control)
