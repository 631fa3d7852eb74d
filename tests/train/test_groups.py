"""Objectives on a completion and its negatives: the gradient from full logits, and the state that goes with it."""

import math

import pytest
import torch
from tests.tiny import make_examples, make_model, make_scored
from tests.train.full_logits import Table, score

from dftune.data.batches import Example, micro_batches
from dftune.objectives import get_objective
from dftune.objectives.state import LogEstimates
from dftune.train.config import OptimizerConfig
from dftune.train.metrics import validate
from dftune.train.optim import make_optimizer
from dftune.train.step import NonFiniteError, Pass, accumulate_gradient, train_step
from dftune.train.supply import Supply

SPLITS = {
    "one forward pass": {"max_tokens": 1000},
    "one group each": {"max_tokens": 70, "max_examples": 3},
    "padded": {"max_tokens": 130, "packing": False},
}


def make_groups(num: int) -> list[Example]:
    """Groups of one chosen completion and two negatives."""
    examples = make_examples(3 * num, seed=5)
    return [
        Example(example.id, example.input_ids, example.completion_mask, f"g{i // 3}", i % 3 == 0)
        for i, example in enumerate(examples)
    ]


@pytest.fixture
def groups():
    return make_groups(4)


@pytest.fixture
def reference(groups):
    with torch.no_grad():
        return score(make_model(seed=1), groups)


def dpo_from_full_logits(model, reference) -> torch.Tensor:
    s = [one.logps.sum() - base.logps.sum() for one, base in zip(model, reference, strict=True)]
    losses = [-torch.nn.functional.logsigmoid(0.1 * (s[i] - s[j])) for i in range(0, len(s), 3) for j in (i + 1, i + 2)]
    return torch.stack(losses).mean()


def discriminative_from_full_logits(model, reference) -> torch.Tensor:
    """At a first visit: u = log(0.15 + 0.85 mean exp(d)), d = s - s_ref."""
    s = [one.logps.sum() for one in model]
    losses = []
    for i in range(0, len(s), 3):
        d = torch.stack([s[j].detach() - reference[j].logps.sum() for j in (i + 1, i + 2)]).double()
        u = (0.15 + 0.85 * d.exp().mean()).log()
        weights = (d - u).exp().float()
        losses.append(-s[i] + (weights * torch.stack([s[i + 1], s[i + 2]])).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("name", "loss"), [("dpo", dpo_from_full_logits), ("discriminative_ft", discriminative_from_full_logits)]
)
def test_the_gradient_is_that_of_the_loss_from_full_logits(groups, reference, name, loss, split):
    expected = make_model()
    value = loss(score(expected, groups), reference)
    value.backward()
    model = make_scored()
    supply = Supply(Table(groups, reference), state=LogEstimates() if name == "discriminative_ft" else None)
    batches = micro_batches(groups, **SPLITS[split])
    result = accumulate_gradient(model, get_objective(name), batches, Pass(supply))
    assert result.num_units == 4
    assert result.loss.item() == pytest.approx(value.item(), rel=1e-5, abs=1e-5)
    found, wanted = (torch.cat([p.grad.flatten() for p in one.parameters()]) for one in (model, expected))
    assert ((found - wanted).norm() / wanted.norm()).item() < 2e-5


def step(model, groups, state, **changes):
    optimizer = make_optimizer(model, OptimizerConfig(lr=0.01))
    supply = Supply(state=state)
    objective = get_objective("discriminative_ft", ref_free=True)
    batches = micro_batches(groups, max_tokens=70)
    how = Pass(supply)
    return train_step(model, optimizer, objective, batches, lr=0.01, max_grad_norm=1.0, how=how)


def test_a_step_commits_the_estimates_of_its_groups(groups):
    state = LogEstimates()
    model = make_scored()
    with torch.no_grad():
        scored = score(make_model(), groups)
    step(model, groups, state)
    d = [one.logps.mean().item() / 0.3 for one in scored]
    for i in range(4):
        expected = math.log(0.1 + 0.9 * (math.exp(d[3 * i + 1]) + math.exp(d[3 * i + 2])) / 2)
        assert state.state_dict()[f"g{i}"] == pytest.approx(expected, rel=1e-4)


def test_a_step_that_fails_and_a_validation_leave_the_estimates_as_they_were(groups):
    state = LogEstimates()
    model = make_scored()
    step(model, groups, state)
    before = state.state_dict()
    validate(
        model,
        get_objective("discriminative_ft", ref_free=True),
        micro_batches(groups, max_tokens=70),
        -1,
        Supply(state=state),
    )
    assert (state.state_dict(), dict(state.written)) == (before, {})
    with torch.no_grad():
        model.model.get_input_embeddings().weight[:, 0] = math.nan
    with pytest.raises(NonFiniteError):
        step(model, groups, state)
    assert (state.state_dict(), dict(state.written)) == (before, {})
