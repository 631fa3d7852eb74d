"""A LoRA adapter put into its base, for generation."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

WEIGHTS_FILE = "adapter_model.safetensors"


def merge_adapter(model: Any, folder: Path) -> Any:
    """The model with an adapter's update added to its weights.

    Args:
        model: the base in float32, in which small updates of large weights are not lost; it is changed.
        folder: what peft saved.

    Returns:
        An ordinary model of transformers.

    Raises:
        ValueError: peft is missing, the adapter is not in safetensors, or it does not fit the base.
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f"{folder} is a LoRA adapter, and reading it needs peft: pip install 'dftune[lora]'.")
    if not (folder / WEIGHTS_FILE).is_file():  # peft would read adapter_model.bin, a pickle
        raise ValueError(f"{folder} is an adapter without {WEIGHTS_FILE}; adapters in other files are not read.")
    import peft  # noqa: PLC0415  (optional)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for names of before version 6
            return peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the adapter {folder} does not fit its base: {reason}") from error
