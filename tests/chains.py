"""Models whose next-token probabilities are known, since they are written into the weights; shared by several tests."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from dftune.data.tokenizer import train_tokenizer

CONTEXT = 64
_UNLIKELY = -60.0


def make_tokenizer(texts: tuple[str, ...] = ()) -> Any:
    """Bytes and the two special tokens, and merges of ``texts`` where there are any."""
    return train_tokenizer(texts, 300)


def make_chain(tokenizer: Any, transitions: Mapping[str, Mapping[str, float]], otherwise: str) -> Qwen2ForCausalLM:
    """A Qwen2 model that is a Markov chain: what comes next depends on the last token alone.

    The embedding is the identity and every layer adds zero, so that the head's rows are the logits, and the final
    norm multiplies them by the root of the width.

    Args:
        tokenizer: made by `make_tokenizer`; the keys of ``transitions`` are single tokens of it.
        transitions: token to probabilities of the next.
        otherwise: what follows any other token, with probability 1.
    """
    width = math.ceil(len(tokenizer) / 4) * 4
    config = Qwen2Config(
        vocab_size=width,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        rms_norm_eps=0.0,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen2ForCausalLM(config)
    logits = torch.full((width, width), _UNLIKELY)
    logits[:, _single(tokenizer, otherwise)] = 0
    for token, following in transitions.items():
        logits[_single(tokenizer, token)] = _UNLIKELY
        for after, probability in following.items():
            logits[_single(tokenizer, token), _single(tokenizer, after)] = math.log(probability)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(width))
        model.lm_head.weight.copy_(logits.T / math.sqrt(width))
    return model.eval()


def _single(tokenizer: Any, token: str) -> int:
    (index,) = tokenizer.encode(token, add_special_tokens=False)
    return int(index)


def save_chain(folder: Path, transitions: Mapping[str, Mapping[str, float]], otherwise: str = "<|endoftext|>") -> Path:
    """Write such a model with its tokenizer as ``from_pretrained`` reads it."""
    tokenizer = make_tokenizer()
    make_chain(tokenizer, transitions, otherwise).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
