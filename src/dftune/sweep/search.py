"""The trials of a sweep: asked for, pruned and told in one storage by any number of processes."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftune.recipe import Recipe
from dftune.run import RunFolder
from dftune.study.board import Board
from dftune.study.claim import STALE_AFTER_S
from dftune.sweep.config import SweepRecipe, Value, trial_name

if TYPE_CHECKING:
    import optuna

_WAIT_S = 1.0
_RANDOM_FIRST = 5
"""Trials before the first that TPE has a say in."""
_SQLITE_PATIENCE_S = 60.0
"""How long a process waits for others that write to the same SQLite file; by default an error comes after 5 s."""


class PrunedError(Exception):
    """The trial has fallen behind and is not trained on."""


def load_optuna() -> Any:
    """Optuna, with its chatter turned off.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import optuna  # noqa: PLC0415
    except ImportError:
        raise ValueError("`dftune sweep` needs Optuna: pip install 'dftune[sweep]'.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Search:
    """A sweep's storage and claims, as one process sees them.

    Attributes:
        recipe: of the sweep.
        board: who trains which trial, and which were given up since they took their process with them.
        study: Optuna's.
    """

    def __init__(self, recipe: SweepRecipe, stale_after_s: float = STALE_AFTER_S) -> None:
        self.recipe = recipe
        self.board = Board(recipe.output, stale_after_s)
        self._optuna = load_optuna()
        with self.lock():
            self.study = self._open()

    def _open(self) -> optuna.Study:
        """The study, made first where it is not there yet."""
        sweep = self.recipe.sweep
        study: optuna.Study = self._optuna.create_study(
            storage=self._storage(),
            study_name=self.recipe.name,
            direction="maximize" if sweep.select.higher_is_better else "minimize",
            pruner=self._pruner(),
            load_if_exists=True,
        )
        known = study.get_trials(deepcopy=False)
        if any(trial.state.is_finished() for trial in known) and not self.board.claims.folder.is_dir():
            raise ValueError(
                f"sweep.storage holds a sweep {self.recipe.name!r} whose runs are not in {self.recipe.output}. Give "
                "this one another name, or delete that one (`optuna delete-study`)."
            )
        if sweep.sampler == "grid" and not known:
            for places in sweep.grid():
                study.enqueue_trial(places)
        return study

    def _storage(self) -> Any:
        """The database of the recipe, or a journal in the folder.

        Raises:
            ValueError: the database cannot be used.
        """
        storages, url = self._optuna.storages, self.recipe.sweep.storage
        if url is None:
            journal = storages.journal.JournalFileBackend(str(self.recipe.output / "journal.log"))
            return storages.JournalStorage(journal)
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  (Optuna needs it itself)

        patience = {"connect_args": {"timeout": _SQLITE_PATIENCE_S}} if url.startswith("sqlite") else {}
        try:
            return storages.RDBStorage(url, engine_kwargs=patience)
        except (ImportError, SQLAlchemyError) as error:
            raise ValueError(f"sweep.storage cannot be used: {error}") from error

    def _pruner(self) -> Any:
        prune, pruners = self.recipe.sweep.prune, self._optuna.pruners
        if prune is None:
            return pruners.NopPruner()
        # The resource is the percentage trained, since trials of other batch sizes have other numbers of steps.
        return pruners.SuccessiveHalvingPruner(
            min_resource=max(1, round(100 * prune.after)), reduction_factor=prune.factor, min_early_stopping_rate=0
        )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time asks, so that there are never more trials than wanted."""
        self.recipe.output.mkdir(parents=True, exist_ok=True)
        with (self.recipe.output / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def take(self) -> tuple[optuna.Trial, Path] | None:
        """A trial to train: one that a dead process left, or a new one; None when all have ended."""
        states = self._optuna.trial.TrialState
        while True:
            with self.lock():
                running = self._running()
                for number, frozen in running.items():
                    name = trial_name(number)
                    if self.board.ended(name):
                        self.study.tell(number, state=states.FAIL)
                    elif (claim := self.board.claims.take(name)) is not None:
                        if number in self._running():
                            return self._optuna.Trial(self.study, frozen._trial_id), claim
                        self.board.claims.give_back(claim)  # its process has ended it since we looked
                known = self.study.get_trials(deepcopy=False)
                num_begun = sum(one.state != states.WAITING for one in known)
                if num_begun < self.recipe.sweep.size:
                    self.study.sampler = self._sampler(num_begun)
                    trial = self.study.ask()
                    self.values(trial)  # inside, so that what is drawn depends on the trials before it alone
                    claim = self.board.claims.take(trial_name(trial.number))
                    assert claim is not None, "a new trial has no claim"
                    return trial, claim
            if not running:
                return None
            time.sleep(_WAIT_S)

    def _running(self) -> dict[int, optuna.trial.FrozenTrial]:
        """Trials by number that nobody has said the end of."""
        states = [self._optuna.trial.TrialState.RUNNING]
        return {frozen.number: frozen for frozen in self.study.get_trials(deepcopy=False, states=states)}

    def _sampler(self, number: int) -> Any:
        """A sampler whose draws follow from the seed and the number of the trial: a sweep taken up repeats none."""
        seed, samplers = (1000003 * self.recipe.sweep.seed + number) % 2**32, self._optuna.samplers
        if self.recipe.sweep.sampler == "tpe":
            return samplers.TPESampler(seed=seed, constant_liar=True, n_startup_trials=_RANDOM_FIRST)
        return samplers.RandomSampler(seed=seed)

    def values(self, trial: optuna.Trial) -> Mapping[str, Value]:
        """What a trial tries; asked again, the same."""
        return {key: dimension.suggest(trial, key) for key, dimension in self.recipe.sweep.space.items()}

    def stored(self, trial: optuna.trial.FrozenTrial) -> Mapping[str, Value]:
        """The same from the storage."""
        space = self.recipe.sweep.space
        return {key: space[key].value(value) for key, value in trial.params.items() if key in space}

    def tell(self, trial: optuna.Trial, value: float | None, state: str) -> None:
        """Say how a trial ended: ``COMPLETE``, ``PRUNED`` or ``FAIL``."""
        self.study.tell(trial, value, state=self._optuna.trial.TrialState[state])


class Watcher:
    """Tells Optuna every validation of a run, and ends the run when it has fallen behind."""

    def __init__(self, trial: optuna.Trial, recipe: Recipe, metric: str) -> None:
        self.trial, self.metric = trial, metric
        self.folder = RunFolder(recipe.output)
        self._num_steps = 0

    def __call__(self, row: Mapping[str, Any]) -> None:
        """One row of events.jsonl."""
        if row["kind"] == "start":
            self._num_steps = int(row["num_steps"])
        step = int(row["step"])
        if row["kind"] != "validation" or self.metric not in row or not 0 < step < self._num_steps:
            return
        share = round(100 * step / self._num_steps)
        self.trial.report(float(row[self.metric]), share)
        if self.trial.should_prune():
            message = f"pruned after {share} % of the training: {self.metric} {row[self.metric]:.4g}"
            self.folder.log("end", step, status="pruned", message=message)
            raise PrunedError(message)
