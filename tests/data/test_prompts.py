"""Prompt formats: the same text in training and evaluation, one end token, no doubled beginning."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dftune.data.prompts import FORMATS, PromptFormat, get_format

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(*, bos: bool = False, template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level, without merges: every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|end_of_text|>"]
    backend.add_special_tokens(special)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        additional_special_tokens=special[2:],
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", [*FORMATS, "chat"])
def test_prompt_and_completion_decode_to_what_was_rendered(name):
    tokenizer = make_tokenizer()
    prompt_format = get_format(name, tokenizer)
    prompt = prompt_format.encode_prompt(tokenizer, "What is 1 + 1?")
    completion = prompt_format.encode_completion(tokenizer, "It is 2.")
    assert tokenizer.decode(prompt) == prompt_format.render("What is 1 + 1?")
    assert "What is 1 + 1?" in tokenizer.decode(prompt)
    assert tokenizer.decode(completion[:-1]) == prompt_format.completion_prefix + "It is 2."
    assert completion.count(prompt_format.end_token_id(tokenizer)) == 1


@pytest.mark.parametrize("name", [*FORMATS, "chat"])
def test_the_exported_chat_template_renders_the_format(name):
    tokenizer = make_tokenizer(bos=True)
    prompt_format = get_format(name, tokenizer)
    if name != "chat":
        tokenizer.chat_template = prompt_format.chat_template(tokenizer)
    problem = 'Quotes " and \\boxed{x} and {braces}\nand a line'
    messages = [{"role": "user", "content": problem}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    expected = prompt_format.encode_prompt(tokenizer, problem)
    assert ids == (expected if name != "chat" else expected[1:])  # this chat template leaves <s> to the tokenizer


def test_an_exported_template_refuses_roles_that_the_format_does_not_have():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = get_format("plain", tokenizer).chat_template(tokenizer)
    with pytest.raises(Exception, match="prompt format plain, which has no system message"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_chat_ends_with_the_token_that_the_template_ends_turns_with():
    tokenizer = make_tokenizer()
    chat = get_format("chat", tokenizer)
    assert chat.end_token_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.render("Q") == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("template_writes_it", [False, True])
def test_the_beginning_of_sequence_token_comes_once(template_writes_it):
    tokenizer = make_tokenizer(bos=True, template=("{{ bos_token }}" if template_writes_it else "") + CHATML)
    ids = get_format("chat", tokenizer).encode_prompt(tokenizer, "Q")
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_a_solution_that_already_ends_its_turn_is_not_ended_twice():
    tokenizer = make_tokenizer()
    plain = get_format("plain", tokenizer)
    assert plain.encode_completion(tokenizer, "x<|endoftext|>") == plain.encode_completion(tokenizer, "x")


def test_texts_are_as_published():
    assert FORMATS["qwen-boxed"].render("Q") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nQ\nPlease reason step by step, "
        "and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert FORMATS["r1-zero"].render("Q").endswith("<answer> answer here </answer>.\nUser: Q\nAssistant: <think>")
    assert "\r" not in json.dumps([prompt_format.template for prompt_format in FORMATS.values()])


def test_a_format_that_the_tokenizer_cannot_end_is_refused():
    tokenizer = make_tokenizer()
    alien = PromptFormat("alien", "{problem}", "<|eot_id|>")
    with pytest.raises(ValueError, match=r"'alien' ends completions with '<.eot_id.>', which this tokenizer"):
        alien.end_token_id(tokenizer)


def test_chat_needs_a_chat_template_and_unknown_names_point_to_the_nearest():
    with pytest.raises(ValueError, match="this tokenizer has none"):
        get_format("chat", make_tokenizer(template=None))
    with pytest.raises(ValueError, match="did you mean qwen-boxed"):
        get_format("qwen_boxed", make_tokenizer())


def test_the_fingerprint_changes_with_the_text_and_not_with_the_name():
    one, two = PromptFormat("a", "{problem}\n"), PromptFormat("b", "{problem}\n")
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != PromptFormat("a", "{problem}").fingerprint
    assert one.fingerprint != PromptFormat("a", "{problem}\n", stop=("x",)).fingerprint
