"""The ``watch`` section of a recipe, and what is called best."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dftune.config import Config
from dftune.generate.config import BaseUrls

Policy = Literal["all", "newest", "best"]


class GoalConfig(Config):
    """By which number one checkpoint is better than another."""

    metric: str = "accuracy"
    """accuracy (the mean over what the watcher evaluates), or a name of docs/tracking.md such as
    eval/math500/greedy/accuracy or validation/nll."""
    mode: Literal["max", "min"] | None = None
    """Whether more or less of it is better; null: less for names that end in nll or loss, more for others."""

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric != "accuracy" and not metric.startswith(("eval/", "validation/")):
            raise ValueError(f"expected accuracy, eval/BENCHMARK/PROTOCOL/accuracy or validation/KEY, found {metric!r}")
        return metric

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        less = self.metric.endswith(("nll", "loss")) if self.mode is None else self.mode == "min"
        return -1 if less else 1

    @property
    def needs_watcher(self) -> bool:
        """Whether the metric comes from evaluations."""
        return not self.metric.startswith("validation/")


class StopConfig(GoalConfig):
    """When training ends before its last step."""

    patience: Annotated[int, Field(ge=1)] = 3
    """Stop when this many results in a row are no better than the best before them."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """How much better counts as better."""


class KeepBestConfig(GoalConfig):
    """Checkpoints that are kept beside the newest."""

    number: Annotated[int, Field(ge=1)] = 1
    """How many."""


class WatchConfig(Config):
    """Evaluation of the checkpoints while training goes on, in a process of its own."""

    enabled: bool = False
    """`dftune train` starts a watcher. Checkpoints that it has not evaluated yet are not deleted."""
    policy: Policy = "all"
    """all: every checkpoint, oldest first. newest: every checkpoint, newest first. best: only those whose held-out nll
    was the lowest so far."""
    benchmarks: tuple[str, ...] | None = None
    """What to evaluate; null: evaluate.benchmarks."""
    server: BaseUrls = ()
    """Base URLs of servers that are given the weights of each checkpoint (docs/watch.md); none: it has them itself."""
    device: str = "auto"
    """cpu, cuda:1, ...; auto: a CUDA device that training does not use, else the CPU; the CPU with servers."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads; null: the cores that training leaves, at least one."""
    nice: Annotated[int, Field(ge=0, le=19)] = 19
    """How far it gives way to other processes on its cores; 19 is the most."""
    poll_s: Annotated[float, Field(gt=0)] = 2.0
    """Seconds between two looks for new checkpoints."""
    stop: StopConfig | None = None
    """Early stopping; null trains to the last step."""
