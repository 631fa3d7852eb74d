"""A benchmark among the training rows, through `prepare`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dftune.data.examples import CONTAMINATED
from dftune.data.prepare import prepare, prepared
from dftune.recipe import Recipe

ROWS = [
    {
        "id": f"t{n}",
        "problem": f"A shelf holds {n} red and {n + 3} blue books. How many books does it hold?",
        "solution": f"Together \\boxed{{{2 * n + 3}}}.",
    }
    for n in range(8)
]
# Row t5 in another notation; a sibling of all.
BENCHMARK = [
    {
        "id": "b1",
        "problem": "A shelf holds $5$ red and eight blue books.  How many books does it hold?",
        "answer": "13",
    },
    {"id": "b2", "problem": "A shelf holds 50 red and 90 blue books. How many books does it hold?", "answer": "140"},
]


@pytest.fixture
def recipe_with(make_recipe: Callable[..., Recipe], write_rows: Callable[..., Path], byte_model: Path) -> Any:
    """The recipe over ROWS that evaluates on BENCHMARK."""

    def make(benchmarks: list[dict[str, Any]] | None = None, **data: Any) -> Recipe:
        recipe = make_recipe(write_rows(ROWS), byte_model, **data)
        path = write_rows(BENCHMARK if benchmarks is None else benchmarks, "bench.jsonl")
        evaluate = recipe.evaluate.model_copy(update={"benchmarks": (str(path),)})
        return recipe.model_copy(update={"evaluate": evaluate})

    return make


def test_a_benchmark_problem_is_removed_by_default_and_shown_with_both_texts(recipe_with: Any) -> None:
    recipe = recipe_with()
    manifest = prepare(recipe)
    assert manifest["num_train"] == 7
    assert manifest["counts"]["dropped"][CONTAMINATED]["count"] == 1
    (found,) = manifest["contamination"]["benchmarks"].values()
    assert (found["rows"], found["matched"], found["training_rows"]) == (2, ["b1"], 1)
    pairs = [json.loads(line) for line in (recipe.data.prepared / "contamination.jsonl").read_text().splitlines()]
    (pair,) = [pair for pair in pairs if pair["same"]]
    assert (pair["id"], pair["problem"], pair["benchmark_problem"]) == (
        "t5",
        ROWS[5]["problem"],
        BENCHMARK[0]["problem"],
    )
    assert "eight" in (recipe.data.prepared / "contamination.html").read_text()


def test_reported_rows_stay_and_are_counted(recipe_with: Any) -> None:
    manifest = prepare(recipe_with(decontaminate={"action": "report"}))
    assert (manifest["num_train"], manifest["counts"]["dropped"]) == (8, {})
    assert manifest["contamination"]["benchmarks"]["bench"]["matched"] == ["b1"]


def test_an_error_names_row_and_benchmark_and_leaves_nothing(recipe_with: Any) -> None:
    recipe = recipe_with(decontaminate={"action": "error"})
    with pytest.raises(ValueError, match=r"'t5' \(.*line 6\): bench 'b1'"):
        prepare(recipe)
    assert not recipe.data.prepared.exists()


def test_a_skipped_check_reads_no_benchmark(recipe_with: Any, tmp_path: Path) -> None:
    recipe = recipe_with(decontaminate={"action": "skip"})
    (tmp_path / "bench.jsonl").unlink()
    manifest = prepare(recipe)
    assert (manifest["num_train"], manifest["contamination"]) == (8, {"action": "skip", "benchmarks": {}})


def test_training_on_a_benchmark_by_mistake_says_so(make_recipe: Any, write_rows: Any, byte_model: Path) -> None:
    path = write_rows([{**row, "answer": str(2 * n + 3)} for n, row in enumerate(ROWS)])
    recipe = make_recipe(path, byte_model, decontaminate={"benchmarks": [str(path)]})
    with pytest.raises(
        ValueError,
        match=r"rows\.jsonl seems to be a benchmark: 8 of its 8 rows are problems .* 100% of rows.*action=report",
    ):
        prepare(recipe)
    assert not recipe.data.prepared.exists()


def test_a_test_split_with_a_few_rows_of_its_own_is_still_taken_for_the_benchmark(
    make_recipe: Any, write_rows: Any, byte_model: Path
) -> None:
    rows = [{**row, "problem": f"{row['problem']} {n} ", "id": f"x{n}"} for n, row in enumerate(ROWS)]
    benchmark = write_rows([{**row, "answer": str(2 * n + 3)} for n, row in enumerate(rows)], "bench.jsonl")
    many = [{**row, "id": f"{row['id']}-{k}", "solution": row["solution"] + k} for row in rows for k in "ab"]
    other = {"problem": "Name the largest river of the continent.", "solution": "The Nile."}
    recipe = make_recipe(write_rows([*many, other]), byte_model, decontaminate={"benchmarks": [str(benchmark)]})
    with pytest.raises(ValueError, match=r"seems to be a benchmark: 16 of its 17 rows"):
        prepare(recipe)


def test_a_benchmark_added_later_is_said_not_to_have_been_checked(
    recipe_with: Any, write_rows: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_with()
    prepare(recipe)
    prepared(recipe)
    assert capsys.readouterr().err == ""
    other = str(write_rows([{"id": "c", "problem": "Something else entirely?", "answer": "1"}], "other.jsonl"))
    evaluate = recipe.evaluate.model_copy(update={"benchmarks": (*recipe.evaluate.benchmarks, other)})
    prepared(recipe.model_copy(update={"evaluate": evaluate}))
    assert "not checked against " + other in capsys.readouterr().err
