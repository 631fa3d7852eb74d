"""Names in text and in tables: models, methods, benchmarks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dftune.audit.read import Document
from dftune.audit.table import BASE, Table
from dftune.evaluate.named import NAMED

AVERAGE = "average"
_ALIASES = {
    "minerva": "minerva_math",
    "olympiad": "olympiadbench",
    "aime2024": "aime24",
    "aime2025": "aime25",
    "amc2023": "amc23",
    "amc": "amc23",
    "hendrycksmath": "math",
}


def squeezed(name: str) -> str:
    """Letters and digits alone, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


_BY_NAME = {squeezed(name): name for name in NAMED} | _ALIASES


def sizes_of(header: str, extra: Mapping[str, int]) -> tuple[int, ...]:
    """Numbers of questions that a benchmark may have; empty where it is not known.

    Args:
        header: name of the column.
        extra: further benchmarks with their numbers; they win.
    """
    own = {squeezed(name): size for name, size in extra.items()}
    if squeezed(header) in own:
        return (own[squeezed(header)],)
    known = _BY_NAME.get(squeezed(header))
    return NAMED[known].sizes if known else ()


@dataclass(frozen=True)
class Mention:
    """A name in a sentence.

    Attributes:
        kind: ``model``, ``method`` or ``benchmark``.
        name: as the tables have it.
        start: where it begins.
        end: where it ends.
    """

    kind: str
    name: str
    start: int
    end: int


class Names:
    """The names that the tables of a document use."""

    def __init__(self, tables: Iterable[Table]) -> None:
        tables = list(tables)
        rows = [row for table in tables for row in table.rows]
        self.models = tuple(dict.fromkeys(row.model for row in rows if row.model))
        self.methods = tuple(dict.fromkeys(row.method for row in rows if row.method))
        columns = [table.header[column] for table in tables for column in table.scores]
        self.benchmarks = tuple(dict.fromkeys(columns))
        spelled = [("model", name, name) for name in self.models]
        spelled += [("method", name, name) for name in self.methods if name != BASE]
        spelled += [("benchmark", name, name) for name in self.benchmarks]
        spelled += [("method", BASE, "base models"), ("method", BASE, "base model"), ("method", BASE, "base")]
        self._spelled = sorted(spelled, key=lambda entry: -len(entry[2]))

    @classmethod
    def of(cls, document: Document) -> Names:
        """Those of a document's tables."""
        return cls(document.tables)

    def mentions(self, text: str) -> list[Mention]:
        """The names in a sentence, in order; where one lies in another, the longer."""
        taken = [False] * len(text)
        found = []
        for kind, name, spelling in self._spelled:
            for match in re.finditer(rf"(?<![\w.-]){re.escape(spelling)}(?!\w|-\w|\.\d)", text, re.IGNORECASE):
                if not any(taken[match.start() : match.end()]):
                    taken[match.start() : match.end()] = [True] * (match.end() - match.start())
                    found.append(Mention(kind, name, match.start(), match.end()))
        return sorted(found, key=lambda mention: mention.start)
