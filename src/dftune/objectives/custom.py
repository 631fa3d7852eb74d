"""Objectives of a user's own: a decorated function in a Python file, named ``path/to/file.py:name``."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from dftune.objectives.base import Need, Scope, Unit
from dftune.objectives.entry import Entry, Function, Options, Resolve

_ENTRY = "__objective__"
F = TypeVar("F", bound=Function)


def objective(
    *,
    unit: Unit,
    separable: Scope | Callable[[Options], Scope],
    needs: Iterable[Need] | Callable[[Options], frozenset[Need]] = (),
    formula: str = "",
    paper: str = "",
    stateful: bool = False,
    resolve: Resolve | None = None,
) -> Callable[[F], F]:
    """Make a function an objective that a recipe can name as ``path/to/file.py:name``.

        @objective(unit="token", separable="token")
        def squared(tokens: TokenBatch, *, scale: float = 1.0) -> LossSum:
            return LossSum(scale * tokens.logps.square().sum())

    Args:
        unit: what the loss is divided by, once per optimizer step: token, sequence or group.
        separable: the scope within which the loss adds up: token, sequence, group, or the whole batch.
        needs: fields of ``TokenBatch`` beyond ``logps`` that must be provided; or a function of the options.
        formula: one line for lists.
        paper: where it comes from.
        stateful: whether it keeps something by example; it is then called with ``state=``.
        resolve: checks options against each other and fills in those that depend on others.

    Raises:
        ValueError: the function's signature is not ``fn(tokens, *, option=default, ...)``.
    """

    def decorate(function: F) -> F:
        parameters = list(inspect.signature(function).parameters.values())
        name = getattr(function, "__name__", "the objective")
        if not parameters or any(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters[1:]):
            raise ValueError(
                f"{name}{inspect.signature(function)}: an objective takes the tokens and then keyword-only options, "
                f"as in {name}(tokens, *, option=1.0)."
            )
        if stateful and "state" not in (parameter.name for parameter in parameters):
            raise ValueError(f"{name} is declared stateful and takes no `state`; write {name}(tokens, *, state, ...).")
        wanted = needs if callable(needs) else frozenset(needs)
        setattr(function, _ENTRY, Entry(function, unit, separable, wanted, formula, paper, stateful, resolve))
        return function

    return decorate


def load_entry(name: str) -> Entry:
    """The objective that a user's file defines.

    Args:
        name: ``path/to/file.py:function``, relative to the working directory.

    Raises:
        ValueError: there is no such file, it fails when imported, or it has no such objective.
    """
    location, _, attribute = name.rpartition(":")
    path = Path(location).expanduser()
    if not path.is_file():
        raise ValueError(f"objective {name!r}: there is no file {path.absolute()}. Write path/to/file.py:function.")
    spec = importlib.util.spec_from_file_location(f"dftune_custom_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"objective {name!r}: {path} is not a Python file. Write path/to/file.py:function.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses with postponed annotations look themselves up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"objective {name!r}: importing {path} failed: {type(error).__name__}: {error}") from error
    found: Entry | None = getattr(getattr(module, attribute, None), _ENTRY, None)
    if found is None:
        there = ", ".join(key for key, value in vars(module).items() if hasattr(value, _ENTRY)) or "none"
        raise ValueError(
            f"objective {name!r}: {path} has no objective {attribute!r}; it defines: {there}. Decorate the function "
            "with @objective(unit=..., separable=...) from dftune.objectives."
        )
    return found
