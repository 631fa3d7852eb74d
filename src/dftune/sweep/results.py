"""What the trials of a sweep have shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dftune.sweep.config import SweepRecipe, Value, trial_name

if TYPE_CHECKING:
    from dftune.sweep.search import Search

_LEAST_FOR_IMPORTANCE = 4


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: from 0.
        state: ``complete``, ``pruned``, ``fail`` or ``running``.
        values: what it tried, by recipe key.
        value: the metric; of a pruned trial what it was pruned by, None before the first report.
        curve: percentage trained, and what it was compared by.
        seconds: wall time, None while it runs.
    """

    number: int
    state: str
    values: Mapping[str, Value]
    value: float | None
    curve: tuple[tuple[int, float], ...]
    seconds: float | None


@dataclass(frozen=True)
class Results:
    """All trials of a sweep.

    Attributes:
        recipe: of the sweep.
        trials: by number.
        importances: share of the spread of the metric that each key accounts for; empty where too few trials ended.
        importances_of: when the metric was taken.
    """

    recipe: SweepRecipe
    trials: tuple[Trial, ...]
    importances: Mapping[str, float]
    importances_of: str = ""

    @property
    def completed(self) -> list[int]:
        """Numbers of the trials that were trained to the end."""
        return [trial.number for trial in self.trials if trial.state == "complete"]

    @property
    def best(self) -> Trial | None:
        """The best trial that was trained to the end; of equals the first."""
        ended = [trial for trial in self.trials if trial.state == "complete" and trial.value is not None]
        sign = -1 if self.recipe.sweep.select.higher_is_better else 1
        return min(ended, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)

    def as_json(self) -> dict[str, Any]:
        """``sweep.json``: everything that the plots are drawn from."""
        sweep, best = self.recipe.sweep, self.best
        return {
            "name": self.recipe.name,
            "metric": sweep.select.metric,
            "higher_is_better": sweep.select.higher_is_better,
            "pruned_by": sweep.pruned_by if sweep.prune else None,
            "space": {key: one.model_dump(mode="json", exclude_defaults=True) for key, one in sweep.space.items()},
            "best": None if best is None else best.number,
            "importances": dict(self.importances),
            "importances_of": self.importances_of,
            "trials": [
                {
                    "number": trial.number,
                    "state": trial.state,
                    "value": trial.value,
                    "values": dict(trial.values),
                    "curve": [list(point) for point in trial.curve],
                    "seconds": trial.seconds,
                    "run": f"trials/{trial_name(trial.number)}",
                }
                for trial in self.trials
            ],
        }


def read_results(search: Search) -> Results:
    """All trials that the storage holds."""
    frozen = search.study.get_trials(deepcopy=False)
    trials = [
        Trial(
            number=one.number,
            state=one.state.name.lower(),
            values=search.stored(one),
            value=one.value if one.values else None,
            curve=tuple(sorted(one.intermediate_values.items())),
            seconds=one.duration.total_seconds() if one.duration is not None else None,
        )
        for one in frozen
        if one.state.name != "WAITING"
    ]
    return Results(search.recipe, tuple(trials), *_importances(search, trials))


def _importances(search: Search, trials: list[Trial]) -> tuple[dict[str, float], str]:
    """Importances of the metric if enough trials ended, else of what all showed at the first rung; and which it is."""
    import optuna  # noqa: PLC0415

    ended = {trial.number: trial.value for trial in trials if trial.state == "complete" and trial.value is not None}
    prune, what = search.recipe.sweep.prune, "of the trials that were trained to the end"
    if len(ended) < _LEAST_FOR_IMPORTANCE and prune is not None:
        rung = 100 * prune.after
        reached = ((trial.number, [value for share, value in trial.curve if share >= rung]) for trial in trials)
        ended, what = {number: values[0] for number, values in reached if values}, f"after {rung:.0f} % of the training"
    if len(ended) < _LEAST_FOR_IMPORTANCE or len(set(ended.values())) == 1:
        return {}, ""
    alike = optuna.create_study(direction=search.study.direction)
    for one in search.study.get_trials(deepcopy=False):
        if one.number in ended:
            alike.add_trial(
                optuna.create_trial(params=one.params, distributions=one.distributions, value=ended[one.number])
            )
    # PED-ANOVA (arXiv 2304.10255) needs nothing but numpy and scipy.
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(alike, evaluator=evaluator)
    return {key: float(share) for key, share in found.items()}, what
