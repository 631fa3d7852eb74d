"""Prompt formats of one's own, and few-shot prompts: from a recipe, from a YAML file, or from a short name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from dftune.config import Config, RecipeError, read_yaml, validate
from dftune.data.chat_format import chat_format
from dftune.data.messages import Message
from dftune.data.prompt_format import SLOT, PromptFormat, with_system
from dftune.files import fingerprint, read_jsonl

_PROBLEM_KEYS = ("problem", "question", "instruction", "prompt")
_SOLUTION_KEYS = ("solution", "output", "completion", "answer")


class ShotsConfig(Config):
    """Worked examples that come before every question."""

    file: Path
    """JSONL with a problem (or question, instruction, prompt) and a solution (or output, completion, answer) a line."""
    num: Annotated[int, Field(ge=1)]
    """How many."""
    seed: int | None = None
    """null: the first of the file, in its order. A number draws them by a hash of it and their text."""


class FormatConfig(Config):
    """A prompt format of one's own."""

    name: str = "own"
    """What reports call it."""
    base: str | None = None
    """A named format, or chat, to start from; the other keys replace what it has."""
    template: str | None = None
    """The prompt, with {problem} once. Either this or base."""
    later_template: str | None = None
    """A later question of a conversation, from behind the end token of the answer before; without it, one question."""
    system_template: str | None = None
    """A system message, with {system} once, before the first question."""
    system: str | None = None
    """A system message before every question."""
    end_of_turn: str | None = None
    """Text of the special token that ends a completion; null is the base's, else the end-of-sequence token."""
    completion_prefix: str | None = None
    """Put before the solution, such as the space after 'Answer:'."""
    completion_suffix: str | None = None
    """Put between the solution and the end token."""
    stop: tuple[str, ...] | None = None
    """Strings at which generation stops."""
    separator: str | None = None
    """Between the examples of a few-shot prompt."""
    shots: ShotsConfig | None = None
    """Worked examples before every question."""

    @model_validator(mode="after")
    def _says_what_it_is(self) -> FormatConfig:
        if (self.base is None) == (self.template is None):
            raise ValueError("give either template, the prompt with {problem} in it, or base, the format to start from")
        for key, slot in (("template", SLOT), ("later_template", SLOT), ("system_template", "{system}")):
            text = getattr(self, key)
            if text is not None and text.count(slot) != 1:
                raise ValueError(f"{key} must hold {slot} exactly once; found {text!r}")
        if self.stop is not None and "" in self.stop:
            raise ValueError("stop must not hold an empty string, which is everywhere")
        return self


def _read_inline(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    try:
        return validate(dict(value), FormatConfig, "prompt_format")
    except RecipeError as error:
        raise ValueError("; ".join(error.problems)) from None


FormatSpec = Annotated[str | FormatConfig, BeforeValidator(_read_inline)]
"""A name, ``path/to/format.yaml``, ``few-shot:FORMAT:FILE:K``, or the keys of a format."""


def read_format(path: Path) -> FormatConfig:
    """Read a format from a YAML file; it is called after the file where it has no name.

    Raises:
        ValueError: the file is missing or not a format; every problem is named.
    """
    if not path.is_file():
        raise ValueError(
            f"there is no prompt format file {path}. Give a YAML file with at least `template`, or a name that "
            "`dftune formats` lists."
        )
    problems: list[str] = []
    values = read_yaml(path, problems)
    config = validate({"name": path.stem, **values}, FormatConfig, str(path), problems)
    if config.shots is not None and not config.shots.file.is_absolute():
        shots = config.shots.model_copy(update={"file": path.parent / config.shots.file})
        config = config.model_copy(update={"shots": shots})
    return config


def read_few_shot(spec: str) -> FormatConfig:
    """``few-shot:FORMAT:FILE:K``: K examples of a file, then the question, all in the named format.

    Raises:
        ValueError: it is written otherwise.
    """
    base, _, rest = spec.removeprefix("few-shot:").partition(":")
    file, _, num = rest.rpartition(":")
    if not base or not file or not num.isdecimal() or int(num) == 0:
        raise ValueError(
            f"a few-shot prompt format is written few-shot:FORMAT:FILE:K, with K at least 1; found {spec!r}."
        )
    return FormatConfig(name=spec, base=base, shots=ShotsConfig(file=Path(file), num=int(num)))


def build_format(config: FormatConfig, base: PromptFormat | None, tokenizer: Any) -> PromptFormat:
    """The prompt format that a configuration describes.

    Args:
        config: what it says.
        base: the format that ``config.base`` names; None without one.
        tokenizer: whose chat template is used where the base is ``chat``.

    Raises:
        ValueError: the format has no place for the system message, or the examples cannot be read.
    """
    own: dict[str, Any] = {key: value for key in _OWN if (value := getattr(config, key)) is not None}
    if base is None:
        found = PromptFormat(config.name, **own, shots="turns" if "later_template" in own else "before")
    else:
        found = replace(base, name=config.name, **own)
    if found.uses_chat_template and (wrong := sorted(own.keys() - {"stop", "end_of_turn"})):
        raise ValueError(
            f"prompt format {config.name!r}: the tokenizer's chat template decides {', '.join(wrong)}. Leave that out, "
            "or write a template in place of base: chat."
        )
    examples = [] if config.shots is None else read_shots(config.shots)
    if found.uses_chat_template:
        preamble = [] if config.system is None else [Message("system", config.system)]
        for problem, solution in examples:
            preamble += [Message("user", problem), Message("assistant", solution)]
        return replace(chat_format(tokenizer, preamble), name=config.name, **own)
    if examples:
        found = with_shots(found, examples, tokenizer)
    return found if config.system is None else with_system(found, config.system)


_OWN = (
    "template",
    "later_template",
    "system_template",
    "end_of_turn",
    "completion_prefix",
    "completion_suffix",
    "stop",
    "separator",
)


def read_shots(config: ShotsConfig) -> list[tuple[str, str]]:
    """Problem and solution of the examples of a few-shot prompt: always the same ones.

    Raises:
        ValueError: the file is missing, holds too few, or a line lacks its texts.
    """
    if not config.file.is_file():
        raise ValueError(f"there is no file of examples {config.file}. Give a JSONL file of problems and solutions.")
    rows = []
    for number, row in enumerate(read_jsonl(config.file), 1):
        problem, solution = (
            next((row[key] for key in keys if isinstance(row.get(key), str) and row[key].strip()), None)
            for keys in (_PROBLEM_KEYS, _SOLUTION_KEYS)
        )
        if problem is None or solution is None:
            raise ValueError(
                f"{config.file}, row {number}: an example needs one of {', '.join(_PROBLEM_KEYS)} and one of "
                f"{', '.join(_SOLUTION_KEYS)} as text; found the keys {', '.join(row)}."
            )
        rows.append((problem, solution))
    if len(rows) < config.num:
        raise ValueError(f"{config.file} holds {len(rows)} examples, and {config.num} are asked for. Lower the number.")
    if config.seed is not None:
        rows.sort(key=lambda row: fingerprint(config.seed, *row))
    return rows[: config.num]


def with_shots(prompt_format: PromptFormat, examples: Sequence[tuple[str, str]], tokenizer: Any) -> PromptFormat:
    """A format whose every prompt begins with worked examples.

    They stand where ``prompt_format.shots`` says: ``before`` the prompt, each rendered like it and followed by its
    solution, with the separator between; as earlier ``turns``, each ended by the end token; or ``in_problem``,
    questions and answers with the separator between, all within one question.

    Raises:
        ValueError: an example holds ``{problem}`` itself.
    """
    if any(SLOT in text for example in examples for text in example):
        raise ValueError(f"an example of the few-shot prompt holds {SLOT}, which marks the place of the question.")
    separator, template = prompt_format.separator, prompt_format.template
    if prompt_format.shots == "in_problem":
        shown = separator.join(f"{problem}\n{solution}" for problem, solution in examples)
        template = prompt_format.render(f"{shown}{separator}{SLOT}")
    elif prompt_format.shots == "turns":
        assert prompt_format.later_template is not None, "examples as turns need a later_template"
        end = tokenizer.convert_ids_to_tokens(prompt_format.end_token_id(tokenizer))
        shown = "".join(
            (prompt_format.render_later(problem) if place else prompt_format.render(problem))
            + prompt_format.render_completion(solution)
            + end
            for place, (problem, solution) in enumerate(examples)
        )
        template = shown + prompt_format.later_template
    else:
        shown = "".join(
            prompt_format.render(problem) + prompt_format.render_completion(solution) + separator
            for problem, solution in examples
        )
        template = shown + template
    return replace(prompt_format, template=template)
