"""The two result files of a benchmark: how the completions were made, and one line a completion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dftune.evaluate.metrics import accuracy_estimate
from dftune.files import append_jsonl, read_json, read_jsonl, write_json, write_jsonl

Row = dict[str, Any]

# Where things lay, and what can be worked out again, make no other completions.
_FREE = {"model", "benchmark_path", "trained_prompt_format", "grader", "seconds", "prompt_format.name"}


class Results:
    """``BENCHMARK.PROTOCOL.json`` and ``.jsonl``. Rows are appended, so a kill loses at most the last line."""

    def __init__(self, folder: Path, benchmark: str, protocol: str) -> None:
        self.path = folder / f"{benchmark}.{protocol}.jsonl"
        self.settings_path = folder / f"{benchmark}.{protocol}.json"
        self.settings: dict[str, Any] = {}
        self.rows: dict[tuple[str, int], Row] = {}

    def delete(self) -> None:
        """Remove what is there, completions first: without their settings they would be refused."""
        self.path.unlink(missing_ok=True)
        self.settings_path.unlink(missing_ok=True)

    def open(self, settings: Mapping[str, Any], regrade: Callable[[Row], Row]) -> None:
        """Begin, or take up what a run with the same settings left.

        Args:
            settings: how completions are made, as docs/run-folder.md lists it.
            regrade: applied to every row when the verdicts there were given by another version of the grader.

        Raises:
            ValueError: the files there were made with other settings; each that differs is named.
        """
        before = read_json(self.settings_path) if self.settings_path.is_file() else None
        if before is None and self.path.is_file():
            raise ValueError(
                f"{self.path} is there without {self.settings_path.name}, so how it was made is not known. "
                "Move it away, or replace it with --overwrite."
            )
        if before is not None:
            check_same(self.path, before, settings)
            rows = read_jsonl(self.path, partial_last_line=True) if self.path.is_file() else []
            if rows and before["grader"] != settings["grader"]:
                rows = [regrade(row) for row in rows]
                write_jsonl(self.path, rows)
            self._remember(rows)
        self.settings = {**settings, "seconds": before["seconds"] if before else 0.0}
        write_json(self.settings_path, self.settings)

    def append(self, rows: Sequence[Row]) -> None:
        """Add completions."""
        append_jsonl(self.path, rows)
        self._remember(rows)

    def _remember(self, rows: Iterable[Row]) -> None:
        self.rows.update({(row["id"], row["sample"]): row for row in rows})

    def add_seconds(self, seconds: float) -> None:
        """Count time of generation."""
        self.settings["seconds"] = round(self.settings["seconds"] + seconds, 3)
        write_json(self.settings_path, self.settings)

    def finish(self, ids: Sequence[str]) -> None:
        """Put the completions in the order of the benchmark; they were saved in the order in which they ended."""
        place = {name: index for index, name in enumerate(ids)}
        ordered = sorted(self.rows.values(), key=lambda row: (place[row["id"]], row["sample"]))
        if ordered != list(self.rows.values()) or not self.path.is_file():
            write_jsonl(self.path, ordered)
            self.rows = {(row["id"], row["sample"]): row for row in ordered}


def check_same(path: Path, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Compare the settings that results were made with to those asked for.

    Raises:
        ValueError: they would give other completions; each that differs is named.
    """
    then, now = _flatten(before), _flatten(settings)
    changed = [key for key in {**then, **now} if key not in _FREE and then.get(key) != now.get(key)]
    if changed:
        listed = "\n".join(f"  {key}: {then.get(key)!r} there, {now.get(key)!r} asked for" for key in changed)
        raise ValueError(
            f"{path} holds completions made with other settings:\n{listed}\n"
            "Use the same ones to continue it, --overwrite to replace it, or another --output."
        )


@dataclass(frozen=True)
class EvalSummary:
    """One line of the table that `dftune evaluate` prints.

    Attributes:
        benchmark: name of the benchmark.
        protocol: ``greedy`` or ``sample``.
        step: optimizer steps of the model.
        num_problems: problems of the benchmark.
        num_samples: completions a problem.
        accuracy: mean over problems of the share of correct completions among the graded ones; None without any.
        low: lower end of its 95 % interval.
        high: upper end.
        num_ungraded: completions that could not be graded; they are not part of the accuracy.
        truncated_share: completions cut off at the token limit, whatever their verdict.
        mean_tokens: tokens a completion.
        tokens_per_s: generated tokens a second in this session; None when nothing was generated.
        completions: the file that holds them.
    """

    benchmark: str
    protocol: str
    step: int
    num_problems: int
    num_samples: int
    accuracy: float | None
    low: float
    high: float
    num_ungraded: int
    truncated_share: float
    mean_tokens: float
    tokens_per_s: float | None
    completions: Path


def summarize(results: Results, tokens_per_s: float | None = None) -> EvalSummary:
    """Sum up completions.

    With one sample a problem the interval is Wilson's; with several it is taken over the means of the problems, since
    samples of one problem are not independent (`dftune.evaluate.metrics.accuracy_estimate`).
    """
    rows = list(results.rows.values())
    graded: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["verdict"] != "ungraded":
            graded[row["id"]].append(float(row["verdict"] == "correct"))
    num_graded = sum(map(len, graded.values()))
    scores = [[sum(verdicts) / len(verdicts)] for verdicts in graded.values()]
    estimate = accuracy_estimate(scores, num_completions=num_graded) if scores else None
    return EvalSummary(
        benchmark=results.settings["benchmark"],
        protocol=results.settings["protocol"],
        step=results.settings["step"],
        num_problems=results.settings["num_problems"],
        num_samples=results.settings["num_samples"],
        accuracy=estimate.mean if estimate else None,
        low=estimate.low if estimate else 0.0,
        high=estimate.high if estimate else 1.0,
        num_ungraded=len(rows) - num_graded,
        truncated_share=sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        mean_tokens=sum(row["num_tokens"] for row in rows) / len(rows),
        tokens_per_s=tokens_per_s,
        completions=results.path,
    )


def table(summaries: Sequence[EvalSummary]) -> str:
    """Accuracy with its interval, one line a benchmark, and where the completions are."""
    steps = {summary.step for summary in summaries}
    head = [*(["step"] if len(steps) > 1 else []), "benchmark", "protocol", "accuracy", "95 % interval", "n"]
    rows = [[*head, "truncated", "ungraded", "tokens", "tokens/s"]]
    for item in summaries:
        rows.append(
            [
                *([str(item.step)] if len(steps) > 1 else []),
                item.benchmark,
                item.protocol + (f" x{item.num_samples}" if item.num_samples > 1 else ""),
                "-" if item.accuracy is None else f"{100 * item.accuracy:.1f} %",
                "-" if item.accuracy is None else f"{100 * item.low:.1f} to {100 * item.high:.1f}",
                str(item.num_problems),
                f"{100 * item.truncated_share:.1f} %",
                str(item.num_ungraded),
                f"{item.mean_tokens:.0f}",
                "-" if item.tokens_per_s is None else f"{item.tokens_per_s:,.0f}",
            ]
        )
    lines = lay_out(rows, num_names=len(head) - 3)
    return "\n".join([*lines, "", "completions:", *(f"  {item.completions}" for item in summaries)])


def lay_out(rows: Sequence[Sequence[str]], num_names: int) -> list[str]:
    """Lines of a table: the first row is its head; the first ``num_names`` columns stand to the left, numbers right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index < num_names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
