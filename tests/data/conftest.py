"""Recipes over small sources, and a checkpoint folder whose tokenizer makes one token of every byte."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Config

from dftune import config
from dftune.data.tokenizer import blank_tokenizer
from dftune.recipe import Recipe

FIXTURES = Path(__file__).parents[1] / "fixtures"
SCRATCH = {"scratch": {"vocab_size": 300, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1}}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory) -> Path:
    """A checkpoint folder without weights: context 512, one token a byte, no chat template."""
    folder = tmp_path_factory.mktemp("models") / "bytes"
    Qwen2Config(max_position_embeddings=512).save_pretrained(folder)
    blank_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory) -> Path:
    """The same with ChatML: two more special tokens and a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    Qwen2Config(max_position_embeddings=512).save_pretrained(folder)
    tokenizer = blank_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|end_of_text|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def write_rows(tmp_path) -> Callable[..., Path]:
    """Writes rows as JSONL and returns the path."""

    def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_recipe(tmp_path) -> Callable[..., Recipe]:
    """A recipe over a source; keyword arguments are keys of its data section."""

    def make(source: Path | str, model: Path | dict[str, Any] | None = None, **data: Any) -> Recipe:
        section = model if isinstance(model, dict) else {"path": str(model)} if model is not None else SCRATCH
        values = {
            "name": "test",
            "data": {
                "source": str(source),
                "prompt_format": "plain",
                "max_length": 512,
                "prepared": str(tmp_path / "prepared"),
                **data,
            },
            "model": section,
            "objective": {"name": "sft"},
            "optimizer": {"lr": 1e-3},
            "train": {"steps": 1},
        }
        return config.validate(values, Recipe, "test")

    return make


@pytest.fixture(scope="session")
def stories() -> list[dict[str, Any]]:
    """The rows of fixtures/stories.jsonl."""
    return [json.loads(line) for line in (FIXTURES / "stories.jsonl").read_text(encoding="utf-8").splitlines()]
