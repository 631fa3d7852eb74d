import subprocess
import sys

from dftune.watch.ledger import claimed, evaluated, is_claimed, waiting, wanted


def rows_of(nll=(), checkpoints=(), done=()):
    rows = [{"kind": "validation", "step": step, "time": 0.0, "nll": value} for step, value in dict(nll).items()]
    rows += [{"kind": "checkpoint", "step": step, "time": 0.0} for step in checkpoints]
    for source, step in done:
        row = {"kind": "evaluation", "step": step, "time": 0.0, "source": source}
        rows.append({**row, "benchmark": "sums", "protocol": "greedy", "accuracy": 0.5})
    return rows


def test_the_policies_order_the_steps():
    assert wanted("all", [30, 10, 20], []) == [10, 20, 30]
    assert wanted("newest", [30, 10, 20], []) == [30, 20, 10]


def test_best_takes_what_was_the_lowest_so_far_and_what_was_not_validated():
    rows = rows_of(nll={0: 0.1, 10: 2.0, 20: 2.5, 30: 1.5, 50: 1.5})
    assert wanted("best", [10, 20, 30, 40, 50], rows) == [10, 30, 40]


def test_a_checkpoint_waits_until_a_watcher_has_evaluated_it():
    rows = rows_of(nll={10: 2.0, 20: 3.0, 30: 1.0}, checkpoints=(10, 20, 30), done=[("watch", 10), ("evaluate", 30)])
    assert evaluated(rows) == {10}
    assert waiting("all", rows) == {20, 30}
    assert waiting("best", rows) == {30}


def test_one_process_at_a_time_has_a_checkpoint_and_a_killed_one_gives_it_back(tmp_path):
    code = (
        "import sys, pathlib; from dftune.watch.ledger import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1]), 10) as mine: print(mine, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"True\n"
    assert is_claimed(tmp_path, 10)
    assert not is_claimed(tmp_path, 20)
    with claimed(tmp_path, 10) as mine:
        assert not mine
    other.kill()
    other.wait()
    assert not is_claimed(tmp_path, 10)
    with claimed(tmp_path, 10) as mine:
        assert mine
        assert is_claimed(tmp_path, 10)
    assert not is_claimed(tmp_path, 10)
