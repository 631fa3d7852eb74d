"""The head over the supervised tokens of a forward pass: what can be asked of it, and by which route it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dftune.ops.one_pass import ChunkObjective
from dftune.ops.plain import full_logits
from dftune.ops.route import default_budget
from dftune.ops.scoring import HeadOptions
from dftune.ops.token_logps import HeadArguments, TokenStats, token_objective, token_stats
from dftune.train.sequence import Part

_ROW_TENSORS = 8
"""(rows, vocab) float32 tensors alive at once while the divergence of a block of rows is differentiated."""


@dataclass(frozen=True)
class Scorer:
    """The head of a model and the hidden states it is applied to, inside the model's forward.

    Attributes:
        hidden: (tokens, hidden) at the supervised positions.
        targets: (tokens,) the tokens to be predicted there.
        weight: (vocab, hidden).
        bias: (vocab,) or None.
        softcap: bound of the logits.
        logit_scale: multiplies the logits.
        operand_dtype: what the matrix products read.
        logits_dtype: what logits are rounded to; None is float32.
        budget_bytes: scratch that may be used; None is the scorer's own.
        part: where several ranks share the sequences, this rank's tokens. What is said of them is joined over the
            ranks; only an objective's sum cannot be.
    """

    hidden: Tensor
    targets: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    logit_scale: float | None = None
    operand_dtype: torch.dtype | None = None
    logits_dtype: torch.dtype | None = None
    budget_bytes: int | None = None
    part: Part | None = None

    def logps(self) -> Tensor:
        """Log-probabilities of the targets: (tokens,) float32."""
        return self.stats().logps

    def stats(self, names: frozenset[str] = frozenset(), *, route: str = "auto") -> TokenStats:
        """Log-probabilities of the targets and the named statistics of their rows."""
        found = token_stats(self.hidden, self.weight, self.targets, stats=names, **self._head(route))
        return found if self.part is None else found.map(self.part.join)

    def objective(
        self,
        fn: ChunkObjective,
        *,
        boundaries: Sequence[int] | None,
        names: frozenset[str] = frozenset(),
        route: str = "auto",
    ) -> tuple[Tensor, TokenStats, Tensor]:
        """The sum of an objective that adds up, its statistics, and its derivative by each log-probability."""
        assert self.part is None, "of part of the tokens; ask for the statistics"
        return token_objective(
            self.hidden, self.weight, self.targets, fn, boundaries=boundaries, stats=names, **self._head(route)
        )

    def _head(self, route: str) -> HeadArguments:
        return {
            "bias": self.bias,
            "softcap": self.softcap,
            "logit_scale": self.logit_scale,
            "operand_dtype": self.operand_dtype,
            "logits_dtype": self.logits_dtype,
            "route": route,
            "budget_bytes": self.budget_bytes,
        }

    def kl_from(self, reference: Scorer) -> Tensor:
        """KL(reference || model) over the whole vocabulary, in nats: (tokens,) float32, differentiable in the model.

            KL_t = sum_v q_tv (log q_tv - log p_tv)

        Both models' logits are made for a block of rows at a time, and made again in the backward.

        Args:
            reference: the frozen model's head, over the same tokens.
        """
        budget = default_budget(self.hidden.device) if self.budget_bytes is None else self.budget_bytes
        rows = max(1, budget // (4 * _ROW_TENSORS * self.weight.shape[0]))
        blocks = [
            checkpoint(_kl, self, hidden, reference, other, use_reentrant=False, preserve_rng_state=False)
            for hidden, other in zip(torch.split(self.hidden, rows), torch.split(reference.hidden, rows), strict=True)
        ]
        kl = torch.cat(blocks)
        return kl if self.part is None else self.part.join(kl)

    def log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of the whole vocabulary for a block of rows: (rows, vocab) float32."""
        options = HeadOptions(
            softcap=self.softcap,
            logit_scale=self.logit_scale,
            operand_dtype=self.operand_dtype,
            logits_dtype=self.logits_dtype,
        )
        with torch.autocast(hidden.device.type, enabled=False):
            return full_logits(hidden, self.weight, self.bias, options).log_softmax(1)


def _kl(model: Scorer, hidden: Tensor, reference: Scorer, other: Tensor) -> Tensor:
    with torch.no_grad():
        log_q = reference.log_probs(other)
        q = log_q.exp()
    return (q * (log_q - model.log_probs(hidden))).sum(1)
