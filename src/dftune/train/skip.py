"""Steps whose loss or gradient is not finite: the batch is kept, the step skipped, and the run stopped at a limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dftune.data.batches import Example
from dftune.files import write_json


def batch_path(run: Path, step: int) -> Path:
    """Where the batch of a step of a run goes."""
    return run / "failed-batches" / f"step-{step}.json"


def save_batch(path: Path, step: int, error: ArithmeticError, lr: float, examples: Sequence[Example]) -> None:
    """Write what is needed to run the step again on the weights before it.

    Args:
        path: of the file.
        step: the step that failed, counted from 1.
        error: what was not finite.
        lr: learning rate of the step.
        examples: of the whole step, with their tokens.
    """
    rows = [_row(example) for example in examples]
    write_json(path, {"step": step, "error": str(error), "lr": lr, "examples": rows})


def _row(example: Example) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": example.id,
        "input_ids": example.input_ids.tolist(),
        "completion_mask": example.completion_mask.astype(int).tolist(),
    }
    grouped = {} if example.group is None else {"group": example.group, "is_chosen": example.is_chosen}
    return row | grouped


def refusal(step: int, error: ArithmeticError, path: Path, *, skipped: int, limit: int, lr: float) -> str:
    """Why the run ends at this step, and what to do.

    Args:
        step: the step that failed, counted from 1.
        error: what was not finite.
        path: where its batch is.
        skipped: steps skipped before it.
        limit: ``train.max_skipped_steps``.
        lr: learning rate of the step.
    """
    before = f" {skipped} steps were skipped before it, and train.max_skipped_steps is {limit}." if limit else ""
    return (
        f"step {step}: {error}.{before} The weights before this step are finite and nothing was saved after it; the "
        f"examples are in {path}. Lower optimizer.lr (now {lr:.3g}), lengthen optimizer.warmup_ratio, or look at those "
        "examples."
    )
