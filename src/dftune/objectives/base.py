"""The contract between objectives and the engine: ``TokenBatch`` in, ``LossSum`` out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Unit = Literal["token", "sequence", "group"]
Scope = Literal["token", "sequence", "group", "batch"]
Need = Literal["ref_logps", "old_logps", "entropy", "top_k_entropy", "sum_sq_probs", "ref_kl", "groups", "advantages"]


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """The supervised tokens of one micro-batch, flattened; nothing here is to be masked.

    The engine provides ``logps``, ``sequence_ids`` and ``num_sequences`` always, and the rest when the objective's
    registry entry ``needs`` it. An objective reads what it declared through :meth:`need`.

    Attributes:
        logps: (tokens,) float32, differentiable; log-probability of each target token.
        sequence_ids: (tokens,) int64; which sequence of the micro-batch a token belongs to, from 0.
        num_sequences: sequences in the micro-batch.
        ref_logps: (tokens,) float32; of the frozen reference model.
        old_logps: (tokens,) float32; of the policy at the start of the inner loop, or that sampled the tokens.
        entropy: (tokens,) float32, differentiable; of the whole row, in nats.
        top_k_entropy: (tokens,) float32, no gradient; entropy of the renormalised top-20 probabilities, in nats.
        sum_sq_probs: (tokens,) float32, no gradient; sum of squared probabilities of the row.
        ref_kl: (tokens,) float32, differentiable; KL(reference || model) over the whole vocabulary, in nats.
        advantages: (sequences,) float32.
        group_ids: (sequences,) int64; which group (prompt) a sequence belongs to, from 0.
        num_groups: groups in the micro-batch.
        is_chosen: (sequences,) bool; the positive of its group, or one of the negatives.
        example_ids: (groups,) stable ids, for state that is kept by example.
    """

    logps: Tensor
    sequence_ids: Tensor
    num_sequences: int
    ref_logps: Tensor | None = None
    old_logps: Tensor | None = None
    entropy: Tensor | None = None
    top_k_entropy: Tensor | None = None
    sum_sq_probs: Tensor | None = None
    ref_kl: Tensor | None = None
    advantages: Tensor | None = None
    group_ids: Tensor | None = None
    num_groups: int = 0
    is_chosen: Tensor | None = None
    example_ids: tuple[str, ...] = ()

    def need(self, name: str) -> Tensor:
        """A field that the objective declared; the engine's mistake if it is not there."""
        value: Tensor | None = getattr(self, name)
        assert value is not None, f"the engine did not provide {name}; the registry entry must list it in `needs`"
        return value

    def sequence_sums(self, values: Tensor) -> Tensor:
        """(tokens,) summed within each sequence: (sequences,)."""
        return values.new_zeros(self.num_sequences).index_add(0, self.sequence_ids, values)

    def sequence_lengths(self) -> Tensor:
        """(sequences,) supervised tokens of each sequence, in the dtype of ``logps``."""
        return self.sequence_sums(self.logps.detach().new_ones(len(self.logps)))


@dataclass(frozen=True)
class LossSum:
    """An un-normalised loss: only the engine knows how many units the whole step holds.

    Attributes:
        total: scalar, differentiable; the sum over the micro-batch.
        metrics: sums to be logged; the engine divides each by the step's number of units.
    """

    total: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
