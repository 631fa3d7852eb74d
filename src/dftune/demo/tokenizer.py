"""The demo's tokenizer: one token a character, so that every digit of a number is a token of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer


def build_tokenizer() -> Qwen2Tokenizer:
    """Make the tokenizer: the 256 bytes, ``<|endoftext|>`` (id 0, ends a completion) and ``<|pad|>`` (id 1).

    It is a Qwen2 tokenizer without merges. Any text, spaces and newlines included, is decoded exactly as it was, and
    nothing is added at its start or end. A tokenizer with other rules would not do: beside the configuration of a Qwen2
    model ``AutoTokenizer`` puts Qwen2's rules in place of those in the tokenizer's file, and a word-level vocabulary
    loses its spaces without a warning.
    """
    from dftune.data.tokenizer import blank_tokenizer  # noqa: PLC0415

    return blank_tokenizer()
