"""The files of a model that is to be evaluated: a folder, or a base with an adapter of LoRA on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dftune.config import read_yaml
from dftune.data.tokenizer import tokenizer_fingerprint
from dftune.environment import describe_environment, model_fingerprint
from dftune.evaluate.locate import ADAPTER_FILE, is_adapter, locate
from dftune.files import check_name, fingerprint, read_json, sha256_file, write_json
from dftune.generate.adapter import WEIGHTS_FILE
from dftune.generate.load import find_model

# Where the base lay when the adapter was saved, and by which version, says nothing about what it computes.
_NOT_THE_ADAPTER = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files are.

    Attributes:
        named: folder or hub id as it was given.
        folder: configuration, weights and tokenizer; of the base, where there is an adapter.
        adapter: folder of the adapter to be merged into the base.
    """

    named: str
    folder: Path
    adapter: Path | None = None

    @property
    def place(self) -> Path:
        """The folder that is, or is not, part of a run."""
        return self.adapter or self.folder

    def fingerprint(self) -> str:
        """Changes with configuration or weights of the model or of its adapter."""
        base = model_fingerprint(self.folder)
        if self.adapter is None:
            return base
        config = read_json(self.adapter / ADAPTER_FILE)
        kept = {key: value for key, value in config.items() if key not in _NOT_THE_ADAPTER}
        return fingerprint(base, kept, sha256_file(self.adapter / WEIGHTS_FILE))

    def trained_format(self) -> dict[str, Any] | None:
        """Name, fingerprint and definition of the prompt format it was trained with; None where it is not known."""
        run, _ = locate(self.place)
        return None if run is None else read_json(run / "manifest.json").get("prompt_format")


def find_files(path: str) -> ModelFiles:
    """Find a model; one of the hub is fetched.

    Raises:
        ValueError: there is no such model, or an adapter's base is missing.
    """
    folder = Path(path).expanduser()
    if not is_adapter(folder):
        return ModelFiles(path, find_model(path))
    if not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{folder} is an adapter without {WEIGHTS_FILE}; adapters in other files are not read.")
    base, revision = _base_of(folder)
    try:
        return ModelFiles(path, find_model(base, revision), folder)
    except ValueError as error:
        raise ValueError(f"{folder} is an adapter, and its base is not there. {error}") from error


def _base_of(adapter: Path) -> tuple[str, str | None]:
    """Name and revision of the base: as the run's recipe has it, else as the adapter has it."""
    run, _ = locate(adapter)
    recipe = run / "recipe.yaml" if run is not None else None
    if recipe is not None and recipe.is_file():
        model = read_yaml(recipe, []).get("model") or {}
        if model.get("path"):
            return str(model["path"]), model.get("revision")
    config = read_json(adapter / ADAPTER_FILE)
    if not config.get("base_model_name_or_path"):
        raise ValueError(f"{adapter / ADAPTER_FILE} does not name the base model (base_model_name_or_path).")
    return str(config["base_model_name_or_path"]), config.get("revision")


def num_parameters(folder: Path) -> int:
    """Numbers in the weights of a model folder, read off the headers; shared weights are stored, and counted, once."""
    from safetensors import safe_open  # noqa: PLC0415

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def check_output(output: Path, folder: Path, fingerprint: str) -> None:
    """Refuse a run folder that holds the evaluations of another model.

    Args:
        output: the run folder.
        folder: of the model.
        fingerprint: of the model.

    Raises:
        ValueError: it does; says of which.
    """
    if not (output / "manifest.json").is_file():
        return
    manifest: Mapping[str, Any] = read_json(output / "manifest.json")
    run, _ = locate(folder)
    if manifest.get("kind") == "train":
        same = run is not None and run.resolve() == output.resolve()
        owner = f"the run {manifest.get('name')}"
    else:
        same = manifest["model"]["fingerprint"] == fingerprint
        owner = f"evaluations of {manifest['model']['path']} (fingerprint {manifest['model']['fingerprint']})"
    if not same:
        raise ValueError(
            f"{output} holds {owner}; {folder} (fingerprint {fingerprint}) is another model. Choose another --output."
        )


def begin_output(
    output: Path,
    model: Mapping[str, Any],
    folder: Path,
    tokenizer: Any,
    device: str,
    *,
    prompt_format: Mapping[str, str] | None = None,
) -> None:
    """Write the manifest of a run folder of kind ``evaluate``, unless ``output`` has a manifest.

    Args:
        output: the run folder.
        model: ``path`` and ``fingerprint`` of the model.
        folder: where its weights lie.
        tokenizer: its tokenizer.
        device: computed on.
        prompt_format: name and fingerprint, where dftune renders the prompts.
    """
    if (output / "manifest.json").is_file():
        return
    name = check_name(output.resolve().name, "the output folder's name")
    manifest = describe_environment(device) | {
        "model": {**model, "num_parameters": num_parameters(folder)},
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "prompt_format": prompt_format,
    }
    write_json(output / "manifest.json", {"name": name, "kind": "evaluate", **manifest, "seed": None})
