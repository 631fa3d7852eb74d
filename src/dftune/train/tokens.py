"""Token batches: made from a forward pass, cut where an objective may be cut, and joined to a whole step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import accumulate

import torch
from torch import Tensor

from dftune.data.batches import MicroBatch
from dftune.objectives import TokenBatch
from dftune.objectives.base import Scope
from dftune.ops.token_logps import TokenStats
from dftune.train.world import World

OF_TOKENS = ("logps", "ref_logps", "old_logps", "entropy", "top_k_entropy", "sum_sq_probs", "ref_kl")
OF_SEQUENCES = ("advantages", "is_chosen")
DIFFERENTIABLE = ("logps", "entropy", "ref_kl")
STATISTICS = frozenset({"entropy", "top_k_entropy", "sum_sq_probs"})
"""Fields that the scorer computes from a row of logits."""


def frame(batch: MicroBatch, inputs: Mapping[str, Tensor], needs: frozenset[str]) -> TokenBatch:
    """The tokens of a forward pass without what the model says of them: ``logps`` are zeros, to be filled in.

    Args:
        batch: the forward pass.
        inputs: fields that come from elsewhere, (tokens,).
        needs: what the objective declared; it gets nothing else.
    """
    grouped = "groups" in needs
    return TokenBatch(
        logps=torch.zeros(batch.targets.shape, device=batch.targets.device),
        sequence_ids=batch.sequence_ids,
        num_sequences=batch.num_sequences,
        **inputs,
        group_ids=batch.group_ids if grouped else None,
        is_chosen=batch.is_chosen if grouped else None,
        num_groups=batch.num_groups if grouped else 0,
        example_ids=batch.group_example_ids if grouped else batch.example_ids,
    )


def fill(tokens: TokenBatch, found: TokenStats, needs: frozenset[str], ref_kl: Tensor | None = None) -> TokenBatch:
    """A frame, or part of one, with what the model says of these tokens.

    Where the old policy is needed and not given, it is the policy itself, as at the start of an inner loop.
    """
    named = {name: getattr(found, name) for name in STATISTICS & needs}
    if "old_logps" in needs and tokens.old_logps is None:
        named["old_logps"] = found.logps.detach()
    return replace(tokens, logps=found.logps, ref_kl=ref_kl, **named)


def boundaries(batch: MicroBatch, scope: Scope) -> list[int] | None:
    """Where the tokens of a forward pass may be cut for an objective of this scope; None is anywhere."""
    if scope == "token":
        return None
    if scope == "batch":
        return [0, len(batch.targets)]
    of_tokens = batch.sequence_ids
    if scope == "group":
        assert batch.group_ids is not None, "an objective on groups was given examples without any"
        of_tokens = batch.group_ids[of_tokens]
    return [0, *accumulate(torch.bincount(of_tokens).tolist())]


def cut(tokens: TokenBatch, rows: slice) -> TokenBatch:
    """Some of the tokens, adjacent, with the sequences and groups that they belong to numbered from 0."""
    if rows.start == 0 and rows.stop == len(tokens.sequence_ids):
        return tokens
    sequence_ids = tokens.sequence_ids[rows]
    first, last = int(sequence_ids[0]), int(sequence_ids[-1])
    sequences = slice(first, last + 1)
    changed: dict[str, object] = _sliced(tokens, OF_TOKENS, rows) | _sliced(tokens, OF_SEQUENCES, sequences)
    changed |= {"sequence_ids": sequence_ids - first, "num_sequences": last + 1 - first}
    if tokens.group_ids is None:
        changed["example_ids"] = tokens.example_ids[sequences]
    else:
        group_ids = tokens.group_ids[sequences]
        start, end = int(group_ids[0]), int(group_ids[-1]) + 1
        changed |= {"group_ids": group_ids - start, "num_groups": end - start}
        changed["example_ids"] = tokens.example_ids[start:end]
    return replace(tokens, **changed)  # type: ignore[arg-type]


def _sliced(tokens: TokenBatch, names: Sequence[str], rows: slice) -> dict[str, object]:
    found = {name: getattr(tokens, name) for name in names}
    return {name: value[rows] for name, value in found.items() if value is not None}


def join(parts: Sequence[TokenBatch]) -> TokenBatch:
    """The tokens of several forward passes as one batch."""
    if len(parts) == 1:
        return parts[0]
    sequences = _offsets([part.num_sequences for part in parts])
    groups = _offsets([part.num_groups for part in parts])
    shifts = {"sequence_ids": sequences, "group_ids": groups}
    joined: dict[str, object] = {}
    for field in fields(TokenBatch):
        column = [getattr(part, field.name) for part in parts]
        if field.name in shifts and column[0] is not None:
            column = [value + shift for value, shift in zip(column, shifts[field.name], strict=False)]
        if isinstance(column[0], Tensor):
            joined[field.name] = torch.cat(column)
    return TokenBatch(
        **joined,  # type: ignore[arg-type]
        num_sequences=sequences[-1],
        num_groups=groups[-1],
        example_ids=tuple(name for part in parts for name in part.example_ids),
    )


def _offsets(counts: Sequence[int]) -> list[int]:
    return [0, *accumulate(counts)]


def join_ranks(tokens: TokenBatch, world: World) -> tuple[TokenBatch, slice]:
    """The tokens of all ranks as one batch, without gradient, in the order of the ranks; and which are this rank's."""
    num_own = len(tokens.logps)
    if world.size == 1:
        return tokens, slice(0, num_own)
    parts = world.gather(_moved(tokens, torch.device("cpu")))
    start = sum(len(part.logps) for part in parts[: world.rank])
    return _moved(join(parts), tokens.logps.device), slice(start, start + num_own)


def _moved(tokens: TokenBatch, device: torch.device) -> TokenBatch:
    values = {field.name: getattr(tokens, field.name) for field in fields(TokenBatch)}
    moved: dict[str, object] = {k: v.detach().to(device) for k, v in values.items() if isinstance(v, Tensor)}
    return replace(tokens, **moved)  # type: ignore[arg-type]
