"""A small data set of real text in a file, and recipes that train on it in seconds."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dftune.recipe import Recipe, load_recipe


@pytest.fixture(scope="session")
def addition_file(tmp_path_factory) -> Path:
    """120 additions with their sums in words and a box, and two wrong answers to each."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "addition.jsonl"
    rows = []
    for index in range(120):
        a, b = rng.randrange(100), rng.randrange(100)
        rows.append(
            {
                "id": f"add/{index}",
                "problem": f"What is {a} + {b}?",
                "solution": f"{a} plus {b} is {a + b}, so the answer is \\boxed{{{a + b}}}.",
                "answer": str(a + b),
                "wrong": [f"{a} plus {b} is \\boxed{{{a + b + off}}}." for off in (1, 10)],
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make_recipe(tmp_path, addition_file) -> Callable[..., tuple[Recipe, Path]]:
    """Writes a recipe under a name and returns it with its path; sections are merged over small defaults."""

    def make(name: str = "run", overrides: tuple[str, ...] = ()) -> tuple[Recipe, Path]:
        values = {
            "name": name,
            "output": str(tmp_path / "runs" / name),
            "data": {
                "source": str(addition_file),
                "prompt_format": "plain",
                "max_length": 128,
                "validation": 16,
                "prepared": str(tmp_path / "prepared"),
            },
            "model": {
                "scratch": {
                    "vocab_size": 300,
                    "hidden_size": 32,
                    "num_layers": 2,
                    "num_heads": 2,
                    "num_kv_heads": 1,
                    "intermediate_size": 64,
                    "max_position_embeddings": 128,
                }
            },
            "objective": {"name": "dynamic_ft"},
            "optimizer": {"lr": 3e-3},
            "train": {"steps": 8, "batch_size": 8, "micro_batch_tokens": 256, "checkpoint_every": 3, "threads": 1},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return load_recipe(path, overrides), path

    return make
