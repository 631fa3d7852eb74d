"""MLflow: a tracking server or a local store."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from dftune.track.trackers import Memory, Point, TrackedRun, flat

_MOST_METRICS, _MOST_PARAMS, _LONGEST_PARAM = 1000, 100, 500
_TAG = "dftune.id"
_NOT_IN_NAMES = re.compile(r"[^\w/. :-]")


class MLflow:
    """One run of an experiment. ``@`` of protocols is written ``_at_``, since MLflow allows none in a name."""

    rewrites = True
    continues = True

    def __init__(self, run: TrackedRun) -> None:
        self._of = run
        self._client = MlflowClient(run.config.mlflow_uri)
        self._id = ""

    def begin(self, memory: Memory, *, anew: bool) -> None:
        """Take up the run; ``anew`` deletes it and makes another."""
        project = self._of.config.project
        experiment = self._client.get_experiment_by_name(project)
        where = self._client.create_experiment(project) if experiment is None else experiment.experiment_id
        own = [run.info.run_id for run in self._client.search_runs([where], f"tags.`{_TAG}` = '{self._of.id}'")]
        known = str(memory.get("run_id", ""))
        if anew:
            for run_id in {*own, *([known] if known else [])}:
                self._client.delete_run(run_id)
        self._id = known if known and not anew else self._create(where)

    def _create(self, experiment: str) -> str:
        created = self._client.create_run(experiment, run_name=self._of.name, tags={_TAG: self._of.id})
        found = str(created.info.run_id)
        recipe = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in flat(self._of.recipe).items()]
        for start in range(0, len(recipe), _MOST_PARAMS):
            self._client.log_batch(found, params=recipe[start : start + _MOST_PARAMS])
        return found

    def log(self, points: Sequence[Point]) -> None:
        """Send metrics under their own time."""
        metrics: list[Any] = [
            Metric(_NOT_IN_NAMES.sub("_", name.replace("@", "_at_")), value, round(1000 * point.time), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        for start in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + _MOST_METRICS])

    def flush(self) -> Memory:
        """Every call has waited already."""
        return {"run_id": self._id}

    def close(self) -> None:
        """Mark the run as finished; metrics can still be added."""
        if self._id:
            self._client.set_terminated(self._id)
            self._id = ""


connect = MLflow
