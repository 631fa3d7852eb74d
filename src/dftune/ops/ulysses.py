"""Ulysses sequence parallelism (arXiv 2309.14509): ranks hold parts of every sequence, swapped for heads to attend.

Outside attention a rank has all heads of its own positions; inside it has its own heads of all positions. Two
all-to-alls around attention lead from one to the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class SequenceGroup:
    """The ranks that share every sequence, each an equal number of adjacent positions.

    Attributes:
        rank: of this process among them, from 0, in the order of the positions.
        size: how many they are.
        group: their process group, on the device of the model.
    """

    rank: int
    size: int
    group: Any

    def to_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All positions of this rank's heads, from all heads of this rank's positions.

        Key-value heads that do not suffice are repeated, so that every rank gets those that its queries look at.

        Args:
            query: (rows, heads, length / size, head size).
            key: (rows, key-value heads, length / size, head size).
            value: as ``key``.

        Returns:
            The three, (rows, heads / size, length, head size).
        """
        repeats = num_repeats(query.shape[1], key.shape[1], self.size)
        key, value = (x if repeats == 1 else x.repeat_interleave(repeats, 1) for x in (key, value))
        query, key, value = (_swap(x, self) for x in (query, key, value))
        return query, key, value

    def to_positions(self, attended: Tensor) -> Tensor:
        """The way back: (rows, length, heads / size, head size) to (rows, length / size, heads, head size)."""
        return _swap(attended, self)

    def join(self, own: Tensor, places: Tensor, num_tokens: int) -> Tensor:
        """What each rank says of its own tokens, as one tensor of all tokens that every rank holds.

        Its gradient is taken by each rank for its own tokens: all of them differentiate the same function of all
        tokens, and the sum of what they send back through the model is the gradient.

        Args:
            own: (own tokens,).
            places: (own tokens,) which of the tokens they are.
            num_tokens: of all ranks.
        """
        joined: Tensor = _Join.apply(own, places, num_tokens, self.group)  # type: ignore[no-untyped-call]
        return joined


def num_repeats(heads: int, key_value_heads: int, size: int) -> int:
    """How often each key-value head is repeated for the ranks to get equal numbers of them.

    Raises:
        ValueError: the heads cannot be shared among so many ranks.
    """
    if heads % size:
        raise ValueError(
            f"{heads} attention heads cannot be divided among distributed.sequence_parallel = {size} processes. "
            f"Choose a divisor of {heads}."
        )
    most = heads // key_value_heads
    return next(
        repeats for repeats in range(1, most + 1) if most % repeats == 0 and key_value_heads * repeats % size == 0
    )


def _swap(tensor: Tensor, sequence: SequenceGroup) -> Tensor:
    swapped: Tensor = _Swap.apply(tensor, sequence)  # type: ignore[no-untyped-call]
    return swapped


class _Swap(torch.autograd.Function):
    """Divide dimension 1 among the ranks, and join what they had of dimension 2."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sequence: SequenceGroup) -> Tensor:
        ctx.sequence = sequence
        return _all_to_all(tensor, sequence, divided=1, joined=2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _all_to_all(gradients[0], ctx.sequence, divided=2, joined=1), None


def _all_to_all(tensor: Tensor, sequence: SequenceGroup, *, divided: int, joined: int) -> Tensor:
    sent = torch.stack(tensor.chunk(sequence.size, divided))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=sequence.group)
    return torch.cat(received.unbind(), joined)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, places: Tensor, num_tokens: int, group: Any) -> Tensor:
        ctx.save_for_backward(places)
        joined = own.new_zeros(num_tokens)
        joined[places] = own
        dist.all_reduce(joined, group=group)
        return joined

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return gradients[0][places], None, None, None
