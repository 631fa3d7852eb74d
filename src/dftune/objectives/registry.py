"""Objectives by name. The training loop knows what is here, never an objective itself."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from dftune.objectives.base import LossSum, Scope, TokenBatch, Unit


@dataclass(frozen=True)
class Entry:
    """What the engine must know of an objective.

    Attributes:
        function: ``module:name`` of ``fn(tokens: TokenBatch, **options) -> LossSum``.
        unit: what the loss is divided by, once per optimizer step.
        separable: the scope within which the loss adds up, which decides the scorer's route.
        needs: fields of ``TokenBatch`` beyond ``logps`` that must be provided.
        formula: one line for lists; the docstring has it in full.
        paper: where it comes from.
    """

    function: str
    unit: Unit
    separable: Scope
    needs: frozenset[str]
    formula: str
    paper: str


_NOTHING: frozenset[str] = frozenset()

OBJECTIVES: Mapping[str, Entry] = {
    "sft": Entry("dftune.objectives.sft:sft", "token", "token", _NOTHING, "-log p", "maximum likelihood"),
    "dynamic_ft": Entry(
        "dftune.objectives.dynamic_ft:dynamic_ft", "token", "token", _NOTHING, "-sg[p] log p", "arXiv:2508.05629"
    ),
    "power": Entry(
        "dftune.objectives.power:power", "token", "token", _NOTHING, "(1 - p^alpha) / alpha", "arXiv:2510.00526"
    ),
}


@dataclass(frozen=True)
class Objective:
    """An objective with its options bound: call it on a ``TokenBatch``."""

    name: str
    options: Mapping[str, Any]
    entry: Entry
    function: Callable[..., LossSum]

    @property
    def unit(self) -> Unit:
        """What the loss is divided by."""
        return self.entry.unit

    def __call__(self, tokens: TokenBatch) -> LossSum:
        """The un-normalised loss of a micro-batch."""
        return self.function(tokens, **self.options)


def entry(name: str) -> Entry:
    """Look an objective up.

    Raises:
        ValueError: unknown, with the nearest known name; a bare ``dft`` names both methods of that abbreviation.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if name.lower() in ("dft", "dft2"):
        raise ValueError(
            f"{name!r} is ambiguous: two methods share the abbreviation. Write dynamic_ft (Dynamic Fine-Tuning, "
            "arXiv:2508.05629: each token weighted by its own probability) or discriminative_ft (Discriminative "
            "Fine-Tuning, arXiv:2502.18679: sampled negatives pushed down; not in this version)."
        )
    near = difflib.get_close_matches(name, OBJECTIVES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(OBJECTIVES)}."
    raise ValueError(f"unknown objective {name!r}; {hint}")


def get_objective(name: str, **options: Any) -> Objective:
    """An objective with its options checked and defaults filled in.

    Args:
        name: a key of ``OBJECTIVES``.
        options: keyword arguments of the objective's function.

    Raises:
        ValueError: unknown name, unknown option or a value out of range; all at once.
    """
    found = entry(name)
    try:
        checked = options_model(name)(**options)
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            key = ".".join(str(part) for part in detail["loc"])
            if detail["type"] == "extra_forbidden":
                known = ", ".join(options_model(name).model_fields) or "none"
                problems.append(f"{key}: not an option of {name} (its options: {known})")
            else:
                problems.append(f"{key}: {detail['msg']}, found {detail['input']!r}")
        raise ValueError("; ".join(problems)) from None
    return Objective(name, checked.model_dump(), found, _function(name))


@functools.cache
def options_model(name: str) -> type[BaseModel]:
    """The options of an objective as a strict pydantic model, read from its function's keyword-only arguments."""
    function = _function(name)
    hints = typing.get_type_hints(function, include_extras=True, localns={"Tensor": Any})
    fields: dict[str, Any] = {
        parameter.name: (hints[parameter.name], ... if parameter.default is parameter.empty else parameter.default)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    return create_model(f"{name}_options", __config__=ConfigDict(extra="forbid", frozen=True), **fields)


@functools.cache
def _function(name: str) -> Callable[..., LossSum]:
    module, _, attribute = entry(name).function.partition(":")
    function: Callable[..., LossSum] = getattr(importlib.import_module(module), attribute)
    return function
