"""Prompt formats: one object renders the prompt in training and in evaluation, so that the two cannot differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from dftune.data.messages import Message, as_dicts
from dftune.data.tokens import TextEncoder, adds_bos
from dftune.files import fingerprint

SLOT = "{problem}"
SYSTEM_SLOT = "{system}"
Shots = Literal["before", "turns", "in_problem"]

_SINGLE = ("template", "end_of_turn", "completion_prefix", "stop")
_SINGLE_IF_SET = ("completion_suffix", "trim")
_NOT_RECORDED = ("name", "source", "separator", "shots")


@dataclass(frozen=True)
class PromptFormat:
    """How a problem becomes a prompt, and how its completion ends.

    Attributes:
        name: as recipes call it.
        template: the prompt, with ``{problem}`` once.
        end_of_turn: text of the token that ends a completion; None stands for the tokenizer's end-of-sequence token.
        completion_prefix: put before the solution, so that its first token is the one a model would sample.
        stop: further strings at which generation stops.
        completion_suffix: put between the solution and the end token.
        trim: which of ``problem`` and ``solution`` lose the white space around them.
        later_template: a later question of a conversation, with ``{problem}`` once, from behind the end token of the
            answer before it; None where the format renders single questions only.
        system_template: a system message, with ``{system}`` once, put before the first question; None where the
            format has no place for one.
        uses_chat_template: conversations are rendered by the tokenizer's chat template.
        preamble: messages that come before every conversation, where the chat template is used.
        separator: what stands between examples of a few-shot prompt.
        shots: where those stand: before the prompt, as earlier turns, or within the question.
        source: where the text was published.
    """

    name: str
    template: str
    end_of_turn: str | None = None
    completion_prefix: str = ""
    stop: tuple[str, ...] = ()
    completion_suffix: str = ""
    trim: tuple[str, ...] = ()
    later_template: str | None = None
    system_template: str | None = None
    uses_chat_template: bool = False
    preamble: tuple[Message, ...] = ()
    separator: str = "\n\n"
    shots: Shots = "before"
    source: str = ""

    def __post_init__(self) -> None:
        """Check that every slot has exactly one place, and that no stop string is empty."""
        texts = {
            "template": (self.template, SLOT),
            "later_template": (self.later_template, SLOT),
            "system_template": (self.system_template, SYSTEM_SLOT),
        }
        for key, (text, slot) in texts.items():
            if text is not None and text.count(slot) != 1:
                raise ValueError(f"prompt format {self.name!r}: {key} must hold {slot} exactly once; found {text!r}.")
        if "" in self.stop or self.end_of_turn == "":
            raise ValueError(
                f"prompt format {self.name!r} has an empty stop string or end_of_turn. Leave out what it does not have."
            )

    def render(self, problem: str) -> str:
        """The prompt of a problem, as text. A beginning-of-sequence token that the tokenizer adds is not in it."""
        return fill(self.template, self._trimmed("problem", problem))

    def render_later(self, problem: str) -> str:
        """A later question of a conversation, from behind the end token of the answer before it."""
        assert self.later_template is not None, "the format renders single questions only"
        return fill(self.later_template, self._trimmed("problem", problem))

    def render_completion(self, solution: str) -> str:
        """What is trained on for a solution, as text, up to the end token."""
        return self.completion_prefix + self._trimmed("solution", solution) + self.completion_suffix

    def _trimmed(self, what: str, text: str) -> str:
        return text.strip() if what in self.trim else text

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes the prompt of a single question or where a completion ends."""
        values: dict[str, Any] = {key: getattr(self, key) for key in _SINGLE}
        values |= {key: list(value) for key in _SINGLE_IF_SET if (value := getattr(self, key))}
        return fingerprint({**values, "stop": list(self.stop)})

    def conversation_fingerprint(self, tokenizer: Any) -> str:
        """Changes with anything that changes how a conversation of several turns is rendered."""
        jinja = str(tokenizer.chat_template) if self.uses_chat_template else None
        texts = [self.later_template, self.system_template, jinja]
        return fingerprint(self.fingerprint, [*texts, as_dicts(self.preamble)])

    def record(self) -> dict[str, Any]:
        """Name, fingerprint and definition, as manifests hold them: enough to build the format again."""
        defaults = {each.name: each.default for each in fields(self)}
        values = {key: value for key, value in asdict(self).items() if value != defaults[key]}
        definition = {key: value for key, value in values.items() if key not in _NOT_RECORDED}
        if self.preamble:
            definition["preamble"] = as_dicts(self.preamble)
        return {"name": self.name, "fingerprint": self.fingerprint, "definition": definition}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> PromptFormat:
        """The format that a manifest recorded.

        Raises:
            ValueError: the record is damaged.
        """
        values = dict(record["definition"])
        for key in ("stop", "trim"):
            values[key] = tuple(values.get(key, ()))
        values["preamble"] = tuple(Message(**message) for message in values.get("preamble", ()))
        found = cls(record["name"], **values)
        if found.fingerprint != record["fingerprint"]:
            raise ValueError(
                f"the manifest's prompt format {record['name']!r} was changed: its fingerprint is "
                f"{found.fingerprint}, recorded is {record['fingerprint']}. Choose a format with --prompt-format."
            )
        return found

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
        return TextEncoder(tokenizer).beginnings([self.render(problem)])[0]

    def encode_completion(self, tokenizer: Any, solution: str) -> list[int]:
        """Token ids of the completion with its one end token. Tokenised apart, so the boundary is exact."""
        (ids,) = TextEncoder(tokenizer).continuations([self.render_completion(solution)])
        return ended(ids, self.end_token_id(tokenizer))

    def chat_template(self, tokenizer: Any) -> str:
        """A Jinja chat template that renders exactly this format, to be saved with a model trained on it."""
        if self.uses_chat_template:
            return _with_preamble(self.preamble, str(tokenizer.chat_template))
        end = _literal(tokenizer.convert_ids_to_tokens(self.end_token_id(tokenizer)))
        bos = "{{ bos_token }}" if adds_bos(tokenizer) else ""
        system = "" if self.system_template is None else self._jinja_system(self.system_template)
        return (
            bos + "{% for message in messages %}{% if message['role'] == 'user' %}"
            f"{self._jinja_user()}"
            "{% elif message['role'] == 'assistant' %}"
            f"{{{{ {_literal(self.completion_prefix)} + message['content']{self._jinja_trim('solution')}"
            f" + {_literal(self.completion_suffix)} + {end} }}}}"
            f"{system}"
            "{% else %}"
            f"{{{{ raise_exception({_literal(f'this model was trained with the prompt format {self.name}')} "
            "+ ', which has no ' + message['role'] + ' message') }}{% endif %}{% endfor %}"
        )

    def _jinja_trim(self, what: str) -> str:
        return " | trim" if what in self.trim else ""

    def _jinja_user(self) -> str:
        first = self._jinja_question(self.template)
        if self.later_template is None:
            return first
        is_first = "loop.first or (loop.index0 == 1 and messages[0]['role'] == 'system')"
        return f"{{% if {is_first} %}}{first}{{% else %}}{self._jinja_question(self.later_template)}{{% endif %}}"

    def _jinja_question(self, template: str) -> str:
        before, after = map(_literal, template.split(SLOT))
        return f"{{{{ {before} + (message['content']{self._jinja_trim('problem')}) + {after} }}}}"

    def _jinja_system(self, template: str) -> str:
        before, after = map(_literal, template.split(SYSTEM_SLOT))
        condition = "message['role'] == 'system' and loop.first"
        return f"{{% elif {condition} %}}{{{{ {before} + message['content'] + {after} }}}}"


def fill(template: str, problem: str) -> str:
    """A template with a problem in its slot."""
    before, after = template.split(SLOT)
    return before + problem + after


def ended(ids: list[int], end: int) -> list[int]:
    """A completion with its end token, which is there once even where the solution brought it along."""
    return ids if ids[-1:] == [end] else [*ids, end]


def with_system(prompt_format: PromptFormat, system: str) -> PromptFormat:
    """A format whose every prompt begins with this system message. Of a chat template, see `chat_format`.

    Raises:
        ValueError: the format has no place for one.
    """
    if prompt_format.system_template is None:
        raise ValueError(
            f"prompt format {prompt_format.name!r} has no place for a system message: it needs a system_template. "
            "The tokenizer's chat template (base: chat) may have one."
        )
    before, after = prompt_format.system_template.split(SYSTEM_SLOT)
    return replace(prompt_format, template=before + system + after + prompt_format.template, system_template=None)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _with_preamble(preamble: tuple[Message, ...], template: str) -> str:
    if not preamble:
        return template
    messages = json.dumps(as_dicts(preamble), ensure_ascii=False)
    if preamble[0].role != "system":
        return f"{{% set messages = {messages} + messages %}}{template}"
    rest = json.dumps(as_dicts(preamble[1:]), ensure_ascii=False)
    return (  # a conversation's own system message stands in place of this one
        "{% if messages and messages[0]['role'] == 'system' %}"
        f"{{% set messages = messages[:1] + {rest} + messages[1:] %}}"
        f"{{% else %}}{{% set messages = {messages} + messages %}}{{% endif %}}{template}"
    )
