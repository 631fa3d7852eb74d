"""Training sets that are known by name: where they are published, and what their columns are called."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dftune.evaluate.named import DATA_DIR_VARIABLE, NAMED

Cells = Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """A column that is made from published ones.

    Attributes:
        needs: the published columns.
        make: from a row to the cell.
    """

    needs: tuple[str, ...]
    make: Callable[[Cells], str | None]


@dataclass(frozen=True)
class NamedSource:
    """A published training set.

    Attributes:
        name: as ``data.source`` calls it.
        hub: dataset id on the Hugging Face hub.
        about: one line.
        published: the columns it is published with, those that are read.
        columns: keys of ``data.columns`` where they are not the default ones.
        split: to read unless the recipe says otherwise.
        configs: configurations to read one after another; empty stands for the default one.
        made: columns made from published ones, by their names.
    """

    name: str
    hub: str
    about: str
    published: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    split: str = "train"
    configs: tuple[str, ...] = ()
    made: Mapping[str, Made] = field(default_factory=dict)

    def local_names(self) -> tuple[str, ...]:
        """Folders in which a local copy may lie, relative to the folder of copies."""
        return (self.name, self.hub, self.hub.rpartition("/")[2])


def _thought_and_attempt(row: Cells) -> str | None:
    thought, attempt = row["deepseek_thinking_trajectory"], row["deepseek_attempt"]
    return None if thought is None or attempt is None else f"<think>\n{thought.strip()}\n</think>\n\n{attempt.strip()}"


def _stated_last(row: Cells) -> str | None:
    found = (row["response"] or "").rpartition("The answer is:")
    return found[2].strip() or None if found[1] else None


_PAIR = {"problem": "prompt", "solution": "chosen", "negatives": "rejected"}

SOURCES: dict[str, NamedSource] = {
    source.name: source
    for source in (
        NamedSource(
            "numinamath-cot",
            "AI-MO/NuminaMath-CoT",
            "859,494 competition and school problems with chain of thought, by source (data.sources)",
            ("source", "problem", "solution", "messages"),
        ),
        NamedSource(
            "math",
            "EleutherAI/hendrycks_math",
            "the 7,500 training problems of MATH (Hendrycks et al. 2021); the source column is the subject",
            ("problem", "level", "type", "solution"),
            {"source": "type"},
            configs=NAMED["math"].configs,
        ),
        NamedSource(
            "math-lighteval",
            "DigitalLearningGmbH/MATH-lighteval",
            "MATH in one table; the source column is the subject",
            ("problem", "level", "type", "solution"),
            {"source": "type"},
        ),
        NamedSource(
            "gsm8k",
            "openai/gsm8k",
            "7,473 grade school word problems (Cobbe et al. 2021)",
            ("question", "answer"),
            {"problem": "question", "solution": "answer"},
            configs=("main",),
        ),
        NamedSource(
            "openr1-math",
            "open-r1/OpenR1-Math-220k",
            "93,733 problems (data.subset=extended or all for more) with traces of DeepSeek-R1",
            ("problem", "solution", "answer", "source", "messages"),
            {"messages": "messages"},
        ),
        NamedSource(
            "openthoughts",
            "open-thoughts/OpenThoughts-114k",
            "113,957 questions of math, code and science with traces of DeepSeek-R1; the system prompt is left out",
            ("system", "conversations"),
            {"messages": "conversations"},
        ),
        NamedSource(
            "metamathqa",
            "meta-math/MetaMathQA",
            "395,000 problems rewritten from GSM8K and MATH (Yu et al. 2023); the source column is how",
            ("type", "query", "original_question", "response"),
            {"problem": "query", "solution": "response", "source": "type", "answer": "stated_answer"},
            made={"stated_answer": Made(("response",), _stated_last)},
        ),
        NamedSource(
            "ultrafeedback-binarized",
            "HuggingFaceH4/ultrafeedback_binarized",
            "61,135 prompts with a chosen and a rejected answer (Tunstall et al. 2023)",
            ("prompt", "chosen", "rejected", "messages"),
            _PAIR,
            split="train_prefs",
        ),
        NamedSource(
            "ultrafeedback-cleaned",
            "argilla/ultrafeedback-binarized-preferences-cleaned",
            "60,917 prompts with a chosen and a rejected answer, rated by the mean of the preferences",
            ("source", "prompt", "chosen", "rejected"),
            _PAIR,
        ),
        NamedSource(
            "s1k",
            "simplescaling/s1K-1.1",
            "1,000 hard questions (Muennighoff et al. 2025) with DeepSeek-R1's thought, in <think> tags, and attempt",
            ("question", "solution", "source_type", "deepseek_thinking_trajectory", "deepseek_attempt"),
            {"problem": "question", "solution": "thought_and_attempt", "source": "source_type"},
            made={
                "thought_and_attempt": Made(("deepseek_thinking_trajectory", "deepseek_attempt"), _thought_and_attempt)
            },
        ),
    )
}


def named_source(name: str) -> NamedSource | None:
    """The training set that a ``data.source`` names; None where a file or folder of that name exists."""
    return SOURCES.get(name) if not Path(name).expanduser().exists() else None


def with_named_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The keys of a ``data`` section, with those of a named source where they are left out."""
    name = values.get("source")
    source = named_source(name) if isinstance(name, str) else None
    columns = values.get("columns", {})
    if source is None or not isinstance(columns, dict):
        return values
    known = dict(source.columns)
    if columns.get("messages") is not None:
        known = {key: column for key, column in known.items() if key not in ("problem", "solution")}
    elif {"problem", "solution"} & columns.keys():
        known.pop("messages", None)
    filled: dict[str, Any] = {"split": source.split, **values, "columns": {**known, **columns}}
    if len(source.configs) == 1:
        filled.setdefault("subset", source.configs[0])
    return filled


def copy_of(source: NamedSource, data_dir: Path | None) -> Path | None:
    """The folder of a local copy of a named source, in the hub's format; None where there is none.

    Args:
        source: which one.
        data_dir: the folder of copies; None stands for the one that the environment variable DFTUNE_DATA names, if any.

    Raises:
        ValueError: ``data_dir`` is no folder.
    """
    if data_dir is not None and not data_dir.expanduser().is_dir():
        raise ValueError(f"data.data_dir: there is no folder {data_dir}. It should hold {source.name}/.")
    named = data_dir or (Path(os.environ[DATA_DIR_VARIABLE]) if os.environ.get(DATA_DIR_VARIABLE) else None)
    if named is None:
        return None
    places = (named.expanduser() / name for name in source.local_names())
    return next((place for place in places if place.is_dir()), None)


def describe_sources() -> str:
    """One entry a named source: what it is, and where it comes from."""
    width = max(map(len, SOURCES))
    lines = []
    for source in SOURCES.values():
        configs = f" ({', '.join(source.configs)})" if source.configs else ""
        lines += [
            f"  {source.name:<{width}}  {source.about}",
            f"  {'':<{width}}  hub: {source.hub}{configs}, {source.split}",
        ]
    return "\n".join(lines)
