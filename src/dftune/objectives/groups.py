"""Sums within groups, a group being a prompt with one chosen completion and its negatives."""

from __future__ import annotations

from torch import Tensor

from dftune.objectives.base import TokenBatch


def group_sums(tokens: TokenBatch, values: Tensor) -> Tensor:
    """(sequences,) summed within each group: (groups,)."""
    return values.new_zeros(tokens.num_groups).index_add(0, tokens.need("group_ids"), values)


def chosen_scores(tokens: TokenBatch, scores: Tensor) -> Tensor:
    """The score of each group's chosen completion: (groups,), of ``scores`` (sequences,)."""
    return group_sums(tokens, scores * tokens.need("is_chosen"))


def negative_means(tokens: TokenBatch, values: Tensor) -> Tensor:
    """The mean over each group's negatives: (groups,), of ``values`` (sequences,)."""
    negative = (~tokens.need("is_chosen")).to(values)
    return group_sums(tokens, values * negative) / group_sums(tokens, negative)


def check_groups(tokens: TokenBatch) -> None:
    """Refuse groups whose loss would silently be another one.

    Raises:
        ValueError: a group has no negative, or not exactly one chosen completion; names the first few.
    """
    chosen = tokens.need("is_chosen").long()
    counts = zip(group_sums(tokens, chosen).tolist(), group_sums(tokens, 1 - chosen).tolist(), strict=True)
    wrong = [
        f"{tokens.example_ids[group] if tokens.example_ids else group}: {positives} chosen, {negatives} negatives"
        for group, (positives, negatives) in enumerate(counts)
        if positives != 1 or negatives == 0
    ]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {tokens.num_groups} groups lack one chosen completion and at least one negative "
            f"({'; '.join(wrong[:3])}). Drop those rows from the data, or generate their negatives."
        )
