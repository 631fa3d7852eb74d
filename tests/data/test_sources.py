import csv
import json
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from dftune.data.config import DataConfig
from dftune.data.hub import looks_like_path
from dftune.data.sources import read_rows

from .conftest import FIXTURES


def data(source, **keys) -> DataConfig:
    return DataConfig(source=str(source), prepared="prepared", **keys)


def rows_of(source, **keys) -> list[dict]:
    return [row for _, row in read_rows(data(source, **keys))]


def write_as(kind: str, folder: Path, rows: list[dict]) -> Path:
    """Write rows in a real format, by libraries other than our own."""
    names = list(rows[0])
    if kind == "json":
        path = folder / "rows.json"
        path.write_text(json.dumps(rows, indent=1))
    elif kind == "csv":
        path = folder / "rows.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        path = folder / "rows.parquet"
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif kind.startswith("arrow"):
        path = folder / "rows.arrow"
        table = pa.Table.from_pylist(rows)
        new = pa.ipc.new_stream if kind == "arrow stream" else pa.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    elif kind == "saved dataset":
        path = folder / "saved"
        datasets.Dataset.from_list(rows).save_to_disk(path)
    elif kind == "saved splits":
        path = folder / "splits"
        parts = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:2])}
        datasets.DatasetDict(parts).save_to_disk(path)
    elif kind == "folder of parquet":
        path = folder / "hub"
        (path / "data").mkdir(parents=True)
        half = len(rows) // 2
        for number, part in enumerate((rows[:half], rows[half:])):
            table = pa.Table.from_pylist(part)
            parquet.write_table(table, path / "data" / f"train-{number:05}-of-00002.parquet")
        parquet.write_table(pa.Table.from_pylist(rows[:2]), path / "data" / "test-00000-of-00001.parquet")
    else:
        path = folder / "plain"
        path.mkdir()
        (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


KINDS = (
    "json",
    "csv",
    "parquet",
    "arrow stream",
    "arrow file",
    "saved dataset",
    "saved splits",
    "folder of parquet",
    "folder of jsonl",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_rows_in_the_same_order(kind, tmp_path, stories):
    assert rows_of(write_as(kind, tmp_path, stories)) == stories


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_has_a_location_of_its_own_that_names_the_source(kind, tmp_path, stories):
    path = write_as(kind, tmp_path, stories)
    places = [where for where, _ in read_rows(data(path))]
    assert len(set(places)) == len(stories)
    assert all(where.startswith(str(path)) for where in places)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_column_names_what_was_found_and_the_setting_to_use(kind, tmp_path, stories):
    renamed = [{"id": row["id"], "question": row["problem"], "output": row["solution"]} for row in stories]
    path = write_as(kind, tmp_path, renamed)
    with pytest.raises(
        ValueError, match=r"no column 'problem'; found: id, question, output\. Set data\.columns\.problem=question"
    ):
        rows_of(path)
    with pytest.raises(ValueError, match=r"no column 'solution'.*Set data\.columns\.solution=output"):
        rows_of(path, columns={"problem": "question"})
    found = rows_of(path, columns={"problem": "question", "solution": "output"})
    assert [row["question"] for row in found] == [row["problem"] for row in stories]


def test_broken_json_names_file_and_line_after_the_rows_before_it(write_rows, stories):
    path = write_rows(stories)
    lines = path.read_text().splitlines()
    lines[6] = lines[6][:40]
    path.write_text("\n".join(lines))
    reader = read_rows(data(path))
    assert [next(reader)[1]["id"] for _ in range(6)] == [f"story/{number}" for number in range(6)]
    with pytest.raises(
        ValueError, match=r"rows\.jsonl, line 7: not valid JSON.*The line starts: \{\"id\": \"story/6\""
    ):
        next(reader)


def test_blank_lines_and_a_byte_order_mark_are_skipped_and_lines_are_still_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"problem": "a", "solution": "b"}\n\n  \n{"problem": "c", "solution": "d"}')
    assert [(where.rpartition(", ")[2], row["problem"]) for where, row in read_rows(data(path))] == [
        ("line 1", "a"),
        ("line 4", "c"),
    ]


def test_a_line_that_is_no_object_and_a_later_row_without_a_column_are_errors(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problem": "a", "solution": "b"}\n["a", "b"]\n')
    with pytest.raises(ValueError, match="line 2: expected a JSON object, found list"):
        rows_of(path)
    path.write_text('{"problem": "a", "solution": "b"}\n{"problem": "a", "text": "b"}\n')
    with pytest.raises(ValueError, match="line 2: no column 'solution'; found: problem, text"):
        rows_of(path)


def test_conversations_in_no_named_column_are_refused_with_what_can_be_read(write_rows):
    path = write_rows([{"talk": [{"role": "user", "content": "hello"}], "messages": None}])
    with pytest.raises(
        ValueError,
        match=r"Conversations, lists of \{role, content\}, are read whole: set data\.columns\.messages to their column",
    ):
        rows_of(path)


def test_csv_rows_are_located_by_the_line_they_begin_in(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('problem,solution\n"one\nand more",b\nc,d\n')
    assert [where.rpartition(", ")[2] for where, _ in read_rows(data(path))] == ["line 2", "line 4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("problem,solution\na,b\nc,d,e\n", "line 3: 3 fields, and the header has 2"),
        ("problem,solution\na\n", "line 2: 1 fields, and the header has 2"),
        ("problem,solution,problem\na,b,c\n", "the header names problem twice"),
        ('problem,solution\na,"b\n', "line 2: not valid CSV"),
    ],
)
def test_a_csv_file_that_does_not_add_up_is_an_error_with_its_line(text, message, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        rows_of(path)


def test_csv_fields_may_be_longer_than_the_csv_module_allows_by_default(tmp_path):
    limit = csv.field_size_limit()
    path = tmp_path / "rows.csv"
    path.write_text(f"problem,solution\na,{'x' * (limit + 1)}\n")
    assert len(rows_of(path)[0]["solution"]) == limit + 1
    assert csv.field_size_limit() == limit


def test_the_original_gsm8k_layout_is_read_by_naming_its_columns(stories):
    found = rows_of(FIXTURES / "stories.csv", columns={"problem": "question", "solution": "answer"})
    assert found == [{"question": row["problem"], "answer": row["solution"]} for row in stories[:12]]


def test_only_the_named_columns_of_a_table_are_read(tmp_path, stories):
    wide = [{**row, "embedding": [0.0] * 10} for row in stories]
    assert rows_of(write_as("parquet", tmp_path, wide)) == stories


def test_a_split_is_chosen_by_name_and_an_unknown_one_names_those_there_are(tmp_path, stories):
    saved = write_as("saved splits", tmp_path, stories)
    folder = write_as("folder of parquet", tmp_path, stories)
    assert rows_of(saved, split="test") == rows_of(folder, split="test") == stories[:2]
    with pytest.raises(ValueError, match=r"no split 'validation'\. Set data\.split to one of: train, test"):
        rows_of(saved, split="validation")
    with pytest.raises(ValueError, match=r"cannot read the folder .*train"):
        rows_of(folder, split="validation")


def shards(folder: Path, *parts: list[dict]) -> Path:
    (folder / "data").mkdir(parents=True)
    for number, part in enumerate(parts):
        path = folder / "data" / f"train-{number:05}-of-{len(parts):05}.parquet"
        parquet.write_table(pa.Table.from_pylist(part), path)
    return folder


def test_shards_of_different_columns_name_the_odd_one_and_what_is_other(tmp_path, stories):
    renamed = [{"id": row["id"], "problem": row["problem"], "response": row["solution"]} for row in stories]
    folder = shards(tmp_path / "hub", stories, renamed)
    with pytest.raises(
        ValueError,
        match=r"train-00001-of-00002\.parquet has other columns or types than train-00000.*response \(string",
    ):
        rows_of(folder)


def test_shards_of_different_types_name_the_odd_one(tmp_path, stories):
    nested = [{**row, "solution": [row["solution"]]} for row in stories]
    with pytest.raises(
        ValueError, match=r"a row after row 0 cannot be read.*train-00001-of-00002\.parquet has other .*list"
    ):
        rows_of(shards(tmp_path / "hub", stories, nested))


@pytest.mark.parametrize("cut", [100, -200])
def test_a_shard_that_was_cut_off_is_named(cut, tmp_path, stories):
    folder = shards(tmp_path / "hub", stories, stories)
    path = folder / "data" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet is not a readable parquet file"):
        rows_of(folder)


@pytest.mark.parametrize("kind", ["parquet", "arrow stream"])
def test_a_table_that_is_damaged_inside_is_an_error_that_says_so(kind, tmp_path, stories):
    path = write_as(kind, tmp_path, stories * 50)
    whole = path.read_bytes()
    path.write_bytes(whole[:2000] + bytes(4000) + whole[6000:] if kind == "parquet" else whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"rows\.(parquet|arrow) is damaged: part of it cannot be read"):
        rows_of(path)


def test_a_missing_file_is_named_with_its_neighbours(tmp_path, write_rows, stories):
    write_rows(stories)
    with pytest.raises(ValueError, match=r"no such file: .*row\.jsonl\. In .* there is rows\.jsonl"):
        rows_of(tmp_path / "row.jsonl")
    with pytest.raises(ValueError, match=r"no such file: .*no/such/row\.jsonl\. .*no/such does not exist either"):
        rows_of(tmp_path / "no" / "such" / "row.jsonl")


def test_a_file_of_unknown_format_an_empty_folder_and_a_false_parquet_file_are_errors(tmp_path):
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"the format of .*rows\.xlsx is not known from its ending '\.xlsx'"):
        rows_of(tmp_path / "rows.xlsx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot read the folder"):
        rows_of(tmp_path / "empty")
    (tmp_path / "rows.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="not a readable parquet file"):
        rows_of(tmp_path / "rows.parquet")


def test_an_existing_path_wins_over_a_dataset_id_of_the_same_name(tmp_path, stories, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("openai").mkdir()
    write_as("folder of jsonl", tmp_path, stories).rename(tmp_path / "openai" / "gsm8k")
    assert rows_of("openai/gsm8k") == stories


def test_an_unreachable_hub_is_said_at_once_with_how_to_supply_a_copy():
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"cannot load the dataset 'owner/no-such-dataset'.*set data\.source=FOLDER"):
        rows_of("owner/no-such-dataset")
    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("openai/gsm8k", False),
        ("gsm8k", False),
        ("HuggingFaceH4/MATH-500", False),
        ("rows.jsonl", True),
        ("data/rows.parquet", True),
        ("./rows", True),
        ("../rows", True),
        ("/data/rows", True),
        ("~/rows", True),
        ("data/math/rows", True),
        ("C:\\rows", True),
    ],
)
def test_a_name_that_does_not_exist_is_taken_for_what_it_looks_like(name, is_path):
    assert looks_like_path(name) is is_path


def with_negatives(rows: list[dict]) -> list[dict]:
    """Real rows with generated_0, generated_1 and generated_10, and a column whose name only looks like one."""
    return [
        {**row, **{f"generated_{k}": f"{row['id']} {k}" for k in (10, 0, 1)}, "generated_by": "a model"} for row in rows
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_numbered_columns_of_negatives(kind, tmp_path, stories):
    path = write_as(kind, tmp_path, with_negatives(stories))
    found = rows_of(path, columns={"negatives": "generated_"})
    for row, story in zip(found, stories, strict=True):
        assert [row[f"generated_{k}"] for k in (0, 1, 10)] == [f"{story['id']} {k}" for k in (0, 1, 10)]


@pytest.mark.parametrize("kind", KINDS)
def test_missing_negatives_name_what_was_found_and_the_setting_to_use(kind, tmp_path, stories):
    path = write_as(kind, tmp_path, with_negatives(stories))
    with pytest.raises(
        ValueError,
        match=r"no column 'rejected', nor one of that name with a number after it; found: .*generated_10"
        r".*Set data\.columns\.negatives=generated_, if those are the negatives",
    ):
        rows_of(path, columns={"negatives": "rejected"})


def test_a_row_of_jsonl_without_any_negative_column_is_an_error_with_its_line(write_rows):
    rows = [{"problem": "a", "solution": "b", "generated_3": "c"}, {"problem": "a", "solution": "b"}]
    with pytest.raises(ValueError, match="line 2: no column 'generated_'"):
        rows_of(write_rows(rows), columns={"negatives": "generated_"})


def test_only_the_named_columns_and_the_negatives_of_a_table_are_read(tmp_path, stories):
    path = write_as("parquet", tmp_path, with_negatives(stories))
    assert rows_of(path)[0] == stories[0]
    found = rows_of(path, columns={"negatives": "generated_"})[0]
    assert found.keys() - stories[0].keys() == {"generated_0", "generated_1", "generated_10"}
