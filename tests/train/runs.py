"""Runs from a recipe, and what they left behind."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from dftune.data.prepare import prepared
from dftune.files import read_jsonl
from dftune.train.loop import train


def run(recipe, say=lambda line: None, **options):
    """Train a recipe."""
    return train(recipe, prepared(recipe), say=say, **options)


def rows_of(folder: Path, kind: str) -> dict[int, dict]:
    """Rows of events.jsonl by step."""
    rows = read_jsonl(folder / "events.jsonl", partial_last_line=True)
    return {row["step"]: row for row in rows if row["kind"] == kind}  # the last row of a step counts


def assert_same_run(first: Path, second: Path) -> None:
    """The same weights, bit for bit, and the same metrics but for time, memory and energy."""
    left, right = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name
    left_rows, right_rows = (rows_of(folder, "train") for folder in (first, second))
    assert left_rows.keys() == right_rows.keys()
    for step, row in left_rows.items():
        for key in row.keys() - {"time", "tokens_per_s", "peak_memory_bytes", "gpu_joules", "cpu_joules"}:
            assert row[key] == right_rows[step][key], (step, key)
