"""The ``generate`` section of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dftune.config import Config
from dftune.data.config import SourceConfig
from dftune.data.own_format import FormatSpec
from dftune.generate.config import ServerConfig


class SampleConfig(Config):
    """How completions of the training problems are drawn."""

    num_samples: Annotated[int, Field(ge=1)] = 4
    """Completions a problem, each with a seed of its own. A larger number keeps what is there."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Only so many of the likeliest tokens are drawn from; null: all."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Most tokens of a completion."""
    system: str | None = None
    """A system message before every problem, in place of one that a conversation has. It is not trained on."""
    seed: int = 0
    """Seed of the sampling."""

    @model_validator(mode="after")
    def _samples_differ(self) -> SampleConfig:
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                f"at temperature 0 all {self.num_samples} samples of a problem are the same one; set num_samples to 1, "
                "or a temperature above 0"
            )
        return self

    @property
    def parameters(self) -> dict[str, float]:
        """What completions follow from, beside the model and the prompt."""
        drawn = self.temperature > 0
        values = {"temperature": self.temperature, "top_p": self.top_p if drawn else 1.0}
        if self.top_k is not None and drawn:
            values["top_k"] = self.top_k
        return values | {"max_tokens": self.max_tokens, "seed": self.seed if drawn else 0}


class NegativesConfig(SampleConfig):
    """Completions to hold against the solution; temperature, top_k and max_tokens as in Discriminative FT's code."""

    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Sampling temperature."""
    top_k: Annotated[int, Field(ge=1)] | None = 50
    """Only so many of the likeliest tokens are drawn from; null: all."""
    max_tokens: Annotated[int, Field(ge=1)] = 256
    """Most tokens of a completion."""
    drop_equal: bool = False
    """Leave out negatives that equal the solution; they are counted and marked in any case."""
    drop_correct: bool = False
    """Leave out negatives that grade as correct; they are counted and marked in any case."""
    drop_repeated: bool = False
    """Leave out negatives that equal an earlier one of the same problem."""
    file: Literal["parquet", "jsonl"] = "parquet"
    """Format of the merged set."""


class RftConfig(Config):
    """Correct rollouts to train on."""

    per_problem: Annotated[int, Field(ge=1)] = 4
    """Most completions of a problem, the first distinct ones."""


class PairsConfig(Config):
    """A correct rollout against an incorrect one of the same problem."""

    per_problem: Annotated[int, Field(ge=1)] = 1
    """Most pairs of a problem; no completion is in two of them."""
    balance_lengths: bool = False
    """Pair completions of the nearest lengths, so that neither side can be told by its length; else the first ones."""


class WeightedConfig(Config):
    """Rollouts repeated in proportion to their quality."""

    num_rows: Annotated[int, Field(ge=1)] | None = None
    """Rows of the set; null: as many as there are completions of a quality above 0."""
    percentiles: tuple[Annotated[float, Field(ge=0, lt=100)], ...] = ()
    """Where given, a completion is repeated once for each of these percentiles of the quality that it reaches."""
    seed: int = 0
    """Decides where a fraction of a copy is rounded up."""


class GenerateConfig(ServerConfig):
    """What is sampled for the training problems, by which model, and what is made of it."""

    folder: Path | None = None
    """Where everything goes; null: generated/NAME."""
    problems: SourceConfig | None = None
    """Where the problems come from; null: the data section, where that does not name the generated set itself."""
    model: str | None = None
    """Run, folder or id of the model that is sampled; null: model.path."""
    prompt_format: FormatSpec | None = None
    """null: data.prompt_format."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Completions generated together, by the model in this process."""
    keep_truncated: bool = False
    """Use completions that were cut off at max_tokens; training gives them an end that they never had."""
    negatives: NegativesConfig = NegativesConfig()
    """Negatives, merged into columns real, generated_0, generated_1, ..."""
    rollouts: SampleConfig = SampleConfig()
    """Rollouts, graded."""
    rft: RftConfig = RftConfig()
    """Correct rollouts."""
    pairs: PairsConfig = PairsConfig()
    """Preference pairs of rollouts."""
    weighted: WeightedConfig = WeightedConfig()
    """Rollouts repeated by their quality."""
