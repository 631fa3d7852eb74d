"""Tiny real models and examples that several tests share."""

import copy

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

from dftune.data.batches import Example
from dftune.ops import attention
from dftune.train.model import ScoredModel

VOCAB = 50
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,  # far from uniform, so that a mistake shows
}
_GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
ARCHITECTURES = {
    "qwen2": Qwen2Config(**_SIZES, tie_word_embeddings=True),
    "llama-untied": LlamaConfig(**_SIZES, tie_word_embeddings=False),
    "mistral-window": MistralConfig(**_SIZES, sliding_window=4),
    "gemma2-softcap": Gemma2Config(
        **_SIZES, head_dim=8, sliding_window=4, attn_logit_softcapping=5.0, final_logit_softcapping=3.0
    ),
    "granite-scaled": GraniteConfig(**_SIZES, logits_scaling=4.0),
    "gpt2": GPT2Config(**_GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
}


def make_model(architecture: str = "qwen2", implementation: str | None = None, seed: int = 0) -> PreTrainedModel:
    """A random model, the same for every call with the same arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(ARCHITECTURES[architecture]), attn_implementation=implementation or attention.register()
        )


def make_scored(architecture: str = "qwen2", seed: int = 0) -> ScoredModel:
    """The same, wrapped for training."""
    return ScoredModel(make_model(architecture, seed=seed))


def make_examples(num: int, *, seed: int = 0, longest: int = 20) -> list[Example]:
    """Random examples of 4 to ``longest`` tokens; prompts of at least one token."""
    rng = np.random.default_rng(seed)
    examples = []
    for index in range(num):
        length = int(rng.integers(4, longest + 1))
        mask = np.zeros(length, dtype=bool)
        mask[int(rng.integers(1, length)) :] = True
        examples.append(Example(f"e{index}", rng.integers(0, VOCAB, length).astype(np.int32), mask))
    return examples
