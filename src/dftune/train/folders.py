"""A model as a Hugging Face folder, and any folder that is complete or absent."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dftune.files import sync, umask_mode
from dftune.train.lora import Adapter
from dftune.train.shards import whole_on_main
from dftune.train.world import ALONE, World

_NOTHING: Mapping[str, Tensor] = MappingProxyType({})


def export(
    path: Path, model: Any, tokenizer: Any, *, adapter: Adapter | None, adapter_path: Path, world: World = ALONE
) -> None:
    """Write the final model as a Hugging Face folder, and an adapter alone beside it. All ranks call this.

    Args:
        path: of the model, complete or absent; an older one under the name is replaced.
        model: a transformers model, sharded or not.
        tokenizer: saved beside it.
        adapter: merged into the model that is saved.
        adapter_path: where the adapter alone goes.
        world: the ranks.
    """
    shards = [(name, value) for name, value in model.named_parameters() if isinstance(value, DTensor)]
    weights = whole_on_main(shards, world)
    if weights:
        weights |= buffers(model)

    def write() -> None:
        if adapter is None:
            export_model(path, model, tokenizer, weights)
            return
        held = adapter.with_weights(weights)
        export_adapter(adapter_path, held)
        export_model(path, held.merged(), tokenizer)

    world.from_main(write)


def export_model(path: Path, model: Any, tokenizer: Any, weights: Mapping[str, Tensor] = _NOTHING) -> Path:
    """Write a Hugging Face folder, complete or absent; an older one under the name is replaced."""
    num_bytes = sum(value.nbytes for value in model.parameters())
    return complete_or_absent(path, lambda aside: save_model(aside, model, tokenizer, weights), num_bytes)


def export_adapter(path: Path, adapter: Adapter) -> Path:
    """Write an adapter's folder, complete or absent; an older one under the name is replaced."""
    return complete_or_absent(path, adapter.save, sum(value.nbytes for value in adapter.weights().values()))


def save_model(
    path: Path, model: Any, tokenizer: Any, weights: Mapping[str, Tensor] = _NOTHING, *, as_in_memory: bool = False
) -> None:
    """Weights as safetensors, configuration, generation defaults, tokenizer and chat template.

    Args:
        path: of the folder.
        model: a transformers model.
        tokenizer: saved beside it.
        weights: in place of the model's own: parameters by name, whole, tied ones once, and buffers.
        as_in_memory: under the names that the weights have in memory. transformers stacks the experts of most
            mixtures when it loads them, and takes them apart again otherwise; it loads both.
    """
    model.save_pretrained(path, state_dict=dict(weights) or None, save_original_format=not as_in_memory)
    tokenizer.save_pretrained(path)


def save_model_around(path: Path, model: Any, tokenizer: Any) -> None:
    """What :func:`save_model` writes beside the weights."""
    model.config.save_pretrained(path)
    model.generation_config.save_pretrained(path)
    tokenizer.save_pretrained(path)


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that are saved with the weights."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {name: value for name, value in model.state_dict().items() if name not in parameters}


def complete_or_absent(path: Path, write: Callable[[Path], None], num_bytes: int) -> Path:
    """Have a folder written under another name, synced and renamed; an older one under the name is replaced.

    Args:
        path: of the folder.
        write: writes into the folder that it is given; modes are set afterwards, by the umask.
        num_bytes: about how much that is, for the message when there is no room.

    Raises:
        OSError: it could not be written; what was there before still is.
    """
    aside, older = (path.with_name(f".incomplete-{kind}{path.name}") for kind in ("", "older-"))
    for leftover in (aside, older):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        write(aside)
        mode = umask_mode()
        for entry in aside.rglob("*"):
            if entry.is_file():
                entry.chmod(mode)  # safetensors leaves its files readable by their owner alone
            sync(entry)
        sync(aside)
        if path.exists():
            path.rename(older)
        aside.rename(path)
        sync(path.parent)
        shutil.rmtree(older, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        raise OSError(
            getattr(error, "errno", None) or errno.EIO,
            f"could not write {path} (about {num_bytes / 1e9:.3g} GB, {free / 1e9:.3g} GB free): {error}. What was "
            "saved before is intact; free some space and try again (a training run continues with --resume)",
        ) from None
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return path
