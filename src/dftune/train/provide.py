"""Everything an objective is given over a run: computed at the start, kept up, saved and restored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dftune.files import read_json, write_json
from dftune.objectives import Objective
from dftune.objectives.state import LogEstimates
from dftune.train.examples import Schedule, Visited
from dftune.train.inner_loop import OldPolicy
from dftune.train.model import ScoredModel
from dftune.train.reference import MakeBatches, StoredLogps
from dftune.train.supply import Supply
from dftune.train.world import ALONE, World

_STATE_FILE, _OLD_FILE = "objective-state.json", "old-policy.safetensors"


class Provider:
    """Gives an objective what it needs, and nothing that it does not.

    Attributes:
        supply: what each step uses.
        reference: log-probabilities of the frozen reference, where the objective needs them.
    """

    def __init__(
        self,
        objective: Objective,
        model: ScoredModel,
        reference: Callable[[], StoredLogps],
        *,
        examples: Visited,
        schedule: Schedule,
        make_batches: MakeBatches,
        inner_loop: int,
        frozen: ScoredModel | None = None,
        world: World = ALONE,
    ) -> None:
        """Called before a weight has moved: the model still is the reference, and no second one is loaded for it."""
        needs = objective.needs
        self.model, self.examples, self.schedule = model, examples, schedule
        self.make_batches, self.inner_loop, self.world = make_batches, inner_loop, world
        self.reference = reference() if "ref_logps" in needs else None
        self._state = LogEstimates() if objective.stateful else None
        self._old = OldPolicy() if "old_logps" in needs else None
        self.supply = Supply(self.reference, self._old, frozen, self._state)

    def begin(self, step: int) -> None:
        """At the start of an inner loop, the policy as it is becomes the old policy of the examples to come."""
        if self._old is not None and step % self.inner_loop == 0:
            steps = range(step, min(step + self.inner_loop, self.schedule.num_steps))
            visits = dict.fromkeys(visit for each in steps for visit in self.schedule.visits(each))
            self._old.refresh(self.model, self.make_batches(self.examples.of(visits)), self.world)

    def files(self) -> dict[str, Callable[[Path], None]]:
        """What a checkpoint holds beside model and optimizer: file names, and what writes each as it now is."""
        found: dict[str, Callable[[Path], None]] = {}
        if self._state is not None:
            values = self._state.state_dict()
            found[_STATE_FILE] = lambda path: write_json(path, values)
        if self._old is not None:
            found[_OLD_FILE] = self._old.writer()
        return found

    def restore(self, checkpoint: Path) -> None:
        """Read back what :meth:`files` wrote."""
        if self._state is not None:
            self._state.load_state_dict(read_json(checkpoint / _STATE_FILE))
        if self._old is not None:
            self._old.load(checkpoint / _OLD_FILE)

    def check_same(self, manifest: Path) -> None:
        """Refuse to go on with another reference than the run was started with.

        Raises:
            ValueError: the manifest names another one.
        """
        if self.reference is None or not manifest.is_file():
            return
        before: Any = read_json(manifest).get("reference")
        if before != self.reference.fingerprint:
            raise ValueError(
                f"{manifest.parent} was started with the reference log-probabilities {before}, and model and data now "
                f"give {self.reference.fingerprint}: one of them has changed since. Give the new run another name."
            )
