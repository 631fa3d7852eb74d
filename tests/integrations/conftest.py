"""A tiny model with its tokenizer, and a dataset, on disk as a user has them."""

import json
from pathlib import Path

import pytest
import torch
from tests.integrations.tiny import ROWS
from transformers import Qwen2Config, Qwen2ForCausalLM

from dftune.data.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Holds ``my-model`` and ``train.jsonl``."""
    folder = tmp_path_factory.mktemp("user")
    tokenizer = train_tokenizer([f"{row['prompt']}{row['completion']}" for row in ROWS], 300)
    tokenizer.save_pretrained(folder / "my-model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=48,
                initializer_range=0.2,  # far from uniform, so that a mistake shows
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    model.save_pretrained(folder / "my-model")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return folder
