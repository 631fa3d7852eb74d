"""Recipes of studies and sweeps that run in seconds: a tiny new model on additions."""

import os
import signal
import time
from pathlib import Path
from typing import Any

SECTIONS: dict[str, Any] = {
    "model": {
        "scratch": {
            "vocab_size": 300,
            "hidden_size": 16,
            "num_layers": 1,
            "num_heads": 2,
            "num_kv_heads": 1,
            "intermediate_size": 32,
            "max_position_embeddings": 128,
        }
    },
    "optimizer": {"weight_decay": 0.0},
    "train": {"steps": 4, "batch_size": 8, "micro_batch_tokens": 512, "threads": 1, "device": "cpu"},
}


def write_additions(folder: Path, num: int = 60) -> Path:
    """Additions with their sums, and two wrong answers to each."""
    from dftune.files import write_jsonl  # noqa: PLC0415

    path = folder / "additions.jsonl"
    rows = []
    for index in range(num):
        a, b = 3 + index % 7, index
        solution = f"{a} plus {b} is \\boxed{{{a + b}}}."
        wrong = [f"{a} plus {b} is \\boxed{{{a + b + off}}}." for off in (1, 10)]
        row = {"id": f"add/{index}", "problem": f"What is {a} + {b}?", "solution": solution, "answer": str(a + b)}
        rows.append({**row, "wrong": wrong})
    write_jsonl(path, rows)
    return path


def sections(folder: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """What all cells share; ``changes`` are merged into the sections."""
    data = {"source": str(write_additions(folder)), "prompt_format": "plain", "max_length": 128, "validation": 8}
    values = {"data": data, **SECTIONS}
    return {key: {**values.get(key, {}), **changes.get(key, {})} for key in {**values, **changes}}


def study_values(folder: Path, study: dict[str, Any], **changes: dict[str, Any]) -> dict[str, Any]:
    """The values of a study's recipe."""
    return {"name": "tiny", "output": str(folder / "study"), "study": study, **sections(folder, **changes)}


def hold(folder: Path) -> None:
    """A worker that takes a task and keeps it."""
    from dftune.study.board import Board  # noqa: PLC0415

    claims = Board(folder).claims
    with claims.held(claims.take("task")):
        time.sleep(60)


def die(folder: Path) -> None:
    """A worker that takes a task and dies of it, unless the task has been given up."""
    from dftune.study.board import Board  # noqa: PLC0415

    board = Board(folder)
    while not board.ended("task"):
        if board.claims.take("task") is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
