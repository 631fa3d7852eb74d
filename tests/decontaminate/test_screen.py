import json
from pathlib import Path

import numpy as np
import pytest

from dftune.decontaminate.decide import MEANING, Problem
from dftune.decontaminate.embed import Embedder
from dftune.decontaminate.index import BenchmarkRow, Index
from dftune.decontaminate.scan import scan
from dftune.decontaminate.screen import TrainingRow, load_benchmarks, screen
from dftune.evaluate.benchmarks import load_benchmark

DATA = Path(__file__).parents[2] / "../shared/data"
BENCHMARKS = ("math500", "aime24", "aime25", "amc23", "minerva_math", "olympiadbench", "gsm8k_test")
# Read by hand: the same problem as a row of MATH-500 or OlympiadBench.
SAME = {
    *("math-test/1751", "math-test/2680", "math-test/4640", "aime/1983-1-2", "aime/1994-1-13", "aime/2001-2-3"),
    *("aime/2006-2-5", "aime/2010-1-6", "aime/2015-2-6", "aime/2016-1-10", "aime/2017-2-7"),
    *("aime/1995-1-9", "aime/2002-1-12"),  # the benchmark asks for the length, the row for a + b in it
}


def _benchmark(folder: Path, rows: list[dict[str, str]], name: str = "small") -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not beside the checkout")
def test_on_real_rows_the_duplicates_are_found_and_nothing_else() -> None:
    rows = [json.loads(line) for line in (DATA / "cot_train_mix.jsonl").read_text().split("\n") if line]
    training = [TrainingRow(row["id"], row["problem"], row["answer"], row["solution"]) for row in rows]
    found = screen(training, [load_benchmark(str(DATA / f"{name}.jsonl")) for name in BENCHMARKS])
    assert found.same == SAME
    counts = found.counts()
    assert (len(counts["math500"]["matched"]), len(counts["olympiadbench"]["matched"])) == (11, 2)
    assert counts["gsm8k_test"]["training_rows"] == 0


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not beside the checkout")
def test_grade_school_training_rows_are_not_mistaken_for_test_rows() -> None:
    rows = [json.loads(line) for line in (DATA / "gsm8k_train.jsonl").read_text().split("\n") if line]
    training = [TrainingRow(row["id"], row["problem"], row["answer"], row["solution"]) for row in rows]
    assert screen(training, [load_benchmark(str(DATA / "gsm8k_test.jsonl"))]).same == set()


def test_a_benchmark_put_into_the_training_set_is_found_whole(tmp_path: Path) -> None:
    words = ("apples", "pears", "plums", "nuts")
    rows = [
        {
            "id": f"q{n}",
            "problem": f"Ann has {n} {words[n % 4]} and buys {n + 7} more; how many are there?",
            "answer": f"{2 * n + 7}",
        }
        for n in range(30)
    ]
    found = screen(
        [TrainingRow(f"t/{row['id']}", row["problem"].upper(), row["answer"], "") for row in rows],
        load_benchmarks([f"{_benchmark(tmp_path, rows)}:10"]),
    )
    assert len(found.same) == 30, "the limit of an evaluation does not limit the check"
    assert {pair["benchmark_id"] for pair in found.pairs if pair["same"]} == {row["id"] for row in rows}


def test_processes_find_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dftune.decontaminate.scan._ALONE", 5)
    monkeypatch.setattr("dftune.decontaminate.scan._CHUNK", 7)
    names = ["cat", "dog", "bird", "fish", "horse"]
    problems = [
        Problem(f"My {names[n % 5]} eats {n % 9} meals on each of {n % 4} days, how many meals?", [str(n)])
        for n in range(60)
    ]
    index = Index(BenchmarkRow("b", str(n), problem) for n, problem in enumerate(problems[::3]))
    assert list(scan(problems, index, workers=2)) == list(scan(problems, index, workers=1))


def test_an_unreadable_benchmark_is_an_error_that_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)nothing\.jsonl.*data\.decontaminate\.action=skip"):
        load_benchmarks([str(tmp_path / "nothing.jsonl")])


def test_the_page_escapes_what_the_data_holds_and_marks_what_differs(tmp_path: Path) -> None:
    path = _benchmark(tmp_path, [{"id": "1", "problem": "Find <b>the</b> sum of 3 and 4 in total.", "answer": "7"}])
    row = TrainingRow("r", "Find <script>alert(1)</script> the sum of 3 and 4 in total.", "7", "")
    found = screen([row], load_benchmarks([str(path)]))
    files = found.files("mine", "remove")
    assert "<script" not in files["contamination.html"]
    assert "&lt;<mark>script</mark>&gt;<mark>alert</mark>(<mark>1</mark>)&lt;/" in files["contamination.html"]
    assert json.loads(files["contamination.jsonl"].splitlines()[0])["problem"] == row.problem


def test_an_encoder_finds_what_is_said_in_other_words(tmp_path: Path, encoder: Path) -> None:
    gold = {
        "id": "1",
        "problem": "A farmer has 17 cows and buys 25 goats. How many animals are there now?",
        "answer": "42",
    }
    benchmarks = load_benchmarks([str(_benchmark(tmp_path, [gold]))])
    row = TrainingRow("other words", "Count the animals on a farm with goats (25) and cows (17).", "42", "")
    sibling = TrainingRow("sibling", "Count the animals on a farm with goats (26) and cows (17).", "43", "")
    assert screen([row, sibling], benchmarks).same == set()
    found = screen([sibling, row], benchmarks, embed=Embedder(str(encoder)), least_similarity=0.1)
    assert found.same == {"other words"}
    assert [pair["reason"] for pair in found.pairs if pair["same"]] == [MEANING]


def test_the_cosine_of_a_text_with_itself_is_one_whatever_stands_beside_it(encoder: Path) -> None:
    embed = Embedder(str(encoder), batch_size=3)
    texts = ["one", "a much longer text with several words", "two 2", "three"]
    together, alone = embed(texts), embed(texts[:1])
    np.testing.assert_allclose((together**2).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(together[0], alone[0], atol=1e-5)
