"""Scores of a run's models as rows of its events.jsonl, from where trackers and watchers read them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dftune.evaluate.summary import EvalSummary
from dftune.events import EVENTS, Tail, identity, latest
from dftune.files import append_jsonl, read_json

WATCHER = "watch"
"""The source of what is evaluated beside training."""
_KEYS = (
    *("benchmark", "protocol", "accuracy", "low", "high", "num_problems", "num_samples", "num_ungraded"),
    *("num_unscored", "truncated_share", "mean_tokens"),
)


def record(run: Path, summaries: Iterable[EvalSummary], source: str) -> None:
    """Append a row of kind ``evaluation`` for each summary; all in one write, those that are there already left out.

    Nothing is written into folders that hold no training run.

    Args:
        run: the run folder.
        summaries: of its models.
        source: who evaluated: ``watch``, ``train`` (at the end of training) or ``evaluate``.
    """
    manifest = run / "manifest.json"
    if not manifest.is_file() or read_json(manifest).get("kind") != "train":
        return
    before = [row for row in Tail(run / EVENTS).new() if row["kind"] == "evaluation"]
    known = {identity(row): row for row in latest(before)}
    own = {identity(row) for row in before if row["source"] == source}
    rows = [_row(summary, source) for summary in summaries]
    new = [
        row
        for row in rows
        if (source == WATCHER and identity(row) not in own)  # which checkpoints are done is read off its own rows
        or _content(known.get(identity(row), {})) != _content(row)
    ]
    if new:
        append_jsonl(run / EVENTS, new)


def _row(summary: EvalSummary, source: str) -> dict[str, Any]:
    values = {key: getattr(summary, key) for key in _KEYS}
    return {"kind": "evaluation", "step": summary.step, "time": time.time(), "source": source, **values}


def _content(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row.get(key) for key in _KEYS}
