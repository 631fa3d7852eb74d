"""The ``evaluate`` section of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from dftune.data.own_format import FormatSpec
from dftune.generate.config import ServerConfig


class EvaluateConfig(ServerConfig):
    """Which benchmarks are run on the trained model, and how completions are sampled."""

    benchmarks: tuple[str, ...] = ()
    """Names (`dftune evaluate --list`), files (JSONL, CSV, parquet), or Hugging Face datasets; NAME:N for N rows."""
    data_dir: Path | None = None
    """Folder of local copies of the named benchmarks; null: the environment variable DFTUNE_DATA, else the hub."""
    protocol: str | tuple[str, ...] = "greedy"
    """One or several of greedy, avg@N, maj@N, pass@K, ...; sample stands for avg@num_samples."""
    num_samples: Annotated[int, Field(ge=1)] = 1
    """Completions a problem where a protocol samples; a protocol that needs more gets more."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature, for protocols that sample."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling, for protocols that sample."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Most tokens of a completion; one that reaches it counts as truncated."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Completions generated together, by the model in this process."""
    prompt_format: FormatSpec | None = None
    """null: the format the model was trained with, or its chat template."""
    seed: int = 0
    """Seed of the sampling."""
    label: str | None = None
    """Name of the file of samples, in place of `sample`: keeps two temperatures side by side in one run."""
    by: tuple[str, ...] = ()
    """Columns of the benchmark to break scores down by: subject, level, ..."""

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols as a tuple."""
        return (self.protocol,) if isinstance(self.protocol, str) else self.protocol
