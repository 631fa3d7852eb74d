import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dftune.child import Child, follow_parent


def make(tmp_path, said, *arguments):
    return Child("the helper", arguments, tmp_path / "logs" / "helper.log", again="dftune again", say=said.append)


def test_a_child_that_fails_is_said_once_with_its_last_words_and_how_to_go_on(tmp_path):
    said = []
    child = make(tmp_path, said, "watch", str(tmp_path / "nothing"), "--once")
    child.wait()
    child.check()
    (line,) = said
    assert "the helper ended with status 2: dftune watch:" in line
    assert "holds no run that has begun" in line
    assert "Take it up with: dftune again" in line


def test_a_child_that_works_on_is_ended_after_its_time(tmp_path):
    said = []
    child = make(tmp_path, said, "watch", str(tmp_path / "nothing"), "--parent", "--poll-s", "0.05")
    assert child.check()
    child.wait(0.5)
    assert not child.check()
    assert said == ["the helper has not ended after 0.5 s and is left. Take it up with: dftune again"]


@pytest.mark.parametrize(("word", "status"), [(b"finished\n", 0), (b"", -signal.SIGTERM)])
def test_without_a_last_word_from_its_parent_a_child_ends_itself(word, status):
    code = (
        "import sys; from dftune.child import follow_parent\n"
        "sys.exit(0 if follow_parent(sys.stdin.buffer).wait(60) else 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=word, check=False)
    assert done.returncode == status


def test_a_child_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import sys, time, pathlib; from dftune.child import Child\n"
        "run, log = map(pathlib.Path, sys.argv[1:])\n"
        "child = Child('w', ['watch', str(run), '--parent', '--poll-s', '0.05'], log, again='', say=print)\n"
        "print(child._process.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "nothing"), str(tmp_path / "log")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    assert os.getsid(pid) == pid
    parent.kill()
    parent.wait()
    status = Path(f"/proc/{pid}/status")
    while status.exists() and "State:\tZ" not in status.read_text():  # until the test's time-out
        time.sleep(0.05)


def test_follow_parent_returns_at_once():
    read, write = os.pipe()
    with os.fdopen(read, "rb") as pipe:
        finished = follow_parent(pipe)
        assert not finished.is_set()
        os.write(write, b"finished\n")
        os.close(write)
        assert finished.wait(30)
