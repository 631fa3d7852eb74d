import random
import unicodedata

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from dftune.data.prompts import FORMATS, get_format
from dftune.data.tokenizer import (
    BatchEncoder,
    blank_tokenizer,
    context_length,
    load_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
)
from dftune.train.config import ModelConfig, ScratchConfig

HARD_TEXTS = (
    "It costs $1,234.50!\n  #### 72",
    "don't WE'LL\n\n\tdo  it   \r\n now",
    "12345 x 678",
    "é à 漢字 ∑ 🙂",
    "\\boxed{\\frac{1}{2}}",
    " leading and trailing ",
)


@pytest.fixture(scope="module")
def texts(stories) -> list[str]:
    return [text for row in stories for text in (row["problem"] + "\n", row["solution"])]


@pytest.fixture(scope="module")
def trained(texts):
    return train_tokenizer(texts, 400)


def test_training_depends_on_the_texts_and_not_on_their_order(texts, trained):
    shuffled = random.Random(0).sample(texts, len(texts))
    assert tokenizer_fingerprint(train_tokenizer(shuffled, 400)) == tokenizer_fingerprint(trained)
    assert tokenizer_fingerprint(train_tokenizer(texts[:20], 400)) != tokenizer_fingerprint(trained)


def test_the_vocabulary_has_the_size_asked_for_and_begins_with_the_special_tokens(trained):
    assert len(trained) == 400
    assert (trained.eos_token, trained.eos_token_id) == ("<|endoftext|>", 0)
    assert (trained.pad_token, trained.pad_token_id) == ("<|pad|>", 1)
    assert trained.bos_token_id is None


def test_merges_make_the_text_shorter_and_digits_stay_single(texts, trained):
    assert len(trained(texts[0]).input_ids) < len(texts[0].encode()) / 2
    assert trained.convert_ids_to_tokens(trained("2024").input_ids) == ["2", "0", "2", "4"]


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_decoding_gives_the_text_back(text, trained):
    assert trained.decode(trained(text).input_ids) == unicodedata.normalize("NFC", text)


def test_the_untrained_tokenizer_makes_one_token_of_a_byte():
    tokenizer = blank_tokenizer()
    assert len(tokenizer) == 258
    for text in HARD_TEXTS:
        assert len(tokenizer(text).input_ids) == len(text.encode())


def test_saved_beside_a_qwen2_configuration_it_tokenises_as_before(tmp_path, trained, texts):
    # There AutoTokenizer ignores the rules in tokenizer.json and applies those of Qwen2.
    trained.save_pretrained(tmp_path)
    alone = AutoTokenizer.from_pretrained(tmp_path)
    Qwen2Config(vocab_size=400).save_pretrained(tmp_path)
    beside = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*texts, *HARD_TEXTS):
        assert beside(text).input_ids == alone(text).input_ids == trained(text).input_ids
    assert tokenizer_fingerprint(beside) == tokenizer_fingerprint(alone) == tokenizer_fingerprint(trained)


def test_the_fingerprint_survives_use_and_changes_with_a_token(trained, texts):
    before = tokenizer_fingerprint(trained)
    trained(texts[:3], padding=True, truncation=True, max_length=5)
    assert tokenizer_fingerprint(trained) == before
    larger = train_tokenizer(texts, 400)
    larger.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    assert tokenizer_fingerprint(larger) != before


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes with a beginning-of-sequence token put first, as Llama's tokenizers do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", ["chat", *FORMATS])
def test_a_batch_is_tokenised_as_its_rows_are_one_by_one(name, chat_model, stories):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    prompt_format = get_format(name, tokenizer)
    problems = [*(row["problem"] for row in stories[:5]), "say <|im_end|>"]
    solutions = [*(row["solution"] for row in stories[:4]), "done<|im_end|>", "done<|endoftext|>"]
    assert BatchEncoder(prompt_format, tokenizer).encode(problems, solutions) == [
        (prompt_format.encode_prompt(tokenizer, problem), prompt_format.encode_completion(tokenizer, solution))
        for problem, solution in zip(problems, solutions, strict=True)
    ]


def test_a_beginning_of_sequence_token_comes_once_and_only_before_the_prompt():
    tokenizer = bos_tokenizer()
    rows = BatchEncoder(FORMATS["plain"], tokenizer).encode(["ab", "<s>ab"], ["c", "d"])
    a, b, c, d, newline = (tokenizer.convert_tokens_to_ids(token) for token in ("a", "b", "c", "d", "Ċ"))
    assert rows == [([0, a, b, newline], [c, 1]), ([0, a, b, newline], [d, 1])]


def test_a_tokenizer_is_loaded_from_its_folder_with_the_context_of_the_model(byte_model):
    config = ModelConfig(path=str(byte_model))
    assert tokenizer_fingerprint(load_tokenizer(config)) == tokenizer_fingerprint(blank_tokenizer())
    assert context_length(config) == 512
    assert context_length(ModelConfig(scratch=ScratchConfig(max_position_embeddings=77))) == 77


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./no/such/model", r"model\.path: there is no folder \./no/such/model"),
        ("owner/no-such-model", r"cannot load 'owner/no-such-model'.*set model\.path to its folder"),
    ],
)
def test_a_missing_checkpoint_is_named_with_what_to_do(path, message):
    for load in (load_tokenizer, context_length):
        with pytest.raises(ValueError, match=message):
            load(ModelConfig(path=path))


def test_a_folder_without_a_checkpoint_says_what_it_must_hold(tmp_path):
    with pytest.raises(ValueError, match=r"must hold config\.json and tokenizer\.json"):
        load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_a_tokenizer_that_would_change_when_saved_with_the_model_is_refused(tmp_path, byte_model):
    words = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, " ": 2, "b": 3}, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.Split(" ", behavior="isolated")
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(tmp_path / "words")
    with pytest.raises(ValueError, match="saved with a qwen2 model, transformers reads the tokenizer"):
        load_tokenizer(ModelConfig(path=str(byte_model), tokenizer=str(tmp_path / "words")))


def test_the_tokenizer_of_another_folder_is_used_where_it_stays_the_same(tmp_path, chat_model, byte_model):
    tokenizer = load_tokenizer(ModelConfig(path=str(byte_model), tokenizer=str(chat_model)))
    assert "<|im_end|>" in tokenizer.get_vocab()
    LlamaConfig().save_pretrained(tmp_path)
    assert len(load_tokenizer(ModelConfig(path=str(tmp_path), tokenizer=str(byte_model)))) == 258
