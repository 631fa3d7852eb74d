"""`dftune grade`, run as a user runs it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dftune.cli import main

ROWS = [
    {"id": "a", "target": "1/2", "completion": r"So \boxed{0.5}."},
    {"id": "b", "target": "7", "completion": "The answer is 8."},
    {"id": "c", "target": ["east", "E"], "completion": r"\boxed{East}"},
    {"id": "d", "target": r"\int x", "completion": r"\boxed{3}"},
    {"id": "e", "target": "4", "completion": "I cannot tell which of them it is."},
]
VERDICTS = ["correct", "incorrect", "correct", "ungraded", "incorrect"]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_verdicts_are_written_beside_the_completions(tmp_path, capsys):
    path = write(tmp_path / "gsm.greedy.jsonl", ROWS)
    before = path.read_bytes()
    assert main(["grade", str(path)]) == 0
    written = read(tmp_path / "gsm.greedy.verdicts.jsonl")
    assert [row["verdict"] for row in written] == VERDICTS
    assert [row["id"] for row in written] == list("abcde")
    assert written[0] == {
        "id": "a",
        "target": "1/2",
        "answer": "0.5",
        "verdict": "correct",
        "rule": "box",
        "stage": "value",
        "reason": "equal by value",
        "grader": written[0]["grader"],
    }
    assert path.read_bytes() == before
    assert "gsm.greedy.verdicts.jsonl" in capsys.readouterr().out


def test_accuracy_counts_what_could_be_graded_and_carries_wilsons_interval(tmp_path, capsys):
    # 2 of 4: (0.5 +- z sqrt(1/16 + z^2/64) - ...) with z = 1.96 gives 15.0 % to 85.0 %, Newcombe's formula by hand
    main(["grade", str(write(tmp_path / "x.jsonl", ROWS))])
    out = capsys.readouterr().out
    assert "accuracy 50.0 %  (95 % interval 15.0 to 85.0, n = 4, 1 ungraded)" in out
    assert [
        line.split() for line in out.splitlines() if line.startswith(("  box", "  phrase", "  number", "  none"))
    ] == [
        ["box", "3", "2"],
        ["phrase", "1", "0"],
        ["none", "1", "0"],
    ]


def test_samples_of_one_problem_are_one_question(tmp_path, capsys):
    rows = [{"id": name, "target": "1", "completion": f"\\boxed{{{x}}}"} for name in "pq" for x in (1, 1, 2, 3)]
    main(["grade", str(write(tmp_path / "x.jsonl", rows))])
    assert "n = 2 problems, 8 completions" in capsys.readouterr().out


def test_in_place_replaces_verdicts_and_keeps_the_rest(tmp_path):
    rows = [{**row, "sample": 0, "verdict": "incorrect", "answer": "old", "num_tokens": 9} for row in ROWS]
    path = write(tmp_path / "x.jsonl", rows)
    settings = tmp_path / "x.json"
    settings.write_text(json.dumps({"benchmark": "x", "grader": "0"}))
    assert main(["grade", str(path), "--in-place"]) == 0
    after = read(path)
    assert [row["verdict"] for row in after] == VERDICTS
    assert [row["completion"] for row in after] == [row["completion"] for row in ROWS]
    assert {row["num_tokens"] for row in after} == {9}
    stored = json.loads(settings.read_text())
    assert stored["benchmark"] == "x" and stored["grader"] != "0"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["x.json", "x.jsonl"]


def test_in_place_keeps_a_reference_that_stood_under_answer(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"answer": "0.5", "completion": r"\boxed{1/2}"}])
    for _ in range(2):
        assert main(["grade", str(path), "--in-place"]) == 0
        (row,) = read(path)
        assert (row["target"], row["answer"], row["verdict"]) == ("0.5", "1/2", "correct")


def test_output_chooses_the_file_and_takes_one_input(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", ROWS)
    assert main(["grade", str(path), "--output", str(tmp_path / "mine.jsonl")]) == 0
    assert [row["verdict"] for row in read(tmp_path / "mine.jsonl")] == VERDICTS
    assert main(["grade", str(path), str(path), "--output", str(tmp_path / "mine.jsonl")]) == 2
    assert "--output" in capsys.readouterr().err


def test_verdict_files_that_a_glob_catches_are_left_alone(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", ROWS)
    assert main(["grade", str(path)]) == 0
    files = sorted(map(str, tmp_path.glob("*.jsonl")))
    assert len(files) == 2
    assert main(["grade", *files]) == 0
    assert "not graded" in capsys.readouterr().out
    assert sorted(map(str, tmp_path.glob("*.jsonl"))) == files


def test_strict_wants_a_box(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"target": "8", "completion": "The answer is 8."}])
    main(["grade", str(path), "--strict"])
    (row,) = read(tmp_path / "x.verdicts.jsonl")
    assert row["reason"] == "no answer" and row["grader"].endswith("-strict")


def test_show_prints_where_the_stored_verdict_differs(tmp_path, capsys):
    rows = [{**row, "verdict": "incorrect"} for row in ROWS]
    main(["grade", str(write(tmp_path / "x.jsonl", rows)), "--show", "2"])
    out = capsys.readouterr().out
    assert "3 verdicts differ from the stored ones; the first 2:" in out
    assert "a: incorrect -> correct" in out and "d: incorrect" not in out


def test_gold_and_answer_are_references_where_no_verdict_is_stored(tmp_path):
    rows = [{"gold": "1", "completion": "1"}, {"answer": "1", "completion": "1"}]
    main(["grade", str(write(tmp_path / "x.jsonl", rows))])
    assert [row["verdict"] for row in read(tmp_path / "x.verdicts.jsonl")] == ["correct", "correct"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"target": "1", "completion": "1"}\n\n{"target": "1"}\n', "line 3: `completion` is missing"),
        ('{"completion": "1"}\n', "line 1: `target` is missing"),
        ('{"completion": "1", "answer": "1", "verdict": "correct"}\n', "line 1: `target` is missing"),
        ('{"target": 5, "completion": "1"}\n', "line 1: `target` is neither text nor a list of texts"),
        ('{"target": [], "completion": "1"}\n', "line 1: `target` is neither text nor a list of texts"),
        ('{"target": "1", "completion": ["1"]}\n', "line 1: `completion` is not text"),
        ('{"target": "1", "completion": "1"}\n{"target": \n', "line 2: not valid JSON"),
        ("[1]\n", "line 1: expected a JSON object"),
        ("", "is empty"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(text, message, tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    assert main(["grade", str(path)]) == 2
    err = capsys.readouterr().err
    assert message in err and str(path) in err
    assert not (tmp_path / "x.verdicts.jsonl").exists()


def test_a_missing_file_is_an_error(tmp_path, capsys):
    assert main(["grade", str(tmp_path / "no.jsonl")]) == 2
    assert "is not there" in capsys.readouterr().err


def test_the_first_verdict_comes_within_a_second_and_without_torch(tmp_path):
    path = write(tmp_path / "x.jsonl", ROWS)
    code = (
        "import sys; from dftune.cli import main\n"
        f"assert main(['grade', {str(path)!r}]) == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'sympy', 'mpmath'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or None)"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < 1.0


def test_many_rows_over_two_processes_give_the_verdicts_and_order_of_one(tmp_path, capsys):
    rows = [
        {"id": f"q{index % 700}", "target": str(index % 9), "completion": f"\\boxed{{{index % 7}}}"}
        for index in range(4_500)
    ]
    path = write(tmp_path / "x.jsonl", rows)
    texts, tables = [], []
    for workers in ("1", "2"):
        assert main(["grade", str(path), "--workers", workers]) == 0
        texts.append((tmp_path / "x.verdicts.jsonl").read_bytes())
        tables.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and tables[0] == tables[1]
    verdicts = read(tmp_path / "x.verdicts.jsonl")
    assert [row["verdict"] == "correct" for row in verdicts] == [index % 9 == index % 7 for index in range(4_500)]


def test_a_kill_while_grading_leaves_the_file_as_it_was(tmp_path):
    rows = [{"target": "1", "completion": "x" * 2_000 + f"\\boxed{{{index}}}"} for index in range(20_000)]
    path = write(tmp_path / "x.jsonl", rows)
    before = path.read_bytes()
    command = [sys.executable, "-m", "dftune", "grade", str(path), "--in-place", "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (partial := list(tmp_path.glob(".x.jsonl.*"))) or not partial[0].stat().st_size:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert path.read_bytes() == before
