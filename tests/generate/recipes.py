"""Recipes that generate with the demo's base model, and files as the commands write them."""

import json
from pathlib import Path

from dftune.config import validate
from dftune.demo.problems import generate
from dftune.demo.run import BASE_MODEL, write_problems
from dftune.recipe import Recipe


def recipe_in(folder: Path, *, num_problems: int = 12, **sections) -> Recipe:
    """A recipe whose problems lie in ``folder/train.jsonl``; sections are merged into its own."""
    source = folder / "train.jsonl"
    if not source.exists():
        write_problems(source, generate(num_problems, seed=0, split="train"))
    values = {
        "name": "demo",
        "output": str(folder / "run"),
        "data": {"source": str(source), "prompt_format": "plain", "max_length": 256, "prepared": str(folder / "data")},
        "model": {"path": str(BASE_MODEL)},
        "objective": {"name": "sft"},
        "optimizer": {"lr": 1e-4},
        "train": {"steps": 2, "batch_size": 4, "device": "cpu", "threads": 1},
        "generate": {
            "folder": str(folder / "generated"),
            "negatives": {"max_tokens": 40},
            "rollouts": {"max_tokens": 40},
        },
    }
    for name, section in sections.items():
        values[name] = merged(values.get(name), section)
    return validate(values, Recipe, "test")


def merged(before, after):
    """``after`` over ``before``, key by key where both are mappings."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    return before | {key: merged(before.get(key), value) for key, value in after.items()}


def read(path: Path) -> list[dict]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
