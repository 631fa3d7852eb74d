"""Other graders beside ours: the published rules, Math-Verify behind its limits, the table, `dftune grade`."""

import json
import time
from pathlib import Path

import pytest

from dftune.cli import main
from dftune.evaluate.agreement import Pair, compare_graders, read_pairs
from dftune.evaluate.math_verify_worker import MathVerify
from dftune.evaluate.peers import qwen, qwen_answer, r1_zero, r1_zero_answer

needs_math_verify = pytest.mark.skipif(not MathVerify.installed(), reason="needs math-verify")


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Verdicts that the originals were observed to give: (reference, answer, verdict)


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        ("50", r"50\%", True),
        (r"\frac{1}{2}", r"\frac{2}{4}", False),
        ("1024", "2^{10}", False),
        ("5", "The answer is 5", False),
        ("", "", True),
        ("x=5", "5", True),
        (r"\frac{3}{4}", r"\dfrac34", True),
        ("(1,2)", "[1,2]", False),
        ("7", "8", False),
    ],
)
def test_the_r1_zero_comparison_gives_the_verdicts_of_the_original(gold, answer, correct):
    assert r1_zero_answer(gold, answer) is correct


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        ("x</think> <answer>5</answer>", True),
        (r"x</think> <answer>so \boxed{5}</answer>", True),
        ("x</think>\n<answer>5</answer>", False),
        ("x</think><answer>5</answer>", False),
        ("</answer> </think> <answer>5", True),
        (r"\boxed{5}", False),
    ],
)
def test_the_r1_zero_template_is_one_exact_string(completion, correct):
    assert r1_zero("5", completion) is correct


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        ("1", "100", True),
        ("0.5", "50", True),
        ("10000", "10001", True),
        ("12", "13", False),
        ("(1,2)", "[1,2]", True),
        ("[1,2)", "(1,2]", True),
        ("(3,4)", "(300,0.04)", True),
        ("1,2", "2,1", False),
        (r"\pi", "3.14159", False),
        (r"\frac{1}{3}", "0.333", False),
    ],
)
def test_qwens_comparison_gives_the_verdicts_of_the_original(gold, answer, correct):
    assert qwen(gold, f"\\boxed{{{answer}}}") is correct


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("The final answer is $12$. I hope it is correct.", "12"),
        (r"\boxed{3} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("so the answer is 10. Then 20", "10. Then 20"),
        ("所以答案是 25。", "25。"),
        ("we get 1,200 and stop", "1200"),
        ("nothing", ""),
    ],
)
def test_qwens_extraction_follows_its_order(completion, answer):
    assert qwen_answer(completion) == answer


@needs_math_verify
def test_math_verify_is_asked_behind_a_time_limit_and_lives_on():
    with MathVerify(seconds=20) as grader:
        assert grader.verdict("1/2", r"\boxed{0.5}") is True
        assert grader.verdict("1/2", r"\boxed{0.4}") is False
        grader.seconds = 0.2
        start = time.perf_counter()
        assert grader.verdict("1", r"\boxed{" + ",".join(map(str, range(10_000))) + "}") is None
        assert time.perf_counter() - start < 15
        grader.seconds = 20
        assert grader.verdict("3", r"\boxed{3}") is True


def test_the_table_counts_what_only_one_grader_accepts():
    pairs = [
        Pair("a", "1/2", r"\boxed{0.5}", True),
        Pair("b", "10000", r"\boxed{10001}", False),
        Pair("c", "7", r"\boxed{7}", True),
    ]
    agreement = compare_graders(pairs)
    assert agreement.columns["dftune"].verdicts == [True, False, True]
    assert agreement.columns["Qwen"].verdicts == [True, True, True]
    assert agreement.columns["r1-zero"].verdicts == [False, False, False]
    differing = {row["id"]: row for row in agreement.differing}
    assert "c" not in differing and differing["b"]["Qwen"] is True and differing["b"]["label"] is False
    (line,) = [line.split() for line in agreement.text().splitlines() if line.startswith("Qwen")]
    assert line[:3] == ["Qwen", "3", "0"] and line[-2:] == ["1", "0"]  # one false positive, no false negative


def test_pairs_are_read_from_completions_and_from_labelled_pairs(tmp_path):
    labelled = write(
        tmp_path / "pairs.jsonl",
        [
            {"id": "p", "gold": "1", "prediction": "1", "kind": "answer", "expected_equal": True},
            {"gold": "1", "prediction": "It is 1.", "kind": "text"},
        ],
    )
    assert list(read_pairs(labelled)) == [Pair("p", "1", r"\boxed{1}", True), Pair("row 2", "1", "It is 1.")]
    saved = write(
        tmp_path / "saved.jsonl", [{"target": ["east", "E"], "completion": r"\boxed{E}", "verdict": "correct"}]
    )
    assert list(read_pairs(saved)) == [Pair("row 1", "east", r"\boxed{E}")]


def test_the_command_compares_and_writes_the_rows_that_differ(tmp_path, capsys):
    rows = [{"target": "10000", "completion": r"\boxed{10001}"}, {"target": "1", "completion": r"\boxed{1}"}] * 3
    path = write(tmp_path / "x.jsonl", rows)
    out = tmp_path / "differences.jsonl"
    assert main(["grade", str(path), "--compare-graders", "--limit", "2", "--output", str(out)]) == 0
    assert "2 completions" in capsys.readouterr().out
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["target"] == "10000" and row["dftune"] is False and row["Qwen"] is True
    assert path.read_text() == "".join(json.dumps(row) + "\n" for row in rows)


def test_comparing_refuses_to_change_files(tmp_path, capsys):
    path = write(tmp_path / "x.jsonl", [{"target": "1", "completion": "1"}])
    assert main(["grade", str(path), "--compare-graders", "--in-place"]) == 2
    assert "--in-place" in capsys.readouterr().err
    assert main(["grade", str(path), "--limit", "3"]) == 2
    assert "--compare-graders" in capsys.readouterr().err
