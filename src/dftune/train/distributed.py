"""From torchrun's environment to a world of ranks, and from a recipe to a model that is spread over it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist

from dftune.files import fingerprint
from dftune.ops.ulysses import SequenceGroup
from dftune.recipe import Recipe
from dftune.train.config import DistributedConfig
from dftune.train.memory import is_large
from dftune.train.model import ScoredModel, check_alike, probe, probe_documents
from dftune.train.sequence import check_heads
from dftune.train.setup import device_of
from dftune.train.shards import check_held, make_mesh, shard, start_from_main
from dftune.train.world import ALONE, PATIENCE, World, give_way

Strategy = Literal["none", "ddp", "fsdp"]
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOST = ("closed by peer", "reset by peer", "gloo", "Timed out", "timed out", "Broken pipe")


class LostRankError(OSError):
    """Another process of the run ended, or did not answer in time."""


def check_world(config: DistributedConfig) -> int:
    """How many processes were launched.

    Raises:
        ValueError: not as many as the recipe asks for, or a single one where it asks for a strategy; or the
            environment is not one that torchrun makes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    missing = [name for name in _VARIABLES if name not in os.environ]
    if size > 1 and missing:
        raise ValueError(
            f"WORLD_SIZE is {size}, and {', '.join(missing)} not set: these processes were not started by torchrun. "
            "Use `dftune train --nproc N RECIPE` on one machine, or `torchrun ... -m dftune train RECIPE`."
        )
    if config.world_size not in (None, size):
        raise ValueError(
            f"distributed.world_size asks for {config.world_size} processes; launched: {size}. "
            f"Start it with `dftune train --nproc {config.world_size} RECIPE`, or set distributed.world_size={size}."
        )
    if config.strategy != "auto" and missing:
        raise ValueError(
            f"distributed.strategy asks for {config.strategy}, and this is a process by itself. "
            "Start it with `dftune train --nproc N RECIPE`, or set distributed.strategy=auto."
        )
    for name, parts in (("replicas", config.replicas), ("sequence_parallel", config.sequence_parallel)):
        if size % parts:
            raise ValueError(
                f"distributed.{name} is {parts}, and the number of processes, {size}, is no multiple of it. Start one: "
                f"`dftune train --nproc {parts} RECIPE`, or set distributed.{name}=1."
            )
    return size


@contextmanager
def joined(recipe: Recipe) -> Iterator[World]:
    """The world that this process was launched into, for as long as the context lasts.

    Gradients travel over NCCL between CUDA devices, over gloo between CPUs; small things on the host over gloo.

    Raises:
        ValueError: as :func:`check_world`; or there is no device for this rank; or the group has another number of
            processes than the environment says, or they have not all the same recipe.
    """
    config = recipe.distributed
    size = check_world(config)
    if size == 1 and config.strategy == "auto":
        yield ALONE
        return
    rank, local_rank, local_size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    device = device_of(recipe.train.device, local_rank)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=config.timeout_s)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timeout, device_id=device if cuda else None
    )
    try:
        host, patient = (dist.new_group(backend="gloo", timeout=limit) for limit in (timeout, PATIENCE))
        world = World(rank, dist.get_world_size(), local_rank, local_size, host, patient)
        _check_agreement(world, size, recipe)
        yield divided(world, config.sequence_parallel, timeout)
    except LostRankError:
        give_way(10)  # the rank that was lost knows better why
        raise
    if dist.is_initialized():  # after an error the group may be broken, and closing it would wait
        dist.destroy_process_group()


def divided(world: World, size: int, timeout: timedelta | None = None) -> World:
    """The same ranks, of which each ``size`` adjacent ones share every sequence.

    Args:
        world: the ranks; all of them call this.
        size: a divisor of their number.
        timeout: how long they wait for each other.
    """
    if size == 1:
        return world
    share, part = divmod(world.rank, size)
    rows = [list(range(first, first + size)) for first in range(0, world.size, size)]
    columns = [list(range(first, world.size, size)) for first in range(size)]
    make_groups: Any = dist.new_subgroups_by_enumeration
    sequence, _ = make_groups(rows, timeout=timeout)
    device, _ = make_groups(columns, timeout=timeout)
    host, _ = make_groups(columns, timeout=timeout, backend="gloo")
    data = World(share, world.size // size, world.local_rank, world.local_size, host, device=device)
    return replace(world, sequence=SequenceGroup(part, size, sequence), of_data=data)


def _check_agreement(world: World, size: int, recipe: Recipe) -> None:
    (present,) = world.sum(1)
    if (world.size, present) != (size, size):
        raise ValueError(
            f"WORLD_SIZE is {size}, and the process group has {world.size} members, of which {present} answered."
        )
    recipes = world.gather(fingerprint(recipe.model_dump(mode="json")))
    if len(set(recipes)) > 1:
        differing = [rank for rank, found in enumerate(recipes) if found != recipes[0]]
        raise ValueError(f"ranks {differing} were started with another recipe than rank 0. Give all the same one.")


@contextmanager
def lost_ranks_named(world: World, timeout_s: float) -> Iterator[None]:
    """Within this context, what a broken connection to another rank raises says so.

    Raises:
        LostRankError: a collective failed.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if world.size == 1 or not (isinstance(error, dist.DistError) or any(word in said for word in _LOST)):
            raise
        raise LostRankError(
            f"rank {world.rank} of {world.size} lost another rank, or waited for it longer than distributed.timeout_s "
            f"= {timeout_s:g} s ({said.splitlines()[0]})"
        ) from error


def strategy_of(config: DistributedConfig, world: World, scored: ScoredModel, device: torch.device) -> Strategy:
    """How the model is spread over the ranks: what the recipe says, or what rank 0 decides when it has the model."""
    if config.strategy != "auto":
        decided: Strategy = config.strategy
    elif world.size == 1:
        decided = "none"
    else:
        decided = "fsdp" if device.type == "cuda" and _is_large(scored, device) else "ddp"
    return world.from_main(lambda: decided)


def _is_large(scored: ScoredModel, device: torch.device) -> bool:
    trained = sum(parameter.numel() for parameter in scored.parameters() if parameter.requires_grad)
    frozen = sum(parameter.nbytes for parameter in scored.parameters() if not parameter.requires_grad)
    return is_large(trained, frozen, torch.cuda.get_device_properties(device).total_memory)


def spread(
    models: Sequence[ScoredModel], strategy: Strategy, config: DistributedConfig, world: World, device: torch.device
) -> None:
    """Put the model to be trained, and frozen ones beside it, where the strategy wants them.

    Args:
        models: the trained one first; changed in place. All ranks start from the weights of rank 0.
        strategy: ``fsdp`` shards them; otherwise every rank holds them whole.
        config: says how to shard.
        world: the ranks.
        device: of this rank.

    Raises:
        ValueError: the weights do not lie as the strategy says.
    """
    mesh = make_mesh(world, config, device) if strategy == "fsdp" else None
    for index, model in enumerate(models):
        held = {name: value.detach() for name, value in model.named_parameters()} if world.main else {}
        if mesh is not None:
            shard(model, mesh, config, trained=index == 0)
        else:
            model.to(device)
        if world.size > 1:
            start_from_main(model, held, device)
        check_held(model, strategy, world)


@torch.no_grad()
def share_sequences(models: Sequence[ScoredModel], world: World, *, vocab_size: int, device: torch.device) -> None:
    """From here on each rank of a group computes its part of what they are given, where the world has such groups.

    Both ways of computing are compared first.

    Args:
        models: the trained one, and frozen ones beside it, spread over the ranks; all ranks call this.
        world: the ranks.
        vocab_size: random tokens are drawn below this.
        device: of this rank.

    Raises:
        ValueError: a model cannot be computed in parts.
    """
    if world.sequence is None:
        return
    batch = probe(probe_documents(vocab_size, device))
    for model in models:
        check_heads(model.model.config, world.sequence.size)
        was_training = model.training
        model.eval()
        expected = model(batch)
        model.sequence = world.sequence
        found = model(batch)
        model.train(was_training)
        difference = "log-probabilities computed in parts by several processes differ from those of one"
        check_alike(model, found, expected, difference, "Its layers mix positions")
