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
from dftune.ops.route import default_budget
from dftune.ops.token_logps import choose_route
from dftune.recipe import Recipe
from dftune.train.lora import Adapter
from dftune.train.model import ScoredModel, load_model


def one_process() -> None:
    """Refuse a world of several processes.

    Raises:
        ValueError: there are several.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != 1:
        raise ValueError(
            f"this version of dftune trains in one process, and WORLD_SIZE is {world}. "
            "Run `dftune train` without torchrun."
        )


def device_of(name: str) -> torch.device:
    """The device of ``train.device``.

    Raises:
        ValueError: CUDA was asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device is cuda, and torch sees no CUDA device. `dftune doctor` shows what it sees.")
    return torch.device(name)


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype of ``train.precision`` on a device."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if name == "bf16" else torch.float32


def scored_model(recipe: Recipe, tokenizer: Any, device: torch.device) -> ScoredModel:
    """The recipe's model on its device, with an adapter where only that is trained.

    Weights that are trained are float32. A base that is not trained takes the precision of the compute.
    """
    precision, lora = precision_of(recipe.train.precision, device), recipe.model.lora
    dtype = torch.float32 if lora is None else precision
    model = load_model(recipe.model, tokenizer, seed=recipe.seed, dtype=dtype)
    adapter = None if lora is None else Adapter(model, lora, seed=recipe.seed)
    return ScoredModel(model.to(device), precision, adapter)


def route_of(
    model: ScoredModel, objective: Objective, examples: Callable[[], Iterable[Example]], num_tokens: int
) -> str:
    """The scorer's route of a whole run, as its largest micro-batch needs it.

    Args:
        model: its head decides.
        objective: what it mixes and needs decides.
        examples: gives them all; the longest of them, or of their groups, must fit into a part.
        num_tokens: most tokens in a micro-batch.
    """
    head = model.model.get_output_embeddings().weight
    scope = objective.separable
    longest: int | None = None
    if scope == "token":
        longest = 1
    elif scope != "batch":
        key = (lambda example: example.group or example.id) if scope == "group" else (lambda example: example.id)
        longest = max(sum(int(one.completion_mask[1:].sum()) for one in part) for _, part in groupby(examples(), key))
    if "ref_kl" in objective.needs:
        longest = None
    return choose_route(
        num_tokens=num_tokens,
        vocab_size=head.shape[0],
        itemsize=model.precision.itemsize,
        differentiable=True,
        head_trained=head.requires_grad,
        entropy_gradient="entropy" in objective.needs,
        budget_bytes=default_budget(head.device),
        longest_group=longest,
    )


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
