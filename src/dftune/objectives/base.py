"""The contract between objectives and the engine: ``TokenBatch`` in, ``LossSum`` out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Unit = Literal["token", "sequence", "group"]
Scope = Literal["token", "sequence", "group", "batch"]


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """The supervised tokens of one micro-batch, flattened; nothing here is to be masked.

    Attributes:
        logps: (tokens,) float32, differentiable; log-probability of each target token.
        sequence_ids: (tokens,) int64; which sequence of the micro-batch a token belongs to, from 0.
        num_sequences: sequences in the micro-batch.
    """

    logps: Tensor
    sequence_ids: Tensor
    num_sequences: int


@dataclass(frozen=True)
class LossSum:
    """An un-normalised loss: only the engine knows how many units the whole step holds.

    Attributes:
        total: scalar, differentiable; the sum over the micro-batch.
        metrics: sums to be logged; the engine divides each by the step's number of units.
    """

    total: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
