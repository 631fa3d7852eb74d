"""Which objectives a trainer other than dftune's own can compute exactly, and the refusal of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dftune.objectives import Objective, get_objective
from dftune.objectives.base import Need, Scope

_MIXES: Mapping[Scope, str] = {
    "sequence": "it mixes the tokens of a sequence, and a batch here does not say where sequences begin",
    "group": "it mixes the sequences of a group",
    "batch": "it uses a statistic of the whole batch, which a micro-batch does not show",
}


def fitting_objective(
    trainer: str, name: str, options: Mapping[str, Any], *, provides: frozenset[Need], scopes: frozenset[Scope]
) -> Objective:
    """An objective that a trainer can compute as it is meant.

    Args:
        trainer: how messages call it.
        name: of the objective, as in a recipe.
        options: of the objective.
        provides: fields of ``TokenBatch`` beyond ``logps`` that there will be.
        scopes: scopes within which the objective may mix tokens.

    Raises:
        ValueError: no such objective or option, or one that this trainer would compute wrongly; says every reason.
    """
    objective = get_objective(name, **options)
    reasons = []
    if missing := sorted(objective.needs - provides):
        reasons.append(f"it needs {', '.join(missing)}")
    if objective.stateful:
        reasons.append("it keeps an estimate for each example")
    if objective.unit != "token":
        reasons.append(f"its loss is a mean over {objective.unit}s, and here the loss is divided by a count of tokens")
    if objective.separable not in scopes:
        reasons.append(_MIXES[objective.separable])
    if reasons:
        raise ValueError(
            f"objective {name!r} cannot be computed in {trainer}: {'; '.join(reasons)}. `dftune train` does it: put "
            f"`objective: {{name: {name}}}` into a recipe."
        )
    return objective
