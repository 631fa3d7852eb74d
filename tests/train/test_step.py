"""The step's gradient does not depend on how the step is cut, packed, padded or ordered."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import make_examples, make_scored

from dftune.data.batches import micro_batches
from dftune.objectives import OBJECTIVES, get_objective
from dftune.train.config import OptimizerConfig
from dftune.train.metrics import token_metrics
from dftune.train.optim import make_optimizer
from dftune.train.step import NonFiniteError, accumulate_gradient, train_step

# Those that need nothing but log p: what the engine itself must get right.
PLAIN = [name for name in OBJECTIVES if not (o := get_objective(name)).needs and o.separable == "token"]
SPLITS = {
    "8x1 (one forward pass)": {"max_tokens": 1000},
    "2x4 (four forward passes)": {"max_tokens": 1000, "max_examples": 2},
    "1x8, padded": {"max_tokens": 1000, "max_examples": 1, "packing": False},
    "packed to a budget": {"max_tokens": 30},
    "padded": {"max_tokens": 1000, "packing": False},
    "padded with another token": {"max_tokens": 1000, "packing": False, "pad_id": 7},
    "padded to a budget": {"max_tokens": 45, "packing": False},
}


def gradient(objective: str, examples, **split) -> tuple[torch.Tensor, float]:
    model = make_scored()
    result = accumulate_gradient(model, get_objective(objective), micro_batches(examples, **split))
    return torch.cat([p.grad.flatten() for p in model.parameters()]), result.loss.item()


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


@pytest.mark.parametrize("objective", PLAIN)
@pytest.mark.parametrize("split", SPLITS)
def test_every_split_of_a_step_has_the_gradient_of_one_example_at_a_time(objective, split):
    examples = make_examples(8)
    expected, loss = gradient(objective, examples, max_tokens=1000, max_examples=1)
    found, found_loss = gradient(objective, examples, **SPLITS[split])
    assert_same(found, expected)
    assert found_loss == pytest.approx(loss, rel=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(6)), st.integers(20, 120), st.booleans(), st.sampled_from(sorted(PLAIN)))
def test_order_budget_and_packing_leave_the_gradient_as_it_is(order, max_tokens, packing, objective):
    examples = make_examples(6, seed=1)
    expected, _ = gradient(objective, examples, max_tokens=1000)
    assert_same(gradient(objective, [examples[i] for i in order], max_tokens=max_tokens, packing=packing)[0], expected)


@pytest.mark.parametrize("objective", PLAIN)
def test_an_example_given_twice_leaves_the_mean_as_it_is(objective):
    examples = make_examples(3)
    assert_same(
        gradient(objective, examples * 2, max_tokens=1000)[0], gradient(objective, examples, max_tokens=1000)[0]
    )


def test_mean_of_micro_batch_means_would_be_another_gradient():
    """What the division by the global count forbids: here it would be off by far more than the tolerance."""
    examples = make_examples(8)
    expected, _ = gradient("sft", examples, max_tokens=1000)
    parts = [gradient("sft", [example], max_tokens=1000)[0] for example in examples]
    mean_of_means = torch.stack(parts).mean(0)
    assert ((mean_of_means - expected).norm() / expected.norm()).item() > 0.01


def test_unsupervised_tokens_reach_the_loss_only_as_context():
    examples = make_examples(4)
    for batch in micro_batches(examples, max_tokens=1000):
        supervised = sum(int(example.completion_mask[1:].sum()) for example in examples)
        assert len(batch.targets) == len(batch.positions) == supervised
        rows = batch.input_ids.flatten()
        assert torch.equal(rows[batch.positions + 1], batch.targets)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_loss_stops_before_a_weight_moves(bad):
    model = make_scored()
    with torch.no_grad():
        model.model.get_input_embeddings().weight[3, 0] = bad
    before = [parameter.clone() for parameter in model.parameters()]
    config = OptimizerConfig(lr=0.1)
    with pytest.raises(NonFiniteError):
        train_step(
            model,
            make_optimizer(model, config),
            get_objective("sft"),
            micro_batches(make_examples(8), max_tokens=1000),
            lr=0.1,
            max_grad_norm=1.0,
        )
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter.nan_to_num(), old.nan_to_num())


def test_the_gradient_norm_is_logged_before_clipping_and_the_update_is_clipped():
    norms, moves = [], []
    for max_grad_norm in (None, 1e-3):
        model = make_scored()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        batches = micro_batches(make_examples(8), max_tokens=1000)
        result = train_step(model, optimizer, get_objective("sft"), batches, lr=1.0, max_grad_norm=max_grad_norm)
        norms.append(result.grad_norm.item())
        moves.append((torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm().item())
    assert norms[0] == pytest.approx(norms[1])
    assert moves[0] == pytest.approx(norms[0], rel=1e-4)
    assert moves[1] == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("objective", PLAIN)
def test_the_logged_weights_are_the_methods_own(objective):
    """1 for SFT, p for Dynamic FT, p^alpha for the power family (alpha = 1/2 by default)."""
    model = make_scored()
    result = accumulate_gradient(model, get_objective(objective), micro_batches(make_examples(8), max_tokens=1000))
    p = result.logps.exp()
    weights = {"sft": torch.ones_like(p), "dynamic_ft": p, "power": p.sqrt(), "chord_phi": p * (1 - p)}
    expected = weights[objective]
    torch.testing.assert_close(result.weights, expected)
    found = token_metrics(result, end_token_id=-1)
    assert found["ess"] == pytest.approx((expected.sum() ** 2 / (len(p) * (expected**2).sum())).item(), rel=1e-5)
    assert found["nll"] == pytest.approx(-result.logps.mean().item())
    assert found["p_eot"] is None
