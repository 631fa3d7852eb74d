"""The whole recipe: one complete YAML file that reproduces one row of one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from dftune import config
from dftune.config import Config
from dftune.data.config import DataConfig
from dftune.evaluate.config import EvaluateConfig
from dftune.files import check_name
from dftune.generate.recipe import GenerateConfig
from dftune.track.config import TrackConfig
from dftune.train.config import (
    DistributedConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScorerConfig,
    TrainConfig,
)
from dftune.watch.config import WatchConfig

Scores = dict[str, Annotated[float, Field(ge=0, le=100)]]


class PublishedConfig(Config):
    """What was published for this recipe. It changes nothing; `dftune report` prints it beside what was measured."""

    source: str
    """Paper or repository, with table and row."""
    scores: Scores = Field(default={})
    """Accuracy in per cent, by BENCHMARK.PROTOCOL as reports call it."""
    base: Scores = Field(default={})
    """The same for the model that training starts from."""
    notes: tuple[str, ...] = ()
    """What differs from the published run, and what was not published."""


class Recipe(Config):
    """Everything that decides the outcome of a run."""

    name: str
    """Name of the run."""
    output: Path
    """Folder of the run; default runs/NAME."""
    seed: int = 0
    """Order of the examples, dropout, and the weights of a new model."""
    data: DataConfig
    """What is trained on."""
    model: ModelConfig
    """What is trained."""
    objective: ObjectiveConfig
    """The loss: its name and its options."""
    optimizer: OptimizerConfig
    """How the weights move."""
    train: TrainConfig
    """How long, in which batches, on what device."""
    scorer: ScorerConfig = ScorerConfig()
    """How hidden states become log-probabilities."""
    distributed: DistributedConfig = DistributedConfig()
    """Several processes, on one machine or more."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Benchmarks to run when training has ended."""
    generate: GenerateConfig = GenerateConfig()
    """Negatives and rollouts to be sampled, and the sets made from them: docs/generated-data.md."""
    published: PublishedConfig | None = None
    """What was published for this recipe, to be compared with."""
    watch: WatchConfig = WatchConfig()
    """Evaluation of the checkpoints while training goes on."""
    track: TrackConfig = TrackConfig()
    """Trackers that show the metrics."""

    @field_validator("name")
    @classmethod
    def _safe_name(cls, name: str) -> str:
        return check_name(name, "name")

    @model_validator(mode="before")
    @classmethod
    def _default_output(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("name"), str) and values.get("output") is None:
            return {**values, "output": f"runs/{values['name']}"}
        return values


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: YAML file; ``.yaml`` may be left out.
        overrides: ``a.b=c`` assignments.

    Raises:
        RecipeError: every problem at once.
        FileNotFoundError: no such file.
    """
    return config.load(path, Recipe, overrides)
