"""Whether runs that are compared have had the same: read from what they logged, not from what they were told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftune.files import read_json, read_jsonl

if TYPE_CHECKING:
    from dftune.study.config import Equality
    from dftune.study.plan import Cell

_NAMES = {"tokens": "tokens", "supervised_tokens": "supervised tokens", "epoch": "epochs"}


def check_budgets(cells: Sequence[Cell], equal: Sequence[Equality]) -> Iterator[str]:
    """Differences between runs of one model, condition and seed, one line each.

    Args:
        cells: that were trained.
        equal: ``examples``: the same prepared data and the same share of them behind every step, in the order that the
            seed gives; where tokens are compared too, equal running totals at every step show that the order was kept.
            ``steps``: optimizer steps. ``tokens``: running totals of all and of supervised tokens at every logged step.
    """
    groups: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((*cell.key[:2], cell.seed), []).append(cell)
    for members in groups.values():
        first, *others = members
        expected = _Spent(first.recipe.output)
        for other in others:
            for difference in expected.differences(_Spent(other.recipe.output), equal):
                yield f"{first.name} and {other.name}: {difference}"


class _Spent:
    """What a run has seen, step by step."""

    def __init__(self, run: Path) -> None:
        manifest: Mapping[str, Any] = read_json(run / "manifest.json")
        self.data, self.seed = manifest["data"]["fingerprint"], manifest["seed"]
        rows = read_jsonl(run / "events.jsonl", partial_last_line=True)
        self.steps = {int(row["step"]): row for row in rows if row["kind"] == "train"}

    def differences(self, other: _Spent, equal: Sequence[Equality]) -> Iterator[str]:
        """Where another run has had something else."""
        if "steps" in equal and max(self.steps, default=0) != max(other.steps, default=0):
            yield f"{max(self.steps, default=0)} against {max(other.steps, default=0)} optimizer steps"
        if "examples" in equal and (self.data, self.seed) != (other.data, other.seed):
            yield f"other examples or another order (data {self.data} and {other.data})"
        totals = ["epoch"] if "examples" in equal else []
        totals += ["tokens", "supervised_tokens"] if "tokens" in equal else []
        shared = sorted(self.steps.keys() & other.steps.keys())
        for key in totals:
            step = next((step for step in shared if self.steps[step][key] != other.steps[step][key]), None)
            if step is not None:
                ours, theirs = self.steps[step][key], other.steps[step][key]
                yield f"{ours:,} against {theirs:,} {_NAMES[key]} after step {step}"
                break
