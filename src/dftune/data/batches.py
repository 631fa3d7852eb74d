"""From examples to forward passes: which examples a step holds, and how they share rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dftune.data.packing import Mode, best_fit, in_order, length_sorted
from dftune.objectives.base import Unit


@dataclass(frozen=True)
class Example:
    """One tokenised example.

    Attributes:
        id: stable id.
        input_ids: (length,) prompt and completion.
        completion_mask: (length,) bool, True on the tokens to be predicted.
        group: stable id of the group that is scored together, such as a completion and its negatives; None where the
            example stands by itself.
        is_chosen: the positive of its group, or one of the negatives.
    """

    id: str
    input_ids: npt.NDArray[np.int32]
    completion_mask: npt.NDArray[np.bool_]
    group: str | None = None
    is_chosen: bool = True

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
        group_ids: (sequences,) int64, which group each example belongs to, from 0; None where nothing is grouped.
        is_chosen: (sequences,) bool, the positive of its group or a negative; None where nothing is grouped.
        group_example_ids: (groups,) the groups' stable ids. A group visited twice in a step is there twice.
    """

    input_ids: Tensor
    position_ids: Tensor
    document_starts: list[int] | None
    positions: Tensor
    targets: Tensor
    sequence_ids: Tensor
    example_ids: tuple[str, ...]
    num_tokens: int
    group_ids: Tensor | None = None
    is_chosen: Tensor | None = None
    group_example_ids: tuple[str, ...] = ()

    @property
    def is_idle(self) -> bool:
        """Whether it holds no example: a rank runs it so that it does as many forward passes as the others."""
        return not self.example_ids

    @property
    def num_sequences(self) -> int:
        """Examples in this forward pass."""
        return len(self.example_ids)

    @property
    def num_groups(self) -> int:
        """Groups in this forward pass; 0 where nothing is grouped."""
        return len(self.group_example_ids)

    @property
    def num_padding(self) -> int:
        """Padding in this forward pass, in tokens."""
        return self.input_ids.numel() - self.num_tokens

    def num_units(self, unit: Unit) -> int:
        """What an objective's sum is divided by, counted over this micro-batch."""
        if unit == "token":
            return self.targets.numel()
        if unit == "sequence":
            return self.num_sequences
        assert self.group_ids is not None, "an objective on groups was given examples without any"
        return self.num_groups

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        if device.type == "cpu":
            return self
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = value.to(device, non_blocking=True)
        return MicroBatch(**values)


def step_visits(step: int, *, num_examples: int, batch_size: int, seed: int, num_total: int) -> list[tuple[int, int]]:
    """What one optimizer step visits: a pure function, so a resumed run needs no more than the step.

    Every epoch visits the examples in a new order drawn from (seed, epoch); the epochs follow each other without a
    gap, so a step may hold the end of one and the start of the next.

    Args:
        step: from 0.
        num_examples: examples in the data set, or groups of them.
        batch_size: examples a step.
        seed: decides the order.
        num_total: examples in the whole run; the last step holds what is left.

    Returns:
        Epoch, from 0, and index of the example of every visit.
    """
    visits = [
        divmod(visit, num_examples) for visit in range(step * batch_size, min((step + 1) * batch_size, num_total))
    ]
    orders = {
        epoch: np.random.default_rng([seed, epoch]).permutation(num_examples)
        for epoch in {epoch for epoch, _ in visits}
    }
    return [(epoch, int(orders[epoch][place])) for epoch, place in visits]


def step_indices(step: int, *, num_examples: int, batch_size: int, seed: int, num_total: int) -> list[int]:
    """The indices of :func:`step_visits`."""
    visits = step_visits(step, num_examples=num_examples, batch_size=batch_size, seed=seed, num_total=num_total)
    return [index for _, index in visits]


def micro_batches(
    examples: Sequence[Example],
    *,
    max_tokens: int,
    max_examples: int | None = None,
    packing: bool | Mode = True,
    pad_id: int = 0,
    rank: int = 0,
    num_ranks: int = 1,
    parts: int = 1,
) -> list[MicroBatch]:
    """Split the examples of a step into forward passes. The split leaves the step's gradient as it is.

    A group is never split: all its examples are in one forward pass, and the limits hold for them together. Where any
    example has a group, one without is a group by itself. Of several ranks each gets a share of about as many tokens,
    and idle forward passes at the end until all have the same number.

    Args:
        examples: the step's examples, those of a group in their order. An id that comes again within a group starts
            the group anew, as when a step holds the end of one epoch and the start of the next.
        max_tokens: most tokens in a forward pass, padding included.
        max_examples: most examples in a forward pass.
        packing: examples end to end in one row, instead of one padded row each. ``best_fit`` (true) fills the rows
            best; ``in_order`` keeps the order of the examples; ``length_sorted`` (false) pads, the longest first.
        pad_id: token used as padding; it is never attended to nor predicted.
        rank: whose forward passes are wanted, from 0.
        num_ranks: among how many the examples are divided; all call this with the same examples.
        parts: how many devices compute a forward pass together, each of them ``max_tokens``.

    Raises:
        ValueError: an example or a group does not fit into a forward pass, or an example has no supervised token.
    """
    empty = [example.id for example in examples if not example.completion_mask[1:].any()]
    if empty:
        raise ValueError(f"examples {empty[:5]} have no token to train on. Prepare the data again.")
    groups = _groups(examples)
    mode: Mode = packing if isinstance(packing, str) else "best_fit" if packing else "length_sorted"
    _check_fit(groups, max_tokens, max_examples, mode != "length_sorted", parts)
    max_tokens *= parts
    grouped = any(example.group is not None for example in examples)
    passes = [_rows(share, mode, max_tokens, max_examples) for share in _shares(groups, num_ranks)]
    padded = mode == "length_sorted"
    own = [_padded(batch, grouped, pad_id) if padded else _packed(batch, grouped) for batch in passes[rank]]
    return own + [_idle(grouped)] * (max(map(len, passes)) - len(own))


def _shares(groups: Sequence[_Group], num_ranks: int) -> list[list[_Group]]:
    """Of about as many tokens each: the longest first, each to the rank that has fewest so far."""
    if num_ranks == 1:
        return [list(groups)]
    shares: list[list[_Group]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for group in sorted(groups, key=_num_tokens, reverse=True):
        rank = loads.index(min(loads))
        shares[rank].append(group)
        loads[rank] += _num_tokens(group)
    return shares


def _idle(grouped: bool) -> MicroBatch:
    """One token that nothing is predicted from."""
    none = torch.zeros(0, dtype=torch.int64)
    return MicroBatch(
        input_ids=torch.zeros(1, 1, dtype=torch.int64),
        position_ids=torch.zeros(1, 1, dtype=torch.int64),
        document_starts=[0, 1],
        positions=none,
        targets=none,
        sequence_ids=none,
        example_ids=(),
        num_tokens=0,
        group_ids=none if grouped else None,
        is_chosen=none.bool() if grouped else None,
    )


_Group = list[Example]
"""Examples that share a forward pass; one that stands by itself is alone in its list."""


def _groups(examples: Sequence[Example]) -> list[_Group]:
    groups: list[_Group] = []
    latest: dict[str, _Group] = {}
    for example in examples:
        group = latest.get(example.group) if example.group is not None else None
        if group is None or any(example.id == other.id for other in group):
            group = []
            groups.append(group)
            if example.group is not None:
                latest[example.group] = group
        group.append(example)
    return groups


def _num_tokens(group: _Group) -> int:
    return sum(map(len, group))


def _longest(group: _Group) -> int:
    return max(map(len, group))


def _check_fit(groups: Sequence[_Group], max_tokens: int, max_examples: int | None, packing: bool, parts: int) -> None:
    needs = [_num_tokens(group) if packing else len(group) * _longest(group) for group in groups]
    over = [_name(group) for group, need in zip(groups, needs, strict=True) if need > max_tokens * parts]
    enough = -(-max(needs, default=0) // parts)
    shared = "" if parts == 1 else f" in each of {parts} processes (distributed.sequence_parallel)"
    if over and max(map(len, groups)) == 1:
        raise ValueError(
            f"examples {over[:5]} are longer than train.micro_batch_tokens = {max_tokens}{shared}, up to {max(needs)} "
            f"tokens. Raise it to at least {enough}, or lower data.max_length."
        )
    if over:
        padded = "" if packing else ", padding included"
        raise ValueError(
            f"groups {over[:5]} do not fit into train.micro_batch_tokens = {max_tokens}{shared}: a completion and its "
            f"negatives share a forward pass, and need up to {max(needs)} tokens{padded}. "
            f"Raise it to at least {enough}, or lower data.num_negatives or data.max_length."
        )
    if max_examples is not None and (most := max(map(len, groups), default=0)) > max_examples:
        over = [_name(group) for group in groups if len(group) > max_examples]
        raise ValueError(
            f"groups {over[:5]} have up to {most} examples, and train.micro_batch_size = {max_examples}: a completion "
            f"and its negatives share a forward pass. Raise it to at least {most}, or lower data.num_negatives."
        )


def _name(group: _Group) -> str:
    return group[0].group or group[0].id


def _rows(groups: Sequence[_Group], mode: Mode, max_tokens: int, max_examples: int | None) -> list[list[_Group]]:
    if mode == "in_order":
        sizes = [_num_tokens(group) for group in groups]
        if max_examples is not None and max(map(len, groups), default=1) > 1:
            max_examples = max(1, max_examples // max(map(len, groups)))  # counted in groups, as large as the largest
        return [[groups[place] for place in row] for row in in_order(sizes, max_tokens, max_examples, open_rows=1)]
    pack, size = (best_fit, _num_tokens) if mode == "best_fit" else (length_sorted, _longest)
    rows = pack([size(group) for group in groups], max_tokens, [len(group) for group in groups], max_examples)
    return [[groups[place] for place in row] for row in rows.lists()]


def _packed(batch: Sequence[_Group], grouped: bool) -> MicroBatch:
    examples = [example for group in batch for example in group]
    starts = np.cumsum([0, *map(len, examples)]).tolist()
    return _assemble(
        batch,
        grouped,
        offsets=starts[:-1],
        input_ids=np.concatenate([example.input_ids for example in examples])[None],
        position_ids=np.concatenate([np.arange(len(example)) for example in examples])[None],
        document_starts=starts,
    )


def _padded(batch: Sequence[_Group], grouped: bool, pad_id: int) -> MicroBatch:
    examples = [example for group in batch for example in group]
    length = max(map(len, examples))
    input_ids = np.full((len(examples), length), pad_id)
    for row, example in enumerate(examples):
        input_ids[row, : len(example)] = example.input_ids
    return _assemble(
        batch,
        grouped,
        offsets=[row * length for row in range(len(examples))],
        input_ids=input_ids,
        position_ids=np.broadcast_to(np.arange(length), input_ids.shape).copy(),
        document_starts=None,
    )


def _assemble(
    batch: Sequence[_Group],
    grouped: bool,
    *,
    offsets: Sequence[int],
    input_ids: npt.NDArray[Any],
    position_ids: npt.NDArray[Any],
    document_starts: list[int] | None,
) -> MicroBatch:
    examples = [example for group in batch for example in group]
    supervised = [np.flatnonzero(example.completion_mask[1:]) for example in examples]
    micro_batch = MicroBatch(
        input_ids=torch.from_numpy(input_ids.astype(np.int64)),
        position_ids=torch.from_numpy(position_ids.astype(np.int64)),
        document_starts=document_starts,
        positions=torch.from_numpy(np.concatenate([p + o for p, o in zip(supervised, offsets, strict=True)])),
        targets=torch.from_numpy(
            np.concatenate([e.input_ids[p + 1] for e, p in zip(examples, supervised, strict=True)]).astype(np.int64)
        ),
        sequence_ids=torch.from_numpy(np.repeat(np.arange(len(examples)), [len(p) for p in supervised])),
        example_ids=tuple(example.id for example in examples),
        num_tokens=sum(map(len, examples)),
    )
    if not grouped:
        return micro_batch
    return replace(
        micro_batch,
        group_ids=torch.from_numpy(np.repeat(np.arange(len(batch)), [len(group) for group in batch])),
        is_chosen=torch.tensor([example.is_chosen for example in examples]),
        group_example_ids=tuple(_name(group) for group in batch),
    )
