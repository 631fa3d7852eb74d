"""A training run: from a recipe to a folder that explains itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from dftune.data.batches import Example, MicroBatch, micro_batches
from dftune.data.dataset import PreparedDataset
from dftune.data.hub import from_pretrained
from dftune.data.prompts import PromptFormat, recorded_format
from dftune.environment import describe_environment, set_threads
from dftune.files import write_json
from dftune.objectives import get_objective
from dftune.progress import Progress
from dftune.recipe import Recipe
from dftune.run import RunFolder
from dftune.train import checkpoint
from dftune.train.examples import Schedule, Visited
from dftune.train.lora import require_peft
from dftune.train.meter import Meter
from dftune.train.metrics import model_flops_utilisation, peak_memory_bytes, token_metrics, validate
from dftune.train.model import check_scoring
from dftune.train.needs import check_recipe
from dftune.train.optim import learning_rate, make_optimizer
from dftune.train.provide import Provider
from dftune.train.reference import StoredLogps, reference_logps
from dftune.train.setup import (
    base_fingerprint,
    check_base,
    device_of,
    objective_row,
    one_process,
    reference_key,
    route_of,
    scored_model,
)
from dftune.train.step import NonFiniteError, Pass, StepResult, train_step

Say = Callable[[str], None]


@dataclass
class Counters:
    """Running totals that a resumed run takes up where they were."""

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0


def train(
    recipe: Recipe, data: PreparedDataset, *, resume: bool = False, overwrite: bool = False, say: Say = print
) -> RunFolder:
    """Train a model as a recipe says.

    Args:
        recipe: the whole configuration.
        data: the prepared dataset of the recipe.
        resume: take up the run that the folder holds, from its newest intact checkpoint.
        overwrite: replace a run that the folder holds.
        say: receives lines for a person.

    Returns:
        The run's folder, with the final model in ``model/``.

    Raises:
        ValueError: the recipe cannot be run as it stands; nothing expensive has happened.
        NonFiniteError: the loss or gradient became NaN or infinite; the batch is in ``failed-batch.json``.
        OSError: the disk is full; checkpoints written before are intact.
    """
    one_process()
    check_recipe(recipe)
    if recipe.model.lora is not None:
        require_peft()
    folder = RunFolder(recipe.output)
    with folder.lock():
        folder.start(recipe, resume=resume, overwrite=overwrite)
        if resume and folder.finished():
            say(f"{folder.path} is finished; nothing to resume.")
            return folder
        run = _Run(recipe, data, folder, say)
        try:
            run.train(resume=resume)
        except KeyboardInterrupt:
            folder.log("end", run.counters.step, status="interrupted", message="interrupted from the keyboard")
            raise
        except (ArithmeticError, OSError, ValueError) as error:
            _try_log_failure(folder, run.counters.step, error)
            raise
    return folder


def _try_log_failure(folder: RunFolder, step: int, error: Exception) -> None:
    try:
        folder.log("end", step, status="failed", message=str(error))
    except OSError:  # the disk may be what failed; the error itself is on its way to the user
        return


class _Run:
    """One run in this process: everything is set up, checked and then trained, in that order."""

    def __init__(self, recipe: Recipe, data: PreparedDataset, folder: RunFolder, say: Say) -> None:
        self.recipe, self.data, self.folder, self.say = recipe, data, folder, say
        self.counters = Counters()
        self.device = device_of(recipe.train.device)
        set_threads(recipe.train.threads)
        from transformers import AutoTokenizer  # noqa: PLC0415

        self.objective = get_objective(recipe.objective.name, **recipe.objective.options)
        grouped = "groups" in self.objective.needs
        self.examples = Visited(data.train, recipe.data, grouped)
        self.held_out = Visited(data.validation, recipe.data, grouped)
        self.schedule = Schedule.of(recipe.train, len(self.examples), recipe.seed)
        self.tokenizer = from_pretrained(AutoTokenizer, str(data.tokenizer_folder), None, "data.prepared")
        self.format: PromptFormat = recorded_format(data.manifest["prompt_format"], self.tokenizer)
        self.end_token_id = self.format.end_token_id(self.tokenizer)
        self.base_fingerprint = base_fingerprint(recipe)
        self.model = scored_model(recipe, self.tokenizer, self.device)
        check_scoring(self.model, vocab_size=len(self.tokenizer))
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.provider = Provider(
            self.objective,
            self.model,
            self._reference,
            examples=self.examples,
            schedule=self.schedule,
            make_batches=self._batches,
            inner_loop=recipe.train.inner_loop,
        )
        self.how = Pass(
            self.provider.supply,
            route=route_of(self.model, self.objective, self.examples.all, recipe.train.micro_batch_tokens),
            normalization=recipe.train.normalization,
        )
        self._prepare_export()

    def _reference(self) -> StoredLogps:
        examples = self.examples.all() + self.held_out.all()
        key = reference_key(self.recipe, self.data, self.model, self.format)
        return reference_logps(self.model, examples, self._batches, self.data.folder / "reference", key, say=self.say)

    def _prepare_export(self) -> None:
        """What is saved with the model: the format it was trained with, and the token it ends with."""
        self.tokenizer.chat_template = self.format.chat_template(self.tokenizer)
        generation = self.model.model.generation_config
        known = generation.eos_token_id
        ends = [self.end_token_id, *(known if isinstance(known, list) else [known])]
        generation.eos_token_id = list(dict.fromkeys(end for end in ends if end is not None))
        if generation.pad_token_id is None:
            pad = self.tokenizer.pad_token_id
            generation.pad_token_id = self.end_token_id if pad is None else pad

    def train(self, *, resume: bool) -> None:
        """The whole run, from the newest checkpoint if there is one to resume."""
        torch.manual_seed(self.recipe.seed)
        resumed = self._resume() if resume else False
        if not resumed:
            self.folder.write_manifest(self._manifest())
        self.say(self._headline())
        self.folder.log("start", self.counters.step, num_steps=self.schedule.num_steps, resumed=resumed)
        self.model.train()
        if not resumed:
            self._validate()
        settings = self.recipe.train
        with Progress(f"train {self.recipe.name}", self.schedule.num_steps, done=self.counters.step) as progress:
            meter = Meter(self.device)
            while self.counters.step < self.schedule.num_steps:
                result, batches = self._step()
                meter.add(batches)
                step = self.counters.step
                last = step == self.schedule.num_steps
                if self._is_logged(step):
                    row = self._log_step(result, meter)
                    progress.update(
                        step, f"loss {row['loss']:.4f}  nll {row['nll']:.4f}  {row['tokens_per_s']:,.0f} tokens/s"
                    )
                if last or (settings.validate_every and step % settings.validate_every == 0):
                    self._validate()
                    meter.restart()
                if settings.checkpoint_every and (step % settings.checkpoint_every == 0) and not last:
                    self._save_checkpoint()
                    meter.restart()
        self._export()
        self.folder.log("end", self.counters.step, status="finished", message=f"model in {self.folder.model}")
        checkpoint.prune(self.folder.checkpoints, settings.keep_checkpoints)

    def _export(self) -> None:
        adapter, model = self.model.adapter, self.model.model
        if adapter is not None:
            checkpoint.export_adapter(self.folder.path / "adapter", adapter)
            model = adapter.merged()
        checkpoint.export_model(self.folder.model, model, self.tokenizer)

    def _step(self) -> tuple[StepResult, list[MicroBatch]]:
        step = self.counters.step
        self.provider.begin(step)
        batches = self._batches(self.examples.of(self.schedule.visits(step)))
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
            raise self._not_finite(error, batches) from None
        self.counters.step += 1
        self.counters.tokens += sum(batch.num_tokens for batch in batches)
        self.counters.supervised_tokens += len(result.targets)
        return result, batches

    def _is_logged(self, step: int) -> bool:
        return step % self.recipe.train.log_every == 0 or step == self.schedule.num_steps

    def _batches(self, examples: Sequence[Example]) -> list[MicroBatch]:
        settings = self.recipe.train
        pad = self.tokenizer.pad_token_id
        batches = micro_batches(
            examples,
            max_tokens=settings.micro_batch_tokens,
            max_examples=settings.micro_batch_size,
            packing=settings.packing,
            pad_id=self.end_token_id if pad is None else pad,
        )
        return [batch.to(self.device) for batch in batches]

    def _log_step(self, result: StepResult, meter: Meter) -> dict[str, Any]:
        step = self.counters.step
        speed, padding = meter.read()
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
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }
        mfu = model_flops_utilisation(self.model, speed, self.device)
        if mfu is not None:
            row["mfu"] = mfu
        self.folder.log("train", step, **row)
        return row

    def _validate(self) -> None:
        if len(self.held_out) == 0:
            return
        batches = self._batches(self.held_out.of((0, index) for index in range(len(self.held_out))))
        row = validate(self.model, self.objective, batches, self.end_token_id, self.how.supply)
        self.folder.log("validation", self.counters.step, **row)
        self.say(f"step {self.counters.step}: held-out nll {row['nll']:.4f} over {row['num_tokens']:,} tokens")

    def _save_checkpoint(self) -> None:
        step = self.counters.step
        path = checkpoint.save_checkpoint(
            self.folder.checkpoints,
            step,
            model=self.model.model,
            tokenizer=self.tokenizer,
            optimizer=self.optimizer,
            state={"counters": asdict(self.counters)},
            files=self.provider.files(),
            adapter=self.model.adapter,
        )
        self.folder.log("checkpoint", step, path=str(path.relative_to(self.folder.path)))
        checkpoint.prune(self.folder.checkpoints, self.recipe.train.keep_checkpoints)

    def _resume(self) -> bool:
        self.provider.check_same(self.folder.path / "manifest.json")
        newest = checkpoint.newest_intact(self.folder.checkpoints, self.say)
        if newest is None:
            self.say(f"{self.folder.path} holds no checkpoint to resume from; starting from the first step.")
            return False
        if self.model.adapter is not None:
            check_base(self.folder.path / "manifest.json", self.base_fingerprint)
        state = checkpoint.load_checkpoint(
            newest, model=self.model.model, optimizer=self.optimizer, adapter=self.model.adapter
        )
        self.counters = Counters(**state["counters"])
        self.provider.restore(newest)
        self.say(f"resumed from {newest} at step {self.counters.step} of {self.schedule.num_steps}")
        return True

    def _not_finite(self, error: NonFiniteError, batches: list[MicroBatch]) -> NonFiniteError:
        step = self.counters.step
        path = self.folder.path / "failed-batch.json"
        ids = [example for batch in batches for example in batch.example_ids]
        lr = learning_rate(step, self.schedule.num_steps, self.recipe.optimizer)
        write_json(path, {"step": step + 1, "error": str(error), "lr": lr, "example_ids": ids})
        return NonFiniteError(
            f"step {step + 1}: {error}. The weights before this step are finite and nothing was saved after it; the "
            f"examples are listed in {path}. Lower optimizer.lr (now {lr:.3g}), lengthen optimizer.warmup_ratio, or "
            "look at those examples."
        )

    def _manifest(self) -> dict[str, Any]:
        reference = self.provider.reference
        return {
            "name": self.recipe.name,
            "kind": "train",
            **describe_environment(str(self.device)),
            "seed": self.recipe.seed,
            "objective": objective_row(self.objective),
            "model": {
                "path": self.recipe.model.path,
                "num_parameters": self.num_parameters,
                "num_trained_parameters": self.num_trained_parameters,
                "fingerprint": self.base_fingerprint,
            },
            "data": self.data.manifest,
            "tokenizer_fingerprint": self.data.manifest["tokenizer_fingerprint"],
            "prompt_format": self.format.record(),
            "reference": None if reference is None else reference.fingerprint,
            "scorer": self.how.route,
            "precision": str(self.model.precision).removeprefix("torch."),
        }

    def _headline(self) -> str:
        num_steps, lora = self.schedule.num_steps, self.recipe.model.lora
        trained = f" and {self.num_trained_parameters / 1e6:.3g} M of a LoRA adapter, which are trained" if lora else ""
        return (
            f"{self.recipe.name}: {self.objective.name}, {self.num_parameters / 1e6:.2f} M parameters{trained}, "
            f"{len(self.examples):,} examples, {num_steps:,} steps of {self.recipe.train.batch_size} "
            f"({self.schedule.epoch(num_steps):.2f} epochs), {self.device}, "
            f"{str(self.model.precision).removeprefix('torch.')}, {torch.get_num_threads()} threads, "
            f"{self.how.route} scorer"
        )

    @property
    def num_parameters(self) -> int:
        """Of the model, tied ones counted once, an adapter not counted."""
        return sum(parameter.numel() for _, parameter in self.model.base_parameters())

    @property
    def num_trained_parameters(self) -> int:
        """All of them, or those of the adapter."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
