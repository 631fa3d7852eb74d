"""YAML recipes as frozen pydantic models: strict keys, every error reported at once, ``a.b=c`` overrides."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

_MAX_RECIPE_BYTES = 1_000_000


class Config(BaseModel):
    """Base of every section of a recipe: frozen, unknown keys refused, the string under a field is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class RecipeError(ValueError):
    """Everything that is wrong with a recipe, one line a problem."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{where}: {count}\n" + "\n".join(f"  {problem}" for problem in problems))


C = TypeVar("C", bound=Config)


def load(path: Path, model: type[C], overrides: Sequence[str] = ()) -> C:
    """Read a recipe and validate it.

    Args:
        path: YAML file; ``.yaml`` may be left out.
        model: the pydantic model of the whole recipe.
        overrides: ``a.b=c`` assignments, applied in order; the value is read as YAML.

    Raises:
        RecipeError: with every problem found, each naming its key and, for an unknown key, the nearest known one.
        FileNotFoundError: there is no such file.
    """
    values, where, problems = read(path, overrides)
    return validate(values, model, where, problems)


def read(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str, list[str]]:
    """The values of a recipe before they are validated, the file they stand in, and what is wrong so far."""
    path = find_recipe(path)
    problems: list[str] = []
    values = read_yaml(path, problems)
    for override in overrides:
        _apply(values, override, problems)
    return values, str(path), problems


def read_with(section: str, path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str, list[str]]:
    """What `read` gives, of a recipe that must have one more section than those for training.

    Raises:
        RecipeError: the section is missing.
        FileNotFoundError: no such file.
    """
    values, where, problems = read(path, overrides)
    if section not in values:
        problems.append(f"{section}: required, but not given; a recipe without it is trained by `dftune train`")
        raise RecipeError(where, problems)
    return values, where, problems


def find_recipe(path: Path) -> Path:
    """The recipe's file: ``path`` itself, or with ``.yaml`` added, or the one of that name that dftune ships."""
    shipped = Path(__file__).parent / "recipes"
    named = path.with_name(path.name + ".yaml")
    tried = (path, named, shipped / path, shipped / named)
    for candidate in tried:
        if candidate.is_file():
            return candidate
    near = sorted(path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    listed = f" Recipes beside it: {', '.join(file.name for file in near[:10])}." if near else ""
    raise FileNotFoundError(f"There is no recipe {path} (nor {path}.yaml).{listed}")


def validate(values: dict[str, Any], model: type[C], where: str, problems: Sequence[str] = ()) -> C:
    """Build ``model`` from plain values, adding pydantic's complaints to ``problems`` found before."""
    found = list(problems)
    try:
        recipe = model.model_validate(values)
    except ValidationError as error:
        found += [_explain(detail, model) for detail in error.errors()]
        raise RecipeError(where, found) from None
    if found:
        raise RecipeError(where, found)
    return recipe


def _explain(detail: ErrorDetails, model: type[BaseModel]) -> str:
    # Tags of discriminated unions are part of pydantic's location but not of the recipe.
    keys = [str(part) for part in detail["loc"]]
    dotted = ".".join(keys)
    if detail["type"] == "extra_forbidden":
        return f"{dotted}: unknown key{_nearest(dotted, list(key_names(model)))}"
    if detail["type"] == "missing":
        return f"{dotted}: required, but not given"
    message = detail["msg"].removeprefix("Value error, ")
    if isinstance(detail["input"], dict | list) or detail["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    return f"{dotted}: {message}, found {detail['input']!r}"


def _nearest(key: str, known: Sequence[str]) -> str:
    leaf, parent = key.rsplit(".", 1)[-1], key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == parent]
    match = difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    if not match:  # the right key in the wrong section, or a misspelling of one elsewhere
        by_leaf = {name.rsplit(".", 1)[-1]: name for name in known}
        leaves = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.8)
        match = [by_leaf[leaves[0]]] if leaves else []
    if match:
        return f"; did you mean {match[0]}?"
    return f"; known here: {', '.join(name.rsplit('.', 1)[-1] for name in siblings)}" if siblings else ""


def key_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a recipe, sections before what they hold."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in sections(field.annotation):
            yield from key_names(section, f"{prefix}{name}.")


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The config models inside an annotation such as ``ScratchConfig | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [found for part in typing.get_args(annotation) for found in sections(part)]
    return []


def describe(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Help text: one entry a key, with type, default and documentation."""
    for name, field in model.model_fields.items():
        inner = sections(field.annotation)
        if inner:
            yield f"\n{prefix}{name}: {_one_line(field.description)}"
            for section in inner:
                yield from describe(section, f"{prefix}{name}.")
            continue
        kind = re.sub(r"[\w.]+\.(\w+)", r"\1", _type_name(field.annotation))
        value = "required" if field.is_required() else f"default {_shown(field.default)}"
        yield f"  {prefix}{name}  ({kind}; {value})\n      {_one_line(field.description)}"


def describe_with(section: type[BaseModel], name: str, key: str, member: type[BaseModel]) -> Iterator[str]:
    """The same of a recipe's section, and of what one of its keys holds several of."""
    yield from describe(section, f"{name}.")
    yield f"\neach of {name}.{key}:"
    yield from describe(member)


def _type_name(annotation: Any) -> str:
    """A type as a person writes it, without the limits that pydantic keeps beside it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Ellipsis or annotation is types.NoneType:
        return "..." if annotation is Ellipsis else "None"
    if origin is typing.Annotated:
        return _type_name(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_type_name, inner))
    if origin is typing.Literal or not inner:
        return annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return f"{origin.__name__}[{', '.join(map(_type_name, inner))}]"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def dump(config: BaseModel) -> str:
    """A recipe as YAML, every key with its value, in the order of declaration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


# --- YAML ------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``5e-5`` is a number, keys are unique and nothing expands."""

    problems: list[str]

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            line = self.get_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {line}: aliases (*name) are not allowed in a recipe; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                self.problems.append(f"line {key_node.start_mark.line + 1}: key {key!r} is not a string")
                key = str(key)
            if key in seen:
                line = key_node.start_mark.line + 1
                self.problems.append(f"{key}: given twice, in lines {seen[key]} and {line}; keep one")
            seen.setdefault(key, key_node.start_mark.line + 1)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 wants a dot and a signed exponent in a float, so PyYAML reads 5e-5 as a string.
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_yaml(path: Path, problems: list[str]) -> dict[str, Any]:
    """Parse a YAML file into a mapping; what is wrong with it is appended to ``problems``."""
    raw = path.read_bytes()
    if len(raw) > _MAX_RECIPE_BYTES:
        raise RecipeError(str(path), [f"{len(raw)} bytes; a recipe has at most {_MAX_RECIPE_BYTES}"])
    value = _parse(raw, str(path), problems)
    if value is None:
        raise RecipeError(str(path), ["the file is empty"])
    if not isinstance(value, dict):
        raise RecipeError(str(path), [f"expected a mapping of keys to values, found {type(value).__name__}"])
    return value


def _parse(raw: bytes | str, where: str, problems: list[str]) -> Any:
    try:
        loader = _Loader(raw)
        loader.problems = problems
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(where, [f"not valid YAML: {' '.join(str(error).split())}"]) from None


def _apply(values: dict[str, Any], override: str, problems: list[str]) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        problems.append(f"{override!r}: overrides are written key=value or section.key=value")
        return
    *parents, leaf = key.split(".")
    section: Any = values
    for depth, parent in enumerate(parents, 1):
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            problems.append(f"{key}: {'.'.join(parents[:depth])} is a value, not a section")
            return
    section[leaf] = _parse(raw, override, problems) if raw.strip() else ""
