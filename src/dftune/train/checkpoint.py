"""Checkpoints that are complete or absent, verified when loaded, and hold no pickle."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dftune.files import fingerprint, read_json, sha256_file, write_json
from dftune.train.folders import buffers, complete_or_absent, save_model, save_model_around
from dftune.train.lora import WEIGHTS_FILE, Adapter
from dftune.train.random_state import random_states, restore_random_states
from dftune.train.shards import StoredTensors, dealt_out, put, whole_on_main
from dftune.train.together import Together, manifest_entry
from dftune.train.world import ALONE, World

_NAME = re.compile(r"step-(\d+)")
_MODEL, _ADAPTER = "model", "adapter"
_OPTIMIZER, _STATE, _MANIFEST = "optimizer.safetensors", "state.json", "manifest.json"


class DamagedCheckpointError(ValueError):
    """A checkpoint whose files are not those that were written."""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint is made of.

    Attributes:
        model: a transformers model.
        tokenizer: saved beside it.
        optimizer: its moments are saved by parameter name.
        state: further JSON values; the random state is added.
        files: further files by name, each with what writes it to a path.
        adapter: saved in place of model and tokenizer, where nothing else is trained.
    """

    model: Any
    tokenizer: Any
    optimizer: torch.optim.Optimizer
    state: Mapping[str, Any]
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    adapter: Adapter | None = None


def save_checkpoint(folder: Path, step: int, contents: Contents, world: World = ALONE) -> Path:
    """Write ``folder/step-N``: under another name first, then renamed, so that it is complete or absent.

    All ranks call this. Where the model is sharded, each writes its share of the tensors; else rank 0 writes.

    Args:
        folder: the run's checkpoints.
        step: optimizer steps done.
        contents: of the checkpoint.
        world: the ranks.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    write = writer(folder, step, contents, world)
    if not world.main:
        write()
    return world.from_main(write)


def writer(
    folder: Path, step: int, contents: Contents, world: World = ALONE, *, copy: bool = False, group: Any = None
) -> Callable[[], Path]:
    """What writes a checkpoint of this moment when it is called, on all ranks. All ranks call this.

    What it returns is the checkpoint's path, which on rank 0 is complete.

    Args:
        folder: the run's checkpoints.
        step: optimizer steps done.
        contents: of the checkpoint; ``files`` must already be of this moment.
        world: the ranks.
        copy: of all tensors, so that training may go on before they are written; sharded ones are copied anyhow.
        group: over which the ranks agree while they write; of its own where training goes on meanwhile.
    """
    model, adapter = contents.model, contents.adapter
    together = Together(world, group) if _is_dealt_out(contents, world) else None
    gathered = whole_on_main if together is None else dealt_out
    named = model.named_parameters() if adapter is None else adapter.weights().items()
    kept = [(name, value) for name, value in named if copy or isinstance(value, DTensor)]
    weights = gathered(kept, world, copy=copy)
    if weights and adapter is None and world.main:
        weights |= {name: value.cpu() for name, value in buffers(model).items()}
    moments = gathered(_moments(model, contents.optimizer), world, copy=copy)
    state = {"step": step, **contents.state, "random": world.gather(_random_state())}
    path = folder / f"step-{step}"

    def write(aside: Path) -> None:
        listing: dict[str, Any] = {}
        if together is not None:
            listing = together.write(aside, {_MODEL: weights, "": moments})
            save_model_around(aside / _MODEL, model, contents.tokenizer)
        elif adapter is None:
            save_model(aside / _MODEL, model, contents.tokenizer, weights, as_in_memory=True)
        else:
            adapter.save(aside / _ADAPTER, weights)
        if together is None:
            save_file(moments, aside / _OPTIMIZER)
        write_json(aside / _STATE, state)
        for name, write_file in contents.files.items():
            write_file(aside / name)
        for file in sorted(file for file in aside.rglob("*") if file.is_file()):
            name = str(file.relative_to(aside))
            if name not in listing:  # every rank has read its own files
                listing[name] = manifest_entry(file)
        write_json(aside / _MANIFEST, {"format": 1, "step": step, "files": listing})

    trained = (value for value in model.parameters() if adapter is None or value.requires_grad)
    num_bytes = 3 * sum(value.shape.numel() * value.element_size() for value in trained)  # with both moments
    if not world.main:
        return lambda: path if together is None else together.help(path, {_MODEL: weights, "": moments})
    finish = partial(complete_or_absent, path, write, num_bytes)
    return finish if together is None else partial(together.led, finish)


def _is_dealt_out(contents: Contents, world: World) -> bool:
    """Whether every rank writes a share; an adapter is small."""
    sharded = any(isinstance(value, DTensor) for value in contents.model.parameters())
    return sharded and contents.adapter is None and world.size > 1


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, newest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def purge(folder: Path) -> list[str]:
    """Delete what a kill left of a save or of a deletion; the names of it."""
    leftovers = sorted(folder.glob(".incomplete-*"))
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)
    return [leftover.name for leftover in leftovers]


def prune(folder: Path, keep: int | None, spared: Collection[int] = ()) -> None:
    """Delete all but the newest ``keep`` checkpoints, and what a kill left half-written.

    A checkpoint is renamed before it is deleted, so that a reader finds it complete or absent.

    Args:
        folder: the run's checkpoints.
        keep: how many; None keeps all.
        spared: steps whose checkpoints stay, whatever their number.
    """
    purge(folder)
    for path in list_checkpoints(folder)[keep:] if keep is not None else []:
        if int(path.name.removeprefix("step-")) not in spared:
            shutil.rmtree(path.rename(path.with_name(f".incomplete-{path.name}")))


def newest_intact(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that passes verification; what fails is reported and passed over."""
    for path in list_checkpoints(folder):
        try:
            verify(path)
        except DamagedCheckpointError as error:
            warn(f"{error} Falling back to the one before.")
        else:
            return path
    return None


def verify(path: Path) -> None:
    """Compare every file with the checkpoint's manifest.

    Only what the manifest lists may be there, as ordinary files inside the folder: nobody then reads a file that was
    put beside them, or that a link or a name such as ``../x`` leads to.

    Raises:
        DamagedCheckpointError: a file is missing, was changed or added, or there is no manifest.
    """
    if path.is_symlink():
        raise DamagedCheckpointError(f"checkpoint {path} is a link, and not what was written.")
    try:
        files = read_json(path / _MANIFEST)["files"]
        listing = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"checkpoint {path} has no readable manifest.json ({error}).") from None
    present = [entry for entry in path.rglob("*") if entry.is_symlink() or not entry.is_dir()]
    for entry in present:
        name = str(entry.relative_to(path))
        if entry.is_symlink() or not entry.is_file():
            raise DamagedCheckpointError(f"checkpoint {path} is damaged: {name} is not an ordinary file.")
        if name not in listing and name != _MANIFEST:
            raise DamagedCheckpointError(f"checkpoint {path} is damaged: {name} was added to it.")
    inside = {str(entry.relative_to(path)) for entry in present}
    for name, (size, digest) in listing.items():
        if name not in inside:
            raise DamagedCheckpointError(f"checkpoint {path} is damaged: {name} is missing.")
        if (path / name).stat().st_size != size or sha256_file(path / name) != digest:
            raise DamagedCheckpointError(f"checkpoint {path} is damaged: {name} is not as it was written.")


def load_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    adapter: Adapter | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Put a verified checkpoint into a model and its optimizer, restore the random state, return the rest of it.

    Args:
        path: a folder that ``verify`` has passed.
        model: the transformers model of the run.
        optimizer: an optimizer over its parameters.
        adapter: that of the model, where the checkpoint holds nothing else.
        world: the ranks. Each takes its shards from the whole tensors; there may be more or fewer than have written
            them, and other strategies.

    Raises:
        DamagedCheckpointError: names or shapes are not the model's.
    """
    if adapter is None:
        _load_weights(path, model)
    else:
        _load_adapter(path, adapter)
    moments = StoredTensors(path.glob("optimizer*.safetensors"))
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in moments]
        if keys:
            scalar = torch.empty(())
            optimizer.state[parameter] = {
                key: moments.part_like(f"{name}.{key}", scalar if key == "step" else parameter) for key in keys
            }
    state: dict[str, Any] = read_json(path / _STATE)
    _restore_random_state(state.pop("random"), world.rank)
    return state


def _load_weights(path: Path, model: nn.Module) -> None:
    weights = StoredTensors((path / _MODEL).glob("*.safetensors"))
    for name, parameter in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        if name in weights:
            weights.put(name, parameter)
        elif isinstance(parameter, nn.Parameter):
            raise DamagedCheckpointError(f"checkpoint {path} lacks the weight {name}.")


def _load_adapter(path: Path, adapter: Adapter) -> None:
    saved, own = load_file(path / _ADAPTER / WEIGHTS_FILE), adapter.weights()
    if differing := sorted(saved.keys() ^ own.keys()):
        raise DamagedCheckpointError(f"checkpoint {path} is of another adapter: {differing[0]} is in one of them only.")
    for name, value in own.items():
        put(saved[name], value)


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    return (
        (f"{name}.{key}", value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    )


def _random_state() -> dict[str, str]:
    states = random_states(_random_device())
    return {name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in states.items()}


def _restore_random_state(saved: list[dict[str, str]], rank: int) -> None:
    """Each rank's own; a rank that was not there draws from a seed of its own."""
    if rank >= len(saved):
        torch.manual_seed(int(fingerprint(saved[0], rank), 16))
        return
    states = {
        name: torch.frombuffer(bytearray(base64.b64decode(raw)), dtype=torch.uint8) for name, raw in saved[rank].items()
    }
    device = _random_device()
    restore_random_states({name: state for name, state in states.items() if name in ("cpu", device.type)}, device)


def _random_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
