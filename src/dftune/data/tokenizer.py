"""The tokenizer of a recipe: loaded with a checkpoint, or trained for a new model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from dftune.data.conversations import Row, Turns, encode_turns, split_turns
from dftune.data.hub import from_pretrained
from dftune.data.messages import Message
from dftune.data.prompt_format import PromptFormat, ended
from dftune.data.tokens import TextEncoder, adds_bos
from dftune.files import canonical_json, fingerprint
from dftune.train.config import ModelConfig

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"


def load_tokenizer(model: ModelConfig) -> Any:
    """The tokenizer of a checkpoint (``model.tokenizer``, else ``model.path``).

    Raises:
        ValueError: it cannot be loaded, or would change when saved with the model; the message says what to do.
    """
    from transformers import AutoConfig, AutoTokenizer  # noqa: PLC0415

    assert model.path is not None, "a new model has no tokenizer to load"
    if model.tokenizer is None:
        return from_pretrained(AutoTokenizer, model.path, model.revision, "model.path")
    tokenizer = from_pretrained(AutoTokenizer, model.tokenizer, None, "model.tokenizer")
    # Beside the configuration of some models (Qwen2 among them) AutoTokenizer replaces a tokenizer's rules by its own.
    config = from_pretrained(AutoConfig, model.path, model.revision, "model.path")
    beside = from_pretrained(AutoTokenizer, model.tokenizer, None, "model.tokenizer", config=config)
    if tokenizer_fingerprint(beside) != tokenizer_fingerprint(tokenizer):
        raise ValueError(
            f"model.tokenizer: saved with a {config.model_type} model, transformers reads the tokenizer of "
            f"{model.tokenizer} by the rules of {type(beside).__name__}, and texts get other tokens than in training. "
            "Leave model.tokenizer out to use the model's own, or give one of that class."
        )
    return tokenizer


def context_length(model: ModelConfig) -> int | None:
    """The longest context of a model in tokens, or None where its configuration does not say.

    Raises:
        ValueError: the checkpoint's configuration cannot be loaded.
    """
    if model.scratch is not None:
        return model.scratch.max_position_embeddings
    from transformers import AutoConfig  # noqa: PLC0415

    assert model.path is not None
    config = from_pretrained(AutoConfig, model.path, model.revision, "model.path")
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length is not None else None


def blank_tokenizer() -> Any:
    """The tokenizer of a new model before training: bytes and special tokens, no merges."""
    return train_tokenizer([], 0)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a byte-level BPE tokenizer; the result depends on the texts alone, not on their order.

    It normalises and splits as Qwen2's does (single digits among them). It has to: beside the configuration of a
    Qwen2 model, ``AutoTokenizer`` puts Qwen2's rules in place of whatever the tokenizer's own file says.

    Args:
        texts: what to learn merges from.
        vocab_size: most tokens, the 256 bytes and two special tokens included. Merges seen once are not made, so a
            small text gives fewer.
    """
    from tokenizers import pre_tokenizers, trainers  # noqa: PLC0415
    from transformers import Qwen2Tokenizer  # noqa: PLC0415

    special = {"eos_token": END_OF_TEXT, "pad_token": PAD, "unk_token": END_OF_TEXT}
    raw = Qwen2Tokenizer(**special).backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    learned = json.loads(raw.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    return Qwen2Tokenizer(vocab=learned["vocab"], merges=merges, **special)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of the serialised tokenizer, 16 hex digits: vocabulary, rules and the roles of special tokens.

    The chat template is left out; the fingerprint of the prompt format covers what is used of it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        for state in ("truncation", "padding"):  # left behind by the last call, no part of the tokenizer
            rules.pop(state, None)
    else:
        rules = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    roles = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")}
    return fingerprint(canonical_json(rules), roles, adds_bos(tokenizer))


class BatchEncoder:
    """``PromptFormat.encode_prompt`` and ``encode_completion`` for many rows at once."""

    def __init__(self, prompt_format: PromptFormat, tokenizer: Any) -> None:
        self._format = prompt_format
        self._tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer)
        self.end = prompt_format.end_token_id(tokenizer)

    def encode(self, problems: Sequence[str], solutions: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Token ids of prompt and completion of every row, the completion with its end token."""
        prompts = self._encoder.beginnings([self._format.render(problem) for problem in problems])
        completions = self.completions(solutions)
        return list(zip(prompts, completions, strict=True))

    def completions(self, solutions: Sequence[str]) -> list[list[int]]:
        """Token ids of every completion, with its end token."""
        texts = [self._format.render_completion(solution) for solution in solutions]
        return [ended(ids, self.end) for ids in self._encoder.continuations(texts)]

    def rows(self, conversations: Sequence[Sequence[Message]], turns: Turns) -> list[Row]:
        """Token ids of conversations and where the completions in them lie.

        Raises:
            ValueError: the format cannot render a conversation.
        """
        parts = [split_turns(self._format, self._tokenizer, messages, turns) for messages in conversations]
        return encode_turns(parts, self._encoder, self.end)
