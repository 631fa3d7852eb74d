import json
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from datasets.arrow_writer import ArrowWriter
from datasets.naming import camelcase_to_snakecase
from pyarrow import parquet

from dftune.evaluate.benchmarks import load_benchmark

SHARED = Path(__file__).parents[2] / "../shared/data"
ROWS = [
    {"id": "a/1", "problem": "1+1?", "answer": "2", "subject": "Algebra", "level": 3, "solution": "because"},
    {"id": 7, "question": "2+2?", "answer": 4},
    {"id": "c", "problem": "Half?", "answer": ["1/2", 0.5]},
    {"id": "d", "problem": "Tenth?", "answer": 27.0},
]


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "sums.v1.jsonl", ROWS)


def test_rows_become_problems_with_their_targets(file):
    benchmark = load_benchmark(file)
    assert (benchmark.name, benchmark.path) == ("sums.v1", file)
    assert [row.id for row in benchmark.rows] == ["a/1", "7", "c", "d"]
    assert [row.problem for row in benchmark.rows] == ["1+1?", "2+2?", "Half?", "Tenth?"]
    assert [row.target for row in benchmark.rows] == ["2", "4", ["1/2", "0.5"], "27"]


def test_short_columns_are_carried_over_and_solutions_are_not(file):
    assert [row.extra for row in load_benchmark(file).rows] == [{"subject": "Algebra", "level": 3}, {}, {}, {}]


def test_a_column_of_the_completions_file_cannot_be_overwritten_by_the_benchmark(tmp_path):
    row = {"id": "a", "problem": "p", "answer": "1", "verdict": "correct", "completion": "x", "sample": 4, "topic": "t"}
    (problem,) = load_benchmark(write(tmp_path / "b.jsonl", [row])).rows
    assert problem.extra == {"topic": "t"}


def test_a_number_after_a_colon_takes_the_first_rows(file):
    assert [row.id for row in load_benchmark(f"{file}:2").rows] == ["a/1", "7"]
    assert len(load_benchmark(f"{file}:100").rows) == 4
    with pytest.raises(ValueError, match="at least 1"):
        load_benchmark(f"{file}:0")


def test_a_file_whose_name_ends_in_a_number_after_a_colon_is_read_whole(tmp_path):
    path = write(tmp_path / "odd:2", [{"problem": str(index), "answer": "1"} for index in range(3)])
    with pytest.raises(ValueError, match="cannot be used as a file name"):
        load_benchmark(path)
    plain = write(tmp_path / "even", [{"problem": str(index), "answer": "1"} for index in range(3)])
    assert len(load_benchmark(plain).rows) == 3


def test_rows_without_an_id_are_numbered(tmp_path):
    path = write(tmp_path / "b.jsonl", [{"problem": "p", "answer": "1"}, "", {"problem": "q", "answer": "1"}])
    assert [row.id for row in load_benchmark(path).rows] == ["0", "1"]


def test_the_fingerprint_follows_ids_problems_and_answers_of_the_rows_taken(tmp_path, file):
    first = load_benchmark(file).fingerprint
    assert load_benchmark(write(tmp_path / "other.jsonl", [{**row, "level": 9} for row in ROWS])).fingerprint == first
    assert load_benchmark(f"{file}:3").fingerprint != first
    for change in ({"id": "x"}, {"problem": "x"}, {"answer": "x"}):
        changed = write(tmp_path / "changed.jsonl", [{**ROWS[0], **change}, *ROWS[1:]])
        assert load_benchmark(changed).fingerprint != first


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "x", "problem": "p"}, "no answer; found the columns id, problem"),
        ({"id": "x", "problem": "p", "answer": None}, "no answer"),
        ({"id": "x", "problem": "p", "answer": "  "}, "answer must be a non-empty string"),
        ({"id": "x", "problem": "p", "answer": []}, "list of answers is empty"),
        ({"id": "x", "problem": "p", "answer": ["1", ""]}, "answer must be"),
        ({"id": "x", "problem": "p", "answer": True}, "answer must be"),
        ({"id": "x", "problem": "p", "answer": {"value": 1}}, "answer must be"),
        ('{"id": "x", "problem": "p", "answer": NaN}', "answer must be"),
        ({"id": "x", "answer": "1"}, "no problem and no question"),
        ({"id": "x", "problem": " ", "answer": "1"}, "problem must be a text"),
        ({"id": ["x"], "problem": "p", "answer": "1"}, "id must be"),
        ({"id": "a/1", "problem": "p", "answer": "1"}, r"'a/1' stands already in .*, line 1"),
        ('{"id": "x", "problem', "not valid JSON"),
        ("[1]", "expected a JSON object"),
    ],
)
def test_a_bad_row_is_an_error_that_names_file_and_line(tmp_path, row, message):
    path = write(tmp_path / "bad.jsonl", [*ROWS, "", row, {"id": "later", "problem": "p", "answer": "1"}])
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 6: .*{message}"):
        load_benchmark(path)


@pytest.mark.parametrize(("name", "what"), [("gone.jsonl", "missing"), ("", "a folder"), ("gone", "missing")])
def test_a_missing_file_is_named(tmp_path, name, what):
    with pytest.raises(ValueError, match=f"is {what}. Give a JSONL file"):
        load_benchmark(str(tmp_path / name))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is empty"):
        load_benchmark(write(tmp_path / "b.jsonl", ["", ""]))


def test_a_dataset_that_the_hub_does_not_give_is_an_error_that_says_what_was_tried():
    with pytest.raises(ValueError, match="no file no-owner/no-data, and split 'test' of dataset 'no-owner/no-data'"):
        load_benchmark("no-owner/no-data:5")
    with pytest.raises(ValueError, match="split 'train' of dataset 'no-owner/no-data'"):
        load_benchmark("no-owner/no-data@train:5")


def cache_dataset(folder, name, rows, config="default", split="test"):
    """Lay a dataset with one split where `datasets` keeps what it has fetched from the hub."""
    owner, _, stem = name.rpartition("/")
    stem = camelcase_to_snakecase(stem)
    target = folder / f"{owner}___{stem}" / config / "0.0.0" / ("0" * 40)
    target.mkdir(parents=True)
    table = datasets.Dataset.from_list(rows)
    with ArrowWriter(path=str(target / f"{stem}-{split}.arrow"), features=table.features) as writer:
        for row in table:
            writer.write(row)
        num_rows, num_bytes = writer.finalize()
    info_of_split = datasets.SplitInfo(split, num_bytes, num_rows, dataset_name=stem)
    info = datasets.DatasetInfo(
        features=table.features,
        builder_name="parquet",
        dataset_name=stem,
        config_name=config,
        version="0.0.0",
        splits=datasets.SplitDict({split: info_of_split}),
    )
    info.write_to_directory(str(target))


def test_a_dataset_of_the_hub_is_a_benchmark_named_after_it(tmp_path, monkeypatch):
    rows = [{"id": f"q{index}", "question": f"{index}?", "answer": index, "level": "easy"} for index in range(5)]
    cache_dataset(tmp_path, "owner/sums", rows)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    benchmark = load_benchmark("owner/sums:3")
    assert (benchmark.name, benchmark.path) == ("sums", "owner/sums:3")
    assert [(row.id, row.problem, row.target) for row in benchmark.rows] == [
        ("q0", "0?", "0"),
        ("q1", "1?", "1"),
        ("q2", "2?", "2"),
    ]
    assert benchmark.rows[0].extra == {"level": "easy"}
    assert len(load_benchmark("owner/sums@test").rows) == 5
    with pytest.raises(ValueError, match=r"split 'train' of dataset 'owner/sums' .* one of \['test'\]"):
        load_benchmark("owner/sums@train")


def test_a_configuration_of_a_dataset_is_named_before_the_split(tmp_path, monkeypatch):
    rows = [{"question": f"{index}?", "answer": f"so\n#### {index}"} for index in range(4)]
    cache_dataset(tmp_path, "owner/sums", rows, config="main")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    benchmark = load_benchmark("owner/sums:main@test:2")
    assert (benchmark.name, [row.target for row in benchmark.rows]) == ("sums", ["0", "1"])
    assert len(benchmark.source) == 4
    with pytest.raises(ValueError, match=r"dataset 'owner/sums' \(configuration other\) could not be loaded"):
        load_benchmark("owner/sums:other@test")


def test_what_stands_behind_hashes_and_the_last_box_of_a_solution_are_answers(tmp_path):
    rows = [
        {"question": "p", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
        {"problem": "p", "solution": r"first \boxed{1}, then \boxed{\frac{1}{2}}."},
        {"problem": "p", "answer": "5", "solution": r"\boxed{6}"},
    ]
    assert [row.target for row in load_benchmark(write(tmp_path / "b.jsonl", rows)).rows] == ["7", r"\frac{1}{2}", "5"]
    with pytest.raises(ValueError, match="no answer; found the columns problem, solution"):
        load_benchmark(write(tmp_path / "c.jsonl", [{"problem": "p", "solution": "so it is 6"}]))


def test_an_absolute_error_is_read_and_belongs_to_the_fingerprint(tmp_path):
    row = {"problem": "p", "answer": "4.2"}
    found = {
        error: load_benchmark(write(tmp_path / "b.jsonl", [{**row, "abs_error": error}]))
        for error in ("1e-1", 0.1, "", None, "1e-1,1e-2", 0, "nan")
    }
    assert [one.rows[0].tolerance for one in found.values()] == [0.1, 0.1, None, None, None, None, None]
    assert (
        found["1e-1"].fingerprint
        != found[""].fingerprint
        == load_benchmark(write(tmp_path / "b.jsonl", [row])).fingerprint
    )


def test_csv_fields_are_text(tmp_path):
    path = tmp_path / "sums.csv"
    path.write_bytes('\ufeffid,problem,answer,level\n1,"one, or\ntwo?",1.50,3\n2,q,007,4\n'.encode())
    benchmark = load_benchmark(str(path))
    assert [(row.id, row.problem, row.target) for row in benchmark.rows] == [
        ("1", "one, or\ntwo?", "1.50"),
        ("2", "q", "007"),
    ]
    assert benchmark.rows[0].extra == {"level": "3"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("problem,answer\np\n", "line 2: the row does not have the 2 fields"),
        ("problem,answer\np,1\nq,1,2\n", "line 3: the row does not have the 2 fields"),
        ('problem,answer\n"p,1\n', "not valid CSV"),
        ("problem,answer\n", "is empty"),
        ("problem,result\np,1\n", "line 2: no answer; found the columns problem, result"),
    ],
)
def test_broken_csv_is_explained(tmp_path, text, message):
    (tmp_path / "b.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_benchmark(str(tmp_path / "b.csv"))


def test_parquet_keeps_lists_of_alternatives(tmp_path):
    rows = [{"problem": "p", "answer": ["1/2", "0.5"]}, {"problem": "q", "answer": ["3"]}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    assert [row.target for row in load_benchmark(str(tmp_path / "b.parquet")).rows] == [["1/2", "0.5"], ["3"]]
    (tmp_path / "c.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="not a readable parquet file"):
        load_benchmark(str(tmp_path / "c.parquet"))


def test_reading_benchmarks_imports_nothing_heavy():
    code = (
        "import sys, dftune.evaluate.summary, dftune.evaluate.jobs, dftune.evaluate.models\n"
        "sys.exit(', '.join({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
