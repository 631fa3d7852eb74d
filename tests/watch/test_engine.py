import json

import pytest
import torch
from tests.tiny import ARCHITECTURES, make_model
from tests.train.runs import rows_of, run
from transformers import AutoModelForCausalLM

from dftune.data.tokenizer import train_tokenizer
from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.models import find_files
from dftune.files import read_json, write_json
from dftune.generate.base import Request, Sampling
from dftune.generate.load import load_engine
from dftune.watch.engine import PersistentEngine, put_weights

CONFIG = EvaluateConfig(batch_size=4)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer((), 260)


def save(path, tokenizer, architecture="qwen2", seed=0):
    make_model(architecture, "sdpa", seed=seed).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def take(engine, path, tokenizer, dtype="float32"):
    return engine(
        find_files(str(path)), tokenizer, CONFIG, batch_size=CONFIG.batch_size, device="cpu", dtype=dtype, say=print
    )


def assert_equal_models(first, second):
    left, right = first.state_dict(), second.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES.keys() - {"gemma2-softcap"}))  # it has no sdpa
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_swapped_weights_are_those_of_a_model_loaded_by_itself(tmp_path, tokenizer, architecture, dtype):
    first, second = (save(tmp_path / str(seed), tokenizer, architecture, seed) for seed in (0, 1))
    engine = PersistentEngine()
    model = take(engine, first, tokenizer, dtype).model
    swapped = take(engine, second, tokenizer, dtype)
    assert swapped.model is model
    assert (engine.num_loaded, engine.num_swapped) == (1, 1)
    fresh = load_engine(second, device="cpu", dtype=dtype)
    assert_equal_models(swapped.model, fresh.model)
    requests = [Request(str(index), (3 + index, 7)) for index in range(3)]
    sampling = Sampling(max_tokens=8)
    assert [done.num_tokens for done in swapped.generate(requests, sampling)] == [8, 8, 8]
    assert swapped.generate(requests, sampling) == fresh.generate(requests, sampling)


def test_a_model_of_another_shape_is_loaded_anew(tmp_path, tokenizer):
    first, second = save(tmp_path / "a", tokenizer), save(tmp_path / "b", tokenizer, "llama-untied")
    engine = PersistentEngine()
    take(engine, first, tokenizer)
    assert_equal_models(take(engine, second, tokenizer).model, load_engine(second, device="cpu").model)
    assert (engine.num_loaded, engine.num_swapped) == (2, 0)


def test_other_generation_defaults_are_not_taken_over_from_the_model_before(tmp_path, tokenizer):
    first, second = save(tmp_path / "a", tokenizer), save(tmp_path / "b", tokenizer, seed=1)
    write_json(second / "generation_config.json", {**read_json(second / "generation_config.json"), "eos_token_id": 7})
    engine = PersistentEngine()
    take(engine, first, tokenizer)
    assert 7 in take(engine, second, tokenizer).end_token_ids
    assert engine.num_swapped == 0


def test_weights_that_do_not_fit_leave_the_model_as_it_was(tmp_path, tokenizer):
    model = make_model("qwen2", "sdpa")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not put_weights(model, save(tmp_path / "other", tokenizer, "llama-untied", seed=1))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_an_engine_whose_swap_failed_loads_the_next_model_whole(tmp_path, tokenizer):
    first, second = save(tmp_path / "a", tokenizer), save(tmp_path / "b", tokenizer, seed=1)
    engine = PersistentEngine()
    take(engine, first, tokenizer)
    broken = save(tmp_path / "c", tokenizer, seed=2)
    (broken / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(Exception, match=r"(?i)header"):
        take(engine, broken, tokenizer)
    assert_equal_models(take(engine, second, tokenizer).model, load_engine(second, device="cpu").model)
    assert (engine.num_loaded, engine.num_swapped) == (2, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_swapped_on_their_base_and_make_way_for_the_merged_model(make_recipe, tmp_path, dtype):
    pytest.importorskip("peft")
    base, _ = make_recipe("base", ("train.steps=2", "train.checkpoint_every=null"))
    run(base)
    lora = (f"model={json.dumps({'path': str(base.output / 'model'), 'lora': {'rank': 2}})}", "optimizer.lr=1e-2")
    recipe, _ = make_recipe(
        "lora", (*lora, "train.steps=6", "train.checkpoint_every=2", f"data.prepared={tmp_path / 'tuned'}")
    )
    run(recipe)
    assert set(rows_of(recipe.output, "checkpoint")) == {2, 4}
    adapters = [recipe.output / "checkpoints" / f"step-{step}" / "adapter" for step in (2, 4)]
    engine = PersistentEngine()
    tokenizer = load_engine(base.output / "model", device="cpu").tokenizer
    order = [adapters[0], adapters[1], recipe.output / "model", adapters[0]]
    for path in order:
        held = take(engine, path, tokenizer, dtype)
        files = find_files(str(path))
        fresh = load_engine(files.folder, adapter=files.adapter, device="cpu", dtype=dtype)
        assert_equal_models(held.model, fresh.model)
    assert engine.num_loaded + engine.num_swapped == 4
    assert engine.num_swapped >= 2
    merged = AutoModelForCausalLM.from_pretrained(base.output / "model").state_dict()
    assert any(
        not torch.equal(tensor.to(merged[name].dtype), merged[name]) for name, tensor in held.model.state_dict().items()
    )
