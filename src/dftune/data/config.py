"""The ``data`` section of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dftune.config import Config
from dftune.data.conversations import Turns
from dftune.data.named import with_named_defaults
from dftune.data.own_format import FormatSpec
from dftune.data.truncation import Truncation


class ColumnsConfig(Config):
    """Which column of the source holds what. A name the source lacks is an error where the column is required."""

    problem: str = "problem"
    """The question. Required."""
    solution: str = "solution"
    """The completion to train on. Required."""
    input: str | None = None
    """What goes below the problem, after an empty line, where a row has it (instruction, input, output)."""
    negatives: str | None = None
    """Completions to hold against the solution: a column of text or of lists of it (rejected), or what comes before
    the number in the names of several (generated_ for generated_0, generated_1, ...). Required where given."""
    answer: str = "answer"
    """The reference answer; taken from the solution (its last box, or what follows ####) where absent."""
    source: str = "source"
    """Where a row comes from, for filtering; optional."""
    id: str = "id"
    """A stable id; a hash of problem and solution where absent."""
    messages: str | None = None
    """A column of conversations, in place of problem and solution: lists of {role, content}, an answer last."""

    @model_validator(mode="before")
    @classmethod
    def _messages_are_both(cls, values: object) -> object:
        if not isinstance(values, dict) or values.get("messages") is None:
            return values
        name = values["messages"]
        if any(values.get(key, name) != name for key in ("problem", "solution")):
            raise ValueError("messages takes the place of problem and solution; leave those out")
        return {**values, "problem": name, "solution": name}


class DecontaminateConfig(Config):
    """Training rows that are problems of a benchmark: docs/decontamination.md."""

    action: Literal["remove", "report", "error", "skip"] = "remove"
    """What becomes of them: left out, kept and counted, an error; skip does not look for them."""
    benchmarks: tuple[str, ...] = ()
    """Benchmarks to check against, beside those of evaluate.benchmarks."""
    embeddings: str | None = None
    """Encoder (folder or model id) by which problems in other words are found too; null: by words and numbers only."""
    least_similarity: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Cosine of two embeddings from which numbers and answers are compared."""


class SourceConfig(Config):
    """Where rows come from, and which of them are wanted."""

    source: str
    """JSONL, CSV, parquet or Arrow file, a folder of such files, a saved dataset, a Hugging Face dataset id, or the
    name of a known training set such as numinamath-cot: docs/data.md lists them."""
    data_dir: Path | None = None
    """Folder of local copies of the known training sets, NAME/ each; null: what DFTUNE_DATA names."""
    subset: str | None = None
    """Configuration of a Hugging Face dataset."""
    split: str = "train"
    """Split of a Hugging Face dataset or of a folder that has splits."""
    revision: str | None = None
    """Revision of a Hugging Face dataset."""
    streaming: bool = False
    """Read a dataset of the hub while it is downloaded, and keep no copy."""
    columns: ColumnsConfig = ColumnsConfig()
    """Names of the columns."""
    sources: tuple[str, ...] = ()
    """Keep only rows whose source column is one of these; empty keeps all."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Keep the first so many rows that pass the other filters."""
    require_answer: bool = False
    """Drop rows without an answer, neither in the column nor in the solution."""

    @model_validator(mode="before")
    @classmethod
    def _named_source(cls, values: object) -> object:
        return with_named_defaults(values) if isinstance(values, dict) else values


class DataConfig(SourceConfig):
    """From a source to a prepared dataset."""

    keep_duplicates: bool = False
    """Keep rows that repeat an earlier one under another id, as the copies in a weighted set do."""
    num_negatives: Annotated[int, Field(ge=1)] | None = None
    """Negatives a row and epoch; all by default. A row that has fewer gives what it has."""
    rotate_negatives: bool = False
    """Take the next num_negatives in every epoch, from the first again after the last; otherwise the first ones in
    every epoch."""
    prompt_format: FormatSpec = "chat"
    """A name that `dftune formats` lists, path/to/format.yaml, few-shot:FORMAT:FILE:K, or the keys of a format of one's
    own: see docs/prompt-formats.md."""
    turns: Turns = "all"
    """Which answers of a conversation are trained on. Rows with negatives are always trained on the last one."""
    max_length: Annotated[int, Field(ge=2)] = 2048
    """Most tokens in prompt and completion together."""
    truncation: Truncation = "drop"
    """What to do with a longer example: leave it out; cut the prompt from the left; cut the completion's end, which
    then has no end token; or stop. Everything cut or left out is counted."""
    validation: Annotated[int, Field(ge=0)] = 0
    """Rows held out, chosen by a hash of their ids, so that the choice does not depend on order or seed."""
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    """The check of the training rows against benchmarks."""
    prepared: Path
    """Folder for the prepared dataset."""

    @model_validator(mode="after")
    def _negatives_are_there(self) -> DataConfig:
        if self.num_negatives is not None and self.columns.negatives is None:
            raise ValueError("num_negatives says how many are used; columns.negatives must say where they are")
        if self.rotate_negatives and self.num_negatives is None:
            raise ValueError("rotate_negatives needs num_negatives: by default every epoch uses all")
        return self
