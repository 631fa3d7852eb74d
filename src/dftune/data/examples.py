"""From rows to examples: types checked, answers found, unwanted rows counted with their reason."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dftune.data.config import DataConfig
from dftune.data.dataset import Counts
from dftune.data.sources import Row
from dftune.files import canonical_json, fingerprint

_NUM_SHOWN = 5

NOT_SELECTED = "source not selected"
EMPTY = "empty problem or solution"
NOT_UNICODE = "text that is not valid Unicode"
NO_ANSWER = "missing answer"
DUPLICATE = "exact duplicate"
TOO_LONG = "too long"
NOTHING_TO_LEARN = "no token to train on"
END_INSIDE = "end-of-turn token inside the solution"
BEYOND_LIMIT = "beyond data.limit"


@dataclass(frozen=True, slots=True)
class Example:
    """One row that passed the filters on text."""

    id: str
    source: str | None
    problem: str
    solution: str
    answer: str | None
    location: str
    """Where it stands in the source."""


@dataclass
class Ledger:
    """What became of every row: each is kept, or dropped for exactly one reason."""

    num_rows: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Locations of the dropped rows by reason."""

    def drop(self, reason: str, location: str) -> None:
        """Count a row as left out."""
        self.dropped.setdefault(reason, []).append(location)

    def counts(self) -> Counts:
        """The account as the manifest shows it."""
        dropped = {
            reason: {"count": len(where), "examples": where[:_NUM_SHOWN]} for reason, where in self.dropped.items()
        }
        num_dropped = sum(len(where) for where in self.dropped.values())
        return {"rows_read": self.num_rows, "kept": self.num_rows - num_dropped, "dropped": dropped}  # type: ignore[typeddict-item]

    def summary(self) -> str:
        """``3 too long, 1 exact duplicate``."""
        return ", ".join(f"{len(where)} {reason}" for reason, where in self.dropped.items())


def select_examples(
    rows: Iterable[Row], config: DataConfig, ledger: Ledger, progress: Callable[[int], None] | None = None
) -> tuple[list[Example], str]:
    """Turn rows into examples, dropping what the settings leave out.

    Args:
        rows: location and columns of each row.
        config: the ``data`` section.
        ledger: counts every row read and every row dropped.
        progress: called now and then with the number of rows read.

    Returns:
        The examples in the order of the source, and the SHA-256 of the rows read.

    Raises:
        ValueError: a value has the wrong type, an id stands for two different rows, or a named column never occurs.
    """
    digest = hashlib.sha256()
    examples: list[Example] = []
    by_content: set[str] = set()
    by_id: dict[str, Example] = {}
    named = _named_columns(config)
    for location, row in rows:
        ledger.num_rows += 1
        if progress is not None and ledger.num_rows % 1000 == 0:
            progress(ledger.num_rows)
        named -= row.keys()
        fields = _Fields.read(row, config, location)
        digest.update(fields.digest())
        reason = fields.reason_to_drop(config)
        content = fingerprint(fields.problem.encode(errors="replace"), fields.solution.encode(errors="replace"))
        if reason is None and content in by_content:
            reason = DUPLICATE
        if reason is not None:
            ledger.drop(reason, location)
            continue
        by_content.add(content)
        example = fields.example(content, location)
        if example.id in by_id:
            raise ValueError(
                f"the id {example.id!r} stands for two different rows: {by_id[example.id].location} and {location}. "
                f"Make the ids unique, or rename the column {config.columns.id!r}: without one, ids come from the "
                "content."
            )
        by_id[example.id] = example
        examples.append(example)
    if named and ledger.num_rows:
        raise ValueError(
            f"{config.source}: no row has the column {', '.join(sorted(named))}, which the recipe names or selects by. "
            "Correct data.columns, or leave the setting out."
        )
    return examples, digest.hexdigest()


def find_answer(solution: str) -> str | None:
    """The reference answer a solution states: its last ``\\boxed{}``, else what follows ``####`` without commas."""
    boxed = last_boxed(solution)
    if boxed is not None:
        return boxed
    if "####" not in solution:
        return None
    line = solution.rpartition("####")[2].strip().partition("\n")[0]
    return line.replace(",", "").strip() or None


def last_boxed(text: str) -> str | None:
    """What the last complete ``\\boxed{...}`` holds; braces are matched, escaped ones (``\\{``) are text."""
    end = len(text)
    while (start := text.rfind("\\boxed", 0, end)) >= 0:
        end = start
        content = _braced(text, start + len("\\boxed"))
        if content is not None and content.strip():
            return content.strip()
    return None


def _braced(text: str, position: int) -> str | None:
    while text[position : position + 1].isspace():
        position += 1
    if text[position : position + 1] != "{":
        return None
    depth, start = 0, position + 1
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start:position]
        position += 1
    return None


@dataclass(frozen=True, slots=True)
class _Fields:
    problem: str
    solution: str
    answer: str | None
    source: str | None
    id: str | None

    @classmethod
    def read(cls, row: dict[str, Any], config: DataConfig, location: str) -> _Fields:
        columns = config.columns
        solution = _text(row.get(columns.solution), columns.solution, location)
        # Sources such as the original GSM8K call the solution "answer".
        has_answer = columns.answer not in (columns.solution, columns.problem)
        answer = _scalar(row.get(columns.answer), columns.answer, location) if has_answer else None
        return cls(
            problem=_text(row.get(columns.problem), columns.problem, location),
            solution=solution,
            answer=answer if answer is not None else find_answer(solution),
            source=_scalar(row.get(columns.source), columns.source, location),
            id=_scalar(row.get(columns.id), columns.id, location),
        )

    def digest(self) -> bytes:
        return canonical_json([self.problem, self.solution, self.answer, self.source, self.id]) + b"\n"

    def reason_to_drop(self, config: DataConfig) -> str | None:
        if config.sources and self.source not in config.sources:
            return NOT_SELECTED
        if not self.problem.strip() or not self.solution.strip():
            return EMPTY
        texts = (self.problem, self.solution, self.answer or "", self.source or "", self.id or "")
        if any(_has_surrogate(text) for text in texts):
            return NOT_UNICODE
        if config.require_answer and self.answer is None:
            return NO_ANSWER
        return None

    def example(self, content: str, location: str) -> Example:
        return Example(self.id or content, self.source, self.problem, self.solution, self.answer, location)


def _named_columns(config: DataConfig) -> set[str]:
    # A column set by hand must exist; the default names of optional columns need not.
    optional = ("answer", "source", "id")
    fields = type(config.columns).model_fields
    named = {name for key in optional if (name := getattr(config.columns, key)) != fields[key].default}
    return named | ({config.columns.source} if config.sources else set())


def _text(value: Any, column: str, location: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(
            f"{location}: column {column!r} must hold text, found {type(value).__name__} {_shown(value)}. "
            "Convert it, or set data.columns to text columns."
        )
    return value


def _scalar(value: Any, column: str, location: str) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float) and value.is_integer():  # tables with gaps turn integers into floats
        return str(int(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(
        f"{location}: column {column!r} must hold text or a number, found {type(value).__name__} {_shown(value)}."
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
