"""Names of models and data sets: paths or hub ids, and whether the hub can be asked."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILE_SUFFIX = re.compile(
    r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|txt|gz|zip|xlsx|safetensors|yaml)$", re.IGNORECASE
)
_MAKING = threading.RLock()


@contextmanager
def making_a_model() -> Iterator[None]:
    """One thread at a time makes or loads a model of transformers.

    ``from_pretrained`` replaces ``PreTrainedModel.tie_weights`` and torch's default type for the whole process while
    it runs. Two threads that do so restore each other's replacement, and from then on every model has an untied head
    whose weights are nowhere ("Cannot copy out of meta tensor"), or the other's type.
    """
    with _MAKING:
        yield


def looks_like_path(name: str) -> bool:
    """Whether a name that does not exist was meant as a path rather than as a hub id such as ``owner/name``."""
    return not _HUB_ID.fullmatch(name) or _FILE_SUFFIX.search(name) is not None


def hub_reachable(timeout_s: float = 5.0) -> bool:
    """Whether the hub answers: one request, where the hub's own client would retry for half a minute."""
    import huggingface_hub  # noqa: PLC0415
    from huggingface_hub import constants  # noqa: PLC0415

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=timeout_s)
    except Exception:  # the client's transport errors differ between its versions
        return False
    return True


@contextmanager
def offline(on: bool) -> Iterator[None]:
    """Have the hub's client and ``datasets`` use their caches alone while the block runs."""
    import datasets  # noqa: PLC0415
    from huggingface_hub import constants  # noqa: PLC0415

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if on:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def from_pretrained(loader: Any, name: str, revision: str | None, key: str, **options: Any) -> Any:
    """``loader.from_pretrained`` of a folder or a model id, quick to fail without a network.

    Args:
        loader: a class of transformers.
        name: folder, or id on the hub; a folder wins.
        revision: on the hub.
        key: the recipe's key that gave the name, for the message.
        options: passed on.

    Raises:
        ValueError: it cannot be loaded, or only by running code that comes with it; says why and what to do.
    """
    path = Path(name).expanduser()
    if not path.is_dir() and looks_like_path(name):
        raise ValueError(f"{key}: there is no folder {name}. Give the folder of a checkpoint, or a model id.")
    local = path.is_dir()
    try:
        with making_a_model():
            return loader.from_pretrained(
                str(path) if local else name,
                revision=revision or "main",
                local_files_only=local or not hub_reachable(),
                trust_remote_code=False,  # else transformers asks at the terminal whether to run a model's own code
                **options,
            )
    except Exception as error:  # transformers raises many kinds: OSError, ValueError, KeyError, the hub's own
        reason = " ".join(str(error).split())[:300]
        advice = (
            "The folder must hold config.json and tokenizer.json, as save_pretrained writes them."
            if local
            else f"Check the id, or download the checkpoint where there is a network and set {key} to its folder."
        )
        if "trust_remote_code" in str(error):
            reason = "it comes with code of its own (auto_map in its configuration), which would have to be run"
            advice = "dftune runs no code out of a model. Use one whose architecture transformers has itself."
        raise ValueError(f"{key}: cannot load {name!r}: {reason}. {advice}") from error
