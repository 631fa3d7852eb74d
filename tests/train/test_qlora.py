"""A base in 4 bits under an adapter; needs bitsandbytes, which computes it on a CPU too."""

import pytest
import torch
from tests.tiny import make_examples
from transformers import Qwen2Config, Qwen2ForCausalLM

from dftune.data.batches import micro_batches
from dftune.objectives import get_objective
from dftune.train.config import LoraConfig, ModelConfig
from dftune.train.lora import Adapter
from dftune.train.memory import Setting, estimate, shape_of
from dftune.train.model import ScoredModel, load_model
from dftune.train.step import accumulate_gradient

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
CONFIG = Qwen2Config(
    vocab_size=64,
    hidden_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    intermediate_size=512,
    tie_word_embeddings=True,
)


@pytest.fixture
def quantized(tmp_path):
    torch.manual_seed(0)
    Qwen2ForCausalLM(CONFIG).save_pretrained(tmp_path)
    lora = LoraConfig(rank=4, quantize="nf4")
    model = load_model(ModelConfig(path=str(tmp_path), lora=lora), range(64), seed=0, dtype=torch.bfloat16)
    return ScoredModel(model, torch.bfloat16, Adapter(model, lora, seed=0))


def test_linear_layers_of_the_body_take_half_a_byte_a_weight_and_the_adapter_alone_has_a_gradient(quantized):
    batches = micro_batches(make_examples(4), max_tokens=1000)
    result = accumulate_gradient(quantized, get_objective("dynamic_ft"), batches)
    assert torch.isfinite(result.loss)
    with_gradient = {name for name, value in quantized.model.named_parameters() if value.grad is not None}
    assert with_gradient and all("lora_" in name for name in with_gradient)
    layer = quantized.model.model.layers[0].mlp.up_proj.base_layer
    assert layer.weight.nbytes == 256 * 512 / 2
    assert quantized.model.get_output_embeddings().weight.dtype == torch.bfloat16
    lora = LoraConfig(rank=4)
    with torch.device("meta"):
        shape = shape_of(Qwen2ForCausalLM(CONFIG), lora)
    found = sum(value.nbytes for value in quantized.model.parameters())
    assert estimate(shape, Setting(64, lora=True, quantize=True)).weights == pytest.approx(found, rel=0.05)


def test_the_merged_model_is_an_ordinary_one_of_the_dequantized_weights_and_the_update(quantized, tmp_path):
    with torch.no_grad():
        for value in quantized.adapter.weights().values():
            value.add_(0.05 * torch.randn(value.shape))
    merged = quantized.adapter.merged()
    assert not hasattr(merged.config, "quantization_config")
    assert {value.dtype for value in merged.parameters()} == {torch.float32}
    merged.save_pretrained(tmp_path / "merged")
    merged = Qwen2ForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = quantized.model.eval()(input_ids=ids, use_cache=False).logits.float()
        found = merged(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
