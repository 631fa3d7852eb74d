"""Recomputing and compiling change what is kept and how it is computed, and not the gradient."""

import shutil

import pytest
import torch
from tests.tiny import make_examples, make_model
from torch.utils.flop_counter import FlopCounterMode

from dftune.data.batches import micro_batches
from dftune.objectives import get_objective
from dftune.train.config import LoraConfig, ModelConfig
from dftune.train.lora import Adapter
from dftune.train.model import ScoredModel
from dftune.train.recompute import compile_blocks, recompute
from dftune.train.step import accumulate_gradient

BATCHES = micro_batches(make_examples(8), max_tokens=60)


def gradient(model, precision=torch.float32, batches=BATCHES):
    model.train()
    accumulate_gradient(ScoredModel(model, precision), get_objective("dynamic_ft"), batches)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2-softcap", "gpt2"])
@pytest.mark.parametrize("kind", ["full", "selective"])
def test_recomputed_activations_give_the_same_gradient_to_the_bit(kind, architecture, precision):
    expected = gradient(make_model(architecture), precision)
    model = make_model(architecture)
    recompute(model, kind)
    found = gradient(model, precision)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_an_adapter_s_gradient_is_the_same_too():
    found = []
    for kind in ("none", "selective"):
        model = make_model()
        recompute(model, kind)
        Adapter(model, LoraConfig(rank=4), seed=0)
        found.append(gradient(model))
    assert found[0] and all(torch.equal(found[1][name], value) for name, value in found[0].items())


def products(kind: str) -> int:
    """Floating-point operations of matrix products and attention in a step."""
    model = make_model()
    recompute(model, kind)
    with FlopCounterMode(display=False) as counter:
        gradient(model)
    return counter.get_total_flops()


def test_selective_repeats_no_matrix_product_and_full_repeats_those_of_the_forward():
    none, selective, full = (products(kind) for kind in ("none", "selective", "full"))
    assert none == selective
    assert full > 1.15 * none


def test_the_old_switch_still_says_full_or_none():
    assert ModelConfig(path="x", gradient_checkpointing=True).gradient_checkpointing == "full"
    assert ModelConfig(path="x", gradient_checkpointing=False).gradient_checkpointing == "none"
    with pytest.raises(ValueError, match="selective"):
        ModelConfig(path="x", gradient_checkpointing="some")


def test_a_model_that_does_not_name_its_blocks_is_refused():
    model = make_model()
    model._no_split_modules = None
    with pytest.raises(ValueError, match=r"Set model\.compile=false"):
        compile_blocks(model)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize("kind", ["none", "full", "selective"])
def test_compiled_blocks_give_the_same_gradient_and_are_not_compiled_anew_for_every_batch(kind):
    expected = gradient(make_model())
    model = make_model()
    recompute(model, kind)
    names = list(model.state_dict())
    compile_blocks(model)
    assert list(model.state_dict()) == names
    torch._dynamo.reset()
    found = gradient(model)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    first = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert first > 0  # something was compiled
    for seed in (1, 2, 3):
        gradient(model, batches=micro_batches(make_examples(8, seed=seed), max_tokens=60))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == first
