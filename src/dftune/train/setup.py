"""What a recipe's settings come to on this machine: process, device, precision, scorer's route."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from dftune.data.batches import Example
from dftune.data.dataset import PreparedDataset
from dftune.data.prompt_format import PromptFormat
from dftune.environment import model_fingerprint
from dftune.files import read_json, sha256_file
from dftune.objectives import Objective
from dftune.ops.route import default_budget, has_liger, has_triton
from dftune.ops.token_logps import choose_route
from dftune.recipe import Recipe
from dftune.train.kernels import check_kernels
from dftune.train.lora import Adapter
from dftune.train.model import ScoredModel, load_model
from dftune.train.optim import require_bitsandbytes
from dftune.train.recompute import compile_blocks
from dftune.train.world import ALONE, World


def check_joined(world: World, sequence_parallel: int = 1) -> None:
    """Refuse to train as if alone what was launched as several processes, or in other groups than asked for.

    Raises:
        ValueError: ``WORLD_SIZE`` is not the number of ranks, or so many do not share their sequences.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size != world.size:
        raise ValueError(
            f"WORLD_SIZE is {size}, and train() was given a world of {world.size}. Pass the world of "
            "dftune.train.distributed.joined(recipe), or use `dftune train --nproc N RECIPE`."
        )
    shared = 1 if world.sequence is None else world.sequence.size
    if shared != sequence_parallel:
        raise ValueError(
            f"distributed.sequence_parallel is {sequence_parallel}, and in the world given to train() each sequence is "
            f"shared by {shared}. Pass the world of dftune.train.distributed.joined(recipe), or use `dftune train "
            "--nproc N RECIPE`."
        )


def device_of(name: str, local_rank: int = 0) -> torch.device:
    """The device of ``train.device``; of several ranks on a machine each has its own.

    Raises:
        ValueError: CUDA was asked for and there is none, or none for this rank.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device is cuda, and torch sees no CUDA device. `dftune doctor` shows what it sees.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this machine (from 0) has no CUDA device: torch sees "
            f"{torch.cuda.device_count()}. Launch one process a device."
        )
    return torch.device("cuda", local_rank) if "LOCAL_RANK" in os.environ else torch.device("cuda")


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype of ``train.precision`` on a device."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if name == "bf16" else torch.float32


def check_scorer(recipe: Recipe, objective: Objective) -> None:
    """Refuse settings of the scorer that its objective, model or device cannot be trained with.

    What a head's bias or soft-cap rules out shows when the model is loaded, in ``check_scoring``.

    Raises:
        ValueError: says why, and what to do.
    """
    config, name = recipe.scorer, objective.name
    device = device_of(recipe.train.device)
    precision = precision_of(recipe.train.precision, device)
    if config.logits_dtype == "bfloat16" and precision != torch.bfloat16:
        raise ValueError(
            f"scorer.logits_dtype is bfloat16, and the compute is {str(precision).removeprefix('torch.')}: it would "
            "lose precision and gain nothing. Set train.precision=bf16, or leave scorer.logits_dtype out."
        )
    needs = objective.needs
    on_cpu = device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1"
    reasons = (
        ("one_pass", objective.separable == "batch", f"{name} is defined on the whole step and does not add up"),
        ("one_pass", "ref_kl" in needs, f"{name} compares whole rows with the reference's"),
        ("one_pass", recipe.distributed.sequence_parallel > 1, "several processes score the tokens of a sequence"),
        ("frozen_head", recipe.model.lora is None, "it gives the head no gradient, and all weights are trained"),
        ("frozen_head", "entropy" in needs, f"{name} needs the entropy, whose gradient it leaves out"),
        ("triton", not has_triton(), "the package triton is not installed"),
        ("triton", on_cpu, "its kernels run on CUDA"),
        ("triton", "top_k_entropy" in needs, f"{name} needs top_k_entropy, which the kernels do not gather"),
        ("liger", not has_liger(), "the package liger-kernel is not installed"),
        ("liger", "entropy" in needs, f"{name} needs the entropy, whose gradient it leaves out"),
    )
    found = [reason for route, holds, reason in reasons if holds and route == config.route]
    if found:
        raise ValueError(f"scorer.route is {config.route}: {'; '.join(found)}. Use scorer.route=auto.")


def check_options(recipe: Recipe) -> None:
    """Refuse options of packages or devices that are not there, and those that cannot be combined.

    Raises:
        ValueError: says why, and what to do.
    """
    device = device_of(recipe.train.device)
    check_kernels(recipe.model, device, precision_of(recipe.train.precision, device))
    cuda = device.type == "cuda"
    sharded = recipe.distributed.strategy == "fsdp"
    if recipe.optimizer.name == "adamw_8bit":
        what, instead = "optimizer.name=adamw_8bit", "optimizer.name=adamw"
        if not cuda:
            raise ValueError(f"{what} runs on CUDA, and this run is on the CPU. Set {instead}.")
        if recipe.train.checkpoint_every is not None:
            raise ValueError(
                f"{what}: its state cannot be saved, and train.checkpoint_every asks for checkpoints. Set {instead}, "
                "or leave train.checkpoint_every out; a killed run then starts anew."
            )
        if sharded:
            raise ValueError(f"{what} cannot be sharded, and distributed.strategy is fsdp. Set {instead}.")
        require_bitsandbytes(what, instead)
    lora = recipe.model.lora
    if lora is not None and lora.quantize is not None:
        what, instead = "model.lora.quantize=nf4", "model.lora.quantize=null"
        if not cuda:
            raise ValueError(f"{what} runs on CUDA, and this run is on the CPU. Set {instead}.")
        if recipe.distributed.strategy != "auto" or os.environ.get("WORLD_SIZE", "1") != "1":
            raise ValueError(f"{what} trains in a single process. Start one, or set {instead}.")
        require_bitsandbytes(what, instead)


def scored_model(recipe: Recipe, tokenizer: Any, device: torch.device, world: World = ALONE) -> ScoredModel:
    """The recipe's model, in CPU memory, with an adapter where only that is trained. Rank 0 alone reads its weights.

    Weights that are trained are float32. A base that is not trained takes the precision of the compute on ``device``.
    """
    precision, lora = precision_of(recipe.train.precision, device), recipe.model.lora
    dtype = torch.float32 if lora is None else precision
    model = load_model(recipe.model, tokenizer, seed=recipe.seed, dtype=dtype, empty=not world.main)
    adapter = None if lora is None else Adapter(model, lora, seed=recipe.seed)
    if recipe.model.compile:
        compile_blocks(model)
    return ScoredModel(model, precision, adapter, recipe.scorer)


def route_of(
    model: ScoredModel, objective: Objective, examples: Callable[[], Iterable[Example]], num_tokens: int
) -> str:
    """The scorer's route of a whole run: the recipe's, or the one that its largest micro-batch needs.

    Args:
        model: its head decides.
        objective: what it mixes and needs decides.
        examples: gives them all; the longest of them, or of their groups, must fit into a part.
        num_tokens: most tokens in a micro-batch.
    """
    if model.scorer.route != "auto":
        return model.scorer.route
    head = model.model.get_output_embeddings().weight
    budget = model.scorer.budget_bytes
    scope = objective.separable
    longest: int | None = None
    if scope == "token":
        longest = 1
    elif scope != "batch":
        key = (lambda example: example.group or example.id) if scope == "group" else (lambda example: example.id)
        longest = max(sum(int(one.completion_mask[1:].sum()) for one in part) for _, part in groupby(examples(), key))
    if "ref_kl" in objective.needs or model.sequence is not None:  # its sum is not taken where tokens are scored
        longest = None
    return choose_route(
        num_tokens=num_tokens,
        vocab_size=head.shape[0],
        itemsize=model.precision.itemsize,
        differentiable=True,
        head_trained=head.requires_grad,
        entropy_gradient="entropy" in objective.needs,
        budget_bytes=default_budget(head.device) if budget is None else budget,
        longest_group=longest,
    )


def prepare_export(model: Any, tokenizer: Any, prompt_format: PromptFormat) -> None:
    """Set what is saved with the model: the format it was trained with, and the token it ends with."""
    tokenizer.chat_template = prompt_format.chat_template(tokenizer)
    end_token_id = prompt_format.end_token_id(tokenizer)
    generation = model.generation_config
    known = generation.eos_token_id
    ends = [end_token_id, *(known if isinstance(known, list) else [known])]
    generation.eos_token_id = list(dict.fromkeys(end for end in ends if end is not None))
    if generation.pad_token_id is None:
        pad = tokenizer.pad_token_id
        generation.pad_token_id = end_token_id if pad is None else pad


def base_fingerprint(recipe: Recipe) -> str | None:
    """Of the model that is trained, where it is a folder."""
    path = recipe.model.path
    return model_fingerprint(Path(path)) if path is not None and Path(path).is_dir() else None


def check_base(manifest: Path, now: str | None) -> None:
    """Refuse to put a run's adapter on another base than it was trained on.

    Args:
        manifest: of the run.
        now: fingerprint of the model that is there now.

    Raises:
        ValueError: the manifest names another one.
    """
    before = read_json(manifest)["model"]["fingerprint"] if manifest.is_file() else now
    if before != now:
        raise ValueError(
            f"{manifest.parent} trains an adapter on the base {before}, and model.path now holds {now}. Put the model "
            "back that the run was started with, or give the new run another name."
        )


def reference_key(
    recipe: Recipe, data: PreparedDataset, model: ScoredModel, prompt_format: PromptFormat
) -> dict[str, Any]:
    """What decides reference log-probabilities, beside the weights and the examples themselves."""
    return {
        "precision": str(model.precision),
        "logits": model.scorer.logits_dtype,
        "weights": str(next(parameter for _, parameter in model.base_parameters()).dtype),
        "data": data.fingerprint,
        "tokenizer": data.manifest["tokenizer_fingerprint"],
        "prompt_format": prompt_format.fingerprint,
        "max_length": recipe.data.max_length,
    }


def objective_row(objective: Objective) -> dict[str, Any]:
    """The objective as a manifest records it; one of the user's own with the SHA-256 of its file."""
    row: dict[str, Any] = {"name": objective.name, "options": dict(objective.options), "unit": objective.unit}
    file, separator, _ = objective.name.rpartition(":")
    return row | {"file_sha256": sha256_file(Path(file).expanduser())} if separator else row
