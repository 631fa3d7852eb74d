"""What an objective remembers of an example from one visit to the next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

Written = Mapping[str, Sequence[float]]
"""What was written during a step: the values of every visit, by example id."""


class State(Protocol):
    """A number for each example, as a stateful objective sees it."""

    def read(self, example_ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The values at the start of the step, (examples,) float64, 0 where unseen; and seen, (examples,) bool."""
        ...

    def write(self, example_ids: Sequence[str], values: Tensor) -> None:
        """Offer new values, (examples,); a later :meth:`read` gives them once the step is committed."""
        ...

    def state_dict(self) -> dict[str, float]:
        """The committed values, ready for JSON, which keeps every digit."""
        ...

    def load_state_dict(self, values: Mapping[str, float]) -> None:
        """Replace the committed values, and forget what was written since."""
        ...


class LogEstimates:
    """Positive estimates by example id, kept as their natural logarithms; the state of Discriminative Fine-Tuning.

    Reads see the start of the step and writes wait for its end, so that neither the order of the micro-batches nor
    the number of ranks matters. The engine ends a step with

        state.commit(merge(all_gather(state.written)))          or state.commit() on one rank

    after the optimizer has moved, and calls ``state.discard()`` after a validation or a step that failed.
    """

    def __init__(self) -> None:
        self._values: dict[str, float] = {}
        self._written: dict[str, list[float]] = {}

    @property
    def written(self) -> Written:
        """What was written since the last commit, to be gathered from every rank."""
        return self._written

    def read(self, example_ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The committed values, (examples,) float64, 0 where unseen; and seen, (examples,) bool."""
        values = torch.tensor([self._values.get(name, 0.0) for name in example_ids], dtype=torch.float64)
        return values, torch.tensor([name in self._values for name in example_ids], dtype=torch.bool)

    def write(self, example_ids: Sequence[str], values: Tensor) -> None:
        """Note new values, (examples,), for the next commit."""
        for name, value in zip(example_ids, values.tolist(), strict=True):
            self._written.setdefault(name, []).append(value)

    def commit(self, written: Written | None = None) -> None:
        """Make what was written the truth, an example visited more than once counting with its mean estimate.

        Args:
            written: of all ranks, merged; None for this one's alone.

        Raises:
            ValueError: a value is NaN or infinite; nothing has changed.
        """
        written = self._written if written is None else written
        if wrong := [name for name, values in written.items() if not all(map(math.isfinite, values))]:
            raise ValueError(
                f"the estimates of {len(wrong)} examples are not finite, the first {wrong[:3]}. The model's "
                "log-probabilities of their completions have diverged: lower optimizer.lr, or look at those examples."
            )
        self._values |= {name: _log_mean_exp(values) for name, values in written.items()}
        self._written = {}

    def discard(self) -> None:
        """Forget what was written since the last commit."""
        self._written = {}

    def state_dict(self) -> dict[str, float]:
        """The committed values by example id, in the order of the ids; JSON keeps every digit."""
        return dict(sorted(self._values.items()))

    def load_state_dict(self, values: Mapping[str, float]) -> None:
        """Replace the committed values, and forget what was written since.

        Raises:
            ValueError: a value is not a finite number; nothing has changed.
        """
        numbers = {name: float(value) for name, value in values.items()}
        if wrong := [name for name, value in numbers.items() if not math.isfinite(value)]:
            raise ValueError(f"the saved estimates of {wrong[:3]} are not finite; resume from an earlier checkpoint.")
        self._values, self._written = numbers, {}


def merge(written: Iterable[Written]) -> dict[str, list[float]]:
    """What all ranks wrote during a step, the same whatever the order of the ranks."""
    merged: dict[str, list[float]] = {}
    for part in written:
        for name, values in part.items():
            merged.setdefault(name, []).extend(values)
    return {name: sorted(values) for name, values in sorted(merged.items())}


def _log_mean_exp(values: Sequence[float]) -> float:
    """Log of the mean of exp, the same to the bit in any order; a single value comes back as it is."""
    if len(values) == 1:
        return values[0]
    greatest = max(values)
    return greatest + math.log(math.fsum(math.exp(value - greatest) for value in values) / len(values))
