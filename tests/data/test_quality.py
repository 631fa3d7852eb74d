"""The quality report: counts by hand, similarities against the exact sets, and what it costs in memory."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dftune.data.config import DataConfig
from dftune.data.examples import Example, Ledger, select_examples
from dftune.data.language import language
from dftune.data.near import NearDuplicates, Signatures, similarity
from dftune.data.prepare import prepare
from dftune.data.quality import QualityReport, describe_quality
from dftune.data.sources import open_rows

MIX = Path(__file__).parents[2] / "../shared/data/cot_train_mix.jsonl"
WORDS = [f"w{number}" for number in range(300)]


def example(problem: str, solution: str = "s", **keys) -> Example:
    keys = {"id": problem, "source": None, "answer": None, "location": "here", **keys}
    return Example(problem=problem, solution=solution, **keys)


def report(*examples: Example):
    quality = QualityReport()
    for one in examples:
        quality.add(one)
    return quality.finish()


def near(*texts: str) -> NearDuplicates:
    signatures = Signatures()
    for text in texts:
        signatures.add(text)
    return signatures.duplicates()


@given(
    one=st.lists(st.sampled_from(WORDS[:40]), min_size=3, max_size=60),
    other=st.lists(st.sampled_from(WORDS[:40]), min_size=3, max_size=60),
)
@settings(max_examples=40, deadline=None)
def test_signatures_agree_as_often_as_the_exact_sets_overlap(one, other):
    signatures = Signatures()
    first, second = (signatures.signature(" ".join(words)) for words in (one, other))
    # Six standard errors of 64 draws.
    assert abs((first == second).mean() - similarity(" ".join(one), " ".join(other))) < 6 * 0.0625


def test_near_duplicates_are_those_that_brute_force_over_the_exact_sets_finds():
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=60)) for _ in range(120)]
    for number in range(0, 120, 3):  # one word changed in sixty: 57 of 61 shingles are shared
        words = texts[number].split()
        words[30] = "other"
        texts.append(" ".join(words))
    similar = {
        (one, other)
        for other in range(len(texts))
        for one in range(other)
        if similarity(texts[one], texts[other]) >= 0.8
    }
    assert len(similar) == 40
    found = near(*texts)
    assert (found.num_rows, found.num_groups) == (40, 40)
    assert {(one, other) for one, other, _ in found.pairs} == set(sorted(similar)[:5])


def test_a_chain_of_near_duplicates_is_one_group_and_its_first_row_is_no_duplicate():
    base = " ".join(WORDS[:80])
    texts = [base, base.replace("w40", "x"), base.replace("w40", "x").replace("w10", "y"), "something else entirely"]
    found = near(*texts)
    assert (found.num_rows, found.num_groups) == (2, 1)


def test_case_and_punctuation_do_not_count_and_short_or_empty_texts_do_not_fail():
    assert near("What is the sum, then?", "what is THE sum then").num_rows == 1
    assert near("", "a", "b").num_rows == 0
    assert near().num_rows == 0
    assert near("求方程的解 1 2", "求方程的根 3 4").num_rows == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How many apples are there in the box of $n$ apples?", "English"),
        ("Wie viele Äpfel liegen in der Kiste neben dem Baum?", "Latin script, not English"),
        ("Quelle est la somme des entiers positifs?", "Latin script, not English"),
        ("求方程 $x^2 = 4$ 的所有解", "Chinese"),
        ("方程式のすべての解を求めよ", "Japanese"),
        ("모든 정수의 합을 구하시오", "Korean"),
        ("Найдите сумму всех целых чисел", "Cyrillic"),
        ("Find $x$", "too short to tell"),
        (r"\frac{1}{2} + \sin \theta", "too short to tell"),
        ("", "too short to tell"),
    ],
)
def test_the_language_of_a_problem(text, expected):
    assert language(text) == expected


def test_every_part_of_the_report_is_counted():
    long = "The quick brown fox jumps over the lazy dog and then it runs far away from here"
    found = report(
        example(long, r"\boxed{4}", answer="4", source="a"),
        example(long.replace("  ", " ") + " ", r"\boxed{5}", answer="4", source="a"),
        example(long + " again", r"\boxed{\frac12}", answer="0.5", source="b", id="near"),
        example("Wie viele sind es denn nun wirklich?", r"(1, 2)", answer="(1, 2)"),
        example("求方程的解", "no idea"),
    )
    assert found["rows"] == 5
    assert found["sources"] == {"a": 2, "none": 2, "b": 1}
    assert found["answers"] == {"number": 3, "collection": 1, "none": 1}
    assert found["languages"] == {"English": 3, "Chinese": 1, "Latin script, not English": 1}
    duplicates = found["duplicates"]
    assert (duplicates["same_problem"], duplicates["near"], duplicates["near_groups"]) == (1, 2, 1)
    assert duplicates["examples"][0] == {"ids": [long, long + " "], "similarity": 1.0}
    grading = found["grading"]
    assert [grading[key] for key in ("checked", "correct", "incorrect", "ungraded")] == [4, 3, 1, 0]
    (wrong,) = grading["examples"]
    assert (wrong["answer"], wrong["found"], wrong["verdict"]) == ("4", "5", "incorrect")
    assert found["characters"]["problem"]["max"] == len(long + " again")
    text = describe_quality(found, short=False)
    for part in ("1 rows with a problem", "4 checked: 3 agree, 1 do not", "answer '4', the solution says '5'"):
        assert part in text


def test_the_report_is_in_the_prepared_folder_and_the_same_every_time(make_recipe, write_rows, byte_model, tmp_path):
    rows = [{"id": n, "problem": f"What is the sum of {n} and 1?", "solution": f"\\boxed{{{n + 1}}}"} for n in range(6)]
    texts = []
    for name in ("one", "two"):
        recipe = make_recipe(write_rows(rows), byte_model, prepared=str(tmp_path / name), max_length=60)
        prepare(recipe)
        texts.append((recipe.data.prepared / "quality.json").read_bytes())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["rows"] == 6


@pytest.mark.skipif(not MIX.is_file(), reason="needs ../shared/data/cot_train_mix.jsonl")
def test_on_real_rows_the_seven_repeated_problems_are_found():
    rows, config, _ = open_rows(DataConfig(source=str(MIX), prepared=Path("p")))
    examples, _ = select_examples(rows, config, Ledger())
    found = report(*examples)
    problems = [" ".join(one.problem.split()) for one in examples]
    assert found["duplicates"]["same_problem"] == len(problems) - len(set(problems)) > 0
    assert found["duplicates"]["near"] >= found["duplicates"]["same_problem"]
    assert found["answers"]["number"] > 2500
    assert found["grading"]["checked"] == sum(one.answer is not None for one in examples)
    assert found["grading"]["correct"] / found["grading"]["checked"] > 0.99
    assert np.isclose(found["characters"]["problem"]["median"], np.median([len(one.problem) for one in examples]))
