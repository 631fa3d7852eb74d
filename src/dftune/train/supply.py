"""What an objective is given beside the model's own statistics: reference, old policy, state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dftune.data.batches import MicroBatch
from dftune.objectives import Objective, TokenBatch
from dftune.objectives.state import LogEstimates
from dftune.ops.token_logps import TokenStats
from dftune.train.model import ScoredModel
from dftune.train.score import Scorer
from dftune.train.tokens import STATISTICS, fill, frame


class LogpTable(Protocol):
    """Log-probabilities of the supervised tokens of examples, by example id."""

    def of(self, example_ids: Sequence[str]) -> Tensor:
        """Those of these examples, one after another: (tokens,) float32."""
        ...


@dataclass(frozen=True)
class Supply:
    """Where the fields of a ``TokenBatch`` come from.

    Attributes:
        ref_logps: of the frozen reference.
        old_logps: of the policy at the start of the inner loop; None is the policy itself, as at such a start.
        reference: the frozen reference model, for what needs whole rows of it.
        state: what the objective keeps by example.
    """

    ref_logps: LogpTable | None = None
    old_logps: LogpTable | None = None
    reference: ScoredModel | None = None
    state: LogEstimates | None = None

    def score(
        self,
        model: ScoredModel,
        objective: Objective,
        batch: MicroBatch,
        *,
        stats: frozenset[str] = frozenset(),
        route: str = "auto",
    ) -> tuple[TokenStats, TokenBatch]:
        """Statistics of a forward pass, and its tokens as the objective sees them; both differentiable.

        Args:
            model: run on the batch.
            objective: says what it needs.
            batch: the forward pass.
            stats: statistics wanted beside those it needs.
            route: of the scorer.
        """
        needs = frozenset[str](objective.needs)
        names = stats | (STATISTICS & needs)
        reference = self._reference_scorer(batch) if "ref_kl" in needs else None

        def score(scorer: Scorer) -> tuple[TokenStats, Tensor | None, Tensor, Tensor | None]:
            found = scorer.stats(names, route=route)
            # Sharded weights are gathered for the backward by hooks on the tensors that a forward returns; they
            # must be seen, and inside TokenStats they are not.
            return found, None if reference is None else scorer.kl_from(reference), found.logps, found.entropy

        found, ref_kl, *_ = model(batch, score)
        return found, fill(self.frame(objective, batch), found, needs, ref_kl)

    @torch.no_grad()
    def _reference_scorer(self, batch: MicroBatch) -> Scorer:
        assert self.reference is not None, "the objective needs the reference model"
        scorer: Scorer = self.reference(batch, lambda scorer: scorer)
        return scorer

    def frame(self, objective: Objective, batch: MicroBatch) -> TokenBatch:
        """The tokens of a forward pass as the objective sees them, but for what the model says of them."""
        needs = frozenset[str](objective.needs)
        tables = {"ref_logps": self.ref_logps, "old_logps": self.old_logps}
        inputs: dict[str, Tensor] = {
            name: (torch.zeros(0) if batch.is_idle else table.of(batch.example_ids)).to(batch.targets.device)
            for name, table in tables.items()
            if name in needs and table is not None
        }
        return frame(batch, inputs, needs)


NOTHING = Supply()
"""For objectives that need no more than the model says."""
