"""What a run is made of, set up and checked in order: data, model on its devices, optimizer, the inputs of its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dftune.data.batches import Example, MicroBatch, micro_batches
from dftune.data.dataset import PreparedDataset
from dftune.data.hub import from_pretrained
from dftune.data.prompts import PromptFormat, recorded_format
from dftune.environment import describe_environment, set_threads
from dftune.objectives import get_objective
from dftune.recipe import Recipe
from dftune.train.distributed import Strategy, share_sequences, spread, strategy_of
from dftune.train.examples import Schedule, Visited
from dftune.train.kernels import check_attention, use_liger
from dftune.train.model import ScoredModel, check_scoring, frozen_copy
from dftune.train.optim import make_optimizer
from dftune.train.provide import Provider
from dftune.train.reference import StoredLogps, reference_logps
from dftune.train.setup import (
    base_fingerprint,
    device_of,
    objective_row,
    prepare_export,
    reference_key,
    route_of,
    scored_model,
)
from dftune.train.step import Pass
from dftune.train.world import ALONE, World


class Assembled:
    """All that training needs and that lasts from its first step to its last, as this process holds it.

    Attributes:
        recipe: the whole configuration.
        data: the prepared dataset.
        say: receives lines for a person.
        world: the ranks.
        device: of this rank.
        objective: the loss.
        examples: to be trained on.
        held_out: to be validated on.
        schedule: which examples each step visits.
        tokenizer: of the prepared data.
        format: of the prompts.
        end_token_id: the token that ends a completion.
        base_fingerprint: of the model that is trained, where it is a folder.
        model: wrapped, on its device or devices.
        num_parameters: of the model, those of an adapter left out.
        strategy: how the model is spread over the ranks.
        optimizer: of the trained weights.
        provider: gives the objective what it needs beside the model.
        how: what is asked of every step.
        undo_kernels: puts back what optional kernels have replaced in modules that other models share.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: PreparedDataset,
        say: Callable[[str], None],
        *,
        world: World = ALONE,
    ) -> None:
        self.recipe, self.data, self.say, self.world = recipe, data, say, world
        self.device = device_of(recipe.train.device, world.local_rank)
        self.undo_kernels: Callable[[], None] = lambda: None
        set_threads(recipe.train.threads, num_processes=world.local_size)
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
        self.model = scored_model(recipe, self.tokenizer, self.device, world)
        self.num_parameters = sum(parameter.numel() for _, parameter in self.model.base_parameters())
        frozen = frozen_copy(self.model) if "ref_kl" in self.objective.needs else None
        self.strategy = self._spread(frozen)
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.provider = Provider(
            self.objective,
            self.model,
            self._reference,
            examples=self.examples,
            schedule=self.schedule,
            make_batches=self.batches,
            inner_loop=recipe.train.inner_loop,
            frozen=frozen,
            world=world,
        )
        self.how = Pass(
            self.provider.supply,
            route=route_of(self.model, self.objective, self.examples.all, recipe.train.micro_batch_tokens),
            normalization=recipe.train.normalization,
            world=world,
            sync_each=recipe.distributed.sync_each_micro_batch,
        )
        prepare_export(self.model.model, self.tokenizer, self.format)

    def _spread(self, frozen: ScoredModel | None) -> Strategy:
        """Check the model and put it on its device, or devices."""
        strategy = strategy_of(self.recipe.distributed, self.world, self.model, self.device)
        vocab_size = len(self.tokenizer)
        if strategy == "fsdp":  # once it is sharded, its own forward cannot be called to compare with
            self.world.from_main(lambda: check_scoring(self.model, vocab_size=vocab_size))
        own = [] if frozen is None or frozen.adapter is not None else [frozen]  # an adapter's base is the model itself
        spread([self.model, *own], strategy, self.recipe.distributed, self.world, self.device)
        if strategy == "fsdp":
            check_attention(self.model, self.device, vocab_size=vocab_size)
        if self.recipe.model.kernels == "liger":
            self.undo_kernels = use_liger([self.model, *own], self.device, vocab_size=vocab_size)
        if strategy != "fsdp":
            self.world.from_main(lambda: check_scoring(self.model, vocab_size=vocab_size))
        share_sequences([self.model, *own], self.world, vocab_size=vocab_size, device=self.device)
        return strategy

    def batches(self, examples: Sequence[Example]) -> list[MicroBatch]:
        """This process's share of the forward passes over some examples, on its device."""
        settings = self.recipe.train
        pad = self.tokenizer.pad_token_id
        batches = micro_batches(
            examples,
            max_tokens=settings.micro_batch_tokens,
            parts=self.recipe.distributed.sequence_parallel,
            max_examples=settings.micro_batch_size,
            packing=settings.packing,
            pad_id=self.end_token_id if pad is None else pad,
            rank=self.world.data.rank,
            num_ranks=self.world.data.size,
        )
        return [batch.to(self.device) for batch in batches]

    def _reference(self) -> StoredLogps:
        examples = self.examples.all() + self.held_out.all()
        key = reference_key(self.recipe, self.data, self.model, self.format)
        folder = self.data.folder / "reference"
        return reference_logps(self.model, examples, self.batches, folder, key, say=self.say, world=self.world)

    def manifest(self) -> dict[str, Any]:
        """What manifest.json says of the run."""
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
            "scorer_settings": self.recipe.scorer.model_dump(),
            "precision": str(self.model.precision).removeprefix("torch."),
            "distributed": {
                "world_size": self.world.size,
                "strategy": self.strategy,
                "replicas": self.recipe.distributed.replicas if self.strategy == "fsdp" else self.world.size,
                "sequence_parallel": self.recipe.distributed.sequence_parallel,
            },
        }

    def headline(self) -> str:
        """One line on what is trained, how and where."""
        num_steps, lora = self.schedule.num_steps, self.recipe.model.lora
        trained = f" and {self.num_trained_parameters / 1e6:.3g} M of a LoRA adapter, which are trained" if lora else ""
        parts = "" if self.world.sequence is None else f", {self.world.sequence.size} to a sequence"
        ranks = "" if self.strategy == "none" else f", {self.strategy} over {self.world.size} processes{parts}"
        return (
            f"{self.recipe.name}: {self.objective.name}, {self.num_parameters / 1e6:.2f} M parameters{trained}, "
            f"{len(self.examples):,} examples, {num_steps:,} steps of {self.recipe.train.batch_size} "
            f"({self.schedule.epoch(num_steps):.2f} epochs), {self.device}, "
            f"{str(self.model.precision).removeprefix('torch.')}, {torch.get_num_threads()} threads, "
            f"{self.how.route} scorer{ranks}"
        )

    @property
    def num_trained_parameters(self) -> int:
        """All of them, or those of the adapter."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
