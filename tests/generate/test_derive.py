import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.generate.made import completions, row

from dftune.data.config import DataConfig
from dftune.data.examples import Ledger, select_examples
from dftune.data.prompts import PromptFormat
from dftune.data.sources import read_rows
from dftune.files import read_json, read_jsonl, sha256_file
from dftune.generate.derive import difficulty, pair_set, rft_set, systematic_copies, weighted_set
from dftune.generate.describe import format_difficulty
from dftune.generate.recipe import PairsConfig, RftConfig, WeightedConfig
from dftune.generate.sets import read_completions, write_set

ROLLOUTS = [
    row("a", 0, r"3+4=7. \boxed{7}", "correct"),
    row("a", 1, r"\boxed{8}"),
    row("a", 2, "3+4=7.  \\boxed{7}\n", "correct"),  # the first one again, but for white space
    row("a", 3, r"\boxed{7}", "correct"),
    row("b", 0, r"\boxed{7}", "correct", finish="length"),
    row("b", 1, "no idea"),
    row("b", 2, "seven", "ungraded"),
    row("b", 3, " \n"),
    row("c", 0, r"4+3=7. \boxed{7}", "correct"),
    row("c", 1, r"so \boxed{7}", "correct"),
    row("c", 2, r"thus \boxed{7}", "correct"),
    row("c", 3, r"hence \boxed{7}", "correct"),
]


@pytest.fixture
def rollouts(tmp_path):
    return completions(tmp_path, ROLLOUTS)


# --- rft ------------------------------------------------------------------------------------------


def test_rft_keeps_the_first_distinct_correct_completions_of_each_problem(rollouts):
    rows, counts = rft_set(rollouts, RftConfig(per_problem=3))
    assert [one["id"] for one in rows] == ["a.0", "a.3", "c.0", "c.1", "c.2"]
    assert rows[0] == {
        "id": "a.0",
        "problem_id": "a",
        "problem": "What of a?",
        "solution": r"3+4=7. \boxed{7}",
        "answer": "7",
    }
    left_out = {
        "beyond per_problem": 1,
        "cut off at max_tokens": 1,
        "empty": 1,
        "incorrect": 2,
        "repeated": 1,
        "ungraded": 1,
    }
    assert counts == {"completions": 12, "rows": 5, "left_out": left_out, "problems_with_a_row": 2}
    assert counts["rows"] + sum(left_out.values()) == counts["completions"]


def test_truncated_completions_are_used_on_request(rollouts):
    rows, _ = rft_set(rollouts, RftConfig(per_problem=1), keep_truncated=True)
    assert [one["id"] for one in rows] == ["a.0", "b.0", "c.0"]


def test_what_the_prompt_format_puts_around_a_solution_is_taken_off_once(tmp_path):
    made = PromptFormat("spaced", "{problem}\nAnswer:", completion_prefix=" ", completion_suffix="\n")
    found = completions(tmp_path, [row("a", 0, "  \\boxed{7}\n", "correct")], prompt_format=made.record())
    ((only,), _) = rft_set(found, RftConfig())
    assert only["solution"] == " \\boxed{7}"
    assert made.render_completion(only["solution"]) == "  \\boxed{7}\n"


def test_earlier_messages_stay_with_the_problem(tmp_path):
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]
    found = completions(tmp_path, [row("a", 0, r"\boxed{7}", "correct", history=said)])
    rows, counts = rft_set(found, RftConfig())
    write_set(tmp_path / "rft.jsonl", rows, origin=found.origin(), settings={}, counts=counts)
    config = DataConfig(source=str(tmp_path / "rft.jsonl"), prepared="p")
    (example,), _ = select_examples(read_rows(config), config, Ledger())
    assert [tuple(one) for one in example.messages] == [
        ("user", "Hello"),
        ("assistant", "Yes?"),
        ("user", "What of a?"),
        ("assistant", r"\boxed{7}"),
    ]


# --- pairs ----------------------------------------------------------------------------------------


def test_a_pair_is_the_first_correct_against_the_first_incorrect_and_no_completion_is_in_two(tmp_path):
    rows = [row("a", k, f"right {k}", "correct") for k in (0, 2, 3)] + [row("a", k, f"wrong {k}") for k in (1, 4)]
    found = completions(tmp_path, sorted(rows, key=lambda one: one["sample"]))
    pairs, counts = pair_set(found, PairsConfig(per_problem=9))
    assert [(one["id"], one["solution"], one["rejected"]) for one in pairs] == [
        ("a.0-1", "right 0", "wrong 1"),
        ("a.2-4", "right 2", "wrong 4"),
    ]
    assert counts["problems_with_a_pair"] == 1


def test_problems_without_both_kinds_give_no_pair_and_are_counted(rollouts):
    pairs, counts = pair_set(rollouts, PairsConfig())
    assert [one["id"] for one in pairs] == ["a.0-1"]
    assert counts["problems_with_no_correct_completion"] == 1  # b: its only correct one was cut off
    assert counts["problems_with_no_incorrect_completion"] == 1  # c
    assert counts["left_out"] == {"cut off at max_tokens": 1, "empty": 1, "ungraded": 1}


def test_balanced_pairs_have_the_nearest_lengths_and_take_back_the_drift(tmp_path):
    rows = [
        row("a", 0, "r0", "correct", num_tokens=10),
        row("a", 1, "r1", "correct", num_tokens=30),
        row("a", 2, "w2", num_tokens=28),
        row("b", 0, "r0", "correct", num_tokens=10),
        row("b", 1, "w1", num_tokens=7),  # as near as the other, on the other side
        row("b", 2, "w2", num_tokens=13),
    ]
    found = completions(tmp_path, rows)
    assert [one["id"] for one in pair_set(found, PairsConfig())[0]] == ["a.0-2", "b.0-1"]
    pairs, counts = pair_set(found, PairsConfig(balance_lengths=True))
    assert [one["id"] for one in pairs] == ["a.1-2", "b.0-2"]  # +2, then -3 rather than +3
    assert counts["mean_tokens"] == {"chosen": 20.0, "rejected": 20.5}


# --- weighted -------------------------------------------------------------------------------------


def test_without_scores_every_correct_completion_has_the_same_weight(rollouts):
    rows, counts = weighted_set(rollouts, WeightedConfig())
    assert [one["id"] for one in rows] == [f"{name}.0" for name in ("a.0", "a.2", "a.3", "c.0", "c.1", "c.2", "c.3")]
    assert counts["most_copies"] == 1


def test_scores_decide_how_often_a_completion_stands_in_the_set(tmp_path):
    found = completions(tmp_path, [row("a", k, f"text {k}", reward=score) for k, score in enumerate((0.5, 0, 2, 1.5))])
    rows, counts = weighted_set(found, WeightedConfig(num_rows=8))  # 8 / 4 copies for a quality of 1
    assert [one["id"] for one in rows] == ["a.0.0", *(f"a.2.{k}" for k in range(4)), *(f"a.3.{k}" for k in range(3))]
    assert (counts["completions_used"], counts["most_copies"], counts["left_out"]) == (3, 4, {"quality too low": 1})


def test_a_completion_stands_once_for_each_percentile_that_it_reaches(tmp_path):
    found = completions(tmp_path, [row("a", k, f"text {k}", reward=float(k)) for k in range(101)])
    rows, _ = weighted_set(found, WeightedConfig(percentiles=(90, 95, 98)))
    copies = {}
    for one in rows:
        copies[one["quality"]] = copies.get(one["quality"], 0) + 1
    expected = (
        {float(k): 1 for k in range(90, 95)} | {float(k): 2 for k in range(95, 98)} | {98.0: 3, 99.0: 3, 100.0: 3}
    )
    assert copies == expected


def test_a_negative_score_is_refused(tmp_path):
    found = completions(tmp_path, [row("a", 0, "text", reward=-1.0)])
    with pytest.raises(ValueError, match="lowest score is -1; a quality is at least 0"):
        weighted_set(found, WeightedConfig())


@given(
    st.lists(st.floats(0, 100, allow_subnormal=False), min_size=1, max_size=30).filter(lambda found: sum(found) > 1e-3),
    st.integers(1, 200),
    st.integers(0, 5),
)
def test_copies_add_up_and_each_is_its_expected_number_rounded(quality, num_rows, seed):
    copies = systematic_copies(quality, num_rows, seed)
    assert sum(copies) == num_rows
    for value, times in zip(quality, copies, strict=True):
        assert abs(times - num_rows * value / sum(quality)) < 1 + 1e-6


def test_weighted_copies_reach_training_only_where_duplicates_are_kept(tmp_path):
    found = completions(tmp_path, [row("a", k, f"text {k}", reward=score) for k, score in enumerate((1.0, 3.0))])
    rows, counts = weighted_set(found, WeightedConfig(num_rows=4))
    write_set(tmp_path / "weighted.jsonl", rows, origin=found.origin(), settings={}, counts=counts)
    config = DataConfig(source=str(tmp_path / "weighted.jsonl"), prepared="p", keep_duplicates=True)
    kept, _ = select_examples(read_rows(config), config, Ledger(), keep_duplicates=True)
    assert [one.id for one in kept] == ["a.0.0", "a.1.0", "a.1.1", "a.1.2"]
    assert [one.solution for one in kept] == ["text 0", "text 1", "text 1", "text 1"]
    once, _ = select_examples(read_rows(config), config, Ledger())
    assert [one.id for one in once] == ["a.0.0", "a.1.0"]


# --- difficulty -----------------------------------------------------------------------------------


def test_difficulty_counts_problems_by_the_number_of_their_correct_completions(rollouts):
    found = difficulty(rollouts)
    assert found["histogram"] == [0, 0, 0, 1, 1]  # a: 3 of 4, c: 4 of 4
    assert found["partly_graded"] == 1  # b
    assert (found["num_graded"], found["num_ungraded"]) == (11, 1)
    assert found["pass_rate"] == pytest.approx((3 / 4 + 1 / 3 + 1) / 3)
    assert found["problems"][1] == {"id": "b", "correct": 1, "graded": 3}
    printed = format_difficulty(found)
    assert "pass rate 69.4 % over 3 problems, 4 samples each; 1 problems" in printed
    assert f"  4 of 4        1  {'#' * 40}" in printed.splitlines()


# --- files ----------------------------------------------------------------------------------------


def test_a_set_and_its_manifest_have_the_same_bytes_when_made_again(rollouts, tmp_path):
    def make():
        rows, counts = rft_set(rollouts, RftConfig())
        write_set(tmp_path / "rft.jsonl", rows, origin=rollouts.origin(), settings={"per_problem": 4}, counts=counts)
        return [(tmp_path / name).read_bytes() for name in ("rft.jsonl", "rft.manifest.json")]

    assert make() == make()
    manifest = read_json(tmp_path / "rft.manifest.json")
    assert manifest["from"]["sha256"] == sha256_file(rollouts.path)
    assert manifest["num_rows"] == len(read_jsonl(tmp_path / "rft.jsonl"))


def test_an_empty_set_is_an_error_that_says_what_became_of_the_completions(tmp_path):
    found = completions(tmp_path, [row("a", 0, "no"), row("a", 1, "nor this")])
    rows, counts = rft_set(found, RftConfig())
    with pytest.raises(ValueError, match=r"nothing is left for .*rft.jsonl.*incorrect.*Sample more"):
        write_set(tmp_path / "rft.jsonl", rows, origin=found.origin(), settings={}, counts=counts)


def test_completions_that_are_missing_incomplete_or_broken_are_refused(tmp_path):
    path = tmp_path / "rollouts.samples.jsonl"
    with pytest.raises(ValueError, match=r"no completions .*yet. Make them: dftune generate RECIPE rollouts"):
        read_completions(path, "dftune generate RECIPE rollouts")
    completions(tmp_path, ROLLOUTS)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="holds 11 of 12 completions"):
        read_completions(path, "dftune generate RECIPE rollouts")
    with pytest.raises(ValueError, match="row 1 of the completions: it has no verdict"):
        completions(tmp_path, [{key: value for key, value in ROLLOUTS[0].items() if key != "verdict"}])
