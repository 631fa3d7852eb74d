import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from tests.chains import save_chain

from dftune.generate.load import choose_device, choose_dtype, find_model, load_engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_chain(tmp_path_factory.mktemp("model"), {"a": {"b": 1.0}})


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_model_folder_is_loaded_in_float32_on_the_cpu_with_its_weights(folder):
    engine = load_engine(str(folder), device="cpu", batch_size=3)
    weights = load_file(folder / "model.safetensors")
    assert engine.batch_size == 3
    assert engine.model.dtype == torch.float32
    assert torch.equal(engine.model.lm_head.weight, weights["lm_head.weight"])
    assert engine.end_token_ids == {engine.tokenizer.eos_token_id}
    assert engine.max_context == 64


def test_another_type_can_be_asked_for(folder):
    assert load_engine(folder, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_end_tokens_of_the_generation_config_are_used_too(copy):
    engine = load_engine(copy, device="cpu")
    engine.model.generation_config.eos_token_id = [7, 9]
    assert engine.end_token_ids == {engine.tokenizer.eos_token_id, 7, 9}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{here}/nothing", "no model folder .*/nothing"),
        ("./nothing", "no model folder ./nothing"),
        (
            "no-such-owner/no-such-model",
            "no folder no-such-owner/no-such-model, and no model of that id",
        ),
    ],
)
def test_a_missing_model_is_named_with_what_was_looked_for(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        find_model(name.format(here=tmp_path))


def test_a_model_id_is_found_in_the_cache_of_the_hub(folder, tmp_path, monkeypatch):
    home = tmp_path / "models--owner--chain"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("f" * 40)
    shutil.copytree(folder, home / "snapshots" / ("f" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert find_model("owner/chain") == home / "snapshots" / ("f" * 40)
    assert load_engine("owner/chain", device="cpu").max_context == 64


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("*.safetensors", r"no \*\.safetensors \(found: config\.json"),
        ("config.json", r"no config\.json"),
        ("tokenizer*", "no tokenizer"),
    ],
)
def test_an_incomplete_model_folder_is_an_error_that_says_what_it_lacks(copy, without, message):
    for file in copy.glob(without):
        file.unlink()
    with pytest.raises(ValueError, match=message):
        find_model(str(copy))


def test_weights_in_pickle_files_are_not_read(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="Weights in other formats than safetensors are not read"):
        load_engine(copy, device="cpu")


def test_a_file_is_no_model_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="is not a model folder"):
        find_model(str(tmp_path / "model.safetensors"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_is_refused_where_there_is_none():
    assert choose_device("auto") == "cpu"
    with pytest.raises(ValueError, match="sees no CUDA device"):
        choose_device("cuda")


def test_an_unknown_type_is_refused_with_those_that_are_known():
    assert choose_dtype("auto", "cpu") == "float32"
    with pytest.raises(ValueError, match="'fp8' is not known; use one of: auto, float32, bfloat16, float16"):
        choose_dtype("fp8", "cpu")
