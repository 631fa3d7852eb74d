"""Objectives by name. The training loop knows what is here, never an objective itself."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from dftune.objectives.base import Need, Scope, Unit
from dftune.objectives.custom import load_entry
from dftune.objectives.entry import Entry, Function, Objective, Options

_NOTHING: frozenset[Need] = frozenset()
_REF: frozenset[Need] = frozenset({"ref_logps"})
_OLD: frozenset[Need] = frozenset({"old_logps"})
_POLICY: frozenset[Need] = frozenset({"old_logps", "advantages"})
_GROUPS: frozenset[Need] = frozenset({"groups"})


def _entry(
    name: str,
    formula: str,
    paper: str,
    *,
    unit: Unit = "token",
    separable: Scope | Callable[[Options], Scope] = "token",
    needs: frozenset[Need] | Callable[[Options], frozenset[Need]] = _NOTHING,
    stateful: bool = False,
    resolve: str | None = None,
) -> Entry:
    """An entry whose function and module have its name; ``resolve`` is the module with the function of that name."""
    function = f"dftune.objectives.{name}:{name}"
    check = resolve and f"dftune.objectives.{resolve}:resolve"
    return Entry(function, unit, separable, needs, formula, paper, stateful, check)


def _policy_needs(options: Options) -> frozenset[Need]:
    return _POLICY | _REF if options["kl_weight"] > 0 else _POLICY


OBJECTIVES: Mapping[str, Entry] = {
    "sft": _entry("sft", "-log p", "maximum likelihood"),
    "dynamic_ft": _entry("dynamic_ft", "-sg[p] log p", "arXiv:2508.05629", resolve="dynamic_ft"),
    "power": _entry("power", "(1 - p^alpha) / alpha", "arXiv:2510.00526", resolve="power"),
    "eaft": _entry(
        "eaft", "-sg[(H_top20 / ln 20)^alpha] log p", "arXiv:2601.02151", needs=frozenset({"top_k_entropy"})
    ),
    "deft": _entry(
        "deft",
        "(1 - p^a) / a, a = sg[sum_v p_v^2]",
        "arXiv:2602.11424",
        separable=lambda options: "batch" if options["exponent"] == "cayley" else "token",
        needs=lambda options: _NOTHING if options["exponent"] == "cayley" else frozenset({"sum_sq_probs"}),
    ),
    "talr": _entry("talr", "-sg[max(p^(1/tau), floor)] log p, tau = median NLL", "arXiv:2509.20758", separable="batch"),
    "chord_phi": _entry("chord_phi", "-sg[p (1 - p)] log p", "arXiv:2508.11408"),
    "iw_sft": _entry(
        "iw_sft",
        "-sg[clip((p/q)^T, w_min, w_max)] log p, p/q of sequences",
        "arXiv:2507.12856",
        separable=lambda options: options["form"],
        needs=_REF,
        resolve="iw_sft",
    ),
    "prior_ft": _entry("prior_ft", "-q^alpha log p", "arXiv:2606.09396", needs=_REF, resolve="dynamic_ft"),
    "psft": _entry("psft", "-min(p/p_old, 1 + clip)", "arXiv:2508.17784", needs=_OLD),
    "asft": _entry(
        "asft",
        "-sg[p] log p + kl_weight KL(q || p)",
        "arXiv:2509.23753",
        needs=lambda options: frozenset({"ref_kl"}) if options["kl"] == "full" else _REF,
    ),
    "discriminative_ft": _entry(
        "discriminative_ft",
        "-s(y) + mean_j sg[exp(d_j - u)] s(y'_j)",
        "arXiv:2502.18679",
        unit="group",
        separable="group",
        needs=lambda options: _GROUPS if options["ref_free"] else _GROUPS | _REF,
        stateful=True,
        resolve="discriminative_ft",
    ),
    "dpo": _entry(
        "dpo",
        "-log sigmoid(beta (s(y) - s(y'))), s = log p/q",
        "arXiv:2305.18290",
        unit="group",
        separable="group",
        needs=lambda options: _GROUPS if options["reference_free"] else _GROUPS | _REF,
        resolve="dpo",
    ),
    "ppo": _entry("ppo", "-min(r A, clip(r) A), r = p/p_old", "arXiv:1707.06347", needs=_policy_needs),
    "grpo": _entry(
        "grpo",
        "mean_t -min(r A, clip(r) A), r = p/p_old",
        "arXiv:2402.03300",
        unit="sequence",
        separable="sequence",
        needs=_policy_needs,
    ),
}


def entry(name: str) -> Entry:
    """Look an objective up: a key of ``OBJECTIVES``, or ``path/to/file.py:name``.

    Raises:
        ValueError: unknown, with the nearest known name; a bare ``dft`` names both methods of that abbreviation.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if ":" in name:
        return load_entry(name)
    if name.lower() in ("dft", "dft2"):
        raise ValueError(
            f"{name!r} is ambiguous: two methods share the abbreviation. Write dynamic_ft (Dynamic Fine-Tuning, "
            "arXiv:2508.05629: each token weighted by its own probability) or discriminative_ft (Discriminative "
            "Fine-Tuning, arXiv:2502.18679: sampled negatives pushed down; its DFT2 is `ref_free: true`)."
        )
    near = difflib.get_close_matches(name, OBJECTIVES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(OBJECTIVES)}, or path/to/file.py:name."
    raise ValueError(f"unknown objective {name!r}; {hint}")


def get_objective(name: str, **options: Any) -> Objective:
    """An objective with its options checked and defaults filled in.

    Args:
        name: a key of ``OBJECTIVES``, or ``path/to/file.py:name`` for a function decorated with ``@objective``.
        options: keyword arguments of the objective's function.

    Raises:
        ValueError: unknown name, unknown option or a value out of range; all at once.
    """
    found = entry(name)
    function = _load(found.function)
    model = options_model(function)
    try:
        checked = model(**options).model_dump()
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            key = ".".join(str(part) for part in detail["loc"])
            if detail["type"] == "extra_forbidden":
                known = ", ".join(model.model_fields) or "none"
                problems.append(f"{key}: not an option of {name} (its options: {known})")
            else:
                problems.append(f"{key}: {detail['msg']}, found {detail['input']!r}")
        raise ValueError("; ".join(problems)) from None
    if found.resolve is not None:
        checked = _load(found.resolve)(checked)
    return Objective(name, checked, found, function)


@functools.cache
def options_model(function: Function) -> type[BaseModel]:
    """The options of an objective as a strict pydantic model, read from its function's keyword-only arguments."""
    hints = typing.get_type_hints(function, include_extras=True, localns={"Tensor": Any})
    fields: dict[str, Any] = {
        parameter.name: (hints[parameter.name], ... if parameter.default is parameter.empty else parameter.default)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "state"
    }
    config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    return create_model(f"{function.__name__}_options", __config__=config, **fields)


def _load(reference: Any) -> Any:
    """What ``module:name`` refers to; anything else is what is wanted already."""
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)
