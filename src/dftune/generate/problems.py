"""The training problems that completions are sampled for: read and filtered as ``dftune prepare`` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dftune.data.config import SourceConfig
from dftune.data.conversations import split_turns
from dftune.data.dataset import Counts
from dftune.data.examples import Example, Ledger, select_examples
from dftune.data.hub import looks_like_path
from dftune.data.messages import Message, as_dicts
from dftune.data.prompts import PromptFormat
from dftune.data.sources import open_rows
from dftune.evaluate.benchmarks import Benchmark, Problem
from dftune.recipe import Recipe


@dataclass(frozen=True)
class Problems:
    """What a recipe's completions are sampled for.

    Attributes:
        source: where the rows came from, and which were wanted.
        examples: those taken, in the order of the source.
        rows_sha256: over the rows read.
        counts: what became of every row, up to the limit.
        beyond_limit: rows that passed the filters and are beyond the limit; a higher limit takes the first of them.
    """

    source: SourceConfig
    examples: tuple[Example, ...]
    rows_sha256: str
    counts: Counts
    beyond_limit: tuple[Example, ...]

    def at_least(self, num: int) -> tuple[Example, ...]:
        """Those taken, and further ones where a file already holds completions of so many problems."""
        return (*self.examples, *self.beyond_limit[: max(0, num - len(self.examples))])

    def benchmark(self, name: str, num_there: int) -> Benchmark:
        """The problems as the machinery that completes and grades takes them; no answer is an empty target."""
        source = tuple(map(_problem, self.at_least(num_there)))
        return Benchmark(name, self.source.source, source[: len(self.examples)], source)

    def describe(self) -> dict[str, Any]:
        """For a manifest."""
        names = set(SourceConfig.model_fields)
        return {**self.source.model_dump(mode="json", include=names), "rows_sha256": self.rows_sha256}


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt, and the messages it was made from."""

    text: str
    messages: tuple[Message, ...]


def read_problems(recipe: Recipe) -> Problems:
    """Read, filter and deduplicate problems as ``dftune prepare`` does; the limit counts rows that pass the filters.

    Raises:
        ValueError: there is no such source, a row or column is not what it must be, or no problem is left.
    """
    named = recipe.generate.problems
    source = named or recipe.data
    if named is None and looks_like_path(source.source) and not Path(source.source).expanduser().exists():
        raise ValueError(
            f"data.source: no such file: {source.source}. If it is still to be generated, say in "
            "generate.problems.source where the problems come from."
        )
    source = source.model_copy(update={"columns": source.columns.model_copy(update={"negatives": None})})
    ledger = Ledger()
    rows, source, _ = open_rows(source)
    spool, rows_sha256 = select_examples(rows, source, ledger)
    found = list(spool)
    if not found:
        raise ValueError(
            f"none of the {ledger.num_rows} rows of {source.source} is left: {ledger.summary() or 'it holds no rows'}."
        )
    taken = found[: source.limit]
    return Problems(source, tuple(taken), rows_sha256, ledger.counts(), tuple(found[len(taken) :]))


def conversation(example: Example, system: str | None) -> tuple[Message, ...]:
    """What a model is asked: the earlier messages and the question; a system message takes the place of their own."""
    said = example.history
    if system is not None:
        said = (Message("system", system), *(message for message in said if message.role != "system"))
    return (*said, Message("user", example.problem))


def render_prompts(
    examples: Sequence[Example], system: str | None, prompt_format: PromptFormat, tokenizer: Any, *, chat: bool
) -> dict[str, Prompt]:
    """The prompt of every example, by id.

    Args:
        examples: the problems.
        system: a system message before each.
        prompt_format: how conversations become text.
        tokenizer: of the model.
        chat: the server's own template renders; the text then only names what was asked.

    Raises:
        ValueError: the format cannot render a conversation, or has no place for a system message.
    """
    found = {}
    for example in examples:
        messages = conversation(example, system)
        if chat:
            text = "\n\n".join(message.content for message in messages)
        elif len(messages) == 1:
            text = prompt_format.render(example.problem)
        else:
            try:
                turns = split_turns(prompt_format, tokenizer, [*messages, Message("assistant", "")], "last")
            except ValueError as error:
                raise ValueError(f"{example.location}: {error}") from None
            text = turns[-1].prompt
        found[example.id] = Prompt(text, messages)
    return found


def _problem(example: Example) -> Problem:
    extra: dict[str, Any] = {} if example.source is None else {"source": example.source}
    if example.history:
        extra["history"] = as_dicts(example.history)
    return Problem(example.id, example.problem, example.answer or "", extra)
