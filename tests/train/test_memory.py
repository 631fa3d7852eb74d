"""The arithmetic of memory against bytes counted in real models, and what it says of models too large to hold."""

from dataclasses import replace

import pytest
import torch
from tests.tiny import make_examples
from transformers import AutoModelForCausalLM, Qwen2Config

from dftune.data.batches import micro_batches
from dftune.objectives import get_objective
from dftune.ops import attention
from dftune.train.config import LoraConfig, OptimizerConfig
from dftune.train.lora import Adapter
from dftune.train.memory import Setting, activations_per_token, estimate, shape_of
from dftune.train.model import ScoredModel
from dftune.train.optim import make_optimizer
from dftune.train.room import advice, memory_lines
from dftune.train.step import accumulate_gradient

CONFIG = Qwen2Config(
    vocab_size=50,
    hidden_size=96,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=272,
    tie_word_embeddings=True,
)


def model_of(config=CONFIG):
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention.register())


def nbytes(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("name", ["adamw", "adamw_fused", "sgd"])
def test_weights_gradients_and_moments_are_those_of_a_step_to_the_byte(name):
    model = model_of()
    optimizer = make_optimizer(model, OptimizerConfig(lr=1e-3, name=name))
    scored = ScoredModel(model)
    accumulate_gradient(scored, get_objective("sft"), micro_batches(make_examples(4), max_tokens=1000))
    optimizer.step()
    found = estimate(shape_of(model), Setting(64, itemsize=4, optimizer=name))
    parameters = list(model.parameters())
    assert found.weights == nbytes(parameters)
    assert found.gradients == nbytes(parameter.grad for parameter in parameters)
    state = [value for row in optimizer.state.values() for key, value in row.items() if key != "step"]
    assert found.moments == nbytes(state)


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
def test_an_adapter_s_bytes_are_those_of_peft(targets):
    lora = LoraConfig(rank=4, target_modules=targets)
    model = model_of()
    found = estimate(shape_of(model, lora), Setting(64, itemsize=4, lora=True))
    Adapter(model, lora, seed=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert found.weights == nbytes(model.parameters())
    assert found.gradients == nbytes(trained)
    assert found.moments == 2 * nbytes(trained)


def saved_bytes(model, tokens: int, dtype: torch.dtype) -> int:
    """Of the storages that autograd keeps after a forward of the body, each once; weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    model.train()
    ids = torch.randint(50, (1, tokens))
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    assert output.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_kept_are_within_a_fifth_of_those_counted(dtype):
    model, tokens = model_of(), 400
    shape = shape_of(model)
    expected = saved_bytes(model, tokens, dtype) - (2 * shape.linear_parameters if dtype == torch.bfloat16 else 0)
    setting = Setting(tokens, itemsize=dtype.itemsize)
    in_backward = 4 * setting.itemsize * shape.intermediate + 8 * shape.hidden
    assert tokens * (activations_per_token(shape, setting) - in_backward) == pytest.approx(expected, rel=0.2)


def test_sharding_divides_the_state_and_offloading_moves_it():
    shape = shape_of(model_of())
    whole = estimate(shape, Setting(64))
    shards = estimate(shape, Setting(64, strategy="fsdp", ranks=8, replicas=2))
    assert shards.lasting == pytest.approx(whole.lasting / 4, abs=3)
    away = estimate(shape, Setting(64, strategy="fsdp", ranks=8, replicas=2, cpu_offload=True))
    assert away.lasting == 0 and away.offloaded == shards.lasting
    assert estimate(shape, Setting(64, strategy="ddp", ranks=8)).lasting == whole.lasting


def recipe_of(make_recipe, **sizes):
    new = [f"model.scratch.{name}={size}" for name, size in sizes.items()]
    return make_recipe(overrides=("train.device=cpu", *new))[0]


def test_a_model_that_cannot_fit_is_refused_and_a_plan_says_so(make_recipe):
    huge = recipe_of(make_recipe, hidden_size=65536, num_layers=64, intermediate_size=262144, num_heads=64)
    with pytest.raises(ValueError, match=r"cannot fit into this machine: weights, gradients .* take \d+\.\d GiB"):
        list(memory_lines(huge, 1))
    said = list(memory_lines(huge, 1, strict=False))
    assert said[0].startswith("memory: about") and said[1].startswith("warning: the run cannot fit")


def test_one_that_fits_is_described_without_a_warning(make_recipe):
    (line,) = memory_lines(recipe_of(make_recipe), 2)
    assert "in each of 2 processes (ddp): weights" in line and "activations of" in line


def test_advice_names_the_options_that_are_enough_with_what_they_take():
    shape = shape_of(model_of())
    setting = Setting(8192, itemsize=4, budget_bytes=0)
    device = torch.device("cpu")
    full = replace(setting, gradient_checkpointing="full")
    needed = estimate(shape, full).total
    said = advice(shape, setting, needed, device)
    assert said.startswith("One of these would do") and "model.gradient_checkpointing=full" in said
    assert "optimizer.name=sgd" not in said  # a small model's moments are not what fills the memory
    assert advice(shape, setting, 1, device).startswith("No single option is enough")
