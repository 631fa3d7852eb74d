"""A low-rank adapter on a frozen base: attached, switched off for the reference, saved alone, merged for export."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dftune.data.hub import making_a_model
from dftune.files import write_json
from dftune.train.config import LoraConfig

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_NAME = "default"  # peft's name of a model's only adapter


def require_peft() -> None:
    """Refuse to start without peft.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError(
            "model.lora needs peft, which is not installed: pip install 'dftune[lora]'. "
            "Or leave model.lora out, and all weights are trained."
        )


class Adapter:
    """The adapter inside a transformers model, whose linear layers it has replaced in place.

    The model stays the object it was. Only the adapter's weights need a gradient; they are float32.

    Args:
        model: a causal language model; changed in place.
        config: rank, scale, dropout and layers.
        seed: of the initial weights. With them the model computes what it computed before.

    Raises:
        ValueError: peft is missing, or a layer cannot be adapted.
    """

    def __init__(self, model: Any, config: LoraConfig, *, seed: int) -> None:
        require_peft()
        import peft  # noqa: PLC0415  (optional)

        targets = config.target_modules
        if isinstance(targets, tuple):
            _check_targets(model, targets)
        settings = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(targets) if isinstance(targets, tuple) else targets,
            fan_in_fan_out=any(_is_transposed(module) for module in model.modules()),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for names of before version 6
            torch.manual_seed(seed)
            # With gradient checkpointing it also lets the embedded inputs require a gradient.
            self._peft = peft.get_peft_model(model, settings)
        self._model, self._config = model, config
        self._names = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model is its base within this context."""
        tuner = (
            self._peft.base_model
        )  # its own context manager counts all modules first, which takes five times as long
        tuner.disable_adapter_layers()
        try:
            yield
        finally:
            tuner.enable_adapter_layers()

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The frozen weights, under the names that they have without an adapter."""
        for name, parameter in self._model.named_parameters():
            if name not in self._names:
                yield _plain(name), parameter

    def weights(self) -> dict[str, Tensor]:
        """The adapter's own weights, as they are in memory, under the names that peft loads them by."""
        return {
            f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": parameter.data
            for name, parameter in self._model.named_parameters()
            if name in self._names
        }

    def save(self, folder: Path, whole: Mapping[str, Tensor] | None = None) -> None:
        """Write a folder that ``peft.PeftModel.from_pretrained`` loads onto the base.

        Args:
            folder: made where it is missing.
            whole: the weights, where those in memory are shards.
        """
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.cpu().contiguous() for name, value in (whole or self.weights()).items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config = self._peft.peft_config[_NAME].to_dict() | {"inference_mode": True}
        # peft keeps the layers in a set, whose order is another in every process
        write_json(
            folder / CONFIG_FILE,
            {name: sorted(value) if isinstance(value, set) else value for name, value in sorted(config.items())},
        )

    def with_weights(self, whole: Mapping[str, Tensor]) -> Adapter:
        """This adapter and its model with other weights: of a sharded model, the whole ones, and its
        buffers, by name.

        Without any, it is this adapter itself.
        """
        if not whole:
            return self
        with making_a_model(), torch.device("meta"):
            model = type(self._model)(copy.deepcopy(self._model.config))
            model.tie_weights()
            held = Adapter(model, self._config, seed=0)
        model.load_state_dict(dict(whole), strict=False, assign=True)
        model.tie_weights()
        model.generation_config = self._model.generation_config
        return held

    def merged(self) -> Any:
        """An ordinary model, in float32 on the CPU, that computes what base and adapter do together.

        The sums are made in float32 and stay so: rounded to bfloat16, small updates of large weights would be lost.
        The model in training is left as it is.
        """
        model = self._model
        deltas = self._deltas()
        state: dict[str, Tensor] = {}
        packed = _packed(model)
        for key, value in model.state_dict().items():
            if key in self._names or key.startswith(tuple(f"{name}." for name in packed)):
                continue  # of an adapter, or how a 4-bit weight is to be read
            name, tensor = _plain(key), packed[key]() if key in packed else value.detach()
            if tensor.is_floating_point():
                tensor = tensor.float()
            if name in deltas:
                tensor = tensor + deltas.pop(name)().to(tensor.device)
            state[name] = tensor.cpu()
        with torch.device("meta"):
            plain = type(model)(_unpacked(model.config))
        plain.load_state_dict(state, assign=True)
        plain.tie_weights()
        plain.generation_config = model.generation_config
        return plain

    def _deltas(self) -> dict[str, Any]:
        """What computes each weight's update, by the plain name of the weight; one at a time is in memory."""
        from peft.tuners.lora import LoraLayer  # noqa: PLC0415

        def delta(layer: Any) -> Any:
            return torch.no_grad()(lambda: layer.get_delta_weight(_NAME).float())

        return {
            f"{_plain(name)}.weight": delta(module)
            for name, module in self._model.named_modules()
            if isinstance(module, LoraLayer)
        }


def _packed(model: Any) -> dict[str, Any]:
    """What gives each 4-bit weight as numbers again, by its name; one at a time is in memory."""

    def reader(weight: Any) -> Any:
        from bitsandbytes.functional import dequantize_4bit  # type: ignore[import-not-found]  # noqa: PLC0415

        return lambda: dequantize_4bit(weight.data, weight.quant_state)

    return {
        name: reader(value)
        for name, value in model.named_parameters()
        if getattr(value, "quant_state", None) is not None
    }


def _unpacked(config: Any) -> Any:
    """The configuration of the same model with ordinary weights."""
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _is_transposed(module: nn.Module) -> bool:
    """Whether a layer is GPT-2's ``Conv1D``, a linear layer that holds its weight the other way round."""
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415

    return isinstance(module, Conv1D)


def _check_targets(model: Any, targets: tuple[str, ...]) -> None:
    """Every name must stand for linear layers, and for none but those of the body."""
    head = model.get_output_embeddings()
    linear: set[str] = set()
    found: dict[str, list[tuple[str, nn.Module]]] = {target: [] for target in targets}
    for name, module in model.named_modules():
        if module is not head and (isinstance(module, nn.Linear) or _is_transposed(module)):
            linear.add(name.rpartition(".")[2])
        for target in targets:
            if name == target or name.endswith(f".{target}"):
                found[target].append((name, module))
    advice = f"The linear layers of {type(model).__name__} are {', '.join(sorted(linear))}; all-linear takes them all."
    for target, matches in found.items():
        if not matches:
            raise ValueError(f"model.lora.target_modules: the model has no layer {target!r}. {advice}")
        for name, module in matches:
            if module is head or isinstance(module, nn.Embedding):
                raise ValueError(
                    f"model.lora.target_modules: {name} is the model's {'head' if module is head else 'embedding'}. "
                    "The scorer reads the head's weight as it is and would not see an adapter on it, and many models "
                    f"share it with the embedding; adapt layers of the body, or train all weights. {advice}"
                )
            if not (isinstance(module, nn.Linear) or _is_transposed(module)):
                raise ValueError(
                    f"model.lora.target_modules: {name} is a {type(module).__name__}, not a linear layer. {advice}"
                )
