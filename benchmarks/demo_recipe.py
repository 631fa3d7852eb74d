"""The recipe of a small run on a CPU, with the demo's model and problems."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_recipe(folder: Path, num_train: int, *, data: dict[str, Any] | None = None, **sections: Any) -> Path:
    """Write the problems and the recipe; ``sections`` are added to it, ``data`` to that section."""
    import yaml

    from dftune.demo.problems import generate
    from dftune.demo.run import BASE_MODEL, write_problems

    write_problems(folder / "train.jsonl", generate(num_train, seed=0, split="train"))
    recipe = {
        "name": "run",
        "output": str(folder / "run"),
        "data": {
            "source": str(folder / "train.jsonl"),
            "prompt_format": "plain",
            "max_length": 256,
            "prepared": str(folder / "prepared"),
            **(data or {}),
        },
        "model": {"path": str(BASE_MODEL)},
        "objective": {"name": "dynamic_ft"},
        "optimizer": {"lr": 3e-4},
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
