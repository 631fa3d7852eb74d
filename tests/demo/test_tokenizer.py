"""The tokenizer as a user meets it: in the folder of a Qwen2 model, loaded by ``AutoTokenizer``."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config

from dftune.demo.problems import base_documents, corrupt, generate, restyle
from dftune.demo.tokenizer import build_tokenizer

PRINTABLE_ASCII = "".join(map(chr, range(32, 127)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    build_tokenizer().save_pretrained(path)
    Qwen2Config().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    [
        "7*6=42, 42-15=27. \\boxed{27}",
        "<<7*6=42>> <<42-15=27>> \\boxed{27}",
        "  two  spaces,   three: a newline\n\n and one before a full stop . don 't \n",
        "\n",
        " ",
        PRINTABLE_ASCII + "\n" + PRINTABLE_ASCII[::-1],
    ],
)
def test_a_text_is_one_token_a_character_and_is_decoded_with_every_space(loaded, text):
    ids = loaded.encode(text)
    assert len(ids) == len(text)
    assert loaded.decode(ids) == text


def test_a_character_outside_ascii_is_spelled_in_bytes_and_survives(loaded):
    assert len(loaded.encode("3 € é")) == len("3 € é".encode())
    assert loaded.decode(loaded.encode("3 € é")) == "3 € é"


def test_every_problem_and_solution_of_the_demo_survives_the_round_trip(loaded):
    problems = generate(30, seed=3, split="test")
    for row in [*problems, *restyle(problems), *corrupt(problems, share=1.0, seed=0), *base_documents(30, seed=3)]:
        text = f"{row.problem}\n{row.solution}"
        assert loaded.decode(loaded.encode(text)) == text
        assert len(loaded.encode(text)) == len(text)


def test_the_vocabulary_is_256_bytes_and_two_special_tokens(loaded):
    assert sorted(loaded.get_vocab().values()) == list(range(256 + 2))
    assert loaded.convert_ids_to_tokens([0, 1]) == [loaded.eos_token, loaded.pad_token] == ["<|endoftext|>", "<|pad|>"]


def test_the_end_of_turn_token_is_one_token_and_nothing_is_added_around_a_text(loaded):
    assert loaded.encode("a<|endoftext|>") == [*loaded.encode("a"), loaded.eos_token_id]
    assert loaded.encode("") == []
    assert loaded.decode(loaded.encode("a<|endoftext|>"), skip_special_tokens=True) == "a"


def test_other_loaders_read_the_same_tokens(folder, loaded):
    """Serving engines read ``tokenizer.json`` itself; transformers rebuilds the rules from the model's type."""
    text = "Tom has 7 boxes of 6 pens.\n7*6=42. \\boxed{42}"
    assert PreTrainedTokenizerFast.from_pretrained(folder).encode(text) == loaded.encode(text)
    assert build_tokenizer().encode(text) == loaded.encode(text)
