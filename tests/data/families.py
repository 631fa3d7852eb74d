"""Small tokenizers of the families in use, trained on a few sentences."""

import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from dftune.data.tokenizer import train_tokenizer

HEADERS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"]
TEXTS = [
    "What is 1 + 1? It is 2.\nSo the answer is \\boxed{2}. Question: Answer: User: Assistant: assistant\n\n",
    "The quick brown fox jumps over the lazy dog.\n\nThe end is here, the answer is there. ### Response:\n It is.",
] * 8
_BYTES = [f"<0x{value:02X}>" for value in range(256)]


def _finished(backend: Tokenizer, *, bos: bool) -> PreTrainedTokenizerFast:
    backend.add_special_tokens(["<s>", "</s>", *HEADERS])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            "<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=HEADERS,
        clean_up_tokenization_spaces=False,
    )


def qwen2() -> Qwen2Tokenizer:
    """Byte-level BPE as Qwen2 has it, without a beginning-of-sequence token."""
    tokenizer = train_tokenizer(TEXTS, 330)
    tokenizer.add_special_tokens({"additional_special_tokens": HEADERS})
    return tokenizer


def byte_level(*, bos: bool = False, add_prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2 and Llama 3 have it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    return _finished(backend, bos=bos)


def metaspace(scheme: str, *, unigram: bool = False, bos: bool = True) -> PreTrainedTokenizerFast:
    """SentencePiece's BPE or Unigram with byte fallback; ``legacy`` puts a space behind special tokens too."""
    special = ["<unk>", "<s>", "</s>", *HEADERS, *_BYTES]
    trainer: trainers.Trainer
    if unigram:
        backend = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=340, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False)
    if scheme == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=unigram)
    backend.train_from_iterator([text.replace("\n", " ") for text in TEXTS], trainer)
    rules = json.loads(backend.to_str())
    rules["model"]["byte_fallback"] = True
    rules["added_tokens"] = [token for token in rules["added_tokens"] if token["content"] not in _BYTES]
    backend = Tokenizer.from_str(json.dumps(rules))
    strip = [decoders.Strip(" ", 1, 0)] if scheme != "never" else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return _finished(backend, bos=bos)


def llama() -> LlamaTokenizer:
    """The class that transformers loads Llama 2's tokenizer with."""
    rules = json.loads(metaspace("first").backend_tokenizer.to_str())["model"]
    tokenizer = LlamaTokenizer(vocab=rules["vocab"], merges=[tuple(merge) for merge in rules["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": HEADERS})
    return tokenizer


@cache
def sentencepiece_model() -> SentencePieceProcessor:
    """A model trained by the sentencepiece library itself: BPE, byte fallback, a space before every text."""
    trained = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([text.replace("\n", " ") for text in TEXTS]),
        model_writer=trained,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return SentencePieceProcessor(model_proto=trained.getvalue())


def sentencepiece() -> LlamaTokenizer:
    """That model as transformers loads it from a checkpoint folder of Llama 2."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "legacy": False}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(sentencepiece_model().serialized_model_proto())
        (Path(folder) / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "LlamaTokenizer", **special})
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": HEADERS})
    return tokenizer


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "qwen2": qwen2,
    "byte-level": byte_level,
    "byte-level-bos": lambda: byte_level(bos=True),
    "byte-level-prefix-space": lambda: byte_level(add_prefix_space=True),
    "llama-class": llama,
    "metaspace-first": lambda: metaspace("first"),
    "metaspace-never": lambda: metaspace("never"),
    "metaspace-always": lambda: metaspace("always"),
    "metaspace-legacy": lambda: metaspace("legacy", bos=False),
    "sentencepiece": sentencepiece,
    "unigram": lambda: metaspace("first", unigram=True),
    "unigram-no-bos": lambda: metaspace("always", unigram=True, bos=False),
}
SPACED_AT_START = {"byte-level-prefix-space"}
"""Their decoder leaves the space that they put at the start of a text."""
SPACED_AFTER_SPECIAL = {"byte-level-prefix-space", "metaspace-always", "metaspace-legacy", "unigram-no-bos"}
"""They put a space behind special tokens in a prompt, as their servers do."""
