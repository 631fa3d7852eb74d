"""What the engine must know of an objective, and an objective with its options bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dftune.objectives.base import LossSum, Need, Scope, TokenBatch, Unit

if TYPE_CHECKING:
    from dftune.objectives.state import State

Options = Mapping[str, Any]
Function = Callable[..., LossSum]
Resolve = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """What the engine must know of an objective.

    Attributes:
        function: ``fn(tokens: TokenBatch, **options) -> LossSum``, or its ``module:name``; it is called with
            ``state`` as well where the objective is stateful.
        unit: what the loss is divided by, once per optimizer step.
        separable: the scope within which the loss adds up, which decides the scorer's route; or how it follows from
            the options.
        needs: fields of ``TokenBatch`` beyond ``logps`` that must be provided; or how they follow from the options.
        formula: one line for lists; the docstring has it in full.
        paper: where it comes from.
        stateful: whether it keeps something by example, and wants a ``State``.
        resolve: checks options against each other and fills in those that depend on others, or its ``module:name``.
    """

    function: Function | str
    unit: Unit
    separable: Scope | Callable[[Options], Scope]
    needs: frozenset[Need] | Callable[[Options], frozenset[Need]]
    formula: str
    paper: str
    stateful: bool = False
    resolve: Resolve | str | None = None


@dataclass(frozen=True)
class Objective:
    """An objective with its options bound: call it on a ``TokenBatch``."""

    name: str
    options: Options
    entry: Entry
    function: Function

    @property
    def unit(self) -> Unit:
        """What the loss is divided by."""
        return self.entry.unit

    @property
    def needs(self) -> frozenset[Need]:
        """Fields of ``TokenBatch`` beyond ``logps`` that must be provided."""
        return self.entry.needs(self.options) if callable(self.entry.needs) else self.entry.needs

    @property
    def separable(self) -> Scope:
        """The scope within which the loss adds up."""
        return self.entry.separable(self.options) if callable(self.entry.separable) else self.entry.separable

    @property
    def stateful(self) -> bool:
        """Whether a call wants a ``State``."""
        return self.entry.stateful

    def __call__(self, tokens: TokenBatch, *, state: State | None = None) -> LossSum:
        """The un-normalised loss of a micro-batch.

        Args:
            tokens: the supervised tokens of the micro-batch.
            state: what the objective keeps by example; for a stateful objective, and only for it.
        """
        assert (state is not None) == self.stateful, f"{self.name} is called with a state if and only if it is stateful"
        return (
            self.function(tokens, state=state, **self.options)
            if self.stateful
            else self.function(tokens, **self.options)
        )
