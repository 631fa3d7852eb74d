"""The ``track`` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dftune.config import Config

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class TrackConfig(Config):
    """Where metrics go beside events.jsonl, which is always written."""

    to: tuple[TrackerName, ...] = ()
    """Any of tensorboard, wandb, trackio, mlflow; each needs its package (`pip install 'dftune[track]'`)."""
    project: str = "dftune"
    """Project of W&B and trackio, experiment of MLflow."""
    name: str | None = None
    """Name of the run there; null: the run's own."""
    wandb_mode: Literal["online", "offline"] | None = None
    """null: the environment variable WANDB_MODE, else online, which needs an account."""
    mlflow_uri: str | None = None
    """Where MLflow keeps runs; null: MLFLOW_TRACKING_URI, else MLflow's default."""
    poll_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds between two looks for new metrics while training goes on."""
    system_every_s: Annotated[float, Field(gt=0)] | None = 30.0
    """Sample processor, memory and GPU every so many seconds; null never."""
