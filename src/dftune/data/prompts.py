"""Prompt formats: one object renders the prompt in training and in evaluation, so that the two cannot differ."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass
from typing import Any

from dftune.files import fingerprint

_SLOT = "{problem}"
_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
_R1_ZERO = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>.\nUser: {problem}\nAssistant: <think>"
)


@dataclass(frozen=True)
class PromptFormat:
    """How a problem becomes a prompt, and how its completion ends.

    Attributes:
        name: as recipes call it.
        template: the prompt, with ``{problem}`` once.
        end_of_turn: text of the token that ends a completion; None stands for the tokenizer's end-of-sequence token.
        completion_prefix: put before the solution, so that its first token is the one a model would sample.
        stop: further strings at which generation stops.
    """

    name: str
    template: str
    end_of_turn: str | None = None
    completion_prefix: str = ""
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the problem has exactly one place."""
        if self.template.count(_SLOT) != 1:
            raise ValueError(f"prompt format {self.name!r} must hold {_SLOT} exactly once; found {self.template!r}.")

    def render(self, problem: str) -> str:
        """The prompt of a problem, as text."""
        prefix, suffix = self.template.split(_SLOT)
        return prefix + problem + suffix

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes a rendered prompt or where a completion ends."""
        parts = asdict(self)
        del parts["name"]
        return fingerprint({**parts, "stop": list(self.stop)})

    def end_token_id(self, tokenizer: Any) -> int:
        """The id of the token that ends a completion.

        Raises:
            ValueError: the tokenizer has no such token, or no end-of-sequence token.
        """
        if self.end_of_turn is None:
            if tokenizer.eos_token_id is None:
                raise ValueError(
                    "the tokenizer has no end-of-sequence token, so a completion cannot be ended. "
                    "Set eos_token in its tokenizer_config.json."
                )
            return int(tokenizer.eos_token_id)
        token_id = tokenizer.convert_tokens_to_ids(self.end_of_turn)
        if token_id is None or tokenizer.convert_ids_to_tokens(token_id) != self.end_of_turn:
            raise ValueError(
                f"prompt format {self.name!r} ends completions with {self.end_of_turn!r}, which this tokenizer "
                "does not have. Choose another data.prompt_format; plain works with any tokenizer."
            )
        return int(token_id)

    def encode_prompt(self, tokenizer: Any, problem: str) -> list[int]:
        """Token ids of the prompt; a beginning-of-sequence token comes first where the tokenizer adds one, once."""
        ids: list[int] = tokenizer.encode(self.render(problem), add_special_tokens=False)
        bos = tokenizer.bos_token_id
        if bos is not None and adds_bos(tokenizer) and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def encode_completion(self, tokenizer: Any, solution: str) -> list[int]:
        """Token ids of the completion with its one end token. Tokenised apart, so the boundary is exact."""
        ids: list[int] = tokenizer.encode(self.completion_prefix + solution, add_special_tokens=False)
        end = self.end_token_id(tokenizer)
        return ids if ids[-1:] == [end] else [*ids, end]

    def chat_template(self, tokenizer: Any) -> str:
        """A Jinja chat template that renders exactly this format, to be saved with a model trained on it."""
        prefix, suffix = (json.dumps(part, ensure_ascii=False) for part in self.template.split(_SLOT))
        end = json.dumps(tokenizer.convert_ids_to_tokens(self.end_token_id(tokenizer)), ensure_ascii=False)
        lead = json.dumps(self.completion_prefix)
        bos = "{{ bos_token }}" if adds_bos(tokenizer) else ""
        return (
            bos + "{% for message in messages %}{% if message['role'] == 'user' %}"
            f"{{{{ {prefix} + message['content'] + {suffix} }}}}"
            "{% elif message['role'] == 'assistant' %}"
            f"{{{{ {lead} + message['content'] + {end} }}}}"
            "{% else %}"
            f"{{{{ raise_exception('this model was trained with the prompt format {self.name}, which has no ' "
            "+ message['role'] + ' message') }}{% endif %}{% endfor %}"
        )


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its beginning-of-sequence token before a text by itself."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def _chatml(system: str, user: str) -> str:
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


# Texts as published with the Qwen2.5-Math evaluation, the Dynamic FT and Discriminative FT repositories, and R1-Zero.
FORMATS: dict[str, PromptFormat] = {
    prompt_format.name: prompt_format
    for prompt_format in (
        PromptFormat("plain", "{problem}\n"),
        PromptFormat("qwen-boxed", _chatml("You are a helpful assistant.", f"{_SLOT}\n{_BOXED}"), "<|im_end|>"),
        PromptFormat("qwen25-math-cot", _chatml(_BOXED, _SLOT), "<|im_end|>"),
        PromptFormat("deepseek-math", f"User: {_SLOT}\n{_BOXED}\n\nAssistant:", None, " "),
        PromptFormat("cot", "Question: {problem}\nAnswer:", None, " ", ("\n\nQuestion:",)),
        PromptFormat(
            "metamath",
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\n{problem}\n\n### Response:\n",
        ),
        PromptFormat("numina", "### Problem: {problem}\n### Solution:", None, " ", ("\n### Problem",)),
        PromptFormat("r1-zero", _R1_ZERO, None, " ", ("</answer>",)),
    )
}

_PROBLEM_MARK, _ANSWER_MARK = "\ue000problem\ue000", "\ue000answer\ue000"


def get_format(name: str, tokenizer: Any) -> PromptFormat:
    """A prompt format by name; ``chat`` is read off the tokenizer's own chat template.

    Raises:
        ValueError: unknown name, or ``chat`` with a tokenizer that has no chat template.
    """
    if name == "chat":
        return _from_chat_template(tokenizer)
    if name not in FORMATS:
        near = difflib.get_close_matches(name, [*FORMATS, "chat"], n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(FORMATS)}, chat."
        raise ValueError(f"unknown prompt format {name!r}; {hint}")
    return FORMATS[name]


def _from_chat_template(tokenizer: Any) -> PromptFormat:
    if not tokenizer.chat_template:
        raise ValueError(
            "prompt format 'chat' uses the tokenizer's chat template, and this tokenizer has none. "
            f"Choose one of: {', '.join(FORMATS)}."
        )
    user = {"role": "user", "content": _PROBLEM_MARK}
    prompt = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([user, {"role": "assistant", "content": _ANSWER_MARK}], tokenize=False)
    tail = whole.partition(_ANSWER_MARK)[2]
    ends = [token for token in tokenizer.all_special_tokens if tail.startswith(token)]
    if prompt.count(_PROBLEM_MARK) != 1 or not ends:
        raise ValueError(
            "the tokenizer's chat template does not render a user turn and end the assistant's with a special token; "
            f"it rendered {whole!r}. Choose one of: {', '.join(FORMATS)}."
        )
    if adds_bos(tokenizer):
        prompt = prompt.removeprefix(tokenizer.bos_token)
    return PromptFormat("chat", prompt.replace(_PROBLEM_MARK, _SLOT), max(ends, key=len))
