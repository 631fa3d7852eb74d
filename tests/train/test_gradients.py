"""The engine's gradient is that of the loss from full logits, for every kind of input and scope, however split."""

import pytest
import torch
from tests.tiny import make_examples, make_model, make_scored
from tests.train.full_logits import LOSSES, Table, score

from dftune.data.batches import micro_batches
from dftune.objectives import LossSum, get_objective
from dftune.objectives.entry import Entry, Objective
from dftune.train.model import frozen_copy
from dftune.train.step import Pass, accumulate_gradient
from dftune.train.supply import Supply

SPLITS = {
    "one forward pass": {"max_tokens": 1000},
    "one example each": {"max_tokens": 1000, "max_examples": 1},
    "packed to a budget": {"max_tokens": 40},
    "padded": {"max_tokens": 60, "packing": False},
}
ROUTES = ("auto", "plain", "recompute", "one_pass")


def flat_gradient(model) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    assert ((found - expected).norm() / expected.norm()).item() < tolerance


def others(examples):
    """A reference and an old policy that are not the model: the reference far from it, the old policy near."""
    reference = make_scored(seed=1)
    old = make_model()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for parameter in old.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    with torch.no_grad():
        scored = score(make_model(seed=1), examples), score(old, examples)
    supply = Supply(Table(examples, scored[0]), Table(examples, scored[1]), frozen_copy(reference))
    return *scored, supply


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_loss_from_full_logits(name, split):
    examples = make_examples(8)
    reference, old, supply = others(examples)
    loss, options = LOSSES[name]
    expected = make_model()
    value = loss(score(expected, examples), reference, old)
    value.backward()
    model = make_scored()
    objective = get_objective(name.split()[0], **options)
    result = accumulate_gradient(model, objective, micro_batches(examples, **SPLITS[split]), Pass(supply))
    assert result.loss.item() == pytest.approx(value.item(), rel=1e-5)
    assert_close(flat_gradient(model), flat_gradient(expected))


def test_the_old_policy_of_these_tests_is_far_enough_for_the_clip_to_act():
    examples = make_examples(8)
    *_, supply = others(examples)
    batches = micro_batches(examples, max_tokens=1000)
    result = accumulate_gradient(make_scored(), get_objective("psft"), batches, Pass(supply))
    assert 0 < result.metrics["clipped_share"].item() < 1


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", ["eaft", "iw_sft", "psft"])
def test_every_route_of_the_scorer_gives_the_same_gradient(name, route):
    examples = make_examples(8)
    *_, supply = others(examples)
    batches = micro_batches(examples, max_tokens=60)
    found = []
    for taken in ("stored", route):
        model = make_scored()
        accumulate_gradient(model, get_objective(name), batches, Pass(supply, route=taken))
        found.append(flat_gradient(model))
    assert_close(found[1], found[0])


def test_a_head_that_is_not_trained_takes_the_frozen_route_and_leaves_the_body_s_gradient_as_it_is():
    examples = make_examples(8)
    found = []
    for frozen in (False, True):
        model = make_scored("llama-untied")
        model.model.lm_head.weight.requires_grad_(not frozen)
        route = "frozen_head" if frozen else "plain"
        batches = micro_batches(examples, max_tokens=60)
        accumulate_gradient(model, get_objective("dynamic_ft"), batches, Pass(route=route))
        found.append(torch.cat([p.grad.flatten() for p in model.model.base_model.parameters()]))
    assert_close(found[1], found[0])


def with_entropy_bonus(tokens) -> LossSum:
    return LossSum(-(tokens.logps + 0.3 * tokens.need("entropy")).sum())


@pytest.mark.parametrize("scope", ["token", "batch"])
def test_the_entropy_carries_a_gradient_in_every_scope(scope):
    entry = Entry(with_entropy_bonus, "token", scope, frozenset({"entropy"}), "", "")
    objective = Objective("with_entropy_bonus", {}, entry, with_entropy_bonus)
    examples = make_examples(8)
    expected = make_model()
    scored = score(expected, examples)
    log_probs = torch.cat([one.log_probs for one in scored])
    logps = torch.cat([one.logps for one in scored])
    (-(logps - 0.3 * (log_probs.exp() * log_probs).sum(1)).mean()).backward()
    model = make_scored()
    accumulate_gradient(model, objective, micro_batches(examples, max_tokens=60))
    assert_close(flat_gradient(model), flat_gradient(expected))


def test_a_batch_objective_drops_the_same_units_in_both_of_its_passes():
    """GPT-2 with dropout: log p of the first pass, logged, and of the second, differentiated, must be one number."""
    model = make_scored("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    model.train()
    batches = micro_batches(make_examples(8), max_tokens=60)
    assert len(batches) > 1
    seen = []
    hook = model.model.base_model.register_forward_hook(
        lambda module, inputs, output: seen.append(output.last_hidden_state.detach().clone())
    )
    accumulate_gradient(model, get_objective("talr"), batches)
    hook.remove()
    first, second = seen[: len(batches)], seen[len(batches) :]
    assert len(first) == len(second)
    for before, after in zip(first, second, strict=True):
        assert torch.equal(before, after)
    assert not torch.equal(model.model.base_model(batches[0].input_ids).last_hidden_state, first[0])


def test_means_of_micro_batches_are_added_up_where_the_recipe_asks_for_it():
    """One SFT gradient of each micro-batch's own mean, summed: what undivided gradient accumulation computes."""
    examples = make_examples(6)
    batches = micro_batches(examples, max_tokens=1000, max_examples=2)
    expected = make_model()
    by_id = {example.id: example for example in examples}
    for batch in batches:
        scored = score(expected, [by_id[name] for name in batch.example_ids])
        (-torch.cat([one.logps for one in scored]).mean()).backward()
    model = make_scored()
    how = Pass(normalization="micro_batch_mean_sum")
    result = accumulate_gradient(model, get_objective("sft"), batches, how)
    assert_close(flat_gradient(model), flat_gradient(expected))
    assert result.loss.item() == pytest.approx(-result.logps.mean().item())  # what is logged stays the mean
