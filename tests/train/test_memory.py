"""The arithmetic of memory against bytes counted in real models, and what it says of models too large to hold."""

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
    """Of the storages that autograd keeps after a forward of the body, weights left out and shared ones counted once."""
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
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
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
