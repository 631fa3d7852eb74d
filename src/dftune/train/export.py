"""A model out of a run, at any step that was saved: as a Hugging Face folder of its own, or on the hub."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from dftune.data.hub import from_pretrained, hub_reachable
from dftune.data.prompts import recorded_format
from dftune.evaluate.locate import is_adapter, plan
from dftune.files import read_json
from dftune.generate.load import MODEL_FILES
from dftune.recipe import Recipe, load_recipe
from dftune.train.checkpoint import verify
from dftune.train.folders import complete_or_absent, export_model

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def export_run(run: Path, output: Path, *, step: int | None = None, adapter: bool = False) -> Path:
    """Write a model of a run as an ordinary Hugging Face folder, complete or absent.

    Args:
        run: the run's folder.
        output: the folder to write; not there yet, or empty.
        step: of a checkpoint; None takes the final model.
        adapter: of a run that trains an adapter, write it alone; else it is merged into the base, in float32.

    Raises:
        ValueError: the run has no such model, the output is taken, or the base is not the one trained on.
        DamagedCheckpointError: the checkpoint is not as it was written.
        OSError: the output cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is there already. Remove it, or name another folder.")
    (found,) = plan(str(run), step=step)
    source = Path(found.model)
    if source.parent.name.startswith("step-"):
        verify(source.parent)
    if adapter and not is_adapter(source):
        source = run / "adapter"
        if not is_adapter(source):
            raise ValueError(f"{run} trains all weights and has no adapter. Leave --adapter out.")
    if is_adapter(source) and not adapter:
        model, tokenizer = _merged(run, source)
        return export_model(output, model, tokenizer)
    num_bytes = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    copy = _copy if source.parent == run else _rewrite
    return complete_or_absent(output, lambda aside: copy(source, aside), num_bytes)


def _copy(source: Path, into: Path) -> None:
    """The files of a model that anything here reads; what else somebody has put there is not handed on."""
    for file in sorted(file for pattern in MODEL_FILES for file in source.glob(pattern)):
        shutil.copyfile(file, into / file.name)


def _rewrite(source: Path, into: Path) -> None:
    """What a checkpoint holds, with its weights under the names and in the files that other programs expect."""
    if is_adapter(source):
        _copy(source, into)
        return
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = from_pretrained(AutoModelForCausalLM, str(source), None, "RUN", dtype="auto", use_safetensors=True)
    model.save_pretrained(into)
    beside = shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json")
    shutil.copytree(source, into, dirs_exist_ok=True, ignore=beside)


def _merged(run: Path, adapter: Path) -> tuple[Any, Any]:
    """The base of a run with an adapter of it merged in, and what is saved beside it."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    from dftune.data.tokenizer import load_tokenizer  # noqa: PLC0415
    from dftune.generate.adapter import merge_adapter  # noqa: PLC0415
    from dftune.train.setup import base_fingerprint, check_base, prepare_export  # noqa: PLC0415

    recipe: Recipe = load_recipe(run / "recipe.yaml")
    check_base(run / "manifest.json", base_fingerprint(recipe))
    base = from_pretrained(
        AutoModelForCausalLM,
        str(recipe.model.path),
        recipe.model.revision,
        "model.path",
        dtype=torch.float32,
        use_safetensors=True,
    )
    tokenizer = load_tokenizer(recipe.model)
    model = merge_adapter(base, adapter)
    prepare_export(model, tokenizer, recorded_format(read_json(run / "manifest.json")["prompt_format"], tokenizer))
    return model, tokenizer


def check_push(repo: str) -> None:
    """Refuse what cannot be pushed, before anything is written.

    Args:
        repo: name on the hub, ``owner/name``.

    Raises:
        ValueError: it is no such name, the hub cannot be asked, or nobody is logged in.
    """
    from huggingface_hub import constants, get_token  # noqa: PLC0415

    if not _REPO.fullmatch(repo):
        raise ValueError(f"--push-to-hub takes a repository such as owner/name, and found {repo!r}.")
    if constants.HF_HUB_OFFLINE:
        raise ValueError("--push-to-hub needs the hub, and HF_HUB_OFFLINE is set. Unset it, or leave the option out.")
    if not hub_reachable():
        raise ValueError(
            f"--push-to-hub: {constants.ENDPOINT} does not answer. Export without it, and push the folder where there "
            f"is a network: hf upload {repo} FOLDER"
        )
    if get_token() is None:
        raise ValueError("--push-to-hub needs a token: `hf auth login`, or set HF_TOKEN.")


def push(folder: Path, repo: str, *, public: bool) -> str:
    """Upload a folder as a commit to a model repository, which is made where it is missing.

    Args:
        folder: what :func:`export_run` wrote.
        repo: name on the hub, which :func:`check_push` has passed.
        public: a repository that is made can be read by everybody.

    Returns:
        The commit's address.

    Raises:
        OSError: the hub has refused it; the folder is complete.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415

    api = HfApi()
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        commit: Any = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload with dftune")
    except Exception as error:  # the hub's client raises its own kinds and those of its transport
        reason = " ".join(str(error).split())[:300]
        raise OSError(f"{folder} is complete, and pushing it to {repo} failed: {reason}") from error
    return str(commit.commit_url)
