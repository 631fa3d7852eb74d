"""An adapter on a frozen base: what is trained, what is saved, and what stands for the reference."""

import importlib.util
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import ARCHITECTURES, VOCAB, make_examples, make_model, make_scored
from tests.train.full_logits import LOSSES, Table, score
from tests.train.runs import assert_same_run, rows_of, run
from transformers import AutoModelForCausalLM

from dftune.config import RecipeError
from dftune.data.batches import micro_batches
from dftune.files import read_json
from dftune.objectives import get_objective
from dftune.train.checkpoint import DamagedCheckpointError, load_checkpoint, verify
from dftune.train.config import LoraConfig, ModelConfig, OptimizerConfig
from dftune.train.folders import export_adapter, export_model
from dftune.train.lora import Adapter
from dftune.train.model import ScoredModel, check_scoring, frozen_copy
from dftune.train.optim import make_optimizer
from dftune.train.reference import reference_logps, weights_fingerprint
from dftune.train.step import Pass, accumulate_gradient, train_step
from dftune.train.supply import NOTHING, Supply

peft = pytest.importorskip("peft")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class NoTokenizer:
    """A tokenizer as far as saving goes."""

    def save_pretrained(self, path):
        (path / "tokenizer.json").write_text("{}")


def adapted(architecture="qwen2", *, moved=True, dtype=torch.float32, precision=torch.float32, **settings):
    """A tiny model with an adapter, which has moved from its start so that it does something."""
    model = make_model(architecture).to(dtype)
    adapter = Adapter(model, LoraConfig(**{"rank": 4, "alpha": 8} | settings), seed=0)
    if moved:
        generator = torch.Generator().manual_seed(1)
        for value in adapter.weights().values():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return ScoredModel(model, precision, adapter)


def logits(model, seed=0):
    ids = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.eval()(ids, use_cache=False).logits


def by_hand(scored: ScoredModel, architecture="qwen2"):
    """A plain model with W + (alpha / rank) B A in place of each weight, and the A's and B's that it depends on."""
    plain = make_model(architecture)
    leaves, updated = {}, dict(plain.named_parameters())
    weights = scored.adapter.weights()
    for name in [name for name in weights if ".lora_A." in name]:
        a, b = (weights[each].clone().requires_grad_() for each in (name, name.replace("lora_A", "lora_B")))
        leaves[name], leaves[name.replace("lora_A", "lora_B")] = a, b
        target = name.removeprefix("base_model.model.").replace(".lora_A", "")
        updated[target] = updated[target].detach() + 8 / 4 * b @ a
    return plain, updated, leaves


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_merged_model_and_the_saved_adapter_compute_what_the_adapted_one_does(architecture, tmp_path):
    scored = adapted(architecture)
    expected, base = logits(scored.model), make_model(architecture)
    assert (expected - logits(base)).abs().max() > 1  # the adapter matters
    export_model(tmp_path / "model", scored.adapter.merged(), NoTokenizer())
    export_adapter(tmp_path / "adapter", scored.adapter)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(merged) is type(base)
    assert {name: value.shape for name, value in merged.named_parameters()} == {
        name: value.shape for name, value in base.named_parameters()
    }
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=5e-5)
    alone = peft.PeftModel.from_pretrained(make_model(architecture), tmp_path / "adapter")
    torch.testing.assert_close(logits(alone), expected, rtol=0, atol=0)
    assert torch.equal(logits(scored.model), expected)  # merging left the model in training as it was
    check_scoring(scored, vocab_size=VOCAB)


def test_a_base_in_bfloat16_is_merged_without_rounding_and_keeps_a_float32_adapter(tmp_path):
    scored = adapted(dtype=torch.bfloat16, precision=torch.bfloat16)
    assert {value.dtype for value in scored.adapter.weights().values()} == {torch.float32}
    assert {value.dtype for _, value in scored.base_parameters()} == {torch.bfloat16}
    name = "model.layers.1.mlp.down_proj.weight"
    weights, layer = scored.adapter.weights(), "base_model.model.model.layers.1.mlp.down_proj"
    update = 8 / 4 * weights[f"{layer}.lora_B.weight"] @ weights[f"{layer}.lora_A.weight"]
    export_model(tmp_path / "model", scored.adapter.merged(), NoTokenizer())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    base = make_model().to(torch.bfloat16).get_parameter(name).float()
    torch.testing.assert_close(merged.get_parameter(name), base + update, rtol=0, atol=1e-7)
    assert not torch.equal(merged.get_parameter(name).bfloat16().float(), merged.get_parameter(name))


@pytest.mark.parametrize("name", ["sft", *LOSSES])
def test_the_adapter_s_gradient_is_that_of_the_loss_from_full_logits_of_the_summed_weights(name):
    """The oracle has no adapter: a plain model on W + (alpha / rank) B A, differentiated by A and B."""
    scored, examples = adapted(), make_examples(8)
    plain, updated, leaves = by_hand(scored)
    with torch.no_grad():
        reference, old = score(make_model(), examples), score(make_model(seed=3), examples)
    loss, options = LOSSES.get(name, (lambda model, *_: -torch.cat([one.logps for one in model]).mean(), {}))
    plain.set_attn_implementation("eager")

    def functional(ids, **arguments):
        return torch.func.functional_call(plain, updated, (ids,), arguments, tie_weights=True)

    functional.set_attn_implementation = plain.set_attn_implementation
    value = loss(score(functional, examples), reference, old)
    expected = torch.autograd.grad(value, list(leaves.values()))
    supply = Supply(Table(examples, reference), Table(examples, old), frozen_copy(scored))
    objective = get_objective(name.split()[0], **options)
    result = accumulate_gradient(scored, objective, micro_batches(examples, max_tokens=60), Pass(supply))
    assert result.loss.item() == pytest.approx(value.item(), rel=1e-5)
    own = dict(zip(scored.adapter.weights(), (p for p in scored.parameters() if p.requires_grad), strict=True))
    found = torch.cat([own[name].grad.flatten() for name in leaves])
    wanted = torch.cat([gradient.flatten() for gradient in expected])
    assert ((found - wanted).norm() / wanted.norm()).item() < 5e-5
    assert all(parameter.grad is None for _, parameter in scored.base_parameters())


@pytest.mark.parametrize("name", ["sft", "asft"])
def test_steps_move_the_adapter_alone_and_the_reference_stays_the_base(name, tmp_path):
    scored, examples = adapted(moved=False, dropout=0.2), make_examples(8)
    torch.testing.assert_close(logits(scored.model), logits(make_model()), rtol=0, atol=0)  # B is 0 at the start
    before = {key: value.clone() for key, value in scored.adapter.weights().items()}
    optimizer = make_optimizer(scored, OptimizerConfig(lr=1e-2))
    reference = frozen_copy(scored)
    supply = Supply(reference=reference) if name == "asft" else NOTHING
    scored.train()
    batches = micro_batches(examples, max_tokens=60)
    for _ in range(3):
        train_step(scored, optimizer, get_objective(name), batches, lr=1e-2, max_grad_norm=None, how=Pass(supply))
    base = dict(make_model().named_parameters())
    assert dict.fromkeys(base, True) == {key: torch.equal(value, base[key]) for key, value in scored.base_parameters()}
    assert all(not torch.equal(value, before[key]) for key, value in scored.adapter.weights().items())
    with torch.no_grad():
        expected = Table(examples, score(make_model(), examples))
        for batch in batches:
            torch.testing.assert_close(reference(batch), expected.of(batch.example_ids), rtol=1e-5, atol=1e-5)

    def make_batches(some):
        return micro_batches(some, max_tokens=60)

    stored = reference_logps(scored, examples, make_batches, tmp_path, {}, say=lambda line: None)
    names = [one.id for one in examples]
    torch.testing.assert_close(stored.of(names), expected.of(names), rtol=1e-5, atol=1e-5)
    assert scored.model.training  # the adapter and its dropout are on again
    with torch.no_grad():
        assert not torch.equal(scored(batches[0]), scored(batches[0]))


def test_the_reference_drops_nothing_while_the_model_in_training_does():
    scored, examples = adapted("gpt2"), make_examples(8)
    for module in scored.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    scored.train()
    reference = frozen_copy(scored)
    (batch,) = micro_batches(examples, max_tokens=1000)
    with torch.no_grad():
        expected = Table(examples, score(make_model("gpt2"), examples)).of(batch.example_ids)
        torch.testing.assert_close(reference(batch), expected, rtol=1e-5, atol=1e-5)
        assert not torch.equal(scored(batch), scored(batch))


def test_the_reference_needs_no_second_set_of_weights():
    scored = adapted()
    own = {parameter.data_ptr() for parameter in scored.parameters()}
    assert {parameter.data_ptr() for parameter in frozen_copy(scored).parameters()} == own


def test_runs_with_and_without_an_adapter_share_the_reference_of_their_base():
    scored = adapted()
    assert weights_fingerprint(scored) == weights_fingerprint(make_scored())
    with torch.no_grad():
        next(iter(scored.base_parameters()))[1][0, 0] += 1e-3
    assert weights_fingerprint(scored) != weights_fingerprint(make_scored())


def test_gradient_checkpointing_runs_each_layer_twice_and_gives_the_same_gradient():
    batches = micro_batches(make_examples(8), max_tokens=1000)
    found, calls = [], []
    for recompute in (False, True):
        model = make_model()
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        adapter = Adapter(model, LoraConfig(rank=4), seed=0)
        scored, seen = ScoredModel(model, adapter=adapter).train(), []
        model.model.layers[0].self_attn.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        accumulate_gradient(scored, get_objective("sft"), batches)
        found.append(torch.cat([p.grad.flatten() for p in scored.parameters() if p.requires_grad]))
        calls.append(len(seen))
        assert model.get_input_embeddings()(batches[0].input_ids).requires_grad == recompute
    assert calls == [1, 2]
    torch.testing.assert_close(found[1], found[0])
    assert found[0].abs().max() > 0


@pytest.mark.parametrize(
    ("architecture", "targets", "expected"),
    [
        ("qwen2", ("q_proj", "lm_head"), r"lm_head is the model's head.*all-linear"),
        ("llama-untied", ("lm_head",), r"lm_head is the model's head"),
        ("qwen2", ("embed_tokens",), r"model\.embed_tokens is the model's embedding"),
        ("gpt2", ("wpe",), r"transformer\.wpe is the model's embedding"),
        ("qwen2", ("q_proj", "query"), r"no layer 'query'.*down_proj, gate_proj, k_proj, o_proj, q_proj"),
        ("qwen2", ("mlp",), r"layers\.0\.mlp is a Qwen2MLP, not a linear layer"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused_before_the_model_is_touched(architecture, targets, expected):
    model = make_model(architecture)
    with pytest.raises(ValueError, match=expected):
        Adapter(model, LoraConfig(target_modules=targets), seed=0)
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in make_model(architecture).named_parameters()
    ]


@pytest.mark.parametrize(
    ("targets", "expected"), [("all-linear", set(LINEAR)), (("q_proj", "v_proj"), {"q_proj", "v_proj"})]
)
def test_the_layers_asked_for_are_adapted_and_no_other(targets, expected):
    names = adapted(target_modules=targets).adapter.weights()
    assert {name.split(".")[-3] for name in names} == expected
    assert len(names) == 2 * 2 * len(expected)  # two layers, A and B


def test_an_adapter_on_random_weights_and_settings_without_sense_are_refused():
    with pytest.raises(ValueError, match=r"give model\.path"):
        ModelConfig(scratch={}, lora={})
    for wrong in ({"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"target_modules": []}, {"target_modules": "q_proj"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LoraConfig(**wrong)


# --- Whole runs ------------------------------------------------------------------------------------


@pytest.fixture
def make_lora(make_recipe, tmp_path):
    """Recipes with an adapter on a base that a short run has left."""
    base, _ = make_recipe("base", ("train.steps=2", "train.checkpoint_every=null", "objective.name=sft"))
    path = run(base).model

    def make(name="lora", overrides=()):
        adapter = ("model.scratch=null", f"model.path={path}", "model.lora.rank=4", "optimizer.lr=1e-2")
        settings = (f"data.prepared={tmp_path / 'prepared-again'}", "train.micro_batch_tokens=1024")
        return make_recipe(name, (*adapter, *settings, *overrides))[0]

    make.base = path
    return make


def test_a_run_leaves_a_merged_model_and_the_adapter_and_says_how_much_is_trained(make_lora):
    recipe = make_lora(overrides=("objective.name=iw_sft",))
    said: list[str] = []
    folder = run(recipe, say=said.append)
    base, merged = (AutoModelForCausalLM.from_pretrained(path) for path in (make_lora.base, folder.model))
    alone = peft.PeftModel.from_pretrained(base, folder.path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, alone(ids).logits, rtol=1e-5, atol=1e-5)
    manifest = read_json(folder.path / "manifest.json")
    # rank (inputs + outputs), two layers: q and o 32+32, k and v 32+16, gate, up and down 32+64
    trained = 4 * 2 * (2 * 64 + 2 * 48 + 3 * 96)
    assert manifest["model"]["num_trained_parameters"] == trained
    assert manifest["model"]["num_parameters"] == merged.num_parameters()
    assert manifest["scorer"] == "frozen_head"
    headline = next(line for line in said if line.startswith("lora: iw_sft"))
    assert "0.0041 M of a LoRA adapter" in headline
    assert "frozen_head scorer" in headline
    rows = rows_of(folder.path, "train")
    assert rows[8]["nll"] < rows[1]["nll"]
    files = {file.name for file in (folder.checkpoints / "step-3").rglob("*") if file.is_file()}
    assert files == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    }


@pytest.mark.parametrize("objective", ["dynamic_ft", "asft"])
def test_a_run_taken_up_from_its_checkpoint_is_the_same_to_the_bit(make_lora, objective):
    settings = (f"objective.name={objective}", "model.lora.dropout=0.1")
    expected = run(make_lora("unbroken", settings)).path
    recipe = make_lora("broken", settings)
    folder = run(recipe)
    for path in (folder.model, folder.path / "adapter", folder.checkpoints / "step-6"):
        shutil.rmtree(path)
    said: list[str] = []
    run(recipe, resume=True, say=said.append)
    assert any("at step 3 of 8" in line for line in said)
    assert_same_run(folder.path, expected)
    first, second = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (folder.path, expected))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_damaged_adapter_is_noticed_and_one_of_another_shape_is_not_loaded(make_lora):
    folder = run(make_lora())
    path = folder.checkpoints / "step-6"
    other = adapted(target_modules=("q_proj",))
    with pytest.raises(DamagedCheckpointError, match="another adapter"):
        load_checkpoint(path, model=other.model, optimizer=torch.optim.AdamW([torch.ones(1)]), adapter=other.adapter)
    file = path / "adapter" / "adapter_model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(DamagedCheckpointError, match=r"adapter_model\.safetensors is not as it was written"):
        verify(path)


def test_a_run_is_not_taken_up_on_another_base(make_lora):
    recipe = make_lora()
    folder = run(recipe)
    shutil.rmtree(folder.model)
    base = AutoModelForCausalLM.from_pretrained(make_lora.base)
    with torch.no_grad():
        next(base.parameters())[0, 0] += 1
    base.save_pretrained(make_lora.base)
    with pytest.raises(ValueError, match=r"trains an adapter on the base .* Put the model back"):
        run(recipe, resume=True)


def test_a_bfloat16_run_with_recomputed_activations_learns(make_lora):
    settings = ("train.precision=bf16", "model.gradient_checkpointing=true", "objective.name=asft")
    folder = run(make_lora(overrides=settings))
    rows = rows_of(folder.path, "train")
    assert rows[8]["nll"] < rows[1]["nll"]
    assert {value.dtype for value in load_file(folder.model / "model.safetensors").values()} == {torch.float32}


def test_a_head_among_the_targets_stops_a_run_and_a_single_name_is_explained(make_lora):
    with pytest.raises(ValueError, match="head"):
        run(make_lora(overrides=("model.lora.target_modules=[q_proj, lm_head]",)))
    with pytest.raises(RecipeError, match=r"target_modules: expected all-linear or a list of names.*'q_proj'"):
        make_lora(overrides=("model.lora.target_modules=q_proj",))


def test_without_peft_the_run_says_what_to_install_and_writes_nothing(make_lora, monkeypatch):
    recipe = make_lora()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    with pytest.raises(ValueError, match=r"pip install 'dftune\[lora\]'"):
        run(recipe)
    assert not recipe.output.exists()
