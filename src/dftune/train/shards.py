"""Parameters over ranks: sharded by FSDP2 or held whole by each, their gradients summed, gathered and put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from dftune.train.config import DistributedConfig
from dftune.train.model import ScoredModel
from dftune.train.recompute import blocks
from dftune.train.world import World

_BUCKET_BYTES = 64 * 2**20


def make_mesh(world: World, config: DistributedConfig, device: torch.device) -> DeviceMesh:
    """The ranks as a line of shards, or as rows of shards of which each holds a whole model."""
    if config.replicas == 1:
        return init_device_mesh(device.type, (world.size,), mesh_dim_names=("shard",))
    shape = (config.replicas, world.size // config.replicas)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def shard(scored: ScoredModel, mesh: DeviceMesh, config: DistributedConfig, *, trained: bool = True) -> None:
    """Divide the parameters among the ranks: FSDP2 on every transformer block, and on the wrapper as the root.

    The wrapper's own parameters are the embedding, the last norm and the head. They stay whole from its forward to
    its backward, so that the scorer sees the whole weight on every route, and its gradient goes back to the shards.
    Gradients are summed over the ranks, not averaged. In bfloat16 the blocks compute on bfloat16 copies of the shards,
    and gradients are reduced in float32.

    Args:
        scored: on any device; changed in place.
        mesh: one dimension of shards, or replicas times shards.
        config: when to give gathered blocks back, and where shards live.
        trained: False for a frozen model whose head is used after its forward: it then stays whole.

    Raises:
        ValueError: the model's blocks are not known.
    """
    half = scored.precision != torch.float32
    settings: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(scored.precision, torch.float32) if half else MixedPrecisionPolicy(),
        "offload_policy": CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
        if config.cpu_offload
        else OffloadPolicy(),
    }
    for block in blocks(scored.model, "distributed.strategy=ddp"):
        fully_shard(block, reshard_after_forward=config.reshard_after_forward, **settings)
    fully_shard(scored, reshard_after_forward=False, **settings)
    for module in _sharded_modules(scored):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        if hasattr(module, "set_reduce_scatter_unused_params"):  # from torch 2.13 on; experts that no token reached
            module.set_reduce_scatter_unused_params(True)
    scored.keep_whole = not trained
    scored.register_forward_hook(_give_back)


def check_held(scored: ScoredModel, strategy: str, world: World) -> None:
    """Compare how the weights lie after start-up with the strategy that was to be: nothing falls back in silence.

    Args:
        scored: as it will be trained.
        strategy: ``none``, ``ddp`` or ``fsdp``.
        world: the ranks.

    Raises:
        ValueError: they lie otherwise.
    """
    weights = list(scored.parameters())
    over = [value.device_mesh.size() if isinstance(value, DTensor) else 0 for value in weights]
    expected = world.size if strategy == "fsdp" else 0
    wrong = sum(size != expected for size in over)
    if wrong or (strategy == "none" and world.size > 1):
        wanted = f"divided among {expected} processes" if expected else "whole in every process"
        raise ValueError(
            f"distributed.strategy came to {strategy} over {world.size} processes, with all weights {wanted}; {wrong} "
            f"of {len(weights)} are not, so this is not the run that was asked for. Please report the architecture."
        )


def _give_back(scored: ScoredModel, inputs: Any, output: Any) -> None:
    """After a forward that no backward follows, nothing else would shard the root again."""
    if not torch.is_grad_enabled() and not scored.keep_whole:
        for module in _sharded_modules(scored):
            module.reshard()


def _sharded_modules(scored: nn.Module) -> list[FSDPModule]:
    return [module for module in scored.modules() if isinstance(module, FSDPModule)]


# --- Gradients -------------------------------------------------------------------------------------


def backward_turns(model: nn.Module, num: int, *, each: bool) -> Iterator[None]:
    """To be advanced before every backward pass of a step: sharded gradients are exchanged in the last, or in each."""
    for turn in range(num):
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(each or turn == num - 1)
        yield


def sum_gradients(model: nn.Module, world: World) -> None:
    """Add up the gradients of parameters that every rank holds whole, in buckets, once a step.

    A parameter that had a gradient on no rank has none afterwards.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    present = world.sum(*(int(parameter.grad is not None) for parameter in trained))
    gradients = []
    for parameter, count in zip(trained, present, strict=True):
        if count:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    pending = []
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        pending.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in pending:
        work.wait()
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Iterable[Tensor]) -> list[list[Tensor]]:
    found: list[list[Tensor]] = []
    room = 0
    for gradient in gradients:
        room -= gradient.nbytes
        if not found or room < 0 or found[-1][0].dtype != gradient.dtype:
            found.append([])
            room = _BUCKET_BYTES - gradient.nbytes
        found[-1].append(gradient)
    return found


def start_from_main(model: nn.Module, held: Mapping[str, Tensor], device: torch.device) -> None:
    """Every rank starts from the weights and buffers of rank 0; one at a time is whole on the device.

    Args:
        model: sharded or not.
        held: on rank 0, the weights from before it was sharded, by name.
        device: of this rank.
    """
    for name, value in model.named_parameters():
        full = held[name].to(device) if held else torch.empty(value.shape, dtype=value.dtype, device=device)
        dist.broadcast(full, src=0)
        put(full, value)
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


# --- Whole tensors and shards ----------------------------------------------------------------------


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or the whole of which it is a shard; then every rank must call this."""
    if not isinstance(tensor, DTensor):
        return tensor
    shards: Any = tensor.detach().to(tensor.device_mesh.device_type)
    full: Tensor = shards.full_tensor()
    return full


def whole_on_main(tensors: Iterable[tuple[str, Tensor]], world: World, *, copy: bool = False) -> dict[str, Tensor]:
    """Tensors by name, whole and on the CPU, on rank 0; nothing on the others. One at a time is on the device.

    Args:
        tensors: and their names; every rank has the same ones in the same order.
        world: the ranks.
        copy: also what is whole on the CPU already.
    """
    found = {}
    for name, tensor in tensors:
        full = whole(tensor.detach())
        if world.main:
            found[name] = full.to("cpu", copy=copy, memory_format=torch.contiguous_format)
    return found


def dealt_out(tensors: Iterable[tuple[str, Tensor]], world: World, *, copy: bool = False) -> dict[str, Tensor]:
    """As :func:`whole_on_main`, but each tensor ends on one rank, so that all of them have about as many bytes."""
    loads, found = [0] * world.size, {}
    for name, tensor in tensors:
        owner = loads.index(min(loads))
        loads[owner] += tensor.shape.numel() * tensor.element_size()
        full = whole(tensor.detach())
        if owner == world.rank:
            found[name] = full.to("cpu", copy=copy, memory_format=torch.contiguous_format)
    return found


class StoredTensors:
    """Whole tensors by name in safetensors files, of which a rank reads no more than its shards.

    Args:
        paths: of the files.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        files: list[Any] = [safe_open(path, framework="pt") for path in sorted(paths)]
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def part(self, name: str, like: Tensor) -> Tensor:
        """A tensor as ``like`` is held: this rank's shard where ``like`` is sharded; in CPU memory."""
        if not isinstance(like, DTensor):
            found: Tensor = self._files[name].get_tensor(name)
            return found
        rows = _slices(like)
        if any(each.start == each.stop for each in rows):
            return like.to_local().new_empty([each.stop - each.start for each in rows], device="cpu")
        own: Tensor = self._files[name].get_slice(name)[rows]
        return own

    def part_like(self, name: str, like: Tensor) -> Tensor:
        """The same as a tensor of the kind of ``like``, on its device."""
        own = self.part(name, like)
        if not isinstance(like, DTensor):
            return own.to(like.device)
        return DTensor.from_local(
            own.to(like.to_local().device),
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )

    @torch.no_grad()
    def put(self, name: str, into: Tensor) -> None:
        """Write a tensor into a parameter or buffer, or this rank's shard of it."""
        (into.to_local() if isinstance(into, DTensor) else into).copy_(self.part(name, into))


@torch.no_grad()
def put(full: Tensor, into: Tensor) -> None:
    """Write a whole tensor into a parameter or buffer, or this rank's shard of it."""
    if isinstance(into, DTensor):
        into.to_local().copy_(_own(full, into))
    else:
        into.copy_(full)


def _own(full: Tensor, like: DTensor) -> Tensor:
    return full[_slices(like)]


def _slices(like: DTensor) -> tuple[slice, ...]:
    """Where this rank's shard lies in the whole."""
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    return tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))
