"""Every known training set, from a folder in the on-disk format of the hub, read by the same `datasets` call."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from dftune.data.config import DataConfig
from dftune.data.examples import Ledger, select_examples
from dftune.data.named import SOURCES, describe_sources
from dftune.data.sources import open_rows, read_rows

DOCS = Path(__file__).parents[2] / "docs/data.md"


def turn(*texts: str, role: str = "role", content: str = "content", names: tuple[str, str] = ("user", "assistant")):
    return [{role: names[place % 2], content: text} for place, text in enumerate(texts)]


# Rows with the columns of the published sets, as their cards list them.
ROWS: dict[str, list[dict[str, Any]]] = {
    "numinamath-cot": [
        {
            "source": source,
            "problem": f"What is {n} + {n}?",
            "solution": f"It is \\boxed{{{2 * n}}}.",
            "messages": turn(f"What is {n} + {n}?", f"It is \\boxed{{{2 * n}}}."),
        }
        for n, source in enumerate(("synthetic_amc", "orca_math", "synthetic_math"))
    ],
    "math": [
        {"problem": f"p{n}", "level": "Level 5", "type": "Algebra", "solution": f"\\boxed{{{n}}}"} for n in range(7)
    ],
    "math-lighteval": [
        {"problem": f"p{n}", "level": "Level 5", "type": "Geometry", "solution": f"\\boxed{{{n}}}"} for n in range(3)
    ],
    "gsm8k": [{"question": f"q{n}", "answer": f"It is <<{n}={n}>>{n}.\n#### {n}"} for n in range(3)],
    "openr1-math": [
        {
            "problem": f"p{n}",
            "solution": "short",
            "answer": str(n),
            "problem_type": "Algebra",
            "question_type": "math-word-problem",
            "source": "olympiads",
            "uuid": f"u{n}",
            "is_reasoning_complete": [True],
            "generations": [f"<think>hm</think> {n}"],
            "correctness_math_verify": [True],
            "correctness_count": 1,
            "messages": turn(f"p{n}", f"<think>hm</think> {n}"),
        }
        for n in range(3)
    ],
    "openthoughts": [
        {
            "system": "Your role as an assistant",
            "conversations": turn(f"p{n}", f"<|begin_of_thought|>{n}", role="from", content="value"),
        }
        for n in range(3)
    ],
    "metamathqa": [
        {
            "type": "MATH_AnsAug",
            "query": f"p{n}",
            "original_question": "p",
            "response": f"So it is.\nThe answer is: {n}",
        }
        for n in range(3)
    ],
    "ultrafeedback-binarized": [
        {
            "prompt": f"p{n}",
            "prompt_id": f"{n}",
            "chosen": turn(f"p{n}", "good"),
            "rejected": turn(f"p{n}", "bad"),
            "messages": turn(f"p{n}", "good"),
            "score_chosen": 9.0,
            "score_rejected": 2.0,
        }
        for n in range(3)
    ],
    "ultrafeedback-cleaned": [
        {
            "source": "evol_instruct",
            "prompt": f"p{n}",
            "chosen": turn(f"p{n}", "good"),
            "chosen-rating": 5.0,
            "chosen-model": "a",
            "rejected": turn(f"p{n}", "bad"),
            "rejected-rating": 1.0,
            "rejected-model": "b",
        }
        for n in range(3)
    ],
    "s1k": [
        {
            "solution": str(n),
            "question": f"p{n}",
            "cot_type": "math",
            "source_type": "AI-MO/NuminaMath-CoT/aops_forum",
            "metadata": "{}",
            "gemini_thinking_trajectory": "other",
            "gemini_attempt": "other",
            "deepseek_thinking_trajectory": "Let me see.\n",
            "deepseek_attempt": f"\\boxed{{{n}}}",
        }
        for n in range(3)
    ],
}
# (problem, solution, answer, source, negatives) of the second row, as the settings of the name should read it.
EXPECTED = {
    "numinamath-cot": ("What is 1 + 1?", "It is \\boxed{2}.", "2", "orca_math", ()),
    "math": ("p1", "\\boxed{1}", "1", "Algebra", ()),
    "math-lighteval": ("p1", "\\boxed{1}", "1", "Geometry", ()),
    "gsm8k": ("q1", "It is <<1=1>>1.\n#### 1", "1", None, ()),
    "openr1-math": ("p1", "<think>hm</think> 1", "1", "olympiads", ()),
    "openthoughts": ("p1", "<|begin_of_thought|>1", None, None, ()),
    "metamathqa": ("p1", "So it is.\nThe answer is: 1", "1", "MATH_AnsAug", ()),
    "ultrafeedback-binarized": ("p1", "good", None, None, ((0, "bad"),)),
    "ultrafeedback-cleaned": ("p1", "good", None, "evol_instruct", ((0, "bad"),)),
    "s1k": (
        "p1",
        "<think>\nLet me see.\n</think>\n\n\\boxed{1}",
        "1",
        "AI-MO/NuminaMath-CoT/aops_forum",
        (),
    ),
}


def publish(name: str, folder: Path, rows: list[dict[str, Any]], shards: int = 2) -> None:
    """Write rows as the hub holds the set: shards of parquet and a card that says which configuration is where."""
    source = SOURCES[name]
    folder.mkdir(parents=True)
    if name == "metamathqa":  # one JSON file and no configurations
        (folder / "MetaMathQA-395K.json").write_text(json.dumps(rows))
        (folder / "README.md").write_text("---\nlicense: mit\n---\n\nTexts.\n")
        return
    card = ["---", "configs:"]
    configs = source.configs or ("default",)
    for number, config in enumerate(configs):
        place = "data" if config == "default" else config
        card += [
            f"- config_name: {config}",
            "  data_files:",
            f"  - split: {source.split}",
            f"    path: {place}/{source.split}-*",
        ]
        (folder / place).mkdir()
        own = rows if len(configs) == 1 else [row for at, row in enumerate(rows) if at % len(configs) == number]
        count = min(shards, len(own))
        for shard in range(count):
            part = own[shard : shard + 1] if shard < count - 1 else own[shard:]
            table = pa.Table.from_pylist(part, schema=pa.Table.from_pylist(rows).schema)
            parquet.write_table(table, folder / place / f"{source.split}-{shard:05}-of-{count:05}.parquet")
    (folder / "README.md").write_text("\n".join([*card, "---", "", "Texts."]))


def settings(name: str, folder: Path, **keys: Any) -> DataConfig:
    return DataConfig.model_validate({"source": name, "data_dir": str(folder), "prepared": "prepared", **keys})


def examples_of(config: DataConfig) -> list[Any]:
    rows, config, _ = open_rows(config)
    return list(select_examples(rows, config, Ledger())[0])


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["its name", "its id", "the id without the owner"])
def test_every_known_set_is_read_from_a_local_copy_of_the_hub_by_its_name_alone(name, place, tmp_path):
    publish(name, tmp_path / SOURCES[name].local_names()[place], ROWS[name])
    found = examples_of(settings(name, tmp_path))
    assert len(found) == len(ROWS[name])
    second = found[1]
    assert (second.problem, second.solution, second.answer, second.source, second.negatives) == EXPECTED[name]


def test_the_seven_subjects_of_math_are_read_one_after_another_unless_one_is_chosen(tmp_path):
    rows = [{"problem": f"p{n}", "level": "Level 1", "type": f"t{n % 7}", "solution": "s"} for n in range(14)]
    publish("math", tmp_path / "math", rows, shards=1)
    found = [row["type"] for _, row in read_rows(settings("math", tmp_path))]
    assert found == [f"t{n}" for n in range(7) for _ in range(2)]
    chosen = settings("math", tmp_path, subset="geometry")
    assert [row["type"] for _, row in read_rows(chosen)] == ["t2", "t2"]


def test_what_a_name_stands_for_can_be_overridden_key_by_key(tmp_path):
    publish("numinamath-cot", tmp_path / "numinamath-cot", ROWS["numinamath-cot"])
    selected = settings("numinamath-cot", tmp_path, sources=["synthetic_amc", "synthetic_math"], limit=1)
    assert [row["source"] for _, row in read_rows(selected)] == ["synthetic_amc", "orca_math", "synthetic_math"]
    assert [example.source for example in examples_of(selected)] == ["synthetic_amc", "synthetic_math"]
    chat = settings("numinamath-cot", tmp_path, columns={"messages": "messages"})
    assert [row.keys() for _, row in read_rows(chat)] == [{"messages", "source"}] * 3
    publish("openr1-math", tmp_path / "openr1-math", ROWS["openr1-math"])
    human = settings("openr1-math", tmp_path, columns={"problem": "problem", "solution": "solution"})
    assert [example.solution for example in examples_of(human)] == ["short"] * 3
    pairs = settings("ultrafeedback-binarized", tmp_path, columns={"negatives": None}, split="test_prefs")
    assert (pairs.split, pairs.columns.negatives, pairs.columns.solution) == ("test_prefs", None, "chosen")


def test_another_set_under_a_known_name_is_refused_with_the_columns_found_and_published(tmp_path):
    publish("numinamath-cot", tmp_path / "numinamath-cot", ROWS["gsm8k"])
    with pytest.raises(
        ValueError,
        match=r"numinamath-cot: no column 'problem'; found: question, answer\. numinamath-cot "
        r"\(AI-MO/NuminaMath-CoT\) is published with the columns source, problem, solution, messages\.",
    ):
        examples_of(settings("numinamath-cot", tmp_path))
    publish("s1k", tmp_path / "s1k", [{"question": "q", "solution": "s", "source_type": "t"}] * 2)
    with pytest.raises(ValueError, match="no column 'thought_and_attempt'; found: question, solution, source_type"):
        examples_of(settings("s1k", tmp_path))


def test_a_folder_of_copies_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"data\.data_dir: there is no folder .*nowhere\. It should hold gsm8k/"):
        examples_of(settings("gsm8k", tmp_path / "nowhere"))


def test_without_copy_and_network_the_command_that_downloads_one_is_given(tmp_path):
    with pytest.raises(ValueError, match=r"--repo-type dataset openai/gsm8k --local-dir FOLDER/gsm8k.* data\.data_dir"):
        examples_of(settings("gsm8k", tmp_path))


def test_an_existing_path_of_a_known_name_is_read_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    publish("math-lighteval", Path("gsm8k"), ROWS["math-lighteval"])
    config = DataConfig(source="gsm8k", prepared=Path("prepared"))
    assert (config.columns.problem, config.subset) == ("problem", None)
    assert [example.answer for example in examples_of(config)] == ["0", "1", "2"]


def test_the_variable_of_local_copies_is_used_where_the_recipe_names_none(tmp_path, monkeypatch):
    publish("gsm8k", tmp_path / "gsm8k", ROWS["gsm8k"])
    monkeypatch.setenv("DFTUNE_DATA", str(tmp_path))
    assert len(examples_of(DataConfig.model_validate({"source": "gsm8k", "prepared": "prepared"}))) == 3


def test_every_known_set_is_described_and_in_the_documentation():
    page = DOCS.read_text(encoding="utf-8")
    for source in SOURCES.values():
        assert source.hub in describe_sources()
        assert f"| `{source.name}` | `{source.hub}`" in page
        assert set(ROWS[source.name][0]) >= set(source.published)


@pytest.mark.parametrize(
    ("row", "layout", "expected"),
    [
        ({"messages": turn("p", "s")}, "conversations", ("p", "s")),
        (
            {"conversations": turn("p", "s", role="from", content="value", names=("human", "gpt"))},
            "conversations",
            ("p", "s"),
        ),
        ({"prompt": "p", "completion": "s"}, "prompt and completion", ("p", "s")),
        ({"prompt": turn("p"), "completion": turn("", "s")[1:]}, "prompt and completion", ("p", "s")),
        ({"instruction": "p", "output": "s"}, "instruction and output", ("p", "s")),
        ({"instruction": "p", "input": "", "output": "s"}, "instruction, input, output", ("p", "s")),
        ({"instruction": "p", "input": "i", "output": "s"}, "instruction, input, output", ("p\n\ni", "s")),
        ({"prompt": "p", "chosen": "s", "rejected": "r"}, "prompt, chosen and rejected", ("p", "s")),
        ({"real": turn("p", "s"), "generated_0": turn("p", "r")}, "real and generated", ("p", "s")),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_common_layouts_are_recognised_by_their_columns_and_said(row, layout, expected, ending, tmp_path):
    path = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        path.write_text(json.dumps(row) + "\n")
    else:
        parquet.write_table(pa.Table.from_pylist([row]), path)
    rows, config, note = open_rows(DataConfig(source=str(path), prepared=Path("prepared")))
    assert note is not None
    assert note.startswith(f"recognised by its columns as {layout}: data.columns.")
    (example,), _ = select_examples(rows, config, Ledger())
    assert (example.problem, example.solution, example.negatives) == (*expected, ())


def test_negatives_named_by_hand_are_kept_where_the_layout_is_recognised(write_rows):
    path = write_rows([{"prompt": "p", "chosen": "s", "rejected": "r"}])
    config = DataConfig.model_validate(
        {"source": str(path), "columns": {"negatives": "rejected"}, "prepared": "prepared"}
    )
    (example,) = examples_of(config)
    assert (example.solution, example.negatives) == ("s", ((0, "r"),))


def test_columns_set_by_hand_are_never_guessed(write_rows):
    path = write_rows([{"prompt": "p", "completion": "s"}])
    config = DataConfig.model_validate({"source": str(path), "columns": {"problem": "prompt"}, "prepared": "prepared"})
    with pytest.raises(ValueError, match="no column 'solution'"):
        examples_of(config)


def test_a_name_with_dots_reaches_into_structures_and_what_is_missing_there_is_said(write_rows):
    rows = [{"extra": {"question": "q", "deep": {"answer": "a"}}}, {"extra": {"question": "q2"}}]
    keys = {"columns": {"problem": "extra.question", "solution": "extra.deep.answer"}, "prepared": "prepared"}
    config = DataConfig.model_validate({"source": str(write_rows(rows)), **keys})
    found = read_rows(config)
    assert next(found)[1]["extra.deep.answer"] == "a"
    with pytest.raises(ValueError, match=r"line 2: .*'extra\.deep\.answer' needs a structure with 'deep'"):
        next(found)
