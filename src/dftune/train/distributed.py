"""From torchrun's environment to a world of ranks, and from a recipe to a model that is spread over it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from dftune.files import fingerprint
from dftune.recipe import Recipe
from dftune.train.config import DistributedConfig
from dftune.train.memory import is_large
from dftune.train.model import ScoredModel
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
    if size % config.replicas:
        raise ValueError(
            f"distributed.replicas is {config.replicas}, and {size} processes cannot be divided into so many equal "
            "parts."
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
        yield world
    except LostRankError:
        give_way(10)  # the rank that was lost knows better why
        raise
    if dist.is_initialized():  # after an error the group may be broken, and closing it would wait
        dist.destroy_process_group()


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
