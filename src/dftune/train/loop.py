"""A training run: from a recipe to a folder that explains itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dftune.data.batches import Example, MicroBatch
from dftune.data.dataset import PreparedDataset
from dftune.objectives import get_objective
from dftune.progress import Progress
from dftune.recipe import Recipe
from dftune.run import RunFolder, Watch
from dftune.stopped import Stopped
from dftune.train import checkpoint, folders, skip
from dftune.train.assemble import Assembled
from dftune.train.beside import Beside
from dftune.train.distributed import lost_ranks_named
from dftune.train.energy import EnergyMeter, total_energy
from dftune.train.lora import require_peft
from dftune.train.meter import Meter
from dftune.train.metrics import model_flops_utilisation, peak_memory_bytes, token_metrics, validate
from dftune.train.needs import check_recipe
from dftune.train.optim import learning_rate
from dftune.train.reference import StoredLogps
from dftune.train.saver import Saver
from dftune.train.setup import (
    check_base,
    check_joined,
)
from dftune.train.step import NonFiniteError, StepResult, train_step
from dftune.train.stop import StopRequest
from dftune.train.world import ALONE, World

Say = Callable[[str], None]


@dataclass
class Counters:
    """Running totals that a resumed run takes up where they were."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    skipped: int = 0
    validated: int = -1  # step of the last validation


def train(
    recipe: Recipe,
    data: PreparedDataset,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Say = print,
    world: World = ALONE,
    beside: Beside | None = None,
    watch: Watch | None = None,
) -> RunFolder:
    """Train a model as a recipe says.

    Args:
        recipe: the whole configuration.
        data: the prepared dataset of the recipe.
        resume: take up the run that the folder holds, from its newest intact checkpoint.
        overwrite: replace a run that the folder holds.
        say: receives lines for a person, on rank 0.
        world: the ranks, from :func:`dftune.train.distributed.joined`; all of them call this. They need the same
            files under the same paths; rank 0 writes the run's folder.
        beside: the watcher and exporter that the recipe asks for; whoever passes it calls its ``finish``. Left out,
            they are waited for here.
        watch: receives every row of events.jsonl when it has been written; what it raises ends the run.

    Returns:
        The run's folder, with the final model in ``model/``.

    Raises:
        ValueError: the recipe cannot be run as it stands; nothing expensive has happened.
        NonFiniteError: the loss or gradient became NaN or infinite more often than ``train.max_skipped_steps``; the
            batches are in ``failed-batches/``.
        OSError: the disk is full; checkpoints written before are intact.
        Stopped: SIGTERM or SIGUSR1 asked for it; a checkpoint of the last step is complete. Heard in the main thread.
    """
    check_joined(world, recipe.distributed.sequence_parallel)
    check_recipe(recipe)
    if recipe.model.lora is not None:
        require_peft()
    folder = RunFolder(recipe.output, watch)
    with ExitStack() as stack:

        def start() -> bool:
            stack.enter_context(folder.lock())
            folder.start(recipe, resume=resume, overwrite=overwrite)
            return resume and folder.finished()

        if world.from_main(start):
            if world.main:
                say(f"{folder.path} is finished; nothing to resume.")
            return folder
        counters, request = Counters(), StopRequest()
        aside = beside or Beside(recipe, say)
        stack.push(lambda kind, *_: aside.end() if kind else None)
        if world.main:
            aside.start(folder, lambda: counters.step)
        try:
            with request.listening(), lost_ranks_named(world, recipe.distributed.timeout_s):
                heard = say if world.main else _silence
                one = _Run(recipe, data, folder, heard, world=world, counters=counters, beside=aside, request=request)
                stack.callback(one.undo_kernels)
                stack.callback(one.saver.wait)  # a checkpoint that is being written still needs the lock
                one.train(resume=resume)
        except KeyboardInterrupt:
            if world.main:
                folder.log("end", counters.step, status="interrupted", message="interrupted from the keyboard")
            raise
        except Stopped as stopped:
            if world.main:
                folder.log("end", counters.step, status=stopped.status, message=str(stopped))
            raise
        except (ArithmeticError, OSError, ValueError) as error:
            if world.main:
                _try_log_failure(folder, counters.step, error)
            raise
    if beside is None:
        aside.finish()
    return folder


def precompute_reference(recipe: Recipe, data: PreparedDataset, *, say: Say = print) -> StoredLogps:
    """The reference log-probabilities that training the recipe needs: computed, or found beside the data.

    `train` on the same recipe then finds them by itself.

    Args:
        recipe: the whole configuration.
        data: the prepared dataset of the recipe.
        say: receives lines for a person.

    Raises:
        ValueError: the objective needs none, or the recipe cannot be run as it stands.
    """
    check_recipe(recipe)
    objective = get_objective(recipe.objective.name, **recipe.objective.options)
    if "ref_logps" not in objective.needs:
        raise ValueError(
            f"{objective.name} with the options of this recipe needs no reference log-probabilities; there is nothing "
            "to compute before `dftune train`."
        )
    if recipe.model.lora is not None:
        require_peft()
    run = Assembled(recipe, data, say)
    run.undo_kernels()
    assert run.provider.reference is not None, "the objective needs it"
    return run.provider.reference


def _silence(line: str) -> None:
    """What a rank has to say that is not the first."""


def _try_log_failure(folder: RunFolder, step: int, error: Exception) -> None:
    try:
        folder.log("end", step, status="failed", message=str(error))
    except OSError:  # the disk may be what failed; the error itself is on its way to the user
        return


class _Run(Assembled):
    """One run, as this process takes part in it: what is set up and checked is trained, saved and exported."""

    def __init__(
        self,
        recipe: Recipe,
        data: PreparedDataset,
        folder: RunFolder,
        say: Say,
        *,
        world: World,
        counters: Counters,
        beside: Beside,
        request: StopRequest,
    ) -> None:
        super().__init__(recipe, data, say, world=world)
        self.folder, self.counters, self.beside, self.request = folder, counters, beside, request
        self.saver = Saver(
            folder.checkpoints, background=recipe.train.background_checkpoints, done=self._saved, world=world
        )
        self.energy = EnergyMeter(self.device, reads_cpu=world.local_rank == 0)

    def _log(self, kind: str, **fields: Any) -> None:
        if self.world.main:
            self.folder.log(kind, self.counters.step, **fields)

    def train(self, *, resume: bool) -> None:
        """The whole run, from the newest checkpoint if there is one to resume."""
        torch.manual_seed(self.recipe.seed + self.world.rank)  # what is dropped differs from rank to rank
        resumed = self._resume() if resume else False
        if not resumed and self.world.main:
            self.folder.write_manifest(self.manifest())
        self.say(self.headline())
        self._log("start", num_steps=self.schedule.num_steps, resumed=resumed)
        self.model.train()
        self.request.training = True
        if self._validation_is_due():
            self._validate()
        settings, num_steps = self.recipe.train, self.schedule.num_steps
        title, done = f"train {self.recipe.name}", self.counters.step
        with Progress(title, num_steps, done=done, shown=self.world.main) as progress:
            meter = Meter(self.device, self.world.data)
            while self.counters.step < num_steps:
                result, batches = self._step()
                meter.add(batches)
                step = self.counters.step
                last = step == num_steps
                if result is not None and self._is_logged(step):
                    row = self._log_step(result.over(self.world.data), meter)
                    progress.update(
                        step, f"loss {row['loss']:.4f}  nll {row['nll']:.4f}  {row['tokens_per_s']:,.0f} tokens/s"
                    )
                self._stop_if_asked()
                if self._validation_is_due():
                    self._validate()
                    meter.restart()
                if settings.checkpoint_every and (step % settings.checkpoint_every == 0) and not last:
                    self._save_checkpoint()
                    meter.restart()
                    if self._stops_early():
                        break
        self.saver.finish()
        self._export()
        self.beside.stop_sampling()
        skipped = f"; {self.counters.skipped} steps were skipped" if self.counters.skipped else ""
        energy = total_energy(self.world.gather(self.energy.read()))
        self._log("end", status="finished", message=f"model in {self.folder.model}{skipped}", **energy)
        self._prune()

    def _stops_early(self) -> bool:
        """Whether the results so far say that training should end here; the same on all ranks."""
        if self.recipe.watch.stop is None:
            return False
        reason = self.world.from_main(self.beside.stop_reason)
        if reason is None:
            return False
        step = self.counters.step
        self.say(f"stopped at step {step} of {self.schedule.num_steps}: {reason}")
        self._log("stop", reason=reason)
        if self.counters.validated != step:
            self._validate()
        return True

    def _validation_is_due(self) -> bool:
        """Also where a run is taken up that was stopped before it came to it."""
        step, every = self.counters.step, self.recipe.train.validate_every
        due = step in (0, self.schedule.num_steps) or (every is not None and step % every == 0)
        return due and self.counters.validated != step

    def _stop_if_asked(self) -> None:
        asked = self.request.over(self.world)
        if asked is not None:
            where = f"after step {self.counters.step} of {self.schedule.num_steps}"
            if self.recipe.optimizer.name == "adamw_8bit":
                raise Stopped(asked, f"{where}; nothing is saved, since the moments of adamw_8bit cannot be")
            self._save_checkpoint()
            self.saver.finish()
            raise Stopped(asked, f"{where}, which is saved")

    def _export(self) -> None:
        adapter_path = self.folder.path / "adapter"
        model, adapter = self.model.model, self.model.adapter
        folders.export(
            self.folder.model, model, self.tokenizer, adapter=adapter, adapter_path=adapter_path, world=self.world
        )

    def _prune(self) -> None:
        if self.world.main:
            spared = self.beside.spared()
            checkpoint.prune(self.folder.checkpoints, self.recipe.train.keep_checkpoints, spared)

    def _step(self) -> tuple[StepResult | None, list[MicroBatch]]:
        """The next step, which leaves no result where it was skipped."""
        step = self.counters.step
        self.provider.begin(step)
        examples = self.examples.of(self.schedule.visits(step))
        batches = self.batches(examples)
        logged = self._is_logged(step + 1)
        try:
            result = train_step(
                self.model,
                self.optimizer,
                self.objective,
                batches,
                lr=learning_rate(step, self.schedule.num_steps, self.recipe.optimizer),
                max_grad_norm=self.recipe.optimizer.max_grad_norm,
                how=replace(self.how, stats=frozenset({"top1_hit"}) if logged else frozenset()),
            )
        except NonFiniteError as error:
            self._skip(error, examples)
            return None, batches
        self.counters.step += 1
        self.counters.tokens += sum(map(len, examples))
        self.counters.supervised_tokens += sum(int(example.completion_mask[1:].sum()) for example in examples)
        return result, batches

    def _is_logged(self, step: int) -> bool:
        return step % self.recipe.train.log_every == 0 or step == self.schedule.num_steps

    def _log_step(self, result: StepResult, meter: Meter) -> dict[str, Any]:
        step = self.counters.step
        speed, padding = meter.read()
        seen = self.world.gather((peak_memory_bytes(self.device), self.energy.read()))
        row: dict[str, Any] = {
            "loss": result.loss.item(),
            **token_metrics(result, self.end_token_id),
            "grad_norm": result.grad_norm.item(),
            "lr": learning_rate(step - 1, self.schedule.num_steps, self.recipe.optimizer),
            "epoch": self.schedule.epoch(step),
            "tokens": self.counters.tokens,
            "supervised_tokens": self.counters.supervised_tokens,
            "tokens_per_s": speed,
            "padding_share": padding,
            "peak_memory_bytes": max(peak for peak, _ in seen),
            **total_energy(energy for _, energy in seen),
        }
        mfu = model_flops_utilisation(self.model, speed / self.world.size, self.device)
        if mfu is not None:
            row["mfu"] = mfu
        self._log("train", **row)
        return row

    def _validate(self) -> None:
        self.counters.validated = self.counters.step
        if len(self.held_out) == 0:
            return
        batches = self.batches(self.held_out.of((0, index) for index in range(len(self.held_out))))
        row = validate(self.model, self.objective, batches, self.end_token_id, self.how.supply, world=self.world.data)
        self._log("validation", **row)
        self.say(f"step {self.counters.step}: held-out nll {row['nll']:.4f} over {row['num_tokens']:,} tokens")

    def _save_checkpoint(self) -> None:
        contents = checkpoint.Contents(
            model=self.model.model,
            tokenizer=self.tokenizer,
            optimizer=self.optimizer,
            state={"counters": asdict(self.counters)},
            files=self.provider.files(),
            adapter=self.model.adapter,
        )
        self.saver.save(self.counters.step, contents)

    def _saved(self, step: int, path: Path) -> None:
        self.folder.log("checkpoint", step, path=str(path.relative_to(self.folder.path)))
        self._prune()

    def _resume(self) -> bool:
        self.provider.check_same(self.folder.path / "manifest.json")
        leftovers = self.world.from_main(lambda: checkpoint.purge(self.folder.checkpoints))
        if leftovers:
            self.say(f"removed what a kill had left half-done in {self.folder.checkpoints}: {', '.join(leftovers)}")
        newest = self.world.from_main(lambda: checkpoint.newest_intact(self.folder.checkpoints, self.say))
        if newest is None and checkpoint.list_checkpoints(self.folder.checkpoints):
            raise ValueError(
                f"none of the checkpoints in {self.folder.checkpoints} is as it was written. Put one back from a copy, "
                "or delete them all to start from the first step."
            )
        if newest is None:
            self.say(f"{self.folder.path} holds no checkpoint to resume from; starting from the first step.")
            return False
        if self.model.adapter is not None:
            check_base(self.folder.path / "manifest.json", self.base_fingerprint)
        state = checkpoint.load_checkpoint(
            newest,
            model=self.model.model,
            optimizer=self.optimizer,
            adapter=self.model.adapter,
            world=self.world,
        )
        for name, value in state["counters"].items():
            setattr(self.counters, name, value)
        self.provider.restore(newest)
        self._log("checkpoint", path=str(newest.relative_to(self.folder.path)))  # the kill may have come before its row
        self.say(f"resumed from {newest} at step {self.counters.step} of {self.schedule.num_steps}")
        return True

    def _skip(self, error: NonFiniteError, examples: Sequence[Example]) -> None:
        """Go on without the step, or end the run."""
        step, limit = self.counters.step + 1, self.recipe.train.max_skipped_steps
        lr = learning_rate(step - 1, self.schedule.num_steps, self.recipe.optimizer)
        path = skip.batch_path(self.folder.path, step)
        if self.world.main:
            skip.save_batch(path, step, error, lr, examples)
        if self.counters.skipped >= limit:
            raise NonFiniteError(
                skip.refusal(step, error, path, skipped=self.counters.skipped, limit=limit, lr=lr)
            ) from None
        self.counters.step, self.counters.skipped = step, self.counters.skipped + 1
        batch = str(path.relative_to(self.folder.path))
        self._log("skipped", error=str(error), batch=batch, num_skipped=self.counters.skipped)
        self.say(
            f"step {step} skipped, {self.counters.skipped} of at most {limit}: {error}; its examples are in {path}"
        )
