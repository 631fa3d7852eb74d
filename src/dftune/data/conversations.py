"""Conversations in parts: what is given, and what is trained on, with the boundaries exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from dftune.data.chat_format import prompt_text
from dftune.data.messages import Message
from dftune.data.prompt_format import SYSTEM_SLOT, PromptFormat, ended
from dftune.data.tokens import TextEncoder

Turns = Literal["all", "last"]
"""Which answers of a conversation are trained on."""


class Turn(NamedTuple):
    """A stretch of the prompt and the completion that follows it, up to its end token."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Row:
    """A tokenised row.

    Attributes:
        ids: prompts, completions and end tokens, in their order.
        spans: start and end of every completion that is trained on, its end token included.
    """

    ids: list[int]
    spans: tuple[tuple[int, int], ...]


def split_turns(
    prompt_format: PromptFormat, tokenizer: Any, messages: Sequence[Message], turns: Turns = "all"
) -> list[Turn]:
    """Cut a conversation into prompts and the completions that are trained on.

    Args:
        prompt_format: how it is rendered.
        tokenizer: whose chat template is used where the format says so.
        messages: a system message or none, then questions and answers in turn; an answer comes last.
        turns: all answers are trained on, or the last one. Those that are not are part of the prompt.

    Raises:
        ValueError: the format cannot render such a conversation.
    """
    if len(messages) == 2:  # one question and its answer
        (question, answer) = messages
        return [Turn(prompt_format.render(question.content), prompt_format.render_completion(answer.content))]
    if prompt_format.uses_chat_template:
        return _by_chat_template(prompt_format, tokenizer, messages, turns)
    prompts = _by_templates(prompt_format, messages)
    answers = [prompt_format.render_completion(message.content) for message in messages if message.role == "assistant"]
    if turns == "all":
        return [Turn(*pair) for pair in zip(prompts, answers, strict=True)]
    end = tokenizer.convert_ids_to_tokens(prompt_format.end_token_id(tokenizer))
    earlier = "".join(prompt + answer + end for prompt, answer in zip(prompts[:-1], answers[:-1], strict=True))
    return [Turn(earlier + prompts[-1], answers[-1])]


def encode_turns(conversations: Sequence[Sequence[Turn]], encoder: TextEncoder, end: int) -> list[Row]:
    """Token ids of conversations, encoded part by part so that no token spans two of them."""
    begun = encoder.beginnings([turns[0].prompt for turns in conversations])
    later = iter(encoder.after_token(end, [turn.prompt for turns in conversations for turn in turns[1:]]))
    completions = iter(encoder.continuations([turn.completion for turns in conversations for turn in turns]))
    rows = []
    for ids, turns in zip(begun, conversations, strict=True):
        spans = []
        for place in range(len(turns)):
            ids.extend(next(later) if place else [])
            start = len(ids)
            ids.extend(ended(next(completions), end))
            spans.append((start, len(ids)))
        rows.append(Row(ids, tuple(spans)))
    return rows


def _by_templates(prompt_format: PromptFormat, messages: Sequence[Message]) -> list[str]:
    name, text = prompt_format.name, ""
    if messages[0].role == "system":
        if prompt_format.system_template is None:
            raise ValueError(
                f"prompt format {name!r} has no place for the system message of a conversation. Use chat, or a format "
                "of your own with a system_template."
            )
        text = prompt_format.system_template.replace(SYSTEM_SLOT, messages[0].content)
    questions = [message.content for message in messages if message.role == "user"]
    if len(questions) > 1 and prompt_format.later_template is None:
        raise ValueError(
            f"prompt format {name!r} renders single questions, and a conversation has {len(questions)}. Use chat, or a "
            "format of your own with a later_template."
        )
    return [text + prompt_format.render(questions[0]), *map(prompt_format.render_later, questions[1:])]


def _by_chat_template(
    prompt_format: PromptFormat, tokenizer: Any, messages: Sequence[Message], turns: Turns
) -> list[Turn]:
    places = [place for place, message in enumerate(messages) if message.role == "assistant"]
    chosen = places if turns == "all" else places[-1:]
    end = tokenizer.convert_ids_to_tokens(prompt_format.end_token_id(tokenizer))
    found: list[Turn] = []
    done = ""
    for place in chosen:
        prompt = prompt_text(tokenizer, preceded(messages[:place], prompt_format.preamble))
        if not prompt.startswith(done):
            raise ValueError(
                "the tokenizer's chat template renders an answer otherwise once others follow it: it should begin with "
                f"{_tail(done)!r} and is {_tail(prompt[: len(done)])!r}. Set data.turns=last to train on the last "
                "answer alone, which is then rendered as it would be sampled."
            )
        completion = prompt_format.render_completion(messages[place].content)
        found.append(Turn(prompt[len(done) :], completion))
        done = prompt + completion + end
    return found


def preceded(messages: Sequence[Message], preamble: Sequence[Message]) -> list[Message]:
    """A conversation with the format's own messages before it; its own system message takes the place of theirs."""
    if messages[:1] and messages[0].role == "system":
        return [messages[0], *(message for message in preamble if message.role != "system"), *messages[1:]]
    return [*preamble, *messages]


def _tail(text: str) -> str:
    return text if len(text) <= 80 else "..." + text[-80:]
