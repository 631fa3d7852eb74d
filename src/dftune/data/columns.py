"""The columns of a source: which are needed, which layout they make, and what is made from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dftune.data.config import ColumnsConfig, SourceConfig
from dftune.data.named import Made, NamedSource, named_source
from dftune.data.negatives import negative_columns

_USUAL_NAMES = {
    "problem": ("problem", "question", "instruction", "prompt", "query", "input"),
    "solution": ("solution", "output", "completion", "response", "generated_solution", "answer"),
    "negatives": ("negatives", "rejected", "generated_", "generated"),
}

Source = TypeVar("Source", bound=SourceConfig)


class MissingColumnsError(ValueError):
    """The source lacks the column of the problem or of the solution.

    Attributes:
        found: the columns it has.
    """

    def __init__(self, message: str, found: list[str]) -> None:
        super().__init__(message)
        self.found = found


@dataclass(frozen=True)
class Layout:
    """A layout of data sets that is told by its columns.

    Attributes:
        name: for the message.
        needs: the columns that tell it.
        columns: keys of ``data.columns`` for it. Negatives are used only where the recipe names them.
    """

    name: str
    needs: frozenset[str]
    columns: Mapping[str, str]


def _layout(name: str, needs: str, **columns: str) -> Layout:
    return Layout(name, frozenset(needs.split()), columns)


LAYOUTS = (
    _layout("conversations", "messages", messages="messages"),
    _layout("conversations", "conversations", messages="conversations"),
    _layout(
        "verl",
        "prompt reward_model extra_info",
        problem="extra_info.question",
        solution="extra_info.answer",
        answer="reward_model.ground_truth",
    ),
    _layout("real and generated", "real", problem="real", solution="real"),
    _layout("prompt, chosen and rejected", "prompt chosen rejected", problem="prompt", solution="chosen"),
    _layout("prompt and completion", "prompt completion", problem="prompt", solution="completion"),
    _layout(
        "instruction, input, output",
        "instruction input output",
        problem="instruction",
        input="input",
        solution="output",
    ),
    _layout("instruction and output", "instruction output", problem="instruction", solution="output"),
)
"""The first whose columns are all there is taken."""


def recognised(found: Iterable[str], config: Source) -> tuple[Layout, Source] | None:
    """The layout of a source that lacks the default columns, and the settings to read it with.

    None where the recipe says which columns to read, or no layout fits.
    """
    default, names = ColumnsConfig(), set(found)
    if (config.columns.problem, config.columns.solution) != (default.problem, default.solution):
        return None
    layout = next((layout for layout in LAYOUTS if layout.needs <= names), None)
    if layout is None or named_source(config.source) is not None:
        return None
    set_by_hand = {key: name for key, name in config.columns if name != getattr(default, key)}
    columns = ColumnsConfig.model_validate({**layout.columns, **set_by_hand})
    return layout, config.model_copy(update={"columns": columns})


@dataclass(frozen=True)
class Wanted:
    """The columns that the settings ask for.

    A name with dots reaches into a column of structures: ``extra_info.question``. Columns that a named source makes
    from published ones count as there where those are.
    """

    config: SourceConfig
    named: NamedSource | None
    made: Mapping[str, Made]
    nested: tuple[str, ...]

    @classmethod
    def of(cls, config: SourceConfig) -> Wanted:
        """Those of a ``data`` section."""
        named = named_source(config.source)
        used = [name for name in config.columns.model_dump().values() if name is not None]
        made = {} if named is None else {name: made for name, made in named.made.items() if name in used}
        return cls(config, named, made, tuple(dict.fromkeys(name for name in used if "." in name)))

    def has(self, name: str, names: Iterable[str]) -> bool:
        """Whether a column is among those found, or can be made from them."""
        found = names if isinstance(names, dict | list | set) else list(names)
        if name in found:
            return True
        if name in self.made:
            return all(needed in found for needed in self.made[name].needs)
        return name in self.nested and name.partition(".")[0] in found

    def complete(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has problem, solution and the column of the negatives; a quick check."""
        columns = self.config.columns
        needed = (columns.problem, columns.solution, columns.negatives)
        return all(name is None or name in row for name in needed)

    def require(self, found: Iterable[str], where: str) -> None:
        """Check that the source has every column that the settings need.

        Raises:
            ValueError: names the columns found and the setting to use.
        """
        names = [str(name) for name in found]
        columns = self.config.columns
        for role, name in (("problem", columns.problem), ("solution", columns.solution)):
            if not self.has(name, names):
                raise MissingColumnsError(
                    f"{where}: no column {name!r}; found: {_listed(names)}. {self._advice(role, names)}", names
                )
        if columns.negatives is not None and not negative_columns(columns.negatives, names):
            raise ValueError(
                f"{where}: no column {columns.negatives!r}, nor one of that name with a number after it; "
                f"found: {_listed(names)}. {self._advice('negatives', names)}"
            )
        if self.config.sources and not self.has(columns.source, names):
            raise ValueError(
                f"{where}: data.sources selects rows by the column {columns.source!r}, which is not there; "
                f"found: {_listed(names)}. Set data.columns.source=NAME, or leave data.sources out."
            )

    def among(self, names: Iterable[str]) -> list[str]:
        """The columns of the source to read, each once."""
        found = list(names)
        wanted: list[str] = []
        for name in self.config.columns.model_dump().values():
            if name in found:
                wanted.append(name)
            elif name in self.made:
                wanted += self.made[name].needs
            elif name in self.nested:
                wanted.append(name.partition(".")[0])
        wanted += [name for _, name in negative_columns(self.config.columns.negatives, found)]
        return [name for name in dict.fromkeys(wanted) if name in found]

    def filled(self, row: dict[str, Any], where: str) -> dict[str, Any]:
        """The row with the columns that are made from others.

        Raises:
            ValueError: a structure lacks what a name with dots asks for.
        """
        for name, made in self.made.items():
            if name not in row and all(needed in row for needed in made.needs):
                row[name] = made.make(row)
        for name in self.nested:
            head = name.partition(".")[0]
            if name not in row and head in row:
                row[name] = _reach(row, name, where)
        return row

    def _advice(self, role: str, names: list[str]) -> str:
        columns = self.config.columns
        if self.named is not None:
            return (
                f"{self.named.name} ({self.named.hub}) is published with the columns "
                f"{', '.join(self.named.published)}. Give another data set by its own path or id in data.source, or "
                f"set data.columns.{role}=NAME."
            )
        taken = {columns.problem, columns.solution}
        found = {*names, *(name.rstrip("0123456789") for name in names)} if role == "negatives" else set(names)
        usual = [name for name in _USUAL_NAMES[role] if name in found and name not in taken]
        if usual:
            verb = "those are" if role == "negatives" else "that is"
            return f"Set data.columns.{role}={usual[0]}, if {verb} the {role}."
        if {"messages", "conversations"} & set(names):
            return "Conversations, lists of {role, content}, are read whole: set data.columns.messages to their column."
        return f"Set data.columns.{role}=NAME, one of these columns."


def _reach(row: Mapping[str, Any], name: str, where: str) -> Any:
    head, _, rest = name.partition(".")
    cell = row[head]
    for key in rest.split("."):
        if cell is None:
            return None
        if not isinstance(cell, dict) or key not in cell:
            has = f"with {_listed(list(cell))}" if isinstance(cell, dict) else f"of {type(cell).__name__}"
            raise ValueError(
                f"{where}: the columns setting {name!r} needs a structure with {key!r} in the column {head!r}; "
                f"found one {has}. Set data.columns to what is there."
            )
        cell = cell[key]
    return cell


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"
