"""Finding a prompt format: by name, in a file, in a recipe, or as a manifest recorded it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dftune.data.chat_format import chat_format
from dftune.data.own_format import FormatConfig, build_format, read_few_shot, read_format
from dftune.data.prompt_format import PromptFormat
from dftune.data.published import FORMATS

__all__ = ["FEW_SHOT", "FORMATS", "PromptFormat", "format_name", "get_format", "recorded_format"]

FEW_SHOT = "few-shot:"


def get_format(spec: str | FormatConfig, tokenizer: Any) -> PromptFormat:
    """A prompt format.

    Args:
        spec: a name; ``chat``, which is read off the tokenizer's own chat template; ``path/to/format.yaml``;
            ``few-shot:FORMAT:FILE:K``; or the keys of a format.
        tokenizer: for ``chat``, and for the end token of examples that stand as turns.

    Raises:
        ValueError: unknown name, a format that cannot be read, or ``chat`` with a tokenizer that has no chat template.
    """
    if isinstance(spec, FormatConfig):
        base = None if spec.base is None else get_format(spec.base, tokenizer)
        return build_format(spec, base, tokenizer)
    if spec == "chat":
        return chat_format(tokenizer)
    if spec in FORMATS:
        return FORMATS[spec]
    if spec.startswith(FEW_SHOT):
        return get_format(read_few_shot(spec), tokenizer)
    if spec.endswith((".yaml", ".yml")):
        return get_format(read_format(Path(spec).expanduser()), tokenizer)
    near = difflib.get_close_matches(spec, [*FORMATS, "chat"], n=1)
    hint = (
        f"did you mean {near[0]}?"
        if near
        else f"known: {', '.join(FORMATS)}, chat, few-shot:FORMAT:FILE:K, path/to/format.yaml."
    )
    raise ValueError(f"unknown prompt format {spec!r}; {hint}")


def recorded_format(record: Mapping[str, Any], tokenizer: Any) -> PromptFormat:
    """The format of a manifest: as it was defined then, whatever has become of a file that it came from.

    A manifest without the definition names a format; what that stands for now may differ.
    """
    if "definition" not in record:
        return get_format(record["name"], tokenizer)
    known = FORMATS.get(record["name"])
    if known is not None and known.fingerprint == record["fingerprint"]:
        return known
    return PromptFormat.from_record(record)


def format_name(spec: str | FormatConfig) -> str:
    """What a format is called in a sentence."""
    return spec if isinstance(spec, str) else spec.name
