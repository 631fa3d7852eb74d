import pytest

from dftune.events import Tail, ended, identity, latest, scalars
from dftune.files import append_jsonl


def test_a_tail_gives_each_row_once_and_waits_for_the_end_of_a_line(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert tail.new() == []
    append_jsonl(path, [{"a": 1}, {"a": 2}])
    assert tail.new() == [{"a": 1}, {"a": 2}]
    with path.open("ab") as file:
        file.write(b'{"a": 3')
    assert tail.new() == []
    with path.open("ab") as file:
        file.write(b"}\n")
    assert tail.new() == [{"a": 3}]
    assert tail.offset == path.stat().st_size


def test_a_tail_reads_a_replaced_file_from_its_beginning_and_says_so(tmp_path):
    path, other = tmp_path / "events.jsonl", tmp_path / "other.jsonl"
    append_jsonl(path, [{"run": 1, "long": "x" * 50}])
    tail = Tail(path)
    assert tail.new()
    assert not tail.replaced
    append_jsonl(other, [{"run": 2, "long": "x" * 90}])
    other.replace(path)
    assert [row["run"] for row in tail.new()] == [2]
    assert tail.replaced
    path.unlink()
    assert tail.new() == []
    assert tail.replaced


def test_a_tail_names_the_file_of_a_broken_line(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text("{broken}\n")
    with pytest.raises(ValueError, match=r"events\.jsonl: not valid JSON"):
        Tail(path).new()


def test_numbers_of_a_row_have_the_names_of_the_documentation():
    row = {"kind": "train", "step": 3, "time": 1.0, "loss": 2, "nll": 0.5, "p_eot": None, "flag": True, "list": [1]}
    assert scalars(row) == {"train/loss": 2.0, "train/nll": 0.5}
    score = {"kind": "evaluation", "step": 3, "time": 1.0, "benchmark": "sums", "protocol": "avg@4", "accuracy": 0.25}
    assert scalars(score) == {"eval/sums/avg@4/accuracy": 0.25}
    assert scalars({"kind": "system", "step": 3, "time": 1.0, "cpu_percent": 90.0}) == {"system/cpu_percent": 90.0}
    assert scalars({"kind": "start", "step": 0, "time": 1.0, "num_steps": 9}) == {}


def test_the_last_row_of_a_step_counts_and_samples_of_the_machine_all_do():
    rows = [
        {"kind": "train", "step": 1, "time": 1.0, "loss": 1.0},
        {"kind": "system", "step": 1, "time": 1.5},
        {"kind": "system", "step": 1, "time": 2.5},
        {"kind": "evaluation", "step": 1, "time": 3.0, "benchmark": "a", "protocol": "greedy"},
        {"kind": "evaluation", "step": 1, "time": 3.0, "benchmark": "b", "protocol": "greedy"},
        {"kind": "train", "step": 1, "time": 9.0, "loss": 0.5},
    ]
    assert [(row["kind"], row["time"]) for row in latest(rows)] == [
        ("train", 9.0),
        ("system", 1.5),
        ("system", 2.5),
        ("evaluation", 3.0),
        ("evaluation", 3.0),
    ]
    assert identity(rows[3]) != identity(rows[4])


def test_a_resumed_run_has_not_ended_and_rows_after_its_end_change_nothing():
    start, end = {"kind": "start"}, {"kind": "end", "status": "interrupted"}
    assert ended([start, {"kind": "train"}]) is None
    assert ended([start, end, {"kind": "evaluation"}]) == "interrupted"
    assert ended([start, end, start, {"kind": "train"}]) is None
