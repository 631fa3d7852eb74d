"""Find a model, in a folder or on the hub, and load it for generation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftune.data.hub import from_pretrained, hub_reachable, looks_like_path

if TYPE_CHECKING:
    from dftune.generate.local import LocalEngine

MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
"""What is fetched of a model, and handed on: weights, tokenizer and settings, no code and no pickle."""
_NEEDED = {
    "config.json": ["config.json"],
    "tokenizer": ["tokenizer.json", "tokenizer_config.json"],
    "*.safetensors": ["*.safetensors"],
}
_NOT_FILES = ["*/*", "consolidated*"]  # the same weights again, in other layouts
_DTYPES = ("auto", "float32", "bfloat16", "float16")


def find_model(path: str, revision: str | None = None) -> Path:
    """The local folder of a model: ``path`` itself, or the hub's snapshot, fetched if it is not in the cache.

    Args:
        path: folder or model id.
        revision: of a model of the hub; None for the newest.

    Raises:
        ValueError: there is no such folder and no such model, or the folder lacks config, tokenizer or safetensors.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        folder = _fetch(path, revision)
    missing = [what for what, patterns in _NEEDED.items() if not any(any(folder.glob(p)) for p in patterns)]
    if not folder.is_dir() or missing:
        held = ", ".join(sorted(file.name for file in folder.glob("*"))[:12]) or "nothing"
        raise ValueError(
            f"{path} is not a model folder: it has no {', no '.join(missing) or 'files'} (found: {held}). "
            "Expected a folder that save_pretrained wrote, or a Hugging Face model id. "
            "Weights in other formats than safetensors are not read."
        )
    return folder


def _fetch(path: str, revision: str | None) -> Path:
    parent = Path(path).parent
    if looks_like_path(path) or (parent != Path() and parent.is_dir()):
        raise ValueError(
            f"There is no model folder {path}. Give a folder with config.json, or a Hugging Face model id."
        )
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (only for models on the hub)
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        folder = snapshot_download(
            path,
            revision=revision,
            allow_patterns=MODEL_FILES,
            ignore_patterns=_NOT_FILES,
            local_files_only=not hub_reachable(),
        )
        return Path(folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        no_network = "the hub does not answer, and the local cache does not hold it"
        reason = str(error).strip().partition("\n")[0] if hub_reachable() else no_network
        raise ValueError(
            f"There is no folder {path}, and no model of that id could be fetched from the Hugging Face hub ({reason})."
        ) from error


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder; code in the folder is never run."""
    from transformers import AutoTokenizer  # noqa: PLC0415  (1 s to import)

    return from_pretrained(AutoTokenizer, str(folder), None, "the model")


def choose_device(device: str) -> str:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: CUDA was asked for and torch has none.
    """
    import torch  # noqa: PLC0415

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device} was asked for, and torch {torch.__version__} sees no CUDA device. Use cpu.")
    return device


def choose_dtype(dtype: str, device: str) -> str:
    """``auto`` is bfloat16 on a CUDA device that has it, float32 elsewhere.

    Raises:
        ValueError: there is no such type.
    """
    import torch  # noqa: PLC0415

    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; use one of: {', '.join(_DTYPES)}.")
    if dtype == "auto":
        return "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
    return dtype


def load_engine(
    path: str | Path,
    *,
    adapter: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 64,
) -> LocalEngine:
    """Load a model for generation.

    Args:
        path: folder that ``save_pretrained`` wrote, or a Hugging Face model id.
        adapter: folder of a LoRA adapter to be merged into the model.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``...
        dtype: of the weights: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        batch_size: completions generated together.

    Raises:
        ValueError: no such model, not in safetensors, or no such device.
    """
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    from dftune.generate.adapter import merge_adapter  # noqa: PLC0415
    from dftune.generate.local import LocalEngine  # noqa: PLC0415

    folder = find_model(str(path))
    device = choose_device(device)
    chosen = getattr(torch, choose_dtype(dtype, device))
    model = from_pretrained(
        AutoModelForCausalLM,
        str(folder),
        None,
        "the model",
        dtype=chosen if adapter is None else torch.float32,
        attn_implementation="sdpa",
        use_safetensors=True,
    )
    if adapter is not None:
        model = merge_adapter(model, adapter).to(chosen)
    return LocalEngine(model, load_tokenizer(folder), device=device, batch_size=batch_size)
