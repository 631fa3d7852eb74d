"""The table of general tasks that `dftune evaluate --tasks` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dftune.evaluate.metrics import accuracy_estimate
from dftune.evaluate.protocols import score_of
from dftune.evaluate.summary import lay_out
from dftune.files import read_json, read_jsonl


@dataclass(frozen=True)
class TaskSummary:
    """One line of the table.

    Attributes:
        task: our name of it.
        step: optimizer steps of the model.
        metric: what the score is.
        num_fewshot: examples in the prompt, ``0`` or ``5``; ``0 to 5`` where subtasks differ.
        num_problems: questions.
        score: mean over the scored questions, from 0 to 1; None without any.
        low: lower end of its 95 % interval.
        high: upper end.
        reported: what the outside program reports as its own number, with its standard error where it gives one.
        results: the file with one row a question.
        advice: what is to be done next; empty when nothing is.
    """

    task: str
    step: int
    metric: str
    num_fewshot: str
    num_problems: int
    score: float | None
    low: float
    high: float
    reported: str
    results: Path
    advice: str = ""


def summarize_task(path: Path) -> TaskSummary:
    """Sum up the result files of one task of lm_eval, given the one with the settings."""
    settings = read_json(path)
    shots = sorted({int(number) for number in settings["num_fewshot"].values()})
    own = settings["results"].get(settings["task"]["name"], {})
    metric, _, filtered = settings["metric"].partition(",")
    error = own.get(f"{metric}_stderr,{filtered}")
    return summarize_rows(
        path,
        settings,
        metric=settings["metric"].removesuffix(",none"),
        num_fewshot=" to ".join(map(str, dict.fromkeys([shots[0], shots[-1]]))),
        reported=_with_error(own.get(settings["metric"]), error),
    )


def summarize_rows(
    path: Path, settings: dict[str, Any], *, metric: str, num_fewshot: str, reported: str, advice: str = ""
) -> TaskSummary:
    """Sum up rows with scores; the interval is `accuracy_estimate`'s, too wide where scores lie between 0 and 1."""
    rows = path.with_suffix(".jsonl")
    by_question: dict[str, list[float]] = {}
    for row in read_jsonl(rows):
        if (score := score_of(row)) is not None:
            by_question.setdefault(row["id"], []).append(score)
    scores = [[sum(found) / len(found)] for found in by_question.values()]
    estimate = accuracy_estimate(scores, num_completions=sum(map(len, by_question.values()))) if scores else None
    return TaskSummary(
        task=settings["benchmark"],
        step=settings["step"],
        metric=metric,
        num_fewshot=num_fewshot,
        num_problems=settings["num_problems"],
        score=estimate.mean if estimate else None,
        low=estimate.low if estimate else 0.0,
        high=estimate.high if estimate else 1.0,
        reported=reported,
        results=rows,
        advice=advice,
    )


def task_table(summaries: Sequence[TaskSummary]) -> str:
    """Scores with their intervals, one line a task, then what is left to do and where the rows are."""
    steps = len({item.step for item in summaries}) > 1
    head = [*(["step"] if steps else []), "task", "metric", "score", "95 % interval", "n", "examples", "as reported"]
    rows = [head]
    for item in summaries:
        none = item.score is None
        rows.append(
            [
                *([str(item.step)] if steps else []),
                item.task,
                item.metric,
                "-" if none else f"{100 * (item.score or 0.0):.1f} %",
                "-" if none else f"{100 * item.low:.1f} to {100 * item.high:.1f}",
                str(item.num_problems),
                item.num_fewshot,
                item.reported,
            ]
        )
    lines = lay_out(rows, num_names=len(head) - 5)
    advice = [f"\n{item.advice}" for item in summaries if item.advice]
    return "\n".join([*lines, *advice, "", "one row a question:", *(f"  {item.results}" for item in summaries)])


def _with_error(value: Any, error: Any) -> str:
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.4f}" + (f" ± {error:.4f}" if isinstance(error, int | float) else "")
