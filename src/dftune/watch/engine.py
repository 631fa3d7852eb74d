"""One model in memory that takes on the weights of one checkpoint after another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from dftune.environment import NOT_THE_MODEL
from dftune.evaluate.config import EvaluateConfig
from dftune.evaluate.models import ModelFiles
from dftune.files import canonical_json, read_json
from dftune.generate.adapter import merge_adapter
from dftune.generate.load import load_engine
from dftune.generate.local import LocalEngine

_FREE = {*NOT_THE_MODEL, "dtype", "torch_dtype"}  # weights are cast to the engine's own type


class PersistentEngine:
    """Gives the engine of a model: the one it has, with the model's weights put into it, where that is possible.

    It is where configuration, generation defaults and the names and shapes of the weights are the same. Otherwise the
    model is loaded anew. Of a LoRA adapter the base is kept in float32 on the CPU, and what base and adapter do
    together is put into the engine: the same arithmetic, and so the same weights, as when it is loaded by itself.

    Attributes:
        num_loaded: models that were loaded.
        num_swapped: models whose weights were put into the one that was there.
    """

    def __init__(self) -> None:
        self.num_loaded = self.num_swapped = 0
        self._engine: LocalEngine | None = None
        self._base: Any = None  # the model that adapters are merged into, float32 on the CPU
        self._holds: tuple[bytes, str, str] | None = None

    def __call__(
        self,
        files: ModelFiles,
        tokenizer: Any,
        config: EvaluateConfig,
        *,
        batch_size: int,
        device: str,
        dtype: str,
        say: Callable[[str], None],
    ) -> LocalEngine:
        """The engine of a model; the one before has its weights no more.

        Raises:
            ValueError: the model cannot be loaded.
        """
        key = (_architecture(files.folder), device, dtype)
        engine = self._engine if self._holds == key else None
        self._engine = None  # half-swapped weights must not be used when something fails from here on
        swapped = engine is not None and self._swap(engine, files)
        if engine is None or not swapped:
            engine = self._load(files, device=device, dtype=dtype, batch_size=batch_size)
        self.num_swapped += swapped
        self.num_loaded += not swapped
        engine.tokenizer = tokenizer
        self._engine, self._holds = engine, key
        return engine

    def _swap(self, engine: LocalEngine, files: ModelFiles) -> bool:
        if files.adapter is None:
            return put_weights(engine.model, files.folder)
        if self._base is None or not put_weights(self._base, files.folder):
            return False
        merged = merge_adapter(self._base, files.adapter)
        if merged is not engine.model:
            with torch.no_grad():
                for own, other in zip(engine.model.parameters(), merged.parameters(), strict=True):
                    own.copy_(other)
        return True

    def _load(self, files: ModelFiles, *, device: str, dtype: str, batch_size: int) -> LocalEngine:
        self._base = None
        if files.adapter is None:
            return load_engine(files.folder, device=device, dtype=dtype, batch_size=batch_size)
        base = load_engine(files.folder, device="cpu", dtype="float32", batch_size=batch_size)
        self._base = merge_adapter(base.model, files.adapter)
        wanted = getattr(torch, dtype)
        if (device, wanted) == ("cpu", torch.float32):
            return LocalEngine(self._base, base.tokenizer, device=device, batch_size=batch_size)
        model = copy.deepcopy(self._base).to(wanted)
        return LocalEngine(model, base.tokenizer, device=device, batch_size=batch_size)


def put_weights(model: nn.Module, folder: Path) -> bool:
    """Put the weights of a model folder into a model of the same architecture, cast to its type, on its device.

    Args:
        model: changed in place, or not at all.
        folder: holds safetensors.

    Returns:
        Whether it was done: names and shapes must be the model's, tied weights may stand once under any of their names.
    """
    own = _tensors(model)
    with ExitStack() as stack:
        # The files stay readable while they are open, even if the checkpoint is deleted meanwhile.
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob("*.safetensors"))]
        there = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        known = {name for names, _ in own for name in names}
        found = [next((name for name in names if name in there), None) for names, _ in own]
        if None in found or not known >= there.keys():
            return False
        pairs = [(name, tensor) for name, (_, tensor) in zip(found, own, strict=True) if name is not None]
        if any(there[name].get_slice(name).get_shape() != list(tensor.shape) for name, tensor in pairs):
            return False
        with torch.no_grad():
            for name, tensor in pairs:
                tensor.copy_(there[name].get_tensor(name))
    return True


def _tensors(model: nn.Module) -> list[tuple[list[str], torch.Tensor]]:
    """Every tensor that is saved, once, with all its names."""
    named = {**dict(model.named_parameters(remove_duplicate=False)), **model.state_dict(keep_vars=True)}
    by_tensor: dict[int, tuple[list[str], torch.Tensor]] = {}
    for name, tensor in named.items():
        by_tensor.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(by_tensor.values())


def _architecture(folder: Path) -> bytes:
    """What two models must share for one to take on the other's weights: configuration and generation defaults."""
    parts = []
    for name in ("config.json", "generation_config.json"):
        values = read_json(folder / name) if (folder / name).is_file() else {}
        parts.append({key: value for key, value in values.items() if key not in _FREE})
    return canonical_json(parts)
