"""Kernels of optional packages are refused where they are not there, before data are prepared."""

import pytest
import torch
from tests.interpreter import assert_passes_under_the_interpreter
from tests.tiny import VOCAB, make_scored
from tests.train.runs import run
from transformers import AttentionInterface

from dftune.ops.attention import document_attention
from dftune.ops.route import has_liger
from dftune.train.config import ModelConfig
from dftune.train.kernels import check_attention, check_kernels
from dftune.train.loop import train
from dftune.train.needs import check_recipe

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.attention=flash_attention_2", r"model\.attention is flash_attention_2: it runs on CUDA.*=auto"),
        ("model.attention=flash_attention_3", r"model\.attention is flash_attention_3: it runs on CUDA.*=auto"),
        ("model.kernels=liger", r"model\.kernels is liger: its kernels run on CUDA.*CPU"),
    ],
)
def test_a_recipe_that_asks_for_a_gpu_s_kernels_is_refused_on_a_cpu(make_recipe, monkeypatch, setting, message):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    recipe, _ = make_recipe(overrides=(setting,))
    with pytest.raises(ValueError, match=message):
        check_recipe(recipe)
    with pytest.raises(ValueError, match=message):
        train(recipe, data=None)
    assert not recipe.output.exists()


def test_what_is_missing_is_said_with_how_to_install_it():
    with pytest.raises(ValueError, match=r"flash-attn is not installed: pip install flash-attn\. Or set"):
        check_kernels(ModelConfig(path="x", attention="flash_attention_2"), torch.device("cuda"), torch.bfloat16)
    check_kernels(ModelConfig(path="x", attention="sdpa"), CPU, torch.float32)


def test_attention_document_by_document_may_be_asked_for(make_recipe):
    recipe, _ = make_recipe(overrides=("model.attention=sdpa", "train.steps=1"))
    run(recipe)  # check_scoring compares it with the model's own
    assert (recipe.output / "model").is_dir()


def test_attention_that_computes_something_else_is_refused_after_the_model_was_put_on_its_devices():
    def sharper(*arguments, scaling, **options):
        return document_attention(*arguments, scaling=2 * scaling, **options)

    AttentionInterface.register("sharper", sharper)
    scored = make_scored()
    check_attention(scored, CPU, vocab_size=VOCAB)
    scored.model.set_attn_implementation("sharper")
    with pytest.raises(ValueError, match=r"attention of model\.attention differ from those document by document"):
        check_attention(scored, CPU, vocab_size=VOCAB)
    assert scored.model.config._attn_implementation == "sharper"


@pytest.mark.slow
@pytest.mark.skipif(not has_liger(), reason="the package liger-kernel is not installed")
def test_liger_s_layers_pass_their_tests_under_the_interpreter():
    assert_passes_under_the_interpreter("tests/train/test_liger_layers.py")
