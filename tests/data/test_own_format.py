"""Formats from files and recipes, few-shot prompts, and what manifests keep of them."""

import json

import pytest
import yaml

from dftune.config import RecipeError
from dftune.data.dataset import PreparedDataset
from dftune.data.own_format import FormatConfig, ShotsConfig, read_shots
from dftune.data.prepare import prepare
from dftune.data.prompts import FORMATS, PromptFormat, get_format, recorded_format

from .conftest import FIXTURES
from .test_format_families import BOXED
from .test_prompts import make_tokenizer

SHOTS = [("1 + 1?", "It is 2."), ("2 + 2?", "It is 4."), ("3 + 3?", "It is 6.")]
# Of the texts as they were when models were first trained with them: they change only with the meaning of a format.
FINGERPRINTS = {
    "plain": "67de5eb95a9345dd",
    "qwen-boxed": "14bdd53617f3f35f",
    "qwen25-math-cot": "8c91b0fa37e75430",
    "llama-base-boxed": "27628de254338e59",
    "deepseek-math": "b64c0dbebf1f2830",
    "cot": "165c036c161a7d0f",
    "metamath": "e75378132aa6d787",
    "numina": "d35422c6a3b56b9f",
    "r1-zero": "48734c11eeaf4fc7",
}


@pytest.fixture
def shots(tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text("".join(json.dumps({"question": q, "solution": a}) + "\n" for q, a in SHOTS))
    return path


@pytest.fixture
def write_format(tmp_path):
    def write(**keys):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(keys))
        return str(path)

    return write


def test_fingerprints_of_published_formats_are_pinned():
    assert {name: prompt_format.fingerprint for name, prompt_format in FORMATS.items()} == FINGERPRINTS


@pytest.mark.parametrize("key", ["template", "end_of_turn", "completion_prefix", "completion_suffix", "stop", "trim"])
def test_a_fingerprint_changes_with_everything_that_a_prompt_or_its_end_hangs_on(key):
    changed = {"template": "{problem}!", "end_of_turn": "</s>", "stop": ("x",), "trim": ("problem",)}
    keys = {"template": "{problem}", key: changed.get(key, "x")}
    assert PromptFormat("a", **keys).fingerprint != PromptFormat("a", "{problem}").fingerprint


@pytest.mark.parametrize("key", ["later_template", "separator", "shots", "source", "name"])
def test_a_fingerprint_stays_where_the_prompt_of_a_question_does(key):
    keys = {"name": "a", "template": "{problem}", key: "turns" if key == "shots" else "{problem}x"}
    assert PromptFormat(**keys).fingerprint == PromptFormat("a", "{problem}").fingerprint


def test_a_format_of_ones_own_is_read_from_a_file(write_format):
    path = write_format(
        template="<user>{problem}</user>",
        later_template="|<user>{problem}</user>",
        system_template="<sys>{system}</sys>",
        completion_prefix=" ",
        end_of_turn="<|im_end|>",
        stop=["\n\n"],
    )
    mine = get_format(path, make_tokenizer())
    assert (mine.name, mine.stop, mine.end_of_turn) == ("mine", ("\n\n",), "<|im_end|>")
    assert mine.render("Q") == "<user>Q</user>"
    assert mine.render_completion("A") == " A"


def test_a_format_may_start_from_a_named_one_and_have_a_system_message(write_format):
    tokenizer = make_tokenizer()
    mine = get_format(write_format(base="cot", stop=["\n"], name="short"), tokenizer)
    assert (mine.name, mine.stop, mine.render("Q")) == ("short", ("\n",), "Question: Q\nAnswer:")
    chat = get_format(FormatConfig(base="chat", system="Be brief."), tokenizer)
    assert chat.render("Q") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.fingerprint != get_format("chat", tokenizer).fingerprint
    own = FormatConfig(template="U:{problem}\nA:", system_template="S:{system}\n", system="Be brief.")
    assert get_format(own, tokenizer).render("Q") == "S:Be brief.\nU:Q\nA:"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tmplate": "{problem}"}, "tmplate: unknown key; did you mean template"),
        ({"template": "no slot"}, r"template must hold \{problem\} exactly once; found 'no slot'"),
        ({"template": "{problem}{problem}"}, "exactly once"),
        ({"template": "{problem}", "base": "cot"}, "give either template"),
        ({"stop": ["x"]}, "give either template"),
        ({"template": "{problem}", "stop": ["", "x"]}, "stop must not hold an empty string"),
        ({"template": "{problem}", "later_template": "x"}, "later_template must hold"),
        ({"base": "plain", "shots": {"file": "f", "num": 0}}, "shots.num: Input should be greater than or equal to 1"),
    ],
)
def test_what_is_wrong_with_a_format_file_is_named(keys, message, write_format):
    with pytest.raises(RecipeError, match=message) as caught:
        get_format(write_format(**keys), make_tokenizer())
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no/such.yaml", r"there is no prompt format file no/such\.yaml"),
        ("qwen-boxd", "did you mean qwen-boxed"),
        ("few-shot:cot:x.jsonl", "written few-shot:FORMAT:FILE:K"),
        ("few-shot:cot:x.jsonl:0", "with K at least 1"),
        ("few-shot:cot:no-such.jsonl:2", r"no file of examples no-such\.jsonl"),
        ("few-shot:ct:FILE:2", "unknown prompt format 'ct'; did you mean cot"),
        ("few-shot:cot:FILE:9", "holds 3 examples, and 9 are asked for"),
    ],
)
def test_what_is_wrong_with_a_name_is_told(spec, message, shots):
    with pytest.raises(ValueError, match=message):
        get_format(spec.replace("FILE", str(shots)), make_tokenizer())


def test_a_system_message_needs_a_place_and_a_chat_template_its_own_texts():
    with pytest.raises(ValueError, match="no place for a system message: it needs a system_template"):
        get_format(FormatConfig(base="plain", system="s"), make_tokenizer())
    with pytest.raises(ValueError, match="chat template decides completion_prefix"):
        get_format(FormatConfig(base="chat", completion_prefix=" "), make_tokenizer())


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (
            "cot",
            "Question: 1 + 1?\nAnswer: It is 2.\n\n\nQuestion: 2 + 2?\nAnswer: It is 4.\n\n\nQuestion: Q\nAnswer:",
        ),
        ("numina", "### Problem: 1 + 1?\n### Solution: It is 2.\n\n### Problem: 2 + 2?\n### Solution: It is 4.\n\n"
         "### Problem: Q\n### Solution:"),
        (
            "qwen25-math-cot",  # all within one user turn, as published
            f"<|im_start|>system\n{BOXED}<|im_end|>\n<|im_start|>user\n1 + 1?\nIt is 2.\n\n2 + 2?\nIt is 4.\n\nQ"
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "qwen-boxed",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n1 + 1?\n{BOXED}<|im_end|>\n<|im_start|>assistant\nIt is 2.<|im_end|>\n"
            f"<|im_start|>user\n2 + 2?\n{BOXED}<|im_end|>\n<|im_start|>assistant\nIt is 4.<|im_end|>\n"
            f"<|im_start|>user\nQ\n{BOXED}<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "chat",
            "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\nIt is 2.<|im_end|>\n"
            "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\nIt is 4.<|im_end|>\n"
            "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)  # fmt: skip
def test_a_few_shot_prompt_holds_the_first_examples_and_then_the_question(base, expected, shots):
    tokenizer = make_tokenizer()
    few = get_format(f"few-shot:{base}:{shots}:2", tokenizer)
    assert few.render("Q") == expected
    assert few.name == f"few-shot:{base}:{shots}:2"
    plain = get_format(base, tokenizer)
    assert (few.stop, few.end_of_turn, few.completion_prefix) == (
        plain.stop,
        plain.end_of_turn,
        plain.completion_prefix,
    )
    assert few.fingerprint not in (plain.fingerprint, get_format(f"few-shot:{base}:{shots}:3", tokenizer).fingerprint)


def test_examples_drawn_by_a_seed_are_the_same_in_any_order_of_the_file(shots):
    drawn = [read_shots(ShotsConfig(file=shots, num=2, seed=seed)) for seed in range(8)]
    assert all(set(rows) <= set(SHOTS) for rows in drawn)
    assert len({tuple(rows) for rows in drawn}) > 1
    lines = shots.read_text().splitlines(keepends=True)
    shots.write_text("".join(reversed(lines)))
    assert [read_shots(ShotsConfig(file=shots, num=2, seed=seed)) for seed in range(8)] == drawn


def test_a_row_of_examples_without_its_texts_is_named(shots):
    shots.write_text('{"question": "q", "answer": 5}\n')
    with pytest.raises(ValueError, match=r"shots\.jsonl, row 1: .* found the keys question, answer"):
        read_shots(ShotsConfig(file=shots, num=1))
    shots.write_text('{"question": "{problem}", "answer": "a"}\n')
    with pytest.raises(ValueError, match="marks the place of the question"):
        get_format(f"few-shot:cot:{shots}:1", make_tokenizer())


def test_a_file_of_examples_is_looked_for_beside_the_format_file(shots, write_format):
    few = get_format(write_format(base="cot", shots={"file": "shots.jsonl", "num": 1}), make_tokenizer())
    assert few.render("Q").startswith("Question: 1 + 1?\n")


@pytest.mark.parametrize("base", ["cot", "chat", "qwen-boxed"])
def test_a_recorded_format_is_the_format_whatever_becomes_of_its_file(base, shots):
    tokenizer = make_tokenizer()
    few = get_format(f"few-shot:{base}:{shots}:2", tokenizer)
    record = json.loads(json.dumps(few.record()))
    shots.unlink()
    again = recorded_format(record, tokenizer)
    assert again.fingerprint == few.fingerprint
    assert again.render("Q") == few.render("Q")
    assert again.encode_completion(tokenizer, "A") == few.encode_completion(tokenizer, "A")
    assert again.conversation_fingerprint(tokenizer) == few.conversation_fingerprint(tokenizer)
    record["definition"]["template"] += "x"
    with pytest.raises(ValueError, match=r"the manifest's prompt format .* was changed"):
        recorded_format(record, tokenizer)


def test_a_record_without_its_definition_names_a_format():
    assert recorded_format({"name": "cot", "fingerprint": "?"}, None) is FORMATS["cot"]
    assert recorded_format(FORMATS["cot"].record(), None) is FORMATS["cot"]


@pytest.mark.parametrize("template", [True, False])
def test_the_exported_template_renders_system_messages_examples_and_later_questions(template, shots):
    tokenizer = make_tokenizer()
    config = {"shots": {"file": str(shots), "num": 1}, "system": "Be brief."}
    if template:
        texts = {
            "template": "U:{problem}\nA:",
            "later_template": "\nU:{problem}\nA:",
            "system_template": "S:{system}\n",
        }
        config |= {**texts, "end_of_turn": "<|im_end|>"}
    else:
        config |= {"base": "chat"}
    mine = get_format(FormatConfig(**config), tokenizer)
    tokenizer.chat_template = mine.chat_template(tokenizer)
    question = [{"role": "user", "content": "Q"}]
    assert tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True) == mine.render("Q")
    later = [*question, {"role": "assistant", "content": "A"}, {"role": "user", "content": "Q2"}]
    rendered = tokenizer.apply_chat_template(later, tokenize=False, add_generation_prompt=True)
    assert rendered.startswith(mine.render("Q") + "A<|im_end|>")
    end = "\nU:Q2\nA:" if template else "\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n"
    assert rendered == mine.render("Q") + "A<|im_end|>" + end


def test_a_recipe_may_hold_the_format_and_names_what_is_wrong_with_it(make_recipe, byte_model):
    prompt_format = {"name": "mine", "template": "P: {problem}\nS:", "completion_prefix": " ", "stop": ["\nP:"]}
    recipe = make_recipe(FIXTURES / "stories.jsonl", byte_model, prompt_format=prompt_format)
    manifest = prepare(recipe)
    assert manifest["prompt_format"]["name"] == "mine"
    assert manifest["settings"]["prompt_format"]["template"] == "P: {problem}\nS:"
    dataset = PreparedDataset.load(recipe.data.prepared)
    dataset.check_matches(recipe)
    other = make_recipe(FIXTURES / "stories.jsonl", byte_model, prompt_format={**prompt_format, "stop": ["x"]})
    with pytest.raises(ValueError, match=r"data\.prompt_format\.stop: prepared with \['\\nP:'\], the recipe has"):
        dataset.check_matches(other)
    with pytest.raises(RecipeError, match=r"data\.prompt_format: .*tmplate: unknown key"):
        make_recipe("x.jsonl", byte_model, prompt_format={"tmplate": "{problem}"})


def test_a_changed_format_file_prepares_anew_only_with_force(make_recipe, byte_model, write_format):
    recipe = make_recipe(FIXTURES / "stories.jsonl", byte_model, prompt_format=write_format(template="P:{problem}\n"))
    first = prepare(recipe)
    assert prepare(recipe) == first
    write_format(template="Q:{problem}\n")
    with pytest.raises(ValueError, match="--force"):
        prepare(recipe)
    assert prepare(recipe, force=True)["prompt_format"]["fingerprint"] != first["prompt_format"]["fingerprint"]
