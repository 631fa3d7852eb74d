"""Which answer a completion commits to, and which rule finds it."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dftune.evaluate.extract import extract


@pytest.mark.parametrize(
    ("completion", "answer", "rule"),
    [
        (r"First \boxed{3}, then \boxed{7}.", "7", "box"),
        (r"$\boxed{\frac{1}{\sqrt{2}}}$", r"\frac{1}{\sqrt{2}}", "box"),
        (r"\fbox{5}", "5", "box"),
        (r"\boxed 5", "5", "box"),
        ("<answer> 12 </answer> That is all.", "12", "tag"),
        ("She earns 6 * 7 = <<6*7=42>>42 dollars.\n#### 42", "42", "hash"),
        ("Final Answer: The final answer is $x+1$. I hope it is correct.", "$x+1$", "phrase"),
        ("A: 14", "14", "phrase"),
        ("### Final Answer\n\n$$\n9\n$$", "$$ 9 $$", "phrase"),
        ("2 + 2\n= 4", "4", "line"),
        ("The primes are $3$, $5$ and $7$.", "$3$, $5$ and $7$", "line"),
        ("Here we have the prime numbers $3$, $5$ and $7$ as wanted.", "3, 5, 7", "line"),
        ("Altogether they walked for miles and miles and used 3,200 steps.", "3,200", "line"),
    ],
)
def test_the_first_rule_that_finds_something_wins(completion, answer, rule):
    found = extract(completion)
    assert found is not None
    assert (found.answer, found.rule) == (answer, rule)


def test_a_box_outranks_a_later_phrase():
    found = extract(r"So it is \boxed{8}. The answer is clear from the 3 cases.")
    assert found is not None and found.answer == "8"


def test_an_empty_box_gives_way_to_the_one_before():
    found = extract(r"\boxed{4} and then \boxed{}")
    assert found is not None and found.answer == "4"


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"\boxed{1} and \boxed{2}", "1 , 2"),
        (r"$x=\boxed{1}$ or $x=\boxed{2}$", "1 or 2"),
        (r"\boxed{1} pens, \boxed{2} hats and \boxed{3} bags", "1 , 2 , 3"),
        (r"We find \boxed{1}. That was wrong, it is \boxed{2}.", "2"),
    ],
)
def test_boxes_listed_together_are_one_answer(completion, answer):
    found = extract(completion)
    assert found is not None and found.answer == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"<think>Perhaps \boxed{3}?</think> The answer is 4.", "4"),
        (r"<think>Surely \boxed{3}.</think>", "3"),
        (r"<think>No end of thought, but \boxed{3}", "3"),
        (r"<think>a</think> \boxed{1} <think>b</think> \boxed{2}", "2"),
    ],
)
def test_thoughts_count_only_if_nothing_follows_them(completion, answer):
    found = extract(completion)
    assert found is not None and found.answer == answer


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("B", "B"),
        ("The answer is (C).", "C"),
        ("D. It cannot be A.", "D"),
        ("I think it's B", "B"),
        ("I choose A.", "A"),
    ],
)
def test_the_letter_of_a_choice_is_found_in_prose(completion, letter):
    found = extract(completion)
    assert found is not None and found.answer.strip("(). ") == letter


def test_text_after_the_end_of_turn_does_not_count():
    found = extract("The answer is 12.<|im_end|>\n<|im_start|>user\nNow 7 + 7? The answer is 14.")
    assert found is not None and found.answer == "12"


def test_strict_takes_boxes_and_tags_only():
    assert extract("The answer is 5.", strict=True) is None
    assert extract("#### 5", strict=True) is None
    assert extract(r"\boxed{5", strict=True) is None
    boxed, tagged = extract(r"\boxed{5}", strict=True), extract("<answer>5</answer>", strict=True)
    assert boxed is not None and tagged is not None


def test_a_cut_off_box_counts_when_not_strict():
    found = extract(r"so we get $\boxed{125")
    assert found is not None and found.answer == "125"


@pytest.mark.parametrize("completion", ["", "   \n\n ", "I do not know what to say here."])
def test_no_answer_gives_none(completion):
    assert extract(completion) is None


def test_the_end_of_a_long_completion_is_read():
    padding = "and so on " * 100_000
    start = time.process_time()
    last, first = extract(padding + "The answer is 6."), extract(r"\boxed{6} " + padding)
    assert time.process_time() - start < 4.0
    assert last is not None and last.answer == "6"
    assert first is not None and first.answer == "6"


@given(st.text(alphabet=st.sampled_from("\\boxed{}$ \n#.:<>/answeris0159,=-()[]|")), st.booleans())
def test_any_text_gives_an_answer_from_it_or_none(completion, strict):
    found = extract(completion, strict=strict)
    assert found is None or found.answer.strip()


@given(st.integers(-(10**9), 10**9), st.text(alphabet="abcxyz .,\n", max_size=60))
def test_a_final_box_is_always_found(number, prose):
    found = extract(f"{prose} \\boxed{{{number}}}")
    assert found is not None
    assert (found.answer.split()[-1], found.rule) == (str(number), "box")
