"""Negatives: from the columns of a source to groups of examples."""

import copy
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from transformers import AutoTokenizer

from dftune.data.batches import micro_batches, step_visits
from dftune.data.config import ColumnsConfig, DataConfig
from dftune.data.dataset import Negatives, PreparedDataset, PreparedSplit
from dftune.data.examples import Ledger, select_examples
from dftune.data.negatives import negative_columns, read_negatives
from dftune.data.prepare import prepare, prepared
from dftune.data.tokenizer import tokenizer_fingerprint, train_tokenizer

END = "<|endoftext|>"


def chat(asked: str, answered: str) -> list[dict]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def select(rows: list[dict], **columns):
    """Examples and ledger of rows that stand in lines 1, 2, ..."""
    ledger = Ledger()
    located = ((f"line {number}", row) for number, row in enumerate(rows, 1))
    config = DataConfig(source="rows", prepared="prepared", columns={"negatives": "n", **columns})
    examples, _ = select_examples(located, config, ledger)
    return examples, ledger


def row(*negatives, **values) -> dict:
    return {"problem": "1 + 1?", "solution": "It is 2.", "n": list(negatives), **values}


# --- columns and cells ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("generated_", [(0, "generated_0"), (2, "generated_2"), (10, "generated_10")]),
        ("generated_2", [(0, "generated_2")]),
        ("rejected", [(0, "rejected")]),
        ("generated", []),
        ("reject", []),
        (None, []),
    ],
)
def test_a_name_stands_for_its_column_or_else_for_those_with_a_number_after_it(name, expected):
    found = ["generated_10", "real", "generated_2", "rejected", "generated_0", "generated_by", "x_generated_1"]
    assert negative_columns(name, found) == expected


def test_two_columns_of_one_number_are_an_error():
    with pytest.raises(ValueError, match=r"negatives=g_: columns of the same number among g_01, g_1"):
        negative_columns("g_", ["g_1", "g_01"])


@pytest.mark.parametrize(
    ("cells", "name", "expected"),
    [
        ({"rejected": "no"}, "rejected", ((0, "no"),)),
        ({"rejected": chat("q", "no")}, "rejected", ((0, "no"),)),
        ({"rejected": None}, "rejected", ()),
        ({"others": ["a", "b"]}, "others", ((0, "a"), (1, "b"))),
        ({"others": ["a", None, "c"]}, "others", ((0, "a"), (2, "c"))),
        ({"others": []}, "others", ()),
        ({"others": [chat("q", "a"), chat("q", "b")]}, "others", ((0, "a"), (1, "b"))),
        ({"g_1": "b", "g_0": "a", "g_12": "c"}, "g_", ((0, "a"), (1, "b"), (12, "c"))),
        ({"g_0": chat(" q\n", "a"), "g_1": None, "g_2": chat("q", "c")}, "g_", ((0, "a"), (2, "c"))),
    ],
)
@pytest.mark.parametrize("solution", ["yes", chat("q", "yes")])
def test_negatives_are_read_from_text_lists_conversations_and_numbered_columns(cells, name, expected, solution):
    found = read_negatives({"solution": solution, **cells}, ColumnsConfig(negatives=name), "line 1")
    assert found == expected


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (5, "line 1: column 'n' must hold text, found int 5"),
        (["a", 5], "line 1: column 'n' must hold text, found int 5"),
        ({"a": "b"}, "line 1: column 'n' must hold text, found dict"),
        (chat("q", "a")[:1], "line 1: column 'n' must hold text, or a conversation .*found 1 messages of user"),
        ([*chat("q", "a"), *chat("q", "a")[1:]], "found 3 messages of user, assistant, assistant"),
        ([{"role": "system", "content": "s"}, *chat("q", "a")], "answers another question than the solution does"),
        ([{"from": "human", "value": "q"}], "found 1 messages of user"),
        ([{"by": "human", "text": "q"}], "found 1 messages of None"),
        (chat("another?", "a"), "line 1: column 'n' answers another question than the solution does: 'another\\?'"),
    ],
)
def test_a_cell_that_holds_no_negative_is_an_error_with_row_and_column(cell, message):
    with pytest.raises(ValueError, match=message):
        read_negatives({"solution": chat("q", "a"), "n": cell}, ColumnsConfig(negatives="n"), "line 1")


def test_a_numbered_column_holds_one_negative_not_a_list():
    with pytest.raises(ValueError, match=r"line 1: column 'g_0' must hold text, found list \['a', 'b'\]"):
        read_negatives({"solution": "s", "g_0": ["a", "b"]}, ColumnsConfig(negatives="g_"), "line 1")


def test_problem_and_solution_may_be_the_two_sides_of_one_conversation():
    ledger = Ledger()
    config = DataConfig(source="rows", prepared="p", columns={"problem": "real", "solution": "real"})
    (example,), _ = select_examples([("line 1", {"real": chat("1 + 1?", r"\boxed{2}")})], config, ledger)
    assert (example.problem, example.solution, example.answer) == ("1 + 1?", r"\boxed{2}", "2")
    with pytest.raises(
        ValueError, match=r"line 1: data\.columns\.problem and .* are both 'real', which must then hold"
    ):
        select_examples([("line 1", {"real": "text"})], config, ledger)


def test_settings_about_negatives_without_any_are_refused():
    with pytest.raises(ValueError, match=r"columns\.negatives must say where they are"):
        DataConfig(source="rows", prepared="p", num_negatives=2)
    with pytest.raises(ValueError, match="rotate_negatives needs num_negatives"):
        DataConfig(source="rows", prepared="p", columns={"negatives": "n"}, rotate_negatives=True)


# --- what is dropped -------------------------------------------------------------------------------------


def test_negatives_that_cannot_be_used_are_counted_and_so_is_a_row_left_without_any():
    rows = [
        row("It is 3.", " It is 2.\n", "", "half \ud800 a pair", id="a"),
        row("It is 2.", " ", id="b", problem="1 + 1 = ?"),
        row(id="c", problem="one and one?"),
        row("It is 3.", "It is 4.", id="d", problem=" "),
    ]
    (example,), ledger = select(rows)
    assert (example.id, example.negatives) == ("a", ((0, "It is 3."),))
    assert ledger.dropped == {
        "no negative left": ["line 2", "line 3"],
        "empty problem or solution": ["line 4"],
    }
    assert ledger.num_negatives == 8
    assert ledger.dropped_negatives == {
        "equal to the solution": ["line 1, negative 1", "line 2, negative 0"],
        "empty": ["line 1, negative 2", "line 2, negative 1"],
        "text that is not valid Unicode": ["line 1, negative 3"],
        "row left out": ["line 4, negative 0", "line 4, negative 1"],
    }
    assert ledger.negative_counts([1])["kept"] == 1


def test_rows_of_one_completion_and_several_negatives_become_one_group():
    rows = [row("a", "b", id="x"), row("c", "b", id="y"), row("b", id="z"), row("q", problem="another?", id="w")]
    examples, ledger = select(rows)
    assert [(example.id, example.negatives) for example in examples] == [
        ("x", ((0, "a"), (1, "b"), (2, "c"))),
        ("w", ((0, "q"),)),
    ]
    assert ledger.dropped == {"negatives joined to an earlier row": ["line 2"], "exact duplicate": ["line 3"]}
    assert ledger.dropped_negatives == {
        "already there from an earlier row": ["line 2, negative 1", "line 3, negative 0"]
    }
    assert ledger.negative_counts([3, 1])["per_row"] == {"min": 1, "max": 3}


def test_negatives_of_the_same_text_within_a_row_are_all_kept():
    (example,), _ = select([row("a", "a", "b")])
    assert example.negatives == ((0, "a"), (1, "a"), (2, "b"))


def test_the_id_of_a_row_does_not_depend_on_its_negatives():
    with_them, _ = select([row("a"), row("b", problem="other?")])
    ledger = Ledger()
    config = DataConfig(source="rows", prepared="p")
    without, _ = select_examples([("1", row()), ("2", row(problem="other?"))], config, ledger)
    assert [example.id for example in with_them] == [example.id for example in without]


def test_an_id_that_reads_like_that_of_a_negative_of_another_row_is_an_error():
    rows = [
        row("a", id="x#1", problem="p"),
        row("a", id="y"),
        row("a", id="x", problem="q"),
        row("b", id="y#", problem="r"),
    ]
    with pytest.raises(ValueError, match=r"the id 'x#1' of line 1 is also that of a negative of the row 'x', line 3"):
        select(rows)
    select(rows[:2] + rows[3:])


# --- prepared ------------------------------------------------------------------------------------------------


QUESTIONS = ["2 + 2?", "3 + 3?", "4 + 4?", "5 + 5?", "6 + 6?"]


@pytest.fixture
def hub_folder(tmp_path) -> Path:
    """The layout of the published Discriminative FT data: real, generated_0, ...; two parquet files."""
    rows = [
        {
            "real": chat(question, f"right {number}"),
            **{f"generated_{k}": chat(question, f"wrong {number}{k}") for k in range(3)},
        }
        for number, question in enumerate(QUESTIONS)
    ]
    rows[1]["generated_1"] = chat(QUESTIONS[1], " right 1 ")  # as good as the positive
    folder = tmp_path / "siqi" / "data"
    folder.mkdir(parents=True)
    for number, part in enumerate((rows[:2], rows[2:])):
        parquet.write_table(pa.Table.from_pylist(part), folder / f"train-{number:05}-of-00002.parquet")
    return folder.parent


@pytest.fixture
def pairs(make_recipe, hub_folder, byte_model):
    """A recipe over that folder; keyword arguments are keys of its data section."""

    def make(model=byte_model, **data):
        columns = {"problem": "real", "solution": "real", "negatives": "generated_"}
        return make_recipe(hub_folder, model, columns=columns, **data)

    return make


def test_the_published_layout_becomes_prompts_completions_and_negatives_each_ended_once(pairs, byte_model):
    recipe = pairs()
    manifest = prepare(recipe)
    rows = parquet.read_table(recipe.data.prepared / "train.parquet").to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(byte_model)
    assert [row["problem"] for row in rows] == QUESTIONS
    assert [row["negative_numbers"] for row in rows] == [[0, 1, 2], [0, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
    for number, row in enumerate(rows):
        assert tokenizer.decode(row["input_ids"]) == f"{QUESTIONS[number]}\nright {number}{END}"
        found = [tokenizer.decode(ids) for ids in row["negatives"]]
        assert found == [f"wrong {number}{k}{END}" for k in row["negative_numbers"]]
    assert manifest["negatives"]["dropped"]["equal to the solution"]["count"] == 1
    where = manifest["negatives"]["dropped"]["equal to the solution"]["examples"]
    assert where == [f"{recipe.data.source}, row 2, negative 1"]
    assert {name: manifest["negatives"][name] for name in ("read", "kept", "per_row")} == {
        "read": 15,
        "kept": 14,
        "per_row": {"min": 2, "max": 3},
    }
    assert manifest["tokens"]["negative"] == dict.fromkeys(("min", "mean", "median", "p95", "max"), 9) | {"sum": 14 * 9}


def test_a_group_is_the_example_and_its_negatives_behind_the_same_prompt(pairs):
    recipe = pairs(validation=2)
    prepare(recipe)
    dataset = PreparedDataset.load(recipe.data.prepared)
    tokenizer = AutoTokenizer.from_pretrained(dataset.tokenizer_folder)
    assert (len(dataset.train), len(dataset.validation)) == (3, 2)
    seen = set()
    for split in (dataset.train, dataset.validation):
        for index, name in enumerate(split.ids):
            chosen, *others = split.group(index)
            number = int(tokenizer.decode(chosen.input_ids)[0]) - 2
            seen.add(number)
            numbers = [0, 2] if number == 1 else [0, 1, 2]
            assert (chosen.id, chosen.group, chosen.is_chosen) == (name, name, True)
            assert [(other.id, other.group, other.is_chosen) for other in others] == [
                (f"{name}#{k}", name, False) for k in numbers
            ]
            for example, answer in zip(
                [chosen, *others], ["right ", *(f"wrong {number}" for _ in others)], strict=True
            ):
                ids, mask = example.input_ids, example.completion_mask
                last = number if example is chosen else example.id[-1]
                assert ids.dtype == np.int32
                assert tokenizer.decode(ids[~mask]) == QUESTIONS[number] + "\n"
                assert tokenizer.decode(ids[mask]) == f"{answer}{last}{END}"
                assert np.flatnonzero(mask).tolist() == list(range((~mask).sum(), len(ids)))
            plain = split.example(index)
            assert (plain.id, plain.group, plain.input_ids.tolist()) == (name, None, chosen.input_ids.tolist())
    assert seen == set(range(5))


def split_with(*counts: int) -> PreparedSplit:
    """Examples a, b, ... of 2 prompt tokens and 1 completion token, with so many negatives of one token each."""
    total = sum(counts)
    numbers = np.concatenate([np.arange(count) for count in counts])
    starts = np.cumsum([0, *counts])
    negatives = Negatives(numbers, np.arange(total, dtype=np.int32), np.arange(total + 1), starts)
    size = len(counts)
    return PreparedSplit(
        tuple("abcdefgh"[:size]),
        np.zeros(3 * size, np.int32),
        np.tile([False, False, True], size),
        3 * np.arange(size + 1),
        negatives,
    )


@pytest.mark.parametrize(
    ("count", "num_negatives", "rotate", "expected"),
    [
        (4, 2, True, [[0, 1], [2, 3], [0, 1], [2, 3]]),
        (3, 2, True, [[0, 1], [2, 0], [1, 2], [0, 1]]),
        (5, 1, True, [[0], [1], [2], [3]]),
        (3, 2, False, [[0, 1]] * 4),
        (2, 4, True, [[0, 1]] * 4),
        (3, None, False, [[0, 1, 2]] * 4),
    ],
)
def test_the_negatives_of_every_epoch_worked_by_hand(count, num_negatives, rotate, expected):
    split = split_with(2, count, 1)
    for epoch, numbers in enumerate(expected):
        group = split.group(1, epoch=epoch, num_negatives=num_negatives, rotate=rotate)
        assert [example.id for example in group] == ["b", *(f"b#{number}" for number in numbers)]
        assert [int(example.input_ids[-1]) for example in group[1:]] == [2 + number for number in numbers]


@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(1, 5), st.integers(0, 9))
def test_over_enough_epochs_rotation_uses_every_negative_and_none_twice_in_one(counts, num_negatives, epoch):
    split = split_with(*counts)
    for index, count in enumerate(counts):
        used = set()
        for later in range(epoch, epoch + count):
            names = [e.id for e in split.group(index, epoch=later, num_negatives=num_negatives, rotate=True)[1:]]
            assert len(set(names)) == len(names) == min(num_negatives, count)
            used.update(names)
        assert len(used) == count


def test_the_groups_of_a_run_reach_forward_passes_whole_with_the_negatives_of_their_epoch(pairs):
    recipe = pairs()
    prepare(recipe)
    split = PreparedDataset.load(recipe.data.prepared).train
    seen: dict[str, list[list[int]]] = {name: [] for name in split.ids}
    for step in range(4):
        visits = step_visits(step, num_examples=5, batch_size=4, seed=0, num_total=15)
        groups = [split.group(index, epoch=epoch, num_negatives=2, rotate=True) for epoch, index in visits]
        batches = micro_batches([example for group in groups for example in group], max_tokens=120)
        assert sum(batch.num_units("group") for batch in batches) == len(visits)
        for batch in batches:
            for group, name in enumerate(batch.group_example_ids):
                members = [batch.example_ids[place] for place in (batch.group_ids == group).nonzero().flatten()]
                assert members[0] == name
                seen[name].append(sorted(int(member.rpartition("#")[2]) for member in members[1:]))
    for index, name in enumerate(split.ids):
        expected = [[0, 2]] * 3 if index == 1 else [[0, 1], [0, 2], [1, 2]]
        assert sorted(seen[name]) == expected


def test_a_negative_may_be_as_long_as_fits_and_one_token_more_is_dropped(make_recipe, write_rows, byte_model):
    # prompt 4 + newline, completion and end token: 10 bytes of completion make 16 tokens
    rows = [
        {"id": "a", "problem": "aaaa", "solution": "s", "n": ["x" * 10, "x" * 11, f"x{END}y", END]},
        {"id": "b", "problem": "bbbb", "solution": "s", "n": ["x" * 11]},
        {"id": "c", "problem": "cccc", "solution": "s" * 11, "n": ["x", "y"]},
    ]
    recipe = make_recipe(write_rows(rows), byte_model, max_length=16, columns={"negatives": "n"})
    manifest = prepare(recipe)
    counts = {reason: entry["count"] for reason, entry in manifest["counts"]["dropped"].items()}
    assert counts == {"no negative left": 1, "too long": 1}
    dropped = manifest["negatives"]["dropped"]
    assert {reason: [where.partition(", ")[2] for where in dropped[reason]["examples"]] for reason in dropped} == {
        "too long": ["line 1, negative 1", "line 2, negative 0"],
        "end-of-turn token inside the negative": ["line 1, negative 2"],
        "no token to train on": ["line 1, negative 3"],
        "row left out": ["line 3, negative 0", "line 3, negative 1"],
    }
    dataset = PreparedDataset.load(recipe.data.prepared)
    assert [example.id for example in dataset.train.group(0)] == ["a", "a#0"]
    strict = make_recipe(
        write_rows(rows), byte_model, max_length=16, columns={"negatives": "n"}, truncation="error", prepared="other"
    )
    with pytest.raises(ValueError, match=r"3 of 3 examples and 7 negatives have more .*: c, a#1, b#0\."):
        prepare(strict)


def test_a_new_tokenizer_is_that_of_the_same_rows_without_negatives_and_every_negative_is_accounted_for(
    make_recipe, write_rows, stories
):
    rows = [
        {**story, "n": ["short", "".join(map(chr, range(300, 300 + 20 * number)))]}
        for number, story in enumerate(stories)
    ]
    rows[7]["n"] = [*rows[7]["n"][1:], "".join(map(chr, range(1000, 1600)))]
    rows[39]["n"] = rows[39]["n"][1:]
    recipe = make_recipe(write_rows(rows), validation=5, columns={"negatives": "n"})
    manifest = prepare(recipe)
    counts = manifest["negatives"]
    assert counts["read"] == 79
    assert counts["kept"] + sum(entry["count"] for entry in counts["dropped"].values()) == 79
    assert counts["dropped"]["too long"]["count"] > 10
    assert manifest["counts"]["dropped"]["no negative left"]["count"] == 1
    trained_on = parquet.read_table(recipe.data.prepared / "train.parquet").to_pylist()
    assert len(trained_on) == 34
    texts = [text for row in trained_on for text in (row["problem"] + "\n", row["solution"])]
    assert tokenizer_fingerprint(train_tokenizer(texts, 300)) == manifest["tokenizer_fingerprint"]


@pytest.mark.parametrize("new_model", [False, True])
def test_beyond_the_limit_negatives_are_left_out_with_their_rows(new_model, pairs, byte_model):
    model = {"scratch": {"vocab_size": 300}} if new_model else byte_model
    manifest = prepare(pairs(model, limit=2))
    assert manifest["counts"]["dropped"]["beyond data.limit"]["count"] == 3
    counts = manifest["negatives"]
    assert (counts["read"], counts["kept"], counts["per_row"]) == (15, 5, {"min": 2, "max": 3})
    assert {reason: entry["count"] for reason, entry in counts["dropped"].items()} == {
        "equal to the solution": 1,
        "row left out": 9,
    }


@pytest.mark.parametrize("kind", ["jsonl", "saved"])
def test_lists_of_negatives_are_the_same_in_every_format(kind, make_recipe, write_rows, byte_model, tmp_path):
    rows = [
        {"id": str(n), "problem": f"p{n}", "solution": "s", "n": [f"x{n}{k}" for k in range(n)]} for n in range(1, 4)
    ]
    source = write_rows(rows)
    if kind == "saved":
        source = tmp_path / "saved"
        datasets.Dataset.from_list(rows).save_to_disk(source)
    recipe = make_recipe(source, byte_model, columns={"negatives": "n"})
    prepare(recipe)
    split = PreparedDataset.load(recipe.data.prepared).train
    assert [[e.id for e in split.group(index)] for index in range(3)] == [
        ["1", "1#0"],
        ["2", "2#0", "2#1"],
        ["3", "3#0", "3#1", "3#2"],
    ]


def test_how_many_are_used_and_when_is_no_part_of_what_is_prepared_but_which_they_are_is(pairs, byte_model):
    prepare(pairs())
    dataset = prepared(pairs(num_negatives=2, rotate_negatives=True))
    assert dataset.manifest["settings"]["columns"]["negatives"] == "generated_"
    other = copy.deepcopy(pairs()).model_dump()
    columns = {"problem": "real", "solution": "real"}
    without = pairs().model_copy(update={"data": DataConfig(**{**other["data"], "columns": columns})})
    with pytest.raises(ValueError, match=r"data\.columns\.negatives: prepared with 'generated_', the recipe has None"):
        dataset.check_matches(without)


def test_changed_negatives_change_the_fingerprint(make_recipe, write_rows, byte_model):
    rows = [{"problem": "p", "solution": "s", "n": ["x", "y"]}]
    recipe = make_recipe(write_rows(rows), byte_model, columns={"negatives": "n"})
    before = prepare(recipe)["fingerprint"]
    rows[0]["n"][1] = "z"
    write_rows(rows)
    assert prepare(recipe, force=True)["fingerprint"] != before


def test_a_dataset_without_negatives_has_none_in_its_tables_its_manifest_and_its_groups(
    make_recipe, stories, byte_model, write_rows
):
    recipe = make_recipe(write_rows(stories), byte_model)
    manifest = prepare(recipe)
    assert "negatives" not in manifest
    assert "negative" not in manifest["tokens"]
    assert "negatives" not in manifest["settings"]["columns"]
    names = parquet.read_schema(recipe.data.prepared / "train.parquet").names
    assert names == ["id", "source", "problem", "solution", "answer", "input_ids", "completion_mask"]
    split = PreparedDataset.load(recipe.data.prepared).train
    with pytest.raises(ValueError, match=r"has no negatives\. Set data\.columns\.negatives"):
        split.group(0)


def test_a_table_that_lost_its_negatives_is_refused_and_row_groups_do_not_matter(pairs):
    recipe = pairs()
    prepare(recipe)
    path = recipe.data.prepared / "train.parquet"
    before = PreparedDataset.load(recipe.data.prepared).train
    table = parquet.read_table(path)
    parquet.write_table(table, path, row_group_size=2)
    after = PreparedDataset.load(recipe.data.prepared).train
    for name in ("numbers", "tokens", "offsets", "starts"):
        np.testing.assert_array_equal(getattr(after.negatives, name), getattr(before.negatives, name))
        with pytest.raises(ValueError, match="read-only"):
            getattr(after.negatives, name)[0] = 1
    parquet.write_table(table.drop_columns(["negatives"]), path)
    with pytest.raises(ValueError, match=r"train\.parquet cannot be read .*Run `dftune prepare"):
        PreparedDataset.load(recipe.data.prepared)
    longer = pa.array([[0] for _ in range(5)], pa.list_(pa.int64()))
    place = table.schema.get_field_index("negative_numbers")
    parquet.write_table(table.set_column(place, "negative_numbers", longer), path)
    with pytest.raises(ValueError, match="negatives and negative_numbers differ in length"):
        PreparedDataset.load(recipe.data.prepared)
