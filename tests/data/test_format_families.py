"""Every format times every tokenizer family: text to the letter, masks to the token."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dftune.data.messages import Message
from dftune.data.prompts import FORMATS, get_format
from dftune.data.tokenizer import BatchEncoder
from dftune.data.tokens import TextEncoder

from .families import FAMILIES, HEADERS, SPACED_AFTER_SPECIAL, SPACED_AT_START, sentencepiece_model

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
# Written out a second time, so that a slip in the package shows.
PUBLISHED = {
    "plain": "Q\n",
    "qwen-boxed": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nQ\n"
        + BOXED
        + "<|im_end|>\n<|im_start|>assistant\n"
    ),
    "qwen25-math-cot": (
        f"<|im_start|>system\n{BOXED}<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama-base-boxed": (
        "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant.<|end_of_text|>\n"
        f"<|start_header_id|>user<|end_header_id|>\n\nQ\n{BOXED}<|end_of_text|>\n"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "deepseek-math": f"User: Q\n{BOXED}\n\nAssistant:",
    "cot": "Question: Q\nAnswer:",
    "metamath": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nQ\n\n### Response:\n"
    ),
    "numina": "### Problem: Q\n### Solution:",
    "r1-zero": (
        "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The "
        "Assistant first thinks about the reasoning process in the mind and then provides the User with the answer. "
        "The reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> "
        "tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>.\n"
        "User: Q\nAssistant: <think>"
    ),
    "chat": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
}
SOLUTIONS = ("It is \\boxed{2}.", " It", "\n\nThe end.\n", "2", "é漢🙂", "...", "a  b ", "\tx")


@pytest.fixture(scope="module")
def tokenizers():
    made = {name: make() for name, make in FAMILIES.items()}
    for tokenizer in made.values():
        tokenizer.chat_template = CHATML
    return made


def as_its_servers_read(family: str, text: str) -> str:
    """The text with the spaces that a family's tokenizer adds to any prompt."""
    if family in SPACED_AFTER_SPECIAL:
        marks = "|".join(map(re.escape, HEADERS))
        text = re.sub(f"({marks})(?!{marks}| )(?=.)", r"\1 ", text, flags=re.DOTALL)
    return " " + text if family in SPACED_AT_START and not text.startswith(tuple(HEADERS)) else text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_prompt_decodes_to_the_published_text_and_begins_at_most_once(name, family, tokenizers):
    tokenizer = tokenizers[family]
    ids = get_format(name, tokenizer).encode_prompt(tokenizer, "Q")
    bos = tokenizer.bos_token_id
    if tokenizer("Q").input_ids[:1] == [bos]:
        assert ids[0] == bos
        ids = ids[1:]
    assert bos is None or bos not in ids
    assert ids == tokenizer(PUBLISHED[name], add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == as_its_servers_read(family, PUBLISHED[name])


def test_every_format_has_its_published_text_here():
    assert {*FORMATS, "chat"} == set(PUBLISHED)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_mask_covers_the_completion_and_one_end_token_and_nothing_else(name, family, tokenizers):
    tokenizer = tokenizers[family]
    prompt_format = get_format(name, tokenizer)
    encoder = BatchEncoder(prompt_format, tokenizer)
    end = {"<|im_end|>": "<|im_end|>", "<|end_of_text|>": "<|end_of_text|>", None: tokenizer.eos_token}
    conversations = [[Message("user", "Q"), Message("assistant", solution)] for solution in SOLUTIONS]
    for solution, row in zip(SOLUTIONS, encoder.rows(conversations, "all"), strict=True):
        ((start, stop),) = row.spans
        assert stop == len(row.ids)
        assert row.ids[:start] == prompt_format.encode_prompt(tokenizer, "Q")
        assert row.ids[start:] == prompt_format.encode_completion(tokenizer, solution)
        assert row.ids[-1] == tokenizer.convert_tokens_to_ids(end[prompt_format.end_of_turn])
        assert row.ids[start:].count(row.ids[-1]) == 1
        before, whole = tokenizer.decode(row.ids[:start]), tokenizer.decode(row.ids[: stop - 1])
        space = " " if name in ("cot", "deepseek-math", "numina", "r1-zero") else ""
        assert whole == before + space + solution


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_is_encoded_part_by_part_and_every_answer_ends_once(family, tokenizers):
    tokenizer = tokenizers[family]
    encoder = BatchEncoder(get_format("chat", tokenizer), tokenizer)
    said = ["Be brief.", "What is 1 + 1?", "It is 2.", "And\n", "4", "?", " 8 "]
    roles = ["system", *["user", "assistant"] * 3]
    (row,) = encoder.rows([[Message(*pair) for pair in zip(roles, said, strict=True)]], "all")
    texts, place = [], 0
    for start, stop in row.spans:
        for part in (row.ids[place:start], row.ids[start : stop - 1]):
            before = tokenizer.decode(row.ids[:place])
            texts.append(tokenizer.decode(row.ids[:place] + part).removeprefix(before))
            place += len(part)
        assert tokenizer.convert_ids_to_tokens(row.ids[stop - 1]) == "<|im_end|>"
        place = stop
    assert texts[1::2] == ["It is 2.", "4", " 8 "]
    if family not in SPACED_AFTER_SPECIAL:
        begins = tokenizer.bos_token if tokenizer("Q").input_ids[:1] == [tokenizer.bos_token_id] else ""
        assert texts[0] == (
            f"{begins}<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        assert texts[2] == "\n<|im_start|>user\nAnd\n<|im_end|>\n<|im_start|>assistant\n"
    assert row.ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 7
    assert tokenizer.bos_token_id is None or row.ids.count(tokenizer.bos_token_id) <= 1


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="▁\x00<"), max_size=30)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "qwen2"])  # that one normalises to NFC
@settings(max_examples=40, deadline=None)
@given(first=TEXT, second=TEXT)
@example(first="Answer:", second=" 4")
@example(first="Answer:", second="4")
@example(first="a", second="\n\n\nb")
@example(first="", second="")
def test_parts_put_end_to_end_are_the_text_again(family, first, second):
    tokenizer = _made(family)
    encoder = TextEncoder(tokenizer)
    (lead,) = encoder.beginnings([first])
    (ids,) = encoder.continuations([second])
    lead = lead or tokenizer("Q").input_ids
    assert tokenizer.decode(lead + ids) == tokenizer.decode(lead) + second


@given(TEXT)
@settings(max_examples=60, deadline=None)
def test_a_continuation_has_the_tokens_that_sentencepiece_gives_within_a_text(text):
    library = sentencepiece_model()
    line_break = library.encode("\n")
    (ids,) = TextEncoder(_made("sentencepiece")).continuations([text])
    assert ids == library.encode("\n" + text)[len(line_break) :]


_MADE = {}


def _made(family):
    if family not in _MADE:
        _MADE[family] = FAMILIES[family]()
    return _MADE[family]


@pytest.mark.parametrize("family", ["metaspace-always", "metaspace-first", "llama-class", "byte-level-prefix-space"])
def test_a_completion_gets_no_space_that_nobody_wrote(family, tokenizers):
    tokenizer = tokenizers[family]
    naive = tokenizer("2", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(naive)[0][0] in "▁Ġ"  # what encoding it apart would do
    ids = get_format("plain", tokenizer).encode_completion(tokenizer, "2")
    assert tokenizer.convert_ids_to_tokens(ids) == ["2", "</s>"]
    spaced = get_format("cot", tokenizer).encode_completion(tokenizer, "2")
    assert "".join(tokenizer.convert_ids_to_tokens(spaced)) in ("▁2</s>", "Ġ2</s>")
