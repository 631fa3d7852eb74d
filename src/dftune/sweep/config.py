"""The ``sweep`` section of a recipe, and how a trial's recipe comes from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dftune import config
from dftune.config import Config, RecipeError, key_names
from dftune.data.dataset import settings_of, tokenizer_origin
from dftune.files import fingerprint
from dftune.recipe import Recipe
from dftune.study.config import Rate, divided, kept_apart, merged
from dftune.study.select import SelectConfig, check_select

Value = str | int | float | bool | None
_NOT_SEARCHED = ("name", "output", "seed", "data.prepared")


class Dimension(Config):
    """One key of the recipe: a range, or a list of values."""

    low: float | None = None
    """Smallest value of a range."""
    high: float | None = None
    """Largest value of a range."""
    log: bool = False
    """Draw the logarithm uniformly, as a learning rate wants it."""
    integer: bool = False
    """Whole numbers only."""
    step: Rate | None = None
    """Distance between the values of a range; not together with log."""
    values: tuple[Value, ...] | None = None
    """The values to choose among, in place of a range."""

    @model_validator(mode="after")
    def _range_or_values(self) -> Dimension:
        if self.values is not None:
            if self.low is not None or self.high is not None or self.log or self.integer or self.step is not None:
                raise ValueError("give either values or a range (low, high), not both")
            if len({repr(value) for value in self.values}) < max(1, len(self.values)):
                raise ValueError("values must name one value or more, each once")
            return self
        if self.low is None or self.high is None or not self.low < self.high:
            raise ValueError(f"a range needs low < high, found {self.low} and {self.high}; or give values")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low > 0 and no step")
        if self.integer and any(
            value is not None and value != int(value) for value in (self.low, self.high, self.step)
        ):
            raise ValueError("integer needs whole numbers for low, high and step")
        return self

    def suggest(self, trial: Any, key: str) -> Value:
        """The value of a trial of Optuna."""
        if self.values is not None:
            return self.values[int(trial.suggest_categorical(key, list(range(len(self.values)))))]
        low, high = self.low or 0.0, self.high or 0.0
        if self.integer:
            step = int(self.step or 1)
            return int(trial.suggest_int(key, int(low), int(high), step=step, log=self.log))
        return float(trial.suggest_float(key, low, high, step=self.step, log=self.log))

    def value(self, stored: Any) -> Value:
        """The recipe's value of what Optuna has stored, which is the place in a list of values."""
        if self.values is not None:
            return self.values[int(stored)]
        return int(stored) if self.integer else float(stored)


class PruneConfig(Config):
    """Asynchronous successive halving: at each rung the best 1 / factor go on."""

    after: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """The first rung, as a share of the training; the next ones are at after * factor, after * factor^2, ..."""
    factor: Annotated[int, Field(ge=2)] = 2
    """One in so many goes on."""


class SweepConfig(Config):
    """What is searched, by which metric, how long."""

    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    """Dotted keys of the recipe, each with its range or values."""
    select: SelectConfig
    """What makes one trial better than another; never a test benchmark."""
    num_trials: Annotated[int, Field(ge=1)] | None = None
    """Trials of all workers together; the sampler grid may leave it out."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """tpe: Optuna's tree-structured Parzen estimator. grid: every combination of values once."""
    seed: int = 0
    """Of the sampler; the seed of training is the recipe's own, alike in all trials."""
    prune: PruneConfig | None = PruneConfig()
    """Stop trials that fall behind in the validation during training (train.validate_every); null: none."""
    prune_by: Literal["nll", "loss", "p_mean", "p_eot", "top1", "entropy"] | None = None
    """What is compared while trials train; null: the metric of select, or nll where that is accuracy."""
    storage: str | None = None
    """URL of a database for Optuna (postgresql://, mysql://, sqlite:///); null: a journal file in the folder."""
    test: Literal["none", "best", "all"] = "best"
    """Whose final model is evaluated on evaluate.benchmarks, when the search is over."""

    @field_validator("space")
    @classmethod
    def _known_keys(cls, space: dict[str, Dimension]) -> dict[str, Dimension]:
        own = [
            key for key in space if key in ("name", "output", "seed", "data.prepared") or key.startswith("evaluate.")
        ]
        if own:
            raise ValueError(f"{', '.join(own)} cannot be searched: a trial would be another run, not a better one")
        known = set(key_names(Recipe))
        unknown = [key for key in space if key not in known and not key.startswith("objective.")]
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such key; `dftune train --keys` lists them")
        return space

    @model_validator(mode="after")
    def _has_an_end(self) -> SweepConfig:
        if self.sampler == "grid":
            ranges = [key for key, dimension in self.space.items() if dimension.values is None]
            if ranges:
                raise ValueError(f"the sampler grid needs values for every key; {', '.join(ranges)} has a range")
        elif self.num_trials is None:
            raise ValueError("num_trials: required, but not given")
        return self

    @property
    def size(self) -> int:
        """Trials in all."""
        grid = math.prod(len(dimension.values or ()) for dimension in self.space.values())
        return grid if self.sampler == "grid" else self.num_trials or 0

    @property
    def pruned_by(self) -> str:
        """The metric that is compared while trials train."""
        return self.prune_by or ("nll" if self.select.generates else self.select.metric)

    def grid(self) -> list[dict[str, int]]:
        """Every combination, as the place of each value in its list."""
        places = [range(len(dimension.values or ())) for dimension in self.space.values()]
        return [dict(zip(self.space, combination, strict=True)) for combination in itertools.product(*places)]


class SweepRecipe(Config):
    """A recipe with a ``sweep`` section."""

    name: str
    """Name of the sweep."""
    output: Path
    """Its folder; default sweeps/NAME."""
    sweep: SweepConfig
    """What is searched."""
    shared: dict[str, Any]
    """The other sections of the recipe, as they stand."""

    def trial(self, number: int, values: Mapping[str, Value]) -> Recipe:
        """The recipe of a trial.

        Raises:
            RecipeError: these values make no valid recipe.
        """
        name = trial_name(number)
        recipe = self._recipe(values, name, self.output / "trials" / name, self.output / "prepared" / "data")
        content = fingerprint(settings_of(recipe), tokenizer_origin(recipe))
        data = recipe.data.model_copy(update={"prepared": self.output / "prepared" / content})
        return recipe.model_copy(update={"data": data})

    def best(self, trial: Recipe) -> Recipe:
        """The recipe of a trial as a run of its own."""
        name = f"{self.name}-best"
        return trial.model_copy(update={"name": name, "output": Path("runs") / name})

    def _recipe(self, values: Mapping[str, Value], name: str, output: Path, prepared: Path) -> Recipe:
        plain = merged(merged(self.shared, values), {"data.prepared": str(prepared)})
        plain = kept_apart(plain, self.sweep.select)
        return config.validate({**plain, "name": name, "output": str(output)}, Recipe, f"{self.name}, {name}")

    def check(self) -> None:
        """Find what is wrong before the first trial.

        Raises:
            ValueError: a corner of the space makes no recipe that can be trained, the metric is of a test benchmark, or
                there is nothing to prune by.
        """
        from dftune.train.needs import check_recipe  # noqa: PLC0415

        problems: dict[str, None] = {}
        for corner in self._corners():
            try:
                check_recipe(self.trial(0, corner))
            except RecipeError as error:
                problems |= dict.fromkeys(error.problems)
            except ValueError as error:
                problems[str(error)] = None
        if problems:
            raise RecipeError(self.name, list(problems))
        recipe = self.trial(0, self.first)
        check_select(self.sweep.select, recipe)
        if self.sweep.prune is not None and (recipe.train.validate_every is None or recipe.data.validation == 0):
            raise ValueError(
                "sweep.prune compares trials by the validation during training. Set train.validate_every and "
                "data.validation, or sweep.prune=null."
            )

    @property
    def first(self) -> dict[str, Value]:
        """One point of the space."""
        return self._corners()[0]

    def _corners(self) -> list[dict[str, Value]]:
        """The first value of every key, and each other value or end of a range by itself."""
        ends: dict[str, list[Value]] = {}
        for key, dimension in self.sweep.space.items():
            whole = int if dimension.integer else float
            ends[key] = list(dimension.values or (whole(dimension.low or 0), whole(dimension.high or 0)))
        first = {key: values[0] for key, values in ends.items()}
        return [first, *({**first, key: value} for key, values in ends.items() for value in values[1:])]


def trial_name(number: int) -> str:
    """Of a trial's folder."""
    return f"trial-{number:04d}"


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepRecipe:
    """Read the recipe of a sweep.

    Args:
        path: YAML file; ``.yaml`` may be left out.
        overrides: ``a.b=c`` assignments.

    Raises:
        RecipeError: the sweep section, or what stands beside it, is not what it must be.
        FileNotFoundError: no such file.
    """
    values, where, problems = config.read_with("sweep", path, overrides)
    return config.validate(divided(values, "sweep", problems), SweepRecipe, where, problems)
