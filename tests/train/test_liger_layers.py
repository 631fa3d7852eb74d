"""Liger's norms, MLPs and rotation in a model: under Triton's interpreter, and on a GPU where there is one."""

import importlib

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tests.ops.triton_device import DEVICES, require
from tests.tiny import VOCAB, make_examples, make_model
from tests.train.interpreted import help_the_interpreter
from tests.train.ranks import CPU, Case, build, spawn
from tests.train.runs import run

from dftune.data.batches import micro_batches
from dftune.objectives import get_objective
from dftune.ops.route import has_liger
from dftune.train.config import DistributedConfig, LoraConfig
from dftune.train.distributed import spread
from dftune.train.kernels import use_liger
from dftune.train.lora import Adapter
from dftune.train.model import ScoredModel, probe, probe_documents
from dftune.train.step import accumulate_gradient

pytestmark = [
    pytest.mark.skipif(not has_liger(), reason="the package liger-kernel is not installed"),
    pytest.mark.parametrize("device", DEVICES),
]


@pytest.fixture(autouse=True)
def _on_this_machine(device):
    if require(device).type == "cpu":
        help_the_interpreter()


def gradient(scored, device):
    scored.model.train()
    batches = [batch.to(torch.device(device)) for batch in micro_batches(make_examples(8), max_tokens=60)]
    accumulate_gradient(scored, get_objective("dynamic_ft"), batches)
    return {name: value.grad for name, value in scored.named_parameters() if value.grad is not None}


def liger_calls(model):
    """Modules whose forward is Liger's."""
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize(
    ("architecture", "adapted"), [("qwen2", False), ("llama-untied", True), ("gemma2-softcap", False)]
)
def test_gradients_with_liger_s_layers_are_those_of_the_model_s_own(device, architecture, adapted):
    if device == "cpu" and architecture == "gemma2-softcap":
        return  # the interpreter lacks the tanh of its MLP
    found = []
    for liger in (False, True):
        model = make_model(architecture).to(device)
        adapter = Adapter(model, LoraConfig(rank=4), seed=0) if adapted else None
        scored = ScoredModel(model, adapter=adapter)
        undo = use_liger([scored], torch.device(device), vocab_size=VOCAB) if liger else lambda: None
        assert (len(liger_calls(model)) >= 2 * 3) == liger  # two norms and an MLP in each of two blocks
        found.append(gradient(scored, device))
        undo()
    assert found[0].keys() == found[1].keys() and found[0]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4, msg=lambda said, name=name: name + said)


def test_other_models_of_the_process_keep_their_layers(device):
    family = importlib.import_module("transformers.models.qwen2.modeling_qwen2")
    before = dict(vars(family))
    undo = use_liger([ScoredModel(make_model().to(device))], torch.device(device), vocab_size=VOCAB)
    changed = {name for name, value in before.items() if vars(family)[name] is not value}
    assert changed == {"apply_rotary_pos_emb"}
    undo()
    assert all(vars(family)[name] is value for name, value in before.items())
    assert not liger_calls(make_model())


def test_layers_that_compute_something_else_are_refused_and_the_rotation_given_back(device):
    model = make_model().to(device)
    family = importlib.import_module("transformers.models.qwen2.modeling_qwen2")
    own = family.apply_rotary_pos_emb
    for layer in model.model.layers:  # a norm that does more than Liger's
        norm = layer.input_layernorm
        norm.forward = lambda states, norm=norm: 2 * type(norm).forward(norm, states)
    with pytest.raises(ValueError, match=r"with model\.kernels=liger log-probabilities differ from those of the model"):
        use_liger([ScoredModel(model)], torch.device(device), vocab_size=VOCAB)
    assert family.apply_rotary_pos_emb is own


def test_an_architecture_without_liger_s_layers_is_refused(device):
    with pytest.raises(ValueError, match=r"no kernels for gpt2; it has them for .*qwen2.*model\.kernels=none"):
        use_liger([ScoredModel(make_model("gpt2").to(device))], torch.device(device), vocab_size=VOCAB)


def test_a_run_with_liger_s_layers_leaves_the_weights_of_one_without(device, make_recipe):
    small = ("train.steps=1", "train.batch_size=2", "train.checkpoint_every=null", "data.validation=2")
    settings = (f"train.device={device}", "train.precision=fp32", *small)
    models = [
        load_file(run(make_recipe(kernels, (*settings, f"model.kernels={kernels}"))[0]).model / "model.safetensors")
        for kernels in ("none", "liger")
    ]
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=0, atol=2e-5)


def sharded(world, folder):
    help_the_interpreter()
    scored = build(Case("sft"))
    batch = probe(probe_documents(VOCAB, CPU))
    expected = scored(batch)
    spread([scored], "fsdp", DistributedConfig(strategy="fsdp"), world, CPU)
    undo = use_liger([scored], CPU, vocab_size=VOCAB)
    found = scored(batch)
    undo()
    torch.save((found.detach(), expected.detach(), len(liger_calls(scored.model))), folder / f"{world.rank}.pt")


def test_a_sharded_model_takes_liger_s_layers_too(device, tmp_path):
    if device == "cuda" or not dist.is_gloo_available():
        pytest.skip("over gloo, on CPUs")
    spawn(2, folder := tmp_path / "ranks", sharded)
    for rank in range(2):
        found, expected, calls = torch.load(folder / f"{rank}.pt")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert calls >= 6
