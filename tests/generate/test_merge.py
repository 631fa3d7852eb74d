import random

import pytest
from tests.generate.made import completions, row

from dftune.data.config import DataConfig
from dftune.data.examples import Example, Ledger, select_examples
from dftune.data.messages import Message
from dftune.data.sources import read_rows
from dftune.generate.merge import merge_negatives, write_merged
from dftune.generate.recipe import NegativesConfig

EXAMPLES = [
    Example(name, None, f"What of {name}?", f"It is 7 by {name}.", "7", f"rows, line {number}")
    for number, name in enumerate("abc", 1)
]
SAMPLES = [
    row("a", 0, "It is 8."),
    row("a", 1, " It is 7 by a.\n", "correct"),
    row("a", 2, "It is 8."),
    row("b", 0, "It is 7.", "correct"),
    row("b", 1, "It is", finish="length"),
    row("b", 2, " "),
    row("c", 0, "It is 9."),
    row("c", 1, "Nine."),
    row("c", 2, "Ten."),
]


def said(name, answer):
    return [{"role": "user", "content": f"What of {name}?"}, {"role": "assistant", "content": answer}]


def test_negatives_stand_beside_their_solution_by_id_and_sample_whatever_the_order(tmp_path):
    shuffled = random.Random(1).sample(SAMPLES, len(SAMPLES))
    found = completions(tmp_path, shuffled, kind="negatives")
    rows, _ = merge_negatives(list(reversed(EXAMPLES)), found, NegativesConfig(num_samples=3))
    assert [one["id"] for one in rows] == ["c", "b", "a"]
    first, _, last = rows
    assert first["real"] == said("c", "It is 7 by c.")
    assert [first[f"generated_{k}"] for k in range(3)] == [said("c", text) for text in ("It is 9.", "Nine.", "Ten.")]
    assert last["generated_1"] == said("a", " It is 7 by a.\n")


def test_equal_and_correct_negatives_are_marked_and_counted(tmp_path):
    found = completions(tmp_path, SAMPLES, kind="negatives")
    rows, counts = merge_negatives(EXAMPLES, found, NegativesConfig(num_samples=3))
    assert [(one["equal"], one["correct"]) for one in rows] == [([1], [1]), ([], [0]), ([], [])]
    assert counts["flagged"] == {"equal to the solution": 1, "correct": 2}
    assert counts["left_out"] == {"cut off at max_tokens": 1, "empty": 1}
    assert (counts["negatives"], counts["kept"]) == (9, 7)


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        ({"drop_equal": True}, [("a", 1), ("b", 1), ("b", 2)]),
        ({"drop_correct": True}, [("a", 1), ("b", 0), ("b", 1), ("b", 2)]),
        ({"drop_repeated": True}, [("a", 2), ("b", 1), ("b", 2)]),
    ],
)
def test_on_request_they_are_left_out_and_the_others_keep_their_numbers(tmp_path, options, left_out):
    found = completions(tmp_path, SAMPLES, kind="negatives")
    rows, counts = merge_negatives(EXAMPLES, found, NegativesConfig(num_samples=3, **options))
    assert [(one["id"], k) for one in rows for k in range(3) if one[f"generated_{k}"] is None] == left_out
    assert counts["kept"] == 9 - len(left_out)
    assert counts["problems_without_negative"] == (1 if "drop_correct" in options else 0)


def test_truncated_negatives_are_kept_on_request(tmp_path):
    found = completions(tmp_path, SAMPLES, kind="negatives")
    rows, _ = merge_negatives(EXAMPLES, found, NegativesConfig(num_samples=3), keep_truncated=True)
    assert rows[1]["generated_1"] == said("b", "It is")


def test_fewer_samples_than_the_file_holds_are_the_first_ones(tmp_path):
    found = completions(tmp_path, SAMPLES, kind="negatives")
    rows, counts = merge_negatives(EXAMPLES, found, NegativesConfig(num_samples=1))
    assert "generated_1" not in rows[0]
    assert counts["negatives"] == 3


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_prepare_reads_the_layout_with_the_same_ids_and_numbers(tmp_path, suffix):
    found = completions(tmp_path, SAMPLES, kind="negatives")
    history = (Message("user", "Hello"), Message("assistant", "Yes?"))
    examples = [*EXAMPLES[:2], Example("c", "talk", "What of c?", "It is 7 by c.", "7", "line 3", (), history)]
    rows, _ = merge_negatives(examples, found, NegativesConfig(num_samples=3))
    path = tmp_path / f"negatives.{suffix}"
    write_merged(path, rows)
    columns = {"problem": "real", "solution": "real", "negatives": "generated_"}
    config = DataConfig(source=str(path), prepared="p", columns=columns)
    ledger = Ledger()
    read, _ = select_examples(read_rows(config), config, ledger)
    assert [(one.id, one.problem, one.solution, one.answer, one.source) for one in read] == [
        (one.id, one.problem, one.solution, one.answer, one.source) for one in examples
    ]
    assert read[0].negatives == ((0, "It is 8."), (2, "It is 8."))  # the one that equals the solution is dropped there
    assert read[1].negatives == ((0, "It is 7."),)
    assert (read[2].history, [number for number, _ in read[2].negatives]) == (history, [0, 1, 2])
    assert {reason: len(where) for reason, where in ledger.dropped_negatives.items()} == {"equal to the solution": 1}
