"""From examples to forward passes: which examples a step holds, and how they share rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dftune.objectives.base import Unit


@dataclass(frozen=True)
class Example:
    """One tokenised example.

    Attributes:
        id: stable id.
        input_ids: (length,) prompt and completion.
        completion_mask: (length,) bool, True on the tokens to be predicted.
    """

    id: str
    input_ids: npt.NDArray[np.int32]
    completion_mask: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.input_ids)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One forward pass.

    Attributes:
        input_ids: (rows, length) int64.
        position_ids: (rows, length) int64, from 0 in every example.
        document_starts: offsets of the examples in a packed row and the row's length; None for a padded batch.
        positions: (tokens,) int64, into the flattened rows: where a supervised token is predicted, one before it.
        targets: (tokens,) int64, the supervised tokens.
        sequence_ids: (tokens,) int64, which example each belongs to.
        example_ids: ids of the examples, in the order of ``sequence_ids``.
        num_tokens: real tokens, padding not counted.
    """

    input_ids: Tensor
    position_ids: Tensor
    document_starts: list[int] | None
    positions: Tensor
    targets: Tensor
    sequence_ids: Tensor
    example_ids: tuple[str, ...]
    num_tokens: int

    @property
    def num_sequences(self) -> int:
        """Examples in this forward pass."""
        return len(self.example_ids)

    @property
    def num_padding(self) -> int:
        """Padding in this forward pass, in tokens."""
        return self.input_ids.numel() - self.num_tokens

    def num_units(self, unit: Unit) -> int:
        """What an objective's sum is divided by, counted over this micro-batch."""
        if unit == "token":
            return self.targets.numel()
        assert unit == "sequence", "groups arrive with the objectives that need them"
        return self.num_sequences

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        if device.type == "cpu":
            return self
        tensors = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids", "position_ids", "positions", "targets", "sequence_ids")
        }
        return MicroBatch(
            **tensors,
            document_starts=self.document_starts,
            example_ids=self.example_ids,
            num_tokens=self.num_tokens,
        )


def step_indices(step: int, *, num_examples: int, batch_size: int, seed: int, num_total: int) -> list[int]:
    """The examples of one optimizer step: a pure function, so a resumed run needs no more than the step.

    Every epoch visits the examples in a new order drawn from (seed, epoch); the epochs follow each other without a
    gap, so a step may hold the end of one and the start of the next.

    Args:
        step: from 0.
        num_examples: examples in the data set.
        batch_size: examples a step.
        seed: decides the order.
        num_total: examples in the whole run; the last step holds what is left.
    """
    visits = range(step * batch_size, min((step + 1) * batch_size, num_total))
    orders = {
        epoch: np.random.default_rng([seed, epoch]).permutation(num_examples)
        for epoch in {visit // num_examples for visit in visits}
    }
    return [int(orders[visit // num_examples][visit % num_examples]) for visit in visits]


def micro_batches(
    examples: Sequence[Example],
    *,
    max_tokens: int,
    max_examples: int | None = None,
    packing: bool = True,
    pad_id: int = 0,
) -> list[MicroBatch]:
    """Split the examples of a step into forward passes. The split leaves the step's gradient as it is.

    Args:
        examples: the step's examples.
        max_tokens: most tokens in a forward pass, padding included.
        max_examples: most examples in a forward pass.
        packing: examples end to end in one row (best-fit decreasing), instead of one padded row each.
        pad_id: token used as padding; it is never attended to nor predicted.

    Raises:
        ValueError: an example is longer than ``max_tokens``, or has no supervised token.
    """
    too_long = [example.id for example in examples if len(example) > max_tokens]
    if too_long:
        longest = max(len(example) for example in examples)
        raise ValueError(
            f"examples {too_long[:5]} are longer than train.micro_batch_tokens = {max_tokens}, up to {longest} tokens. "
            f"Raise it to at least {longest}, or lower data.max_length."
        )
    empty = [example.id for example in examples if not example.completion_mask[1:].any()]
    if empty:
        raise ValueError(f"examples {empty[:5]} have no token to train on. Prepare the data again.")
    if packing:
        return [_packed(group) for group in _best_fit(examples, max_tokens, max_examples)]
    return [_padded(group, pad_id) for group in _by_length(examples, max_tokens, max_examples)]


def _best_fit(examples: Sequence[Example], max_tokens: int, max_examples: int | None) -> list[list[Example]]:
    """Best-fit decreasing: the longest first, each into the fullest row that still takes it."""
    rows: list[list[Example]] = []
    free: list[int] = []
    for example in sorted(examples, key=len, reverse=True):
        fitting = [
            (room, row)
            for row, room in enumerate(free)
            if room >= len(example) and (max_examples is None or len(rows[row]) < max_examples)
        ]
        if fitting:
            _, row = min(fitting)
            rows[row].append(example)
            free[row] -= len(example)
        else:
            rows.append([example])
            free.append(max_tokens - len(example))
    return rows


def _by_length(examples: Sequence[Example], max_tokens: int, max_examples: int | None) -> list[list[Example]]:
    groups: list[list[Example]] = []
    for example in sorted(examples, key=len, reverse=True):  # the first of a group is its longest
        group = groups[-1] if groups else None
        if (
            group
            and (len(group) + 1) * len(group[0]) <= max_tokens
            and (max_examples is None or len(group) < max_examples)
        ):
            group.append(example)
        else:
            groups.append([example])
    return groups


def _packed(group: Sequence[Example]) -> MicroBatch:
    starts = np.cumsum([0, *map(len, group)]).tolist()
    return _assemble(
        group,
        offsets=starts[:-1],
        input_ids=np.concatenate([example.input_ids for example in group])[None],
        position_ids=np.concatenate([np.arange(len(example)) for example in group])[None],
        document_starts=starts,
    )


def _padded(group: Sequence[Example], pad_id: int) -> MicroBatch:
    length = max(map(len, group))
    input_ids = np.full((len(group), length), pad_id)
    for row, example in enumerate(group):
        input_ids[row, : len(example)] = example.input_ids
    return _assemble(
        group,
        offsets=[row * length for row in range(len(group))],
        input_ids=input_ids,
        position_ids=np.broadcast_to(np.arange(length), input_ids.shape).copy(),
        document_starts=None,
    )


def _assemble(
    group: Sequence[Example],
    *,
    offsets: Sequence[int],
    input_ids: npt.NDArray[Any],
    position_ids: npt.NDArray[Any],
    document_starts: list[int] | None,
) -> MicroBatch:
    supervised = [np.flatnonzero(example.completion_mask[1:]) for example in group]
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids.astype(np.int64)),
        position_ids=torch.from_numpy(position_ids.astype(np.int64)),
        document_starts=document_starts,
        positions=torch.from_numpy(np.concatenate([p + o for p, o in zip(supervised, offsets, strict=True)])),
        targets=torch.from_numpy(
            np.concatenate([e.input_ids[p + 1] for e, p in zip(group, supervised, strict=True)]).astype(np.int64)
        ),
        sequence_ids=torch.from_numpy(np.repeat(np.arange(len(group)), [len(p) for p in supervised])),
        example_ids=tuple(example.id for example in group),
        num_tokens=sum(map(len, group)),
    )
