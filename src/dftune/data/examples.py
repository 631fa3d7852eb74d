"""From rows to examples: types checked, answers found, unwanted rows counted with their reason."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dftune.data import negatives
from dftune.data.cells import content_of, exchange, has_surrogate, is_answer, is_conversation, question, scalar, text
from dftune.data.config import SourceConfig
from dftune.data.dataset import Counts, Dropped, NegativeCounts
from dftune.data.messages import Message
from dftune.data.negatives import Negative
from dftune.data.sources import Row
from dftune.data.spool import Spool
from dftune.files import canonical_json, fingerprint

_NUM_SHOWN = 5
_IS_HASH = re.compile(r"[0-9a-f]{16}")

NOT_SELECTED = "source not selected"
EMPTY = "empty problem or solution"
NOT_UNICODE = "text that is not valid Unicode"
NO_ANSWER = "missing answer"
DUPLICATE = "exact duplicate"
CONTAMINATED = "benchmark problem"
TOO_LONG = "too long"
CUT_AWAY = "completion cut away"
UNANSWERED = "conversation that ends without an answer"
NOTHING_TO_LEARN = "no token to train on"
END_INSIDE = "end-of-turn token inside the solution"
NO_NEGATIVE = "no negative left"
JOINED = "negatives joined to an earlier row"
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
    negatives: tuple[Negative, ...] = ()
    history: tuple[Message, ...] = ()
    """The messages of a conversation before its last question, which is the problem."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation."""
        return (*self.history, Message("user", self.problem), Message("assistant", self.solution))


@dataclass
class Ledger:
    """What became of every row and every negative: each is kept, or dropped for exactly one reason."""

    num_rows: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Locations of the first dropped rows by reason."""
    num_negatives: int = 0
    dropped_negatives: dict[str, list[str]] = field(default_factory=dict)
    """The same of the dropped negatives."""
    cut: dict[str, list[str]] = field(default_factory=dict)
    """Locations of the first rows and negatives that were cut to data.max_length, by what was cut."""
    has_history: bool = False
    """Whether any example has messages before its last question."""
    _counts: Counter[tuple[int, str]] = field(default_factory=Counter)
    """How many of each, by the identity of the account and the reason."""

    def drop(self, reason: str, location: str) -> None:
        """Count a row as left out."""
        self._count(self.dropped, reason, location)

    def drop_negative(self, reason: str, number: int, location: str) -> None:
        """Count a negative as left out."""
        self._count(self.dropped_negatives, reason, f"{location}, negative {number}")

    def count_cut(self, what: str, location: str) -> None:
        """Count a row, or a negative, that is kept in part."""
        self._count(self.cut, what, location)

    def _count(self, account: dict[str, list[str]], reason: str, location: str) -> None:
        self._counts[id(account), reason] += 1
        first = account.setdefault(reason, [])
        if len(first) < _NUM_SHOWN:
            first.append(location)

    def _account(self, account: dict[str, list[str]]) -> tuple[dict[str, Dropped], int]:
        counted: dict[str, Dropped] = {
            reason: {"count": self._counts[id(account), reason], "examples": first} for reason, first in account.items()
        }
        return counted, sum(entry["count"] for entry in counted.values())

    def leave_out_with_row(self, left_out: Sequence[Negative], location: str) -> None:
        """Count the negatives of a row that is left out for a reason of its own."""
        for number, _ in left_out:
            self.drop_negative(negatives.ROW_LEFT_OUT, number, location)

    def counts(self) -> Counts:
        """The account of the rows as the manifest shows it."""
        dropped, num_dropped = self._account(self.dropped)
        return {"rows_read": self.num_rows, "kept": self.num_rows - num_dropped, "dropped": dropped}

    def negative_counts(self, kept: Sequence[int]) -> NegativeCounts:
        """The account of the negatives, of which so many are kept in every row that is kept."""
        dropped, num_dropped = self._account(self.dropped_negatives)
        assert self.num_negatives == sum(kept) + num_dropped, "a negative was lost without a count"
        per_row = {"min": min(kept), "max": max(kept)}
        return {"read": self.num_negatives, "kept": sum(kept), "per_row": per_row, "dropped": dropped}

    def truncated(self) -> dict[str, Dropped]:
        """The account of what was cut as the manifest shows it."""
        return self._account(self.cut)[0]

    def summary(self) -> str:
        """``3 too long, 1 exact duplicate``."""
        return ", ".join(f"{entry['count']} {reason}" for reason, entry in self._account(self.dropped)[0].items())


def select_examples(
    rows: Iterable[Row],
    config: SourceConfig,
    ledger: Ledger,
    progress: Callable[[int], None] | None = None,
    *,
    folder: Path | None = None,
    keep_duplicates: bool = False,
) -> tuple[Spool[Example], str]:
    """Turn rows into examples, dropping what the settings leave out.

    Args:
        rows: location and columns of each row.
        config: the ``data`` section.
        ledger: counts every row read and every row dropped.
        progress: called now and then with the number of rows read.
        folder: where many examples are kept meanwhile; the system's folder for temporary files by default.
        keep_duplicates: rows that repeat an earlier one under another id are examples of their own.

    Returns:
        The examples in the order of the source, and the SHA-256 of the rows read. In memory are about 200 bytes a row.

    Raises:
        ValueError: a value has the wrong type, an id stands for two different rows, or a named column never occurs.
    """
    digest = hashlib.sha256()
    selection = _Selection(config, ledger, Spool(folder), keep_duplicates=keep_duplicates)
    named = _named_columns(config)
    for location, row in rows:
        ledger.num_rows += 1
        if progress is not None and ledger.num_rows % 1000 == 0:
            progress(ledger.num_rows)
        named -= row.keys()
        fields = _Fields.read(row, config, location)
        digest.update(fields.digest())
        selection.add(fields, location)
    if named and ledger.num_rows:
        raise ValueError(
            f"{config.source}: no row has the column {', '.join(sorted(named))}, which the recipe names or selects by. "
            "Correct data.columns, or leave the setting out."
        )
    selection.check_ids()
    return selection.examples, digest.hexdigest()


class _Selection:
    """The examples chosen so far, in the order of the source."""

    def __init__(
        self, config: SourceConfig, ledger: Ledger, examples: Spool[Example], *, keep_duplicates: bool
    ) -> None:
        self.config, self.ledger, self.examples, self.keep_duplicates = config, ledger, examples, keep_duplicates
        self.by_content: dict[int, int] = {}
        """Place of each example by the number that its content is hashed to."""
        self.by_id: dict[str, int] = {}
        """Place of each example that has an id of its own."""

    def add(self, fields: _Fields, location: str) -> None:
        self.ledger.num_negatives += len(fields.negatives or ())
        reason = fields.reason_to_drop(self.config)
        if reason is None:
            self._add_wanted(fields, location)
        else:
            self.ledger.drop(reason, location)
            self.ledger.leave_out_with_row(fields.negatives or (), location)

    def _add_wanted(self, fields: _Fields, location: str) -> None:
        usable = self._usable(fields, location)
        if fields.negatives is not None and not usable:
            self.ledger.drop(NO_NEGATIVE, location)
            return
        content = fields.content()
        place = self.by_content.get(int(content, 16))
        if place is not None and not self.keep_duplicates:
            self._join(place, usable, location)
            return
        example = fields.example(content, location, usable)
        earlier = self._place_of(example.id)
        if earlier is not None:
            raise ValueError(
                f"the id {example.id!r} stands for two different rows: {self.examples[earlier].location} and "
                f"{location}. Make the ids unique, or rename the column {self.config.columns.id!r}: without one, ids "
                "come from the content."
            )
        self.by_content[int(content, 16)] = len(self.examples)
        if fields.id is not None:
            self.by_id[example.id] = len(self.examples)
        self.ledger.has_history |= bool(example.history)
        self.examples.append(example)

    def _place_of(self, name: str) -> int | None:
        place = self.by_id.get(name)
        if place is None and _IS_HASH.fullmatch(name):
            place = self.by_content.get(int(name, 16))
            return place if place is not None and self.examples[place].id == name else None
        return place

    def _usable(self, fields: _Fields, location: str) -> tuple[Negative, ...]:
        usable = []
        for number, negative in fields.negatives or ():
            reason = negatives.reason_to_drop(negative, fields.solution or "")
            if reason is None:
                usable.append((number, negative))
            else:
                self.ledger.drop_negative(reason, number, location)
        return tuple(usable)

    def _join(self, place: int, usable: tuple[Negative, ...], location: str) -> None:
        """Sets of pairs repeat the chosen completion for each rejected one: these are one group."""
        if not usable:
            self.ledger.drop(DUPLICATE, location)
            return
        earlier = self.examples[place]
        both, known = negatives.joined(earlier.negatives, usable)
        self.ledger.drop(DUPLICATE if len(known) == len(usable) else JOINED, location)
        for number, _ in known:
            self.ledger.drop_negative(negatives.ALREADY_THERE, number, location)
        if len(known) < len(usable):
            self.examples[place] = replace(earlier, negatives=both)

    def check_ids(self) -> None:
        if self.config.columns.negatives is None:
            return
        clash = negatives.clash(example.id for example in self.examples)
        if clash is not None:
            first, second = (next(row for row in self.examples if row.id == name) for name in clash)
            raise ValueError(
                f"the id {second.id!r} of {second.location} is also that of a negative of the row "
                f"{first.id!r}, {first.location}. Rename it, or rename the column "
                f"{self.config.columns.id!r}: without one, ids come from the content."
            )


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
    history: tuple[Message, ...]
    problem: str
    solution: str | None
    """None where a conversation ends with the question."""
    answer: str | None
    source: str | None
    id: str | None
    negatives: tuple[Negative, ...] | None
    """None where the settings name no negatives."""

    @classmethod
    def read(cls, row: dict[str, Any], config: SourceConfig, location: str) -> _Fields:
        columns = config.columns
        history, problem, solution = _texts(row, config, location)
        if columns.input is not None and (more := text(row.get(columns.input), columns.input, location)).strip():
            problem = f"{problem}\n\n{more}"
        # Sources such as the original GSM8K call the solution "answer".
        has_answer = columns.answer not in (columns.solution, columns.problem)
        answer = scalar(row.get(columns.answer), columns.answer, location) if has_answer else None
        return cls(
            history=history,
            problem=problem,
            solution=solution,
            answer=answer if answer is not None else find_answer(solution or ""),
            source=scalar(row.get(columns.source), columns.source, location),
            id=scalar(row.get(columns.id), columns.id, location),
            negatives=(negatives.read_negatives(row, columns, location) if columns.negatives is not None else None),
        )

    def content(self) -> str:
        """What an id is made from where the row has none."""
        assert self.solution is not None
        said = [[list(message) for message in self.history]] if self.history else []
        return fingerprint(self.problem.encode(), self.solution.encode(), *said)

    def digest(self) -> bytes:
        values: list[Any] = [self.problem, self.solution, self.answer, self.source, self.id]
        if self.negatives is not None:
            values.append(self.negatives)
        if self.history:
            values.append({"history": self.history})
        return canonical_json(values) + b"\n"

    def reason_to_drop(self, config: SourceConfig) -> str | None:
        if config.sources and self.source not in config.sources:
            return NOT_SELECTED
        if self.solution is None:
            return UNANSWERED
        said = [message.content for message in self.history]
        if not all(text.strip() for text in (*said, self.problem, self.solution)):
            return EMPTY
        texts = (*said, self.problem, self.solution, self.answer or "", self.source or "", self.id or "")
        if any(has_surrogate(text) for text in texts):
            return NOT_UNICODE
        if config.require_answer and self.answer is None:
            return NO_ANSWER
        return None

    def example(self, content: str, location: str, usable: tuple[Negative, ...]) -> Example:
        assert self.solution is not None
        return Example(
            self.id or content, self.source, self.problem, self.solution, self.answer, location, usable, self.history
        )


def _texts(row: dict[str, Any], config: SourceConfig, location: str) -> tuple[tuple[Message, ...], str, str | None]:
    """What was said before, the problem, and the solution, from text or conversations in either column."""
    columns = config.columns
    asking, answering = row.get(columns.problem), row.get(columns.solution)
    if columns.problem == columns.solution and not is_conversation(answering):
        raise ValueError(
            f"{location}: data.columns.problem and data.columns.solution are both {columns.solution!r}, which must "
            "then hold a conversation: a list of a user's messages and an assistant's answers."
        )
    solution: str | None
    if is_answer(answering):
        solution = text(content_of(answering[0]), columns.solution, location)
    elif is_conversation(answering):
        found = exchange(answering, columns.solution, location)
        problem = found.asked if asking == answering else question(asking, columns.problem, location)
        return found.history, problem, found.answered
    else:
        solution = text(answering, columns.solution, location)
    if is_conversation(asking):
        before = exchange(asking, columns.problem, location)
        return before.history, before.asked, solution
    return (), text(asking, columns.problem, location), solution


def _named_columns(config: SourceConfig) -> set[str]:
    # A column set by hand must exist; the default names of optional columns need not.
    optional = ("answer", "source", "id")
    fields = type(config.columns).model_fields
    named = {name for key in optional if (name := getattr(config.columns, key)) != fields[key].default}
    named |= {config.columns.input} if config.columns.input is not None else set()
    return named | ({config.columns.source} if config.sources else set())
