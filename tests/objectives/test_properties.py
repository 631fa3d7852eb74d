"""What holds for every objective: it adds up as declared, order does not matter, and it reads what it declared."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.batches import (
    arguments_of,
    gradient,
    random_tokens,
    take_groups,
    take_sequences,
    take_tokens,
)

from dftune.objectives import OBJECTIVES, get_objective

VARIANTS = [
    *((name, {}) for name in OBJECTIVES),
    ("dynamic_ft", {"floor": 0.1, "clip": 0.5}),
    ("power", {"alpha": 0.0, "p_min": 0.2}),
    ("power", {"alpha": 1.0, "p_max": 0.2}),
    ("deft", {"exponent": "cayley"}),
    ("iw_sft", {"form": "token"}),
    ("asft", {"kl": "k3", "base": "nll"}),
    ("prior_ft", {"alpha": 0.5, "floor": 0.1}),
    ("discriminative_ft", {"ref_free": True}),
    ("discriminative_ft", {"gamma": 1.0}),
    ("discriminative_ft", {"unbiased_start": True}),
    ("dpo", {"loss": "ipo"}),
    ("dpo", {"loss": "hinge"}),
    ("dpo", {"loss": "robust", "label_smoothing": 0.1}),
    ("dpo", {"reference_free": True, "label_smoothing": 0.1}),
    ("ppo", {"kl_weight": 0.05}),
    ("grpo", {"ratio": "sequence", "kl_weight": 0.05}),
]
every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda value: str(value).strip("{}"))
SIZES = st.lists(st.integers(2, 4), min_size=2, max_size=5)
FEW = settings(max_examples=15, deadline=None)


def total_and_metrics(objective, tokens):
    loss = objective(tokens, **arguments_of(objective))
    return {"total": loss.total.double(), **{name: value.double() for name, value in loss.metrics.items()}}


def shuffled(size: int, seed: int) -> list[int]:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()


def parts_of(tokens, scope: str, seed: int):
    """The batch in a random order, cut in two at a random place that the scope allows."""
    take, size = {
        "token": (lambda order: take_tokens(tokens, torch.tensor(order)), len(tokens.logps)),
        "sequence": (lambda order: take_sequences(tokens, order), tokens.num_sequences),
        "group": (lambda order: take_groups(tokens, order), tokens.num_groups),
    }[scope]
    order = shuffled(size, seed)
    cut = 1 + seed % (size - 1)
    return [take(order[:cut]), take(order[cut:])]


@every_variant
@FEW
@given(sizes=SIZES, seed=st.integers(0, 10_000))
def test_the_parts_of_a_batch_add_up_to_the_whole_as_declared(name, options, sizes, seed):
    objective = get_objective(name, **options)
    tokens = random_tokens(seed, tuple(sizes))
    if objective.separable == "batch":
        return
    whole = total_and_metrics(objective, tokens)
    one, other = (total_and_metrics(objective, part) for part in parts_of(tokens, objective.separable, seed))
    assert whole.keys() == one.keys()
    for key, value in whole.items():
        torch.testing.assert_close(one[key] + other[key], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["talr", "deft"])
def test_an_objective_declared_to_need_the_whole_batch_does_not_add_up(name):
    objective = get_objective(name, **({"exponent": "cayley"} if name == "deft" else {}))
    assert objective.separable == "batch"
    tokens = random_tokens(0)
    parts = [objective(part).total for part in parts_of(tokens, "sequence", 1)]
    assert abs(sum(parts) - objective(tokens).total) > 1e-3


@every_variant
@FEW
@given(sizes=SIZES, seed=st.integers(0, 10_000))
def test_the_order_of_groups_sequences_and_tokens_does_not_matter(name, options, sizes, seed):
    objective = get_objective(name, **options)
    tokens = random_tokens(seed, tuple(sizes))
    expected = total_and_metrics(objective, tokens)
    groups = take_groups(tokens, shuffled(tokens.num_groups, seed))
    sequences = take_sequences(groups, shuffled(groups.num_sequences, seed))
    mixed = take_tokens(sequences, torch.tensor(shuffled(len(sequences.logps), seed)))
    for other in (groups, sequences, mixed):
        found = total_and_metrics(objective, other)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9)


@every_variant
def test_it_reads_what_it_declares_and_nothing_else(name, options):
    objective = get_objective(name, **options)
    tokens = random_tokens(3)
    optional = {"ref_logps", "old_logps", "entropy", "top_k_entropy", "sum_sq_probs", "ref_kl", "advantages"}
    groups = {"group_ids": None, "num_groups": 0, "is_chosen": None, "example_ids": ()}
    needs = objective.needs
    only = dataclasses.replace(tokens, **dict.fromkeys(optional - needs), **({} if "groups" in needs else groups))
    expected = objective(tokens, **arguments_of(objective)).total
    assert torch.equal(objective(only, **arguments_of(objective)).total, expected)
    for missing in needs - {"groups"}:
        with pytest.raises(AssertionError, match=missing):
            objective(dataclasses.replace(tokens, **{missing: None}), **arguments_of(objective))


@every_variant
def test_the_gradient_is_finite_at_log_probabilities_of_0_and_minus_100(name, options):
    objective = get_objective(name, **options)
    tokens = random_tokens(5)
    logps = tokens.logps.clone()
    logps[::2], logps[1::4] = 0.0, -100.0
    tokens = dataclasses.replace(tokens, logps=logps)
    assert gradient(objective, tokens, **arguments_of(objective)).isfinite().all()


@every_variant
def test_only_the_log_probabilities_under_training_get_a_gradient(name, options):
    """A reference or an old policy that came with a graph must not pull at the model."""
    objective = get_objective(name, **options)
    tokens = random_tokens(7)
    frozen = ("ref_logps", "old_logps", "top_k_entropy", "sum_sq_probs", "advantages")
    leaves = {field: getattr(tokens, field).clone().requires_grad_() for field in frozen}
    logps = tokens.logps.clone().requires_grad_()
    total = objective(dataclasses.replace(tokens, logps=logps, **leaves), **arguments_of(objective)).total
    found = torch.autograd.grad(total, [logps, *leaves.values()], allow_unused=True)
    assert found[0] is not None
    assert found[0].abs().sum() > 0
    assert all(gradient is None or not gradient.any() for gradient in found[1:])


@every_variant
def test_metrics_are_scalars_without_a_graph(name, options):
    objective = get_objective(name, **options)
    tokens = random_tokens(7)
    tokens = dataclasses.replace(
        tokens, logps=tokens.logps.requires_grad_(), ref_kl=tokens.ref_kl.clone().requires_grad_()
    )
    for metric in objective(tokens, **arguments_of(objective)).metrics.values():
        assert metric.shape == ()
        assert not metric.requires_grad


@every_variant
def test_options_written_into_a_resolved_recipe_give_the_same_objective_again(name, options):
    objective = get_objective(name, **options)
    assert get_objective(name, **objective.options).options == objective.options
