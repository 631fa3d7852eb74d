"""Token batches for the tests of objectives: by hand, at random, and cut into parts."""

import dataclasses
import math

import torch

from dftune.objectives import TokenBatch
from dftune.objectives.state import LogEstimates

PROBABILITIES = [0.01, 0.1, 0.5, 0.9]
OF_TOKENS = ("logps", "ref_logps", "old_logps", "entropy", "top_k_entropy", "sum_sq_probs", "ref_kl")


def tokens_of(logps, lengths=None, **fields) -> TokenBatch:
    """A batch of sequences of these lengths (one of all tokens by default), in float64; other fields as given."""
    logps = torch.as_tensor(logps, dtype=torch.float64)
    lengths = [len(logps)] if lengths is None else lengths
    return TokenBatch(
        logps=logps,
        sequence_ids=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        num_sequences=len(lengths),
        **{
            key: torch.as_tensor(value, dtype=torch.float64) if isinstance(value, list) else value
            for key, value in fields.items()
        },
    )


def pairs_of(scores, ref_scores=None, *, chosen, groups=None, ids=None) -> TokenBatch:
    """A batch of sequences of one token each: the group and the role of each by position."""
    groups = [0] * len(scores) if groups is None else groups
    ids = tuple(f"e{i}" for i in range(max(groups) + 1)) if ids is None else ids
    return tokens_of(
        scores,
        [1] * len(scores),
        ref_logps=ref_scores,
        group_ids=torch.tensor(groups),
        num_groups=max(groups) + 1,
        is_chosen=torch.tensor(chosen),
        example_ids=tuple(ids),
    )


def gradient(objective, tokens: TokenBatch, **arguments) -> torch.Tensor:
    """The derivative of the total by each log p."""
    logps = tokens.logps.detach().requires_grad_()
    total = objective(dataclasses.replace(tokens, logps=logps), **arguments).total
    (found,) = torch.autograd.grad(total, logps)
    return found


def gradient_at(p: float, objective, **fields) -> float:
    """The same for a batch of one token of probability p."""
    return gradient(objective, tokens_of([math.log(p)], **fields)).item()


def random_tokens(seed: int, sizes=(2, 3, 2), longest: int = 5, spread: float = 1.5) -> TokenBatch:
    """Groups of these sizes, the chosen completion at a random place in each, with every field filled."""
    generator = torch.Generator().manual_seed(seed)
    num_sequences = sum(sizes)
    lengths = torch.randint(1, longest + 1, (num_sequences,), generator=generator).tolist()
    num_tokens = sum(lengths)

    def uniform(low: float, high: float, size: int = num_tokens) -> torch.Tensor:
        return low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)

    is_chosen = torch.zeros(num_sequences, dtype=torch.bool)
    start = 0
    for size in sizes:
        is_chosen[start + int(torch.randint(size, (), generator=generator))] = True
        start += size
    logps = uniform(-4, -0.01)
    return tokens_of(
        logps,
        lengths,
        ref_logps=(logps + uniform(-spread, spread)).clamp(max=0),
        old_logps=(logps + uniform(-0.6, 0.6)).clamp(max=0),
        entropy=uniform(0, 5),
        top_k_entropy=uniform(0, math.log(20)),
        sum_sq_probs=uniform(0.01, 1),
        ref_kl=uniform(0, 2),
        advantages=uniform(-2, 2, num_sequences),
        group_ids=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
        num_groups=len(sizes),
        is_chosen=is_chosen,
        example_ids=tuple(f"e{index}" for index in range(len(sizes))),
    )


def take_tokens(tokens: TokenBatch, index: torch.Tensor) -> TokenBatch:
    """Some of the tokens, in this order."""
    fields = {name: getattr(tokens, name) for name in (*OF_TOKENS, "sequence_ids")}
    return dataclasses.replace(
        tokens, **{name: None if value is None else value[index] for name, value in fields.items()}
    )


def take_sequences(tokens: TokenBatch, order: list[int]) -> TokenBatch:
    """Some of the sequences, in this order; groups keep their numbers."""
    positions = [(tokens.sequence_ids == sequence).nonzero().flatten() for sequence in order]
    fields = {name: getattr(tokens, name) for name in ("advantages", "group_ids", "is_chosen")}
    return dataclasses.replace(
        take_tokens(tokens, torch.cat(positions)),
        sequence_ids=torch.cat([torch.full_like(where, new) for new, where in enumerate(positions)]),
        num_sequences=len(order),
        **{name: None if value is None else value[order] for name, value in fields.items()},
    )


def take_groups(tokens: TokenBatch, order: list[int]) -> TokenBatch:
    """Some of the groups, in this order."""
    members = [(tokens.group_ids == group).nonzero().flatten().tolist() for group in order]
    return dataclasses.replace(
        take_sequences(tokens, [sequence for group in members for sequence in group]),
        group_ids=torch.repeat_interleave(torch.arange(len(order)), torch.tensor([len(group) for group in members])),
        num_groups=len(order),
        example_ids=tuple(tokens.example_ids[group] for group in order),
    )


def arguments_of(objective) -> dict[str, LogEstimates]:
    """The state that a stateful objective wants, in which every second example has been seen."""
    if not objective.stateful:
        return {}
    state = LogEstimates()
    state.load_state_dict({f"e{index}": 0.3 * index - 1 for index in (1, 3, 5)})
    return {"state": state}
