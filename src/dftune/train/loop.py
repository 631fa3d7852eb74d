"""A training run: from a recipe to a folder that explains itself."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dftune.data.batches import Example, MicroBatch, micro_batches, step_indices
from dftune.data.dataset import PreparedDataset, PreparedSplit
from dftune.data.hub import from_pretrained
from dftune.data.prompts import PromptFormat, get_format
from dftune.environment import describe_environment, model_fingerprint, set_threads
from dftune.files import write_json
from dftune.objectives import get_objective
from dftune.progress import Progress
from dftune.recipe import Recipe
from dftune.run import RunFolder
from dftune.train import checkpoint
from dftune.train.metrics import model_flops_utilisation, peak_memory_bytes, token_metrics, validate
from dftune.train.model import ScoredModel, check_scoring, load_model
from dftune.train.optim import learning_rate, make_optimizer
from dftune.train.step import NonFiniteError, StepResult, train_step

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
    _one_process()
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


def _one_process() -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != 1:
        raise ValueError(
            f"this version of dftune trains in one process, and WORLD_SIZE is {world}. "
            "Run `dftune train` without torchrun."
        )


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
        self.device = _device(recipe.train.device)
        set_threads(recipe.train.threads)
        from transformers import AutoTokenizer  # noqa: PLC0415

        self.objective = get_objective(recipe.objective.name, **recipe.objective.options)
        self.tokenizer = from_pretrained(AutoTokenizer, str(data.tokenizer_folder), None, "data.prepared")
        self.format: PromptFormat = get_format(recipe.data.prompt_format, self.tokenizer)
        self.end_token_id = self.format.end_token_id(self.tokenizer)
        self.num_total, self.num_steps = _length(recipe, len(data.train))
        model = load_model(recipe.model, self.tokenizer, seed=recipe.seed)
        self.base_fingerprint = _fingerprint_of_base(recipe)
        self.model = ScoredModel(model.to(self.device), _precision(recipe.train.precision, self.device))
        check_scoring(self.model, vocab_size=len(self.tokenizer))
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self._prepare_export()

    def _prepare_export(self) -> None:
        """What is saved with the model: the format it was trained with, and the token it ends with."""
        if self.format.name != "chat":
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
        self.folder.log("start", self.counters.step, num_steps=self.num_steps, resumed=resumed)
        self.model.train()
        if not resumed:
            self._validate()
        settings = self.recipe.train
        with Progress(f"train {self.recipe.name}", self.num_steps, done=self.counters.step) as progress:
            meter = _Meter(self.device)
            while self.counters.step < self.num_steps:
                result, batches = self._step()
                meter.add(batches)
                step = self.counters.step
                last = step == self.num_steps
                if step % settings.log_every == 0 or last:
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
        checkpoint.export_model(self.folder.model, self.model.model, self.tokenizer)
        self.folder.log("end", self.counters.step, status="finished", message=f"model in {self.folder.model}")
        checkpoint.prune(self.folder.checkpoints, settings.keep_checkpoints)

    def _step(self) -> tuple[StepResult, list[MicroBatch]]:
        step = self.counters.step
        settings = self.recipe.train
        indices = step_indices(
            step,
            num_examples=len(self.data.train),
            batch_size=settings.batch_size,
            seed=self.recipe.seed,
            num_total=self.num_total,
        )
        batches = self._batches(_examples(self.data.train, indices))
        try:
            result = train_step(
                self.model,
                self.optimizer,
                self.objective,
                batches,
                lr=learning_rate(step, self.num_steps, self.recipe.optimizer),
                max_grad_norm=self.recipe.optimizer.max_grad_norm,
            )
        except NonFiniteError as error:
            raise self._not_finite(error, batches) from None
        self.counters.step += 1
        self.counters.tokens += sum(batch.num_tokens for batch in batches)
        self.counters.supervised_tokens += len(result.targets)
        return result, batches

    def _batches(self, examples: list[Example]) -> list[MicroBatch]:
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

    def _log_step(self, result: StepResult, meter: _Meter) -> dict[str, Any]:
        step, settings = self.counters.step, self.recipe.train
        speed, padding = meter.read()
        row: dict[str, Any] = {
            "loss": result.loss.item(),
            **token_metrics(result, self.end_token_id),
            "grad_norm": result.grad_norm.item(),
            "lr": learning_rate(step - 1, self.num_steps, self.recipe.optimizer),
            "epoch": min(step * settings.batch_size, self.num_total) / len(self.data.train),
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
        num_held_out = len(self.data.validation)
        if num_held_out == 0:
            return
        batches = self._batches(_examples(self.data.validation, range(num_held_out)))
        row = validate(self.model, self.objective, batches, self.end_token_id)
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
        )
        self.folder.log("checkpoint", step, path=str(path.relative_to(self.folder.path)))
        checkpoint.prune(self.folder.checkpoints, self.recipe.train.keep_checkpoints)

    def _resume(self) -> bool:
        newest = checkpoint.newest_intact(self.folder.checkpoints, self.say)
        if newest is None:
            self.say(f"{self.folder.path} holds no checkpoint to resume from; starting from the first step.")
            return False
        state = checkpoint.load_checkpoint(newest, model=self.model.model, optimizer=self.optimizer)
        self.counters = Counters(**state["counters"])
        self.say(f"resumed from {newest} at step {self.counters.step} of {self.num_steps}")
        return True

    def _not_finite(self, error: NonFiniteError, batches: list[MicroBatch]) -> NonFiniteError:
        step = self.counters.step
        path = self.folder.path / "failed-batch.json"
        ids = [example for batch in batches for example in batch.example_ids]
        lr = learning_rate(step, self.num_steps, self.recipe.optimizer)
        write_json(path, {"step": step + 1, "error": str(error), "lr": lr, "example_ids": ids})
        return NonFiniteError(
            f"step {step + 1}: {error}. The weights before this step are finite and nothing was saved after it; the "
            f"examples are listed in {path}. Lower optimizer.lr (now {lr:.3g}), lengthen optimizer.warmup_ratio, or "
            "look at those examples."
        )

    def _manifest(self) -> dict[str, Any]:
        manifest = self.data.manifest
        return {
            "name": self.recipe.name,
            "kind": "train",
            **describe_environment(str(self.device)),
            "seed": self.recipe.seed,
            "objective": {
                "name": self.objective.name,
                "options": dict(self.objective.options),
                "unit": self.objective.unit,
            },
            "model": {
                "path": self.recipe.model.path,
                "num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
                "fingerprint": self.base_fingerprint,
            },
            "data": manifest,
            "tokenizer_fingerprint": manifest["tokenizer_fingerprint"],
            "prompt_format": {"name": self.format.name, "fingerprint": self.format.fingerprint},
            "scorer": "plain",
            "precision": str(self.model.precision).removeprefix("torch."),
        }

    def _headline(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        per_epoch = len(self.data.train)
        return (
            f"{self.recipe.name}: {self.objective.name}, {parameters / 1e6:.2f} M parameters, {per_epoch:,} examples, "
            f"{self.num_steps:,} steps of {self.recipe.train.batch_size} ({self.num_total / per_epoch:.2f} epochs), "
            f"{self.device}, {str(self.model.precision).removeprefix('torch.')}, {torch.get_num_threads()} threads, "
            "plain scorer"
        )


class _Meter:
    """Tokens a second and the share of padding since the last reading."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Forget what was counted, after a pause that is not training."""
        self.tokens, self.padding, self.since = 0, 0, time.perf_counter()

    def add(self, batches: list[MicroBatch]) -> None:
        """Count a step."""
        self.tokens += sum(batch.num_tokens for batch in batches)
        self.padding += sum(batch.num_padding for batch in batches)

    def read(self) -> tuple[float, float]:
        """Tokens a second, padding share; counting starts again."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self.since
        found = self.tokens / max(seconds, 1e-9), self.padding / max(1, self.tokens + self.padding)
        self.restart()
        return found


def _examples(split: PreparedSplit, indices: Iterable[int]) -> list[Example]:
    bounds = ((index, slice(split.offsets[index], split.offsets[index + 1])) for index in indices)
    return [Example(split.ids[index], split.tokens[span], split.mask[span]) for index, span in bounds]


def _length(recipe: Recipe, num_examples: int) -> tuple[int, int]:
    """Examples and steps of the whole run."""
    settings = recipe.train
    if settings.steps is not None:
        return settings.steps * settings.batch_size, settings.steps
    assert settings.epochs is not None
    num_total = max(1, round(settings.epochs * num_examples))
    return num_total, math.ceil(num_total / settings.batch_size)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device is cuda, and torch sees no CUDA device. `dftune doctor` shows what it sees.")
    return torch.device(name)


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if name == "bf16" else torch.float32


def _fingerprint_of_base(recipe: Recipe) -> str | None:
    path = recipe.model.path
    return model_fingerprint(Path(path)) if path is not None and Path(path).is_dir() else None
