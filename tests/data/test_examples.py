import pytest

from dftune.data.config import DataConfig
from dftune.data.examples import Ledger, find_answer, last_boxed, select_examples


def select(rows: list[dict], **keys):
    """Examples and ledger of rows that stand in lines 1, 2, ..."""
    ledger = Ledger()
    located = ((f"line {number}", row) for number, row in enumerate(rows, 1))
    examples, digest = select_examples(located, DataConfig(source="rows", prepared="prepared", **keys), ledger)
    return examples, ledger, digest


def row(**values) -> dict:
    return {"problem": "1 + 1?", "solution": "It is 2.", **values}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{7}.", "7"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {x}", "x"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\left\{ 1, 2 \right.}", r"\left\{ 1, 2 \right."),
        (r"\boxed{5} but cut off: \boxed{6", "5"),
        (r"\boxed{5} then \boxed{}", "5"),
        (r"\boxed 5", None),
        ("nothing", None),
    ],
)
def test_the_last_complete_box_is_the_answer_with_its_braces_matched(text, expected):
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("5,000 apples\n#### 5,000", "5000"),
        ("#### 3\nso\n#### 4\n", "4"),
        (r"#### 3 or \boxed{1,000}", "1,000"),
        ("####", None),
        ("It is 4.", None),
    ],
)
def test_a_box_comes_before_four_hashes_whose_commas_are_removed(solution, expected):
    assert find_answer(solution) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("x^2", "x^2"), (" 7 ", "7"), (7, "7"), (7.0, "7"), (0.5, "0.5"), (float("nan"), "9"), (None, "9"), ("", "9")],
)
def test_an_answer_is_text_and_a_missing_one_is_taken_from_the_solution(value, expected):
    examples, _, _ = select([row(answer=value, solution=r"\boxed{9}")])
    assert examples[0].answer == expected


def test_an_answer_column_that_is_the_solution_itself_is_not_the_answer():
    rows = [{"question": "2 * 2?", "answer": "2 * 2 = 4\n#### 4"}]
    examples, _, _ = select(rows, columns={"problem": "question", "solution": "answer"})
    assert (examples[0].solution, examples[0].answer) == ("2 * 2 = 4\n#### 4", "4")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"problem": 5}, "line 1: column 'problem' must hold text, found int 5"),
        ({"solution": ["a"]}, r"line 1: column 'solution' must hold text, found list \['a'\]"),
        ({"answer": ["4"]}, "line 1: column 'answer' must hold text or a number, found list"),
        ({"answer": True}, "line 1: column 'answer' must hold text or a number, found bool"),
        ({"id": {}}, "line 1: column 'id' must hold text or a number, found dict"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_with_row_and_column(values, message):
    with pytest.raises(ValueError, match=message):
        select([row(**values)])


def test_every_dropped_row_is_counted_under_one_reason_with_its_place():
    rows = [
        row(source="a", answer="2"),
        row(source="b", answer="2"),
        row(source="a", problem=""),
        row(source="a", solution=" \n"),
        row(source="a", problem=None),
        row(source="a", problem="other", solution="no answer"),
        row(source="a", answer="2"),
        row(source="a", problem="cut \ud83d", answer="2"),
    ]
    examples, ledger, _ = select(rows, sources=["a"], require_answer=True)
    assert [example.location for example in examples] == ["line 1"]
    assert ledger.counts() == {
        "rows_read": 8,
        "kept": 1,
        "dropped": {
            "source not selected": {"count": 1, "examples": ["line 2"]},
            "empty problem or solution": {"count": 3, "examples": ["line 3", "line 4", "line 5"]},
            "missing answer": {"count": 1, "examples": ["line 6"]},
            "exact duplicate": {"count": 1, "examples": ["line 7"]},
            "text that is not valid Unicode": {"count": 1, "examples": ["line 8"]},
        },
    }


def test_at_most_five_places_are_listed_for_a_reason():
    _, ledger, _ = select([row()] * 9)
    assert ledger.counts()["dropped"]["exact duplicate"] == {
        "count": 8,
        "examples": ["line 2", "line 3", "line 4", "line 5", "line 6"],
    }


def test_one_id_with_two_contents_is_an_error_that_names_both_rows():
    rows = [row(id="a"), row(id="b", problem="2 + 2?"), row(id="a", problem="3 + 3?")]
    with pytest.raises(ValueError, match=r"the id 'a' stands for two different rows: line 1 and line 3\."):
        select(rows)


def test_one_id_with_one_content_is_a_duplicate_and_numbers_are_ids():
    examples, ledger, _ = select([row(id=7), row(id=7), row(id=8)])
    assert [example.id for example in examples] == ["7"]
    assert ledger.counts()["dropped"]["exact duplicate"]["count"] == 2


def test_an_id_made_from_the_content_depends_on_problem_and_solution_alone():
    first, _, _ = select([row(), row(problem="other")])
    second, _, _ = select([row(problem="other", answer="5", source="x"), row()])
    assert {example.id for example in first} == {example.id for example in second}
    assert len({example.id for example in first}) == 2


def test_an_optional_column_that_is_named_must_exist_and_an_unnamed_one_need_not():
    assert len(select([row()])[0]) == 1
    with pytest.raises(ValueError, match="no row has the column final"):
        select([row()], columns={"answer": "final"})
    with pytest.raises(ValueError, match="no row has the column source"):
        select([row()], sources=["a"])


def test_the_digest_of_the_rows_changes_with_what_is_used_of_them_and_with_nothing_else():
    digests = [
        select(rows)[2]
        for rows in ([row()], [row(unused=1)], [row(answer="3")], [row(solution="It is two.")], [row(id="a")])
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
