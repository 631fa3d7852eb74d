"""Schedules at points worked by hand, and what is decayed."""

import importlib.util
import shutil

import pytest
import torch
from tests.tiny import make_scored
from tests.train.runs import assert_same_run, run

from dftune.train.config import OptimizerConfig
from dftune.train.optim import learning_rate, make_optimizer
from dftune.train.setup import check_options


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


def test_sgd_is_the_plain_step_with_the_gradient_and_the_decay():
    model = make_scored()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    make_optimizer(model, OptimizerConfig(name="sgd", lr=0.1, weight_decay=0.3)).step()
    for name, value in model.named_parameters():
        decay = 0.3 if value.ndim >= 2 else 0.0
        torch.testing.assert_close(value, before[name] - 0.1 * (0.5 + decay * before[name]))


def test_fused_adamw_takes_the_steps_of_the_other():
    found = []
    for name in ("adamw", "adamw_fused"):
        model = make_scored()
        optimizer = make_optimizer(model, OptimizerConfig(name=name, lr=0.1))
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        found.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", ["adamw_fused", "sgd"])
def test_a_run_with_another_optimizer_is_taken_up_to_the_bit(make_recipe, name):
    settings = (f"optimizer.name={name}", "optimizer.lr=1e-2")
    expected = run(make_recipe("unbroken", settings)[0]).path
    recipe = make_recipe("broken", settings)[0]
    folder = run(recipe)
    for path in (folder.model, folder.checkpoints / "step-6"):
        shutil.rmtree(path)
    said: list[str] = []
    run(recipe, resume=True, say=said.append)
    assert any("at step 3 of 8" in line for line in said)
    assert_same_run(folder.path, expected)


@pytest.mark.parametrize("override", ["optimizer.name=adamw_8bit", "model.lora.quantize=nf4"])
def test_what_needs_a_gpu_is_refused_on_a_cpu_with_what_to_set_instead(make_recipe, override):
    base = ("train.device=cpu", "model={path: somewhere}", override)
    with pytest.raises(ValueError, match=r"runs on CUDA, and this run is on the CPU\. Set \w+\.[\w.]+="):
        check_options(make_recipe(overrides=base)[0])


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_without_bitsandbytes_the_package_is_named():
    with pytest.raises(ValueError, match=r"pip install 'dftune\[quantize\]'"):
        make_optimizer(make_scored(), OptimizerConfig(name="adamw_8bit", lr=1e-3))
