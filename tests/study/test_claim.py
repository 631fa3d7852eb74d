"""Claims with real processes: each task is done by one, and what a dead one leaves is taken over."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from dftune.study.board import Board
from dftune.study.claim import LOST, Claims

ROOT = Path(__file__).parents[2]


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that knows claims."""
    head = "import os, sys, time\nfrom pathlib import Path\nfrom dftune.study.claim import Claims\n"
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-c", head + script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds: float = 20.0):
    """What the condition gives when it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen")


HOLD = """
claims = Claims(Path(sys.argv[1]), float(sys.argv[2]))
with claims.held(claims.take("task")):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path, stale_after_s: float = 120.0) -> subprocess.Popen[str]:
    """A process that holds ``task``."""
    process = start(HOLD, folder, stale_after_s)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_processes_that_race_for_tasks_do_each_of_them_once(tmp_path):
    script = """
claims, names = Claims(Path(sys.argv[1])), [f"task-{n}" for n in range(60)]
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
for name in names:
    if (claim := claims.take(name)) is not None:
        print(name, flush=True)  # not given back: a second process must not do it again
here = Path(sys.argv[2]).parent
(here / f"through-{os.getpid()}").touch()
while len(list(here.glob("through-*"))) < 3:  # what a process holds that has ended is free
    time.sleep(0.001)
"""
    go = tmp_path / "go"
    racers = [start(script, tmp_path / "claims", go) for _ in range(3)]
    go.touch()
    done = Counter(line for racer in racers for line in racer.communicate(timeout=60)[0].split())
    assert done == {f"task-{n}": 1 for n in range(60)}


def test_the_task_of_a_process_killed_on_this_machine_is_free_at_once(tmp_path):
    process = hold(tmp_path)
    claims = Claims(tmp_path)
    assert claims.take("task") is None
    assert claims.holder("task").pid == process.pid
    assert claims.of_process(process.pid) == ["task"]
    process.kill()  # not waited for: a process that has ended and is still listed holds nothing
    claim = wait_for(lambda: claims.take("task"))
    assert claim.name == "task.1"
    process.wait()
    assert claims.of_process(process.pid) == []


def test_a_claim_that_is_given_back_is_free(tmp_path):
    claims = Claims(tmp_path)
    with claims.held(claims.take("task")):
        assert Claims(tmp_path).take("task") is None
    assert Claims(tmp_path).take("task") is not None


def other_machine(folder: Path, name: str) -> Path:
    """A claim as a process of another machine writes it."""
    path = folder / name
    path.write_text(json.dumps({"host": "elsewhere", "place": "elsewhere", "pid": 1, "started": "1"}))
    return path


def test_the_task_of_another_machine_is_free_when_it_gives_no_sign(tmp_path):
    other_machine(tmp_path, "task.0")
    claims = Claims(tmp_path, stale_after_s=0.3)
    started = time.monotonic()
    assert claims.take("task") is None
    wait_for(lambda: claims.take("task"))
    assert time.monotonic() - started >= 0.3


def test_the_task_of_another_machine_stays_its_own_while_it_gives_signs_whatever_its_clock(tmp_path):
    path, claims = other_machine(tmp_path, "task.0"), Claims(tmp_path, stale_after_s=0.05)
    for clock in range(1, 20):
        os.utime(path, ns=(0, clock))  # a sign of life, by a clock that stands at the year 1970
        assert claims.take("task") is None
        time.sleep(0.06)
    wait_for(lambda: claims.take("task"))


def test_a_process_whose_task_was_taken_over_ends(tmp_path):
    process = hold(tmp_path, 0.6)
    other_machine(tmp_path, "task.1")
    assert process.wait(timeout=20) == LOST
    assert "took this task over" in process.stderr.read()


def test_a_worker_ends_when_the_command_that_started_it_is_killed(tmp_path):
    script = """
from tests.study.tiny import hold
from dftune.study.board import Board
from dftune.study.workers import places, run_workers
folder = Path(sys.argv[1])
run_workers(hold, (folder,), places(1, "cpu"), board=Board(folder), logs=folder / "logs", on_poll=lambda: None)
"""
    parent, claims = start(script, tmp_path), Board(tmp_path).claims
    worker = wait_for(lambda: claims.holder("task")).pid
    assert worker != parent.pid
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert wait_for(lambda: claims.take("task")).name == "task.1"
    wait_for(lambda: not Path(f"/proc/{worker}").exists() or " Z " in Path(f"/proc/{worker}/stat").read_text())


def test_a_task_that_takes_its_process_with_it_twice_has_failed(tmp_path):
    script = """
from tests.study.tiny import die
from dftune.study.board import Board
from dftune.study.workers import places, run_workers
folder = Path(sys.argv[1])
run_workers(die, (folder,), places(1, "cpu"), board=Board(folder), logs=folder / "logs", on_poll=lambda: None)
"""
    assert start(script, tmp_path).wait(timeout=100) == 0
    (state,) = Board(tmp_path).states().values()
    assert state.status == "failed"
    assert "its process died 2 times, the last time by signal 9" in state.error
    assert len(list((tmp_path / "claims").iterdir())) == 2
