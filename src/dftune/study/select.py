"""Choosing a learning rate, or judging a trial: by held-out rows or problems, never by a test benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from dftune.config import Config
from dftune.recipe import Recipe

if TYPE_CHECKING:
    from dftune.evaluate.config import EvaluateConfig

Metric = Literal["accuracy", "nll", "loss", "p_mean", "p_eot", "top1", "entropy"]
GREEDY_ALONE: Mapping[str, Any] = {"protocol": "greedy", "num_samples": 1, "by": (), "label": None}
"""Changes to an ``evaluate`` section for one completion a problem."""
_HIGHER = frozenset({"accuracy", "p_mean", "p_eot", "top1"})


class SelectConfig(Config):
    """What says that one run is better than another, before any test benchmark is looked at."""

    metric: Metric
    """accuracy: of answers to held-out problems. nll, loss, p_mean, p_eot, top1, entropy: of the last validation in
    training, over the held-out rows (docs/run-folder.md)."""
    benchmark: str | None = None
    """Problems for accuracy, as evaluate.benchmarks names them, but none of those; null: the held-out rows."""
    protocol: Annotated[str, Field(pattern=r"^(greedy|avg@[1-9]\d*)$")] | None = None
    """How they are answered: greedy (null), or avg@N, N samples each, as evaluate has them. A rate that is best for
    greedy answers need not be for samples: choose by what is reported."""

    @model_validator(mode="after")
    def _fits(self) -> SelectConfig:
        if self.benchmark is not None and self.metric != "accuracy":
            raise ValueError(f"benchmark goes with the metric accuracy; {self.metric} is of the held-out rows")
        if self.protocol is not None and self.metric != "accuracy":
            raise ValueError(f"protocol goes with the metric accuracy; {self.metric} needs no answers")
        return self

    @property
    def higher_is_better(self) -> bool:
        """Whether the metric is to be large."""
        return self.metric in _HIGHER

    @property
    def generates(self) -> bool:
        """Whether the model has to answer problems."""
        return self.metric == "accuracy"


def check_select(select: SelectConfig, recipe: Recipe) -> None:
    """Refuse to choose by what the result will be reported on, or by answers that cannot be had.

    Raises:
        ValueError: the protocol contradicts how the recipe samples; the problems are a published test benchmark, those
            of ``evaluate.benchmarks``, or share a problem with one of these; or there are no held-out rows.
    """
    from dftune.evaluate.jobs import plan_samplings  # noqa: PLC0415

    plan_samplings(asked(select, recipe))
    if select.benchmark is None:
        if recipe.data.validation == 0:
            raise ValueError(
                f"the choice by {select.metric} needs held-out rows, and data.validation is 0. Set data.validation, or "
                "name other problems in select.benchmark with the metric accuracy."
            )
        return
    from dftune.decontaminate.text import tokens  # noqa: PLC0415
    from dftune.evaluate.benchmarks import load_benchmark  # noqa: PLC0415
    from dftune.evaluate.named import NAMED, local_names  # noqa: PLC0415

    tests = recipe.evaluate.benchmarks
    source = without_limit(select.benchmark)
    file = Path(source).name
    named = next((name for name in NAMED if source == name or file in map(str, local_names(name)[:2])), None)
    advice = "Hold training rows out (data.validation) or name problems that nobody reports on."
    if named is not None:
        raise ValueError(
            f"select.benchmark is {select.benchmark}, the test benchmark {named}: what is chosen by a test does well "
            f"on it by chance. {advice}"
        )
    mine = load_benchmark(select.benchmark, recipe.evaluate.data_dir)
    problems = {tokens(row.problem) for row in mine.rows}
    for spec in tests:
        theirs = load_benchmark(spec, recipe.evaluate.data_dir)
        shared = sum(tokens(row.problem) in problems for row in theirs.rows)
        if shared:
            raise ValueError(
                f"select.benchmark {select.benchmark} shares {shared} of its {len(mine.rows)} problems with {spec}, "
                f"which evaluate.benchmarks tests on: what is chosen by a test does well on it by chance. {advice}"
            )


def without_limit(spec: str) -> str:
    """A benchmark without its number of rows: ``NAME`` of ``NAME:N``."""
    head, _, tail = spec.rpartition(":")
    return head if head and tail.isdigit() else spec


def problems_of(select: SelectConfig, recipe: Recipe) -> str:
    """The benchmark behind the accuracy: the one named, or the held-out rows of the prepared data."""
    return select.benchmark or str(recipe.data.prepared / "validation.parquet")


def asked(select: SelectConfig, recipe: Recipe) -> EvaluateConfig:
    """How the problems behind an accuracy are answered."""
    return recipe.evaluate.model_copy(update={**GREEDY_ALONE, "protocol": select.protocol or "greedy"})


def measure(select: SelectConfig, recipe: Recipe, aside: Path) -> float:
    """The metric of a finished run.

    Args:
        select: the metric.
        recipe: of the run.
        aside: folder for the completions behind an accuracy. It is not the run's own, whose completions are reported.

    Raises:
        ValueError: the run has no validation, or nothing could be graded.
    """
    if not select.generates:
        value = last_validation(recipe.output).get(select.metric)
        if value is None:
            raise ValueError(f"{recipe.output} has logged no validation with {select.metric}.")
        return float(value)
    from dftune.evaluate.locate import plan  # noqa: PLC0415
    from dftune.evaluate.runner import evaluate  # noqa: PLC0415

    (final,) = plan(str(recipe.output))
    settings = asked(select, recipe)
    problems = [problems_of(select, recipe)]
    (summary,) = evaluate(final.model, problems, settings, aside, step=final.step, device=recipe.train.device)
    if summary.accuracy is None:
        raise ValueError(f"none of the completions of {problems[0]} in {aside} could be graded.")
    return summary.accuracy


def last_validation(run: Path) -> Mapping[str, Any]:
    """The last row of kind ``validation`` in a run's events; empty without one."""
    from dftune.files import read_jsonl  # noqa: PLC0415

    events = run / "events.jsonl"
    rows = read_jsonl(events, partial_last_line=True) if events.is_file() else []
    found = [row for row in rows if row["kind"] == "validation"]
    return max(found, key=lambda row: int(row["step"]), default={})


@dataclass(frozen=True)
class Choice:
    """The learning rate of an objective, in a model and condition.

    Attributes:
        key: model, condition and label of the objective.
        lr: the best of the grid; None where no rate has a value.
        values: mean metric over the seeds, by rate; None where a run of that rate failed.
    """

    key: tuple[str, str, str]
    lr: float | None
    values: tuple[tuple[float, float | None], ...]

    @property
    def at_edge(self) -> str | None:
        """``smallest`` or ``largest`` where the best rate is an end of a grid of three or more: is it wide enough?"""
        rates = sorted(rate for rate, _ in self.values)
        if self.lr is None or len(rates) < 3:
            return None
        return {rates[0]: "smallest", rates[-1]: "largest"}.get(self.lr)

    def row(self) -> dict[str, Any]:
        """As JSON."""
        model, condition, objective = self.key
        grid = [{"lr": rate, "value": value} for rate, value in self.values]
        where = {"model": model, "condition": condition, "objective": objective}
        return {**where, "lr": self.lr, "at_edge": self.at_edge, "grid": grid}


def choose(key: tuple[str, str, str], found: Mapping[float, Sequence[float | None]], *, higher: bool) -> Choice:
    """The rate with the best mean over seeds; of equals the smallest.

    Args:
        key: names the choice.
        found: metric by rate, one a seed; None for a run that failed, which rules its rate out.
        higher: whether the metric is to be large.
    """
    means: dict[float, float | None] = {}
    for rate in sorted(found):
        values = [value for value in found[rate] if value is not None]
        means[rate] = sum(values) / len(values) if values and len(values) == len(found[rate]) else None
    usable = {rate: mean for rate, mean in means.items() if mean is not None}
    best = (max if higher else min)(usable, key=lambda rate: usable[rate]) if usable else None
    return Choice(key, best, tuple(means.items()))
