"""Schedules at points worked by hand, and what is decayed."""

import pytest
from tests.tiny import make_scored

from dftune.train.config import OptimizerConfig
from dftune.train.optim import learning_rate, make_optimizer


def rates(num_steps: int, **options) -> list[float]:
    config = OptimizerConfig(lr=1.0, **options)
    return [learning_rate(step, num_steps, config) for step in range(num_steps)]


def test_warm_up_rises_linearly_to_the_peak():
    assert rates(10, schedule="constant", warmup_ratio=0.4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_is_halfway_down_in_the_middle():
    found = rates(10, schedule="cosine", warmup_ratio=0.0)
    assert found[0] == 1.0
    assert found[5] == pytest.approx(0.5)
    assert found == sorted(found, reverse=True)


def test_linear_falls_by_equal_steps():
    assert rates(4, schedule="linear", warmup_ratio=0.0) == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_wsd_is_flat_and_then_falls():
    found = rates(10, schedule="wsd", warmup_ratio=0.1, decay_ratio=0.4)
    assert found == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_the_floor_is_kept():
    assert min(rates(50, schedule="cosine", min_lr_ratio=0.1)) >= 0.1


def test_norms_and_biases_are_not_decayed():
    model = make_scored()
    decayed, plain = make_optimizer(model, OptimizerConfig(lr=1.0, weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))
