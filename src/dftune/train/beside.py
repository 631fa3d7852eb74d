"""What runs beside training: a watcher that evaluates checkpoints, an exporter to trackers, samples of the machine.

None of them can stop or fail the run. The loop asks here which checkpoints must stay, and whether it is time to stop.
"""

from __future__ import annotations

from collections.abc import Callable

from dftune.child import Child
from dftune.events import EVENTS, Row, Tail
from dftune.recipe import Recipe
from dftune.run import RunFolder
from dftune.track.system import Sampler
from dftune.train.checkpoint import prune
from dftune.watch.goal import best_steps, scores, stop_reason
from dftune.watch.ledger import is_claimed, waiting

_TRACKER_S = 120.0


class Beside:
    """The processes and threads beside one run, on rank 0.

    Args:
        recipe: says which there are.
        say: receives lines for a person.
    """

    def __init__(self, recipe: Recipe, say: Callable[[str], None] = print) -> None:
        self.recipe, self.say = recipe, say
        self._watcher: Child | None = None
        self._exporter: Child | None = None
        self._sampler: Sampler | None = None
        self._tail: Tail | None = None
        self._rows: list[Row] = []
        self._folder: RunFolder | None = None

    def start(self, folder: RunFolder, step: Callable[[], int]) -> None:
        """Start what the recipe asks for.

        Args:
            folder: of the run, which holds its recipe already.
            step: tells how many optimizer steps are done.
        """
        recipe, run = self.recipe, folder.path
        self._folder, self._tail = folder, Tail(run / EVENTS)
        if recipe.watch.enabled:
            again = f"dftune watch {run}"
            self._watcher = self._child("the watcher", ["watch", str(run), "--parent"], "watch", again)
        if recipe.track.to:
            again = f"dftune track sync {run}"
            self._exporter = self._child("the exporter", ["track", "sync", str(run), "--parent"], "track", again)
        if recipe.track.system_every_s is not None:
            self._sampler = Sampler(folder, step, recipe.track.system_every_s)
            self._sampler.start()

    def _child(self, name: str, arguments: list[str], log: str, again: str) -> Child | None:
        assert self._folder is not None
        try:
            return Child(name, arguments, self._folder.path / "logs" / f"{log}.log", again=again, say=self.say)
        except OSError as error:
            self.say(f"{name} could not be started: {error}. Training goes on; start it with: {again}")
            return None

    def spared(self) -> set[int]:
        """Steps of checkpoints that must not be deleted: not evaluated yet, being evaluated, or among the best.

        Also says when the watcher or the exporter has failed.
        """
        recipe, folder = self.recipe, self._folder
        if folder is None:
            return set()
        for child in (self._watcher, self._exporter):
            if child is not None:
                child.check()  # here, since it is where the run looks after its checkpoints
        rows = self._read()
        kept = {step for step in _steps(folder) if is_claimed(folder.path, step)}
        if recipe.watch.enabled:
            kept |= waiting(recipe.watch.policy, rows)
        if recipe.train.keep_best is not None:
            there = {
                step: score for step, score in scores(rows, recipe.train.keep_best).items() if step in _steps(folder)
            }
            kept |= set(best_steps(there, recipe.train.keep_best, recipe.train.keep_best.number))
        return kept

    def stop_reason(self) -> str | None:
        """Why training should stop here; None to go on."""
        goal = self.recipe.watch.stop
        return None if goal is None else stop_reason(scores(self._read(), goal), goal)

    def _read(self) -> list[Row]:
        if self._tail is not None:
            new = self._tail.new()
            self._rows += [row for row in new if row["kind"] in ("checkpoint", "validation", "evaluation")]
        return self._rows

    def stop_sampling(self) -> None:
        """End the sampling of the machine; the run's last events are the loop's own."""
        if self._sampler is not None:
            self._sampler.stop()

    def finish_watcher(self) -> None:
        """Wait until every checkpoint is evaluated; those that stayed for it alone are deleted then."""
        self.stop_sampling()
        if self._watcher is not None and self._watcher.check():
            self.say("waiting for the watcher; Ctrl-C leaves what is left to `dftune watch`")
            self._watcher.wait()
            assert self._folder is not None
            prune(self._folder.checkpoints, self.recipe.train.keep_checkpoints, self.spared())

    def finish(self) -> None:
        """Wait for the watcher, and then for the exporter, which has its last rows to send."""
        self.finish_watcher()
        if self._exporter is not None:
            self._exporter.wait(_TRACKER_S)

    def end(self) -> None:
        """End everything now, since training has not ended well."""
        self.stop_sampling()
        for child in (self._watcher, self._exporter):
            if child is not None:
                child.end()


def _steps(folder: RunFolder) -> set[int]:
    return {int(path.name.removeprefix("step-")) for path in folder.checkpoints.glob("step-*")}
