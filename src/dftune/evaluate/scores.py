"""What a row of results counts for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def score_of(row: Mapping[str, Any]) -> float | None:
    """From 0 to 1: the row's ``score`` where it has one, else its verdict; None where ungraded."""
    if row.get("score") is not None:
        return float(row["score"])
    return None if row["verdict"] == "ungraded" else float(row["verdict"] == "correct")
