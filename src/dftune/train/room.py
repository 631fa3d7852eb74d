"""Whether a run fits where it is started: said before data are prepared, with the options that would make it fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dftune.data.hub import from_pretrained
from dftune.environment import host_memory
from dftune.recipe import Recipe
from dftune.train.memory import Memory, Setting, Shape, estimate, setting_of, shape_of
from dftune.train.setup import device_of

_SHARE = 0.95
"""Of a device's bytes; the rest is lost to fragments, the context and the kernels."""


def shape_of_recipe(recipe: Recipe, *, offline: bool = False) -> Shape | None:
    """The shape of the recipe's model, built without weights; None where its configuration is not at hand.

    Args:
        recipe: names a checkpoint, or describes a new model.
        offline: read folders on the disk alone.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config  # noqa: PLC0415

    config, settings = recipe.model, None
    if config.scratch is not None:
        new = config.scratch
        settings = Qwen2Config(
            vocab_size=new.vocab_size,
            hidden_size=new.hidden_size,
            num_hidden_layers=new.num_layers,
            num_attention_heads=new.num_heads,
            num_key_value_heads=new.num_kv_heads,
            intermediate_size=new.intermediate_size,
            tie_word_embeddings=new.tie_word_embeddings,
        )
    elif config.path is not None and ((Path(config.path).expanduser() / "config.json").is_file() or not offline):
        settings = from_pretrained(AutoConfig, config.path, config.revision, "model.path")
    if settings is None:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    return shape_of(model, config.lora)


def room_of(device: torch.device, processes: int) -> tuple[int, int] | None:
    """Bytes that one process may take, now and at the very most; None where the system does not say.

    Args:
        device: a CUDA device is one process's own; CPU memory is shared.
        processes: on this machine.
    """
    if device.type == "cuda":
        unused, whole = torch.cuda.mem_get_info(device)
        return round(_SHARE * unused), whole
    total, free = host_memory()
    if total is None:
        return None
    return (total if free is None else free) // processes, total // processes


def memory_lines(recipe: Recipe, ranks: int, *, offline: bool = False, strict: bool = True) -> Iterator[str]:
    """What the run takes on each device, and what would help where there is less.

    Args:
        recipe: the recipe.
        ranks: processes that train.
        offline: ask no hub for the model's configuration; nothing is said where it is not on the disk.
        strict: refuse what cannot fit; a plan says it instead.

    Raises:
        ValueError: weights, gradients and moments alone are more than the device has.
    """
    shape = shape_of_recipe(recipe, offline=offline)
    if shape is None:
        return
    device = device_of(recipe.train.device)
    room = room_of(device, int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks))))
    setting = setting_of(recipe, ranks, device, shape, room[1] if room else None)
    found = estimate(shape, setting)
    yield _sentence(found, setting, device)
    if room is None:
        return
    free, most = room
    taken, lasting = _on(found, device)
    if taken <= free:
        return
    help_ = advice(shape, setting, free, device)
    if lasting > most:
        message = (
            f"the run cannot fit into this machine: weights, gradients and optimizer take {_gib(lasting)} in a process "
            f"on {device.type}, which has {_gib(most)} at most. {help_}"
        )
        if strict:
            raise ValueError(message)
        yield f"warning: {message}"
        return
    yield f"warning: {_gib(taken)} may not fit into the {_gib(free)} that are free on {device.type}. {help_}"


def _on(found: Memory, device: torch.device) -> tuple[int, int]:
    """All bytes, and the lasting ones, of one process on its device; on the CPU there is no other memory."""
    if device.type == "cuda":
        return found.total, found.lasting
    return found.total + found.offloaded + found.copied, found.lasting + found.offloaded


def advice(shape: Shape, setting: Setting, free: int, device: torch.device) -> str:
    """Recipe keys that would make a run fit, each with what it would then take; the nearest where none does alone.

    Args:
        shape: of the model.
        setting: that does not fit.
        free: bytes that there are.
        device: of the compute.
    """
    changes = list(_changes(shape, setting))
    takes = [(_on(estimate(changed, other), device)[0], key) for key, changed, other in changes]
    enough = [f"{key} ({_gib(size)})" for size, key in takes if size <= free]
    if enough:
        return f"One of these would do: {'; '.join(enough)}."
    nearest = [
        f"{key} ({_gib(size)})" for size, key in sorted(takes)[:3] if size < _on(estimate(shape, setting), device)[0]
    ]
    if not nearest:
        return "Nothing in the recipe would make it smaller: take a smaller model or a larger device."
    return f"No single option is enough; together these may be: {'; '.join(nearest)}."


def _changes(shape: Shape, setting: Setting) -> Iterator[tuple[str, Shape, Setting]]:
    tokens = setting.micro_batch_tokens
    for smaller in (tokens // 2, tokens // 4):
        if smaller >= 512:
            yield f"train.micro_batch_tokens={smaller}", shape, replace(setting, micro_batch_tokens=smaller)
    if setting.gradient_checkpointing == "none":
        for kind in ("selective", "full"):
            yield f"model.gradient_checkpointing={kind}", shape, replace(setting, gradient_checkpointing=kind)
    elif setting.gradient_checkpointing == "selective":
        yield "model.gradient_checkpointing=full", shape, replace(setting, gradient_checkpointing="full")
    if setting.background_checkpoints:
        yield "train.background_checkpoints=false", shape, replace(setting, background_checkpoints=False)
    if setting.ranks > 1 and setting.strategy != "fsdp":
        yield "distributed.strategy=fsdp", shape, replace(setting, strategy="fsdp")
    if setting.strategy == "fsdp":
        if not setting.sync_each_micro_batch and not setting.lora:
            name = "distributed.sync_each_micro_batch=true"
            yield name, shape, replace(setting, sync_each_micro_batch=True)
        if not setting.cpu_offload:
            yield "distributed.cpu_offload=true", shape, replace(setting, cpu_offload=True)
    if not setting.lora:
        adapted = replace(shape, adapter=16 * 2 * shape.linear_parameters // max(shape.hidden, 1))
        changed: dict[str, Any] = {"lora": True, "reference": False}
        yield "model.lora.rank=16", adapted, replace(setting, **changed)
        if setting.optimizer != "sgd":
            yield "optimizer.name=sgd", shape, replace(setting, optimizer="sgd")


def _sentence(found: Memory, setting: Setting, device: torch.device) -> str:
    ranks = "" if setting.ranks == 1 else f" in each of {setting.ranks} processes ({setting.strategy})"
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimizer": found.moments,
        "copies": found.gathered,
        f"activations of {setting.micro_batch_tokens:,} tokens": found.activations,
        "scorer": found.scorer,
        "in CPU memory": found.offloaded,
        "copied for checkpoints": found.copied,
    }
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)
    return f"memory: about {_gib(_on(found, device)[0])}{ranks}: {listed}"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
