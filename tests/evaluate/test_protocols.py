import itertools
import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dftune.evaluate.protocols import (
    answer_classes,
    describe_protocols,
    get_protocol,
    pass_at_k,
    read_scores,
    stored_protocols,
    with_scores,
)

VERDICTS = {"1": "correct", "0": "incorrect", "?": "ungraded"}


def rows(marks, answers=None, name="q"):
    """One completion a mark: 1 correct, 0 incorrect, ? ungraded; an answer of None is no answer."""
    answers = answers if answers is not None else list(marks)
    return [
        {"id": name, "sample": index, "verdict": VERDICTS[mark], "answer": answer}
        for index, (mark, answer) in enumerate(zip(marks, answers, strict=True))
    ]


def score(protocol, marks, answers=None):
    return get_protocol(protocol).scores(rows(marks, answers)).get("q")


# --- names -----------------------------------------------------------------------------------------


def test_names_say_how_many_samples_are_needed_and_whether_they_are_drawn():
    found = {name: get_protocol(name) for name in ("greedy", "avg@16", "maj@4", "pass@8", "rm@2", "strict-format@3")}
    assert {name: one.num_samples for name, one in found.items()} == {
        "greedy": 1,
        "avg@16": 16,
        "maj@4": 4,
        "pass@8": 8,
        "rm@2": 2,
        "strict-format@3": 3,
    }
    assert [name for name, one in found.items() if not one.sampled] == ["greedy"]
    assert not get_protocol("strict-format").sampled
    assert get_protocol("strict-format-original").name == "strict-format-original"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best-of-8", "'best-of-8' is not known"),
        ("majo@8", "Did you mean maj"),
        ("avg", "lacks its number of samples; write for example avg@16"),
        ("avg@0", "'avg@0' is not known"),
        ("greedy@4", "'greedy@4' is not known"),
        ("maj@", "'maj@' is not known"),
    ],
)
def test_other_names_are_explained(name, message):
    with pytest.raises(ValueError, match=message):
        get_protocol(name)


def test_every_protocol_is_described():
    assert [line.split()[0] for line in describe_protocols().splitlines()] == [
        "greedy",
        "avg@n",
        "maj@n",
        "pass@k",
        "rm@n",
        "strict-format[@n]",
        "strict-format-original[@n]",
    ]


def test_files_from_before_protocols_were_listed_stand_for_the_mean_of_their_samples():
    assert [one.name for one in stored_protocols({"protocol": "greedy", "num_samples": 1})] == ["greedy"]
    assert [one.name for one in stored_protocols({"protocol": "sample", "num_samples": 5})] == ["avg@5"]
    listed = {"protocol": "sample", "num_samples": 16, "protocols": ["maj@16", "pass@8"]}
    assert [one.name for one in stored_protocols(listed)] == ["maj@16", "pass@8"]


# --- avg@n -----------------------------------------------------------------------------------------


def test_the_mean_is_over_the_graded_ones_of_the_first_n_samples_and_is_not_rounded():
    assert score("avg@3", "101") == 2 / 3
    assert score("avg@3", "10?") == 1 / 2
    assert score("avg@3", "1110000") == 1.0
    assert score("avg@2", "??1") is None
    assert score("greedy", "1") == 1.0


# --- pass@k ----------------------------------------------------------------------------------------


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_all_k_subsets_that_hold_a_correct_sample(numbers):
    n, c, k = numbers
    samples = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(samples, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_starts_at_the_mean_and_never_decreases():
    found = [pass_at_k(16, 3, k) for k in range(1, 17)]
    assert found[0] == pytest.approx(3 / 16)
    assert found == sorted(found)
    assert found[13] == 1.0  # 14 of 16 cannot all be among the 13 wrong ones


def test_pass_at_k_by_hand_and_in_large_numbers():
    assert pass_at_k(4, 1, 2) == pytest.approx(1 - 3 / 6)  # C(3, 2) / C(4, 2)
    by_product = 1 - math.prod(Fraction(4000 - 10 - i, 4000 - i) for i in range(1000))
    assert pass_at_k(4000, 10, 1000) == pytest.approx(float(by_product))
    for wrong in ((4, 5, 1), (4, 1, 5), (4, 1, 0)):
        with pytest.raises(ValueError, match="needs k <= n"):
            pass_at_k(*wrong)


def test_pass_at_k_takes_all_samples_that_are_there_and_leaves_ungraded_ones_out():
    assert score("pass@2", "1000") == pytest.approx(1 / 2)
    assert score("pass@2", "10?") == 1.0  # of two graded ones one is right
    assert score("pass@2", "1?") is None


# --- maj@n -----------------------------------------------------------------------------------------


def test_answers_written_in_other_words_vote_together():
    assert score("maj@5", "11000", ["0.5", r"\frac{1}{2}", "3", "4", "5"]) == 1.0
    assert score("maj@5", "11000", ["7", "7", "3", "3.0", "3"]) == 0.0


def test_a_tie_scores_by_expectation():
    assert score("maj@4", "1100", ["7", "7", "3", "3"]) == 1 / 2
    assert score("maj@3", "100", ["7", "3", "4"]) == pytest.approx(1 / 3)


def test_completions_without_an_answer_vote_for_nothing():
    assert score("maj@5", "11000", ["7", "7", None, None, None]) == 1.0
    assert score("maj@3", "000", [None, None, " "]) == 0.0


def test_an_ungraded_winner_leaves_the_problem_without_a_score_and_an_ungraded_loser_does_not():
    assert score("maj@3", "??1", ["x", "x", "7"]) is None
    assert score("maj@3", "?11", ["x", "7", "7"]) == 1.0
    assert score("maj@2", "?1", ["x", "7"]) is None  # a tie with what nobody could grade
    assert score("maj@3", "?10", ["7", "7", "3"]) == 1.0  # one member of the class was graded


def test_only_the_first_n_samples_vote():
    assert score("maj@3", "11000", ["7", "7", "3", "3", "3"]) == 1.0


@settings(deadline=None)
@given(st.lists(st.sampled_from(["7", "3", "4", None]), min_size=1, max_size=5))
def test_the_vote_is_the_mean_over_all_orders_of_the_first_seen_winner(answers):
    def first_seen(order):
        votes = Counter(answer for answer in order if answer is not None)
        return bool(votes) and votes.most_common(1)[0][0] == "7"  # insertion order breaks ties

    orders = list(itertools.permutations(answers))
    marks = ["1" if answer == "7" else "0" for answer in answers]
    expected = sum(map(first_seen, orders)) / len(orders)
    assert score(f"maj@{len(answers)}", marks, answers) == pytest.approx(expected)


@settings(deadline=None, max_examples=25)
@given(st.permutations(["1/3", "0.33333333", "0.333333333", "1/3", "0.33333333", "2", "2.0"]))
def test_classes_do_not_depend_on_the_order_of_the_samples(answers):
    def contents(order):
        return sorted(sorted(order[index] for index in members) for members in answer_classes(order))

    assert contents(answers) == contents(sorted(answers))


def test_classes_know_nothing_of_the_reference_answer():
    # Alternatives of a reference are both right, and still two answers.
    assert score("maj@4", "1100", ["east", r"90^\circ", "3", "3"]) == 0.0


# --- rm@n ------------------------------------------------------------------------------------------


def test_the_best_scored_sample_counts_and_ties_by_expectation():
    def best(marks, rewards):
        scored = [{**row, "reward": reward} for row, reward in zip(rows(marks), rewards, strict=True)]
        return get_protocol(f"rm@{len(marks)}").scores(scored).get("q")

    assert best("010", [0.1, 0.9, 0.5]) == 1.0
    assert best("100", [0.1, 0.9, 0.5]) == 0.0
    assert best("110", [0.9, 0.9, 0.9]) == pytest.approx(2 / 3)
    assert best("1?0", [0.1, 0.9, 0.5]) is None


def test_scores_are_read_and_a_completion_without_one_is_named():
    given_scores = read_scores([{"id": "q", "score": 1}, {"id": "q", "sample": 1, "score": 0.5}], "s.jsonl")
    assert given_scores == {("q", 0): 1.0, ("q", 1): 0.5}
    assert [row["reward"] for row in with_scores(rows("10"), given_scores, "s.jsonl")] == [1.0, 0.5]
    with pytest.raises(ValueError, match=r"s\.jsonl has no score for 1 of 3 completions, .* id 'q', sample 2"):
        with_scores(rows("101"), given_scores, "s.jsonl")


@pytest.mark.parametrize(
    "row",
    [{"sample": 0, "score": 1}, {"id": "q"}, {"id": "q", "score": "1"}, {"id": "q", "score": math.nan},
     {"id": "q", "score": True}, {"id": "q", "sample": "0", "score": 1}],
)  # fmt: skip
def test_broken_scores_are_refused(row):
    with pytest.raises(ValueError, match=r"s\.jsonl, row 2: expected id, sample .* and score"):
        read_scores([{"id": "q", "score": 1}, row], "s.jsonl")


# --- strict-format ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "tolerant", "original"),
    [
        ("so</think> <answer>7</answer>", 1, 1),
        ("so</think> <answer>8</answer>", 0, 0),
        ("so</think>\n<answer>7</answer>", 1, 0),
        ("so</think><answer>7</answer>", 1, 0),
        ("</answer> </think> <answer>7", 0, 1),  # tags in an order that makes no sense
        ("so</think> <answer>7", 0, 0),
        ("so <answer>7</answer>", 0, 0),
        (r"so</think> <answer>\boxed{7}</answer>", 1, 1),
        ("so</think> <answer>7</answer> and on", 1, 0),  # "7 and on" is no 7
        (r"\boxed{7}", 0, 0),
    ],
)
def test_the_format_counts_with_the_answer(completion, tolerant, original):
    row = {"id": "q", "sample": 0, "target": "7", "completion": completion, "verdict": "correct"}
    assert get_protocol("strict-format").scores([row]) == {"q": tolerant}
    assert get_protocol("strict-format-original").scores([row]) == {"q": original}


def test_a_completion_that_ended_at_the_closing_tag_has_it():
    row = {"id": "q", "sample": 0, "target": "7", "completion": "so</think> <answer>7", "verdict": "correct"}
    assert get_protocol("strict-format").scores([{**row, "stop_string": "</answer>"}]) == {"q": 1.0}
    assert get_protocol("strict-format").scores([{**row, "stop_string": "\n\n"}]) == {"q": 0.0}


def test_where_nobody_says_what_ended_a_completion_its_format_is_not_judged():
    row = {"id": "q", "sample": 0, "target": "7", "verdict": "correct", "finish_reason": "stop"}
    assert get_protocol("strict-format").scores([{**row, "completion": "so</think> <answer>7"}]) == {}
    assert get_protocol("strict-format").scores([{**row, "completion": "so</think> 7"}]) == {"q": 0.0}
    cut = {**row, "completion": "so</think> <answer>7", "finish_reason": "length"}
    assert get_protocol("strict-format").scores([cut]) == {"q": 0.0}


def test_an_unreadable_reference_leaves_out_what_keeps_the_format():
    row = {"id": "q", "sample": 0, "target": r"\frac{", "completion": "a</think> <answer>7</answer>"}
    assert get_protocol("strict-format").scores([row]) == {}
    assert get_protocol("strict-format").scores([{**row, "completion": "7"}]) == {"q": 0.0}
