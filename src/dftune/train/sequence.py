"""This rank's part of a forward pass whose sequences several ranks share."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dftune.data.batches import MicroBatch
from dftune.ops.ulysses import SequenceGroup, num_repeats

_ROPE_OF_LENGTH = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True)
class Part:
    """The adjacent positions of a forward pass that one rank computes; of attention, all of them.

    Attributes:
        input_ids: (rows, length / ranks) int64.
        position_ids: (rows, length / ranks) int64.
        document_starts: of the whole row.
        positions: (own tokens,) int64, into this rank's flattened rows.
        targets: (own tokens,) int64.
        places: (own tokens,) int64, which of the supervised tokens of the forward pass they are.
        num_tokens: supervised tokens of the forward pass.
        sequence: the ranks.
    """

    input_ids: Tensor
    position_ids: Tensor
    document_starts: list[int] | None
    positions: Tensor
    targets: Tensor
    places: Tensor
    num_tokens: int
    sequence: SequenceGroup

    def join(self, own: Tensor) -> Tensor:
        """What each rank says of its own tokens, of all: (tokens,), differentiable by each rank's own."""
        return self.sequence.join(own, self.places, self.num_tokens)


def part_of(batch: MicroBatch, sequence: SequenceGroup) -> Part:
    """Cut a forward pass for this rank. It is padded on the right to a multiple of the ranks.

    Args:
        batch: the same on all ranks of the group.
        sequence: the ranks.
    """
    length = batch.input_ids.shape[1]
    missing = -length % sequence.size
    input_ids, position_ids, starts = batch.input_ids, batch.position_ids, batch.document_starts
    if missing:
        more = torch.arange(missing, device=input_ids.device).expand(len(input_ids), -1)
        input_ids = torch.cat([input_ids, torch.zeros_like(more)], 1)
        position_ids = torch.cat([position_ids, more], 1)
        starts = None if starts is None else [*starts, length + missing]
    size = (length + missing) // sequence.size
    own = slice(first := sequence.rank * size, first + size)
    row, column = batch.positions // length, batch.positions % length
    places = (column // size == sequence.rank).nonzero().squeeze(1)
    return Part(
        input_ids=input_ids[:, own],
        position_ids=position_ids[:, own],
        document_starts=starts,
        positions=(row * size + column - first)[places],
        targets=batch.targets[places],
        places=places,
        num_tokens=len(batch.targets),
        sequence=sequence,
    )


def bounds_of(batch: MicroBatch | Part) -> dict[str, Any]:
    """What attention is told of a forward pass beside the tokens themselves."""
    bounds: dict[str, Any] = {"sequence": batch.sequence} if isinstance(batch, Part) else {}
    if batch.document_starts is None:
        return bounds
    starts = batch.document_starts
    longest = max(end - start for start, end in pairwise(starts))
    cumulative = torch.tensor(starts, dtype=torch.int32, device=batch.input_ids.device)
    return bounds | {
        "document_starts": starts,
        "cu_seq_lens_q": cumulative,
        "cu_seq_lens_k": cumulative,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def check_heads(config: Any, size: int) -> None:
    """Refuse a model that cannot be computed in parts.

    Args:
        config: that of the transformers model.
        size: ranks that are to share a sequence.

    Raises:
        ValueError: its heads cannot be divided, or its rotary embedding depends on the length of what a rank sees.
    """
    text = config.get_text_config()
    heads = text.num_attention_heads
    num_repeats(heads, getattr(text, "num_key_value_heads", None) or heads, size)
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = {str(each.get("rope_type")) for each in (rope, *rope.values()) if isinstance(each, dict)}
    if found := kinds & _ROPE_OF_LENGTH:
        raise ValueError(
            f"the model's rotary embedding ({', '.join(found)}) depends on the length of the sequence, of which each "
            f"of distributed.sequence_parallel = {size} processes sees a part. Set distributed.sequence_parallel=1."
        )
