import json
from pathlib import Path

import datasets
import pytest
from tests.evaluate.test_benchmarks import cache_dataset

from dftune.cli import main
from dftune.evaluate.benchmarks import load_benchmark
from dftune.evaluate.grade import check_golds, grade
from dftune.evaluate.named import NAMED

SHARED = Path(__file__).parents[2] / "../shared/data"
AIME = [{"id": f"a/{index}", "problem": f"{index}?", "answer": str(index)} for index in range(30)]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", ["aime24.jsonl", "aime24_test.jsonl", "aime24/test.jsonl"])
def test_a_local_copy_is_found_under_its_usual_names(tmp_path, name):
    write(tmp_path / name, AIME)
    benchmark = load_benchmark("aime24", tmp_path)
    assert (benchmark.name, len(benchmark.rows)) == ("aime24", 30)


def test_the_environment_variable_names_the_folder_and_the_option_wins(tmp_path, monkeypatch):
    write(tmp_path / "one/aime24.jsonl", AIME)
    write(tmp_path / "two/aime24.jsonl", [{**row, "answer": "5"} for row in AIME])
    monkeypatch.setenv("DFTUNE_DATA", str(tmp_path / "one"))
    assert load_benchmark("aime24").rows[3].target == "3"
    assert load_benchmark("aime24", tmp_path / "two").rows[3].target == "5"
    monkeypatch.setenv("DFTUNE_DATA", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"the environment variable DFTUNE_DATA names .*gone, which is no folder"):
        load_benchmark("aime24")


def test_a_wrong_number_of_rows_is_an_error_unless_a_part_is_asked_for(tmp_path):
    write(tmp_path / "aime24.jsonl", AIME[:29])
    with pytest.raises(ValueError, match=r"aime24\.jsonl has 29 rows; aime24 was published with 30"):
        load_benchmark("aime24", tmp_path)
    assert len(load_benchmark("aime24:10", tmp_path).rows) == 10
    write(tmp_path / "aime24.jsonl", [*AIME, {"problem": "one more", "answer": "1"}])
    with pytest.raises(ValueError, match="has 31 rows"):
        load_benchmark("aime24", tmp_path)


def test_a_file_of_that_name_wins_and_a_folder_of_that_name_is_no_benchmark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data/aime24.jsonl", AIME)
    (tmp_path / "aime24").mkdir()
    assert len(load_benchmark("aime24", tmp_path / "data").rows) == 30
    (tmp_path / "aime24").rmdir()
    write(tmp_path / "aime24", AIME[:2])
    assert len(load_benchmark("aime24", tmp_path / "data").rows) == 2


def test_without_a_copy_and_without_the_hub_both_ways_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError) as error:
        load_benchmark("amc23", tmp_path)
    for part in ("amc23.jsonl or amc23_test.jsonl or amc23/test.jsonl", "--data-dir", "DFTUNE_DATA", "math-ai/amc23"):
        assert part in str(error.value)


def hub(tmp_path, monkeypatch, name, rows, **where):
    cache_dataset(tmp_path, name, rows, **where)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_gsm8k_of_the_hub_is_read_with_its_configuration_and_hashes(tmp_path, monkeypatch):
    rows = [{"question": f"{index}?", "answer": f"{index} + 0\n#### {index},000"} for index in range(1319)]
    hub(tmp_path, monkeypatch, "openai/gsm8k", rows, config="main")
    benchmark = load_benchmark("gsm8k")
    assert len(benchmark.rows) == 1319
    assert (benchmark.rows[7].problem, benchmark.rows[7].target) == ("7?", "7,000")


def test_olympiadbench_of_the_hub_keeps_units_errors_and_several_answers(tmp_path, monkeypatch):
    row = {"id": 1, "question": "p", "solution": ["so"], "final_answer": ["4.2"], "unit": None, "error": "1e-1"}
    row |= {"is_multiple_answer": False, "subfield": "Algebra", "answer_type": "Numerical"}
    rows = [{**row, "id": index} for index in range(673)]
    rows.append(
        {**row, "id": 673, "final_answer": ["$1$,$2$"], "unit": "km", "error": None, "is_multiple_answer": True}
    )
    hub(tmp_path, monkeypatch, "Hothan/OlympiadBench", rows, config="OE_TO_maths_en_COMP", split="train")
    benchmark = load_benchmark("olympiadbench")
    first, last = benchmark.rows[0], benchmark.rows[-1]
    assert (first.id, first.target, first.tolerance, first.extra["subject"]) == ("0", "4.2", 0.1, "Algebra")
    assert (last.target, last.tolerance) == ("$1$,$2$", None)
    assert (last.extra["unit"], last.extra["multiple"]) == ("km", True)
    assert grade(last.target, r"\boxed{2, 1}").verdict == "correct"


def test_math_of_the_hub_is_read_from_its_seven_subjects(tmp_path, monkeypatch):
    for number, config in enumerate(NAMED["math"].configs):
        rows = [
            {"problem": f"{config} {index}?", "level": "Level 5", "type": config, "solution": rf"so \boxed{{{index}}}"}
            for index in range(5000 // 7 + (number < 5000 % 7))
        ]
        hub(tmp_path, monkeypatch, "EleutherAI/hendrycks_math", rows, config=config)
    benchmark = load_benchmark("math")
    assert len(benchmark.rows) == 5000
    row = benchmark.rows[1]
    assert (row.id, row.target, dict(row.extra)) == ("algebra/1", "1", {"level": "5", "subject": "algebra"})


def test_the_list_shows_benchmarks_and_protocols(capsys):
    assert main(["evaluate", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in NAMED)
    assert "1,319" in shown
    assert "maj@n" in shown


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmark files are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "num_rows"),
    [
        ("math500", 500),
        ("aime24", 30),
        ("aime25", 30),
        ("amc23", 40),
        ("minerva_math", 272),
        ("olympiadbench", 675),
        ("gsm8k", 1319),
    ],
)
def test_published_benchmarks_have_their_sizes_and_golds_that_grade_against_themselves(name, num_rows):
    benchmark = load_benchmark(name, SHARED)
    assert len(benchmark.rows) == num_rows
    assert check_golds({"id": row.id, "answer": row.target} for row in benchmark.rows) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmark files are not beside this checkout")
def test_olympiadbench_units_may_be_written_and_its_one_tolerance_is_granted():
    rows = load_benchmark("olympiadbench", SHARED).rows
    with_unit = [row for row in rows if row.extra.get("unit")]
    assert len(with_unit) == 8
    for row in with_unit:
        boxed = rf"\boxed{{{row.target.replace('$', '')} {row.extra['unit']}}}"
        assert grade(row.target, boxed, tolerance=row.tolerance).verdict == "correct"
    (lenient,) = [row for row in rows if row.tolerance]
    verdicts = [grade(lenient.target, rf"\boxed{{{x}}}", tolerance=lenient.tolerance).verdict for x in (4.1, 4.3, 4.31)]
    assert verdicts == ["correct", "correct", "incorrect"]
