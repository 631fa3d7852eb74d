"""The ``evaluate`` section of a recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dftune.config import Config
from dftune.data.own_format import FormatSpec


class EvaluateConfig(Config):
    """Which benchmarks are run on the trained model, and how completions are sampled."""

    benchmarks: tuple[str, ...] = ()
    """Benchmark files (JSONL with id, problem, answer) or Hugging Face dataset ids; PATH:N takes the first N rows."""
    protocol: str = "greedy"
    """greedy: one completion at temperature 0; sample: num_samples completions at the given temperature."""
    num_samples: Annotated[int, Field(ge=1)] = 1
    """Completions a problem, for the protocol sample."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature, for the protocol sample."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling, for the protocol sample."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Most tokens of a completion; one that reaches it counts as truncated."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Completions generated together."""
    prompt_format: FormatSpec | None = None
    """null: the format the model was trained with, or its chat template."""
    seed: int = 0
    """Seed of the sampling."""
