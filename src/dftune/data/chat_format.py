"""The tokenizer's own chat template, read as a prompt format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dftune.data.messages import Message, as_dicts
from dftune.data.prompt_format import SLOT, PromptFormat
from dftune.data.tokens import adds_bos

_PROBLEM, _ANSWER = "\ue000problem\ue000", "\ue000answer\ue000"


def chat_format(tokenizer: Any, preamble: Sequence[Message] = ()) -> PromptFormat:
    """The prompt format that a tokenizer's chat template stands for.

    The prompt is what the template renders for one user turn with its generation prompt; the completion is what it
    renders beyond that with the assistant's turn added, up to the special token that ends it. Of a template that has
    no generation prompt, the header of the assistant's turn belongs to the prompt.

    Args:
        tokenizer: with a chat template.
        preamble: messages before every question: a system message, examples as turns.

    Raises:
        ValueError: there is no chat template, or it cannot be read in this way.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "prompt format 'chat' uses the tokenizer's chat template, and this tokenizer has none. "
            "Choose another prompt format; `dftune formats` lists them."
        )
    prompt = prompt_text(tokenizer, [*preamble, Message("user", _PROBLEM)])
    whole = _whole(tokenizer, preamble, _PROBLEM, _ANSWER)
    before, _, tail = whole.partition(_ANSWER)
    suffix, end = _end(tokenizer, tail)
    if prompt.count(_PROBLEM) != 1 or end is None:
        raise ValueError(
            "the tokenizer's chat template does not render a user turn and end the assistant's with a special token; "
            f"it rendered {whole!r}. Choose another prompt format; `dftune formats` lists them."
        )
    spaced = _whole(tokenizer, preamble, f"\t{_PROBLEM}\t", f"\t{_ANSWER}\t")
    sides = {"problem": _PROBLEM, "solution": _ANSWER}
    return PromptFormat(
        "chat",
        prompt.replace(_PROBLEM, SLOT),
        end,
        completion_prefix=before.removeprefix(prompt) if before.startswith(prompt) else "",
        completion_suffix=suffix,
        trim=tuple(side for side, mark in sides.items() if f"\t{mark}\t" not in spaced),
        uses_chat_template=True,
        preamble=tuple(preamble),
        shots="turns",
        source="the tokenizer",
    )


def prompt_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """What the chat template renders before an assistant's answer.

    A beginning-of-sequence token that the tokenizer adds by itself is left out.
    """
    return _render(tokenizer, messages, add_generation_prompt=True) + _missing_header(tokenizer)


def _missing_header(tokenizer: Any) -> str:
    """The header of the assistant's turn where the template knows no generation prompt; usually nothing."""
    question = [Message("user", _PROBLEM)]
    bare = _render(tokenizer, question, add_generation_prompt=False)
    if _render(tokenizer, question, add_generation_prompt=True) != bare:
        return ""
    before = _whole(tokenizer, (), _PROBLEM, _ANSWER).partition(_ANSWER)[0]
    header = before.removeprefix(bare) if before.startswith(bare) else ""
    return "" if header.isspace() else header  # a space is what the model itself writes first


def _whole(tokenizer: Any, preamble: Sequence[Message], problem: str, answer: str) -> str:
    messages = [*preamble, Message("user", problem), Message("assistant", answer)]
    return _render(tokenizer, messages, add_generation_prompt=False)


def _render(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    import jinja2  # noqa: PLC0415  (transformers needs it for any chat template)

    try:
        text: str = tokenizer.apply_chat_template(
            as_dicts(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except jinja2.TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise ValueError(f"the tokenizer's chat template refuses messages of {roles}: {error}") from error
    return text.removeprefix(tokenizer.bos_token) if adds_bos(tokenizer) else text


def _end(tokenizer: Any, tail: str) -> tuple[str, str | None]:
    """White space before the special token that ends a turn, and that token."""
    rest = tail.lstrip()
    ends = [token for token in tokenizer.all_special_tokens if rest.startswith(token)]
    return (tail[: len(tail) - len(rest)], max(ends, key=len)) if ends else ("", None)
