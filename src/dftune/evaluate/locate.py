"""Which models a path stands for: those of a training run, or one from elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dftune.config import read_yaml
from dftune.files import read_json, read_jsonl

ADAPTER_FILE = "adapter_config.json"
_STEP = re.compile(r"step-(\d+)")
_INSIDE = ("model", "adapter")


@dataclass(frozen=True)
class Plan:
    """One model to evaluate.

    Attributes:
        model: folder or hub id.
        output: the run folder that its results go into.
        step: optimizer steps of the model; 0 for one that dftune did not train.
    """

    model: str
    output: Path
    step: int


def plan(
    model: str, output: Path | None = None, *, step: int | None = None, all_checkpoints: bool = False
) -> list[Plan]:
    """Which models to evaluate, at which steps, into which folder.

    Args:
        model: a run folder (its final model), a checkpoint of a run, another model folder, or a hub id.
        output: default: the run, or ``runs/eval-NAME`` for a model that is not of a run.
        step: of a run: the checkpoint of this step.
        all_checkpoints: of a run: every checkpoint and the final model.

    Raises:
        ValueError: the run lacks the model asked for, or a step is asked of something that is no run.
    """
    path = Path(model).expanduser()
    run, at = locate(path)
    if run is None:
        if step is not None or all_checkpoints:
            raise ValueError(
                f"--step and --all-checkpoints choose among the checkpoints of a run, and {model} is no run of dftune "
                "(it has no manifest.json of a training run)."
            )
        return [Plan(model, output or Path("runs") / f"eval-{_safe(path.resolve().name)}", 0)]
    if at is not None:
        if step is not None or all_checkpoints:
            raise ValueError(f"{model} is one model of {run}; give the run itself with --step or --all-checkpoints.")
        return [Plan(str(_model_in(path) or path), output or run, at)]
    models = models_of(path)
    if step is not None:
        chosen = [step]
    elif all_checkpoints:
        chosen = sorted(models)
    else:
        chosen = [_final_step(path)] if (path / "model").is_dir() else []
    if not chosen or chosen[0] not in models:
        wanted = "final model (model/)" if step is None else f"checkpoint of step {step}"
        held = (
            f"it has models of the steps {', '.join(map(str, sorted(models)))}" if models else "it has no model at all"
        )
        raise ValueError(f"{path} has no {wanted}; {held}. Finish the training, or choose one with --step.")
    return [Plan(str(models[at]), output or path, at) for at in chosen]


def locate(path: Path) -> tuple[Path | None, int | None]:
    """The training run that ``path`` is or belongs to, and the step of the model that it names within it.

    ``RUN`` gives the run and no step; ``RUN/model``, ``RUN/adapter``, ``RUN/checkpoints/step-N`` and the ``model`` or
    ``adapter`` in it give both; anything else gives neither.
    """
    if _is_run(path):
        return path, None
    path = path.absolute()
    if path.name in _INSIDE and _is_run(path.parent):
        return _shown(path.parent), _final_step(path.parent)
    checkpoint = path.parent if path.name in _INSIDE else path
    match = _STEP.fullmatch(checkpoint.name)
    run = checkpoint.parent.parent
    if match and checkpoint.parent.name == "checkpoints" and _is_run(run):
        return _shown(run), int(match[1])
    return None, None


def _shown(path: Path) -> Path:
    """Relative where that is shorter: results name it, and a relative path stays right when the project is moved."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def recipe_section(model: str) -> dict[str, Any]:
    """The ``evaluate`` section of the recipe of the run that ``model`` is or belongs to; empty elsewhere."""
    run, _ = locate(Path(model).expanduser())
    if run is None or not (run / "recipe.yaml").is_file():
        return {}
    return dict(read_yaml(run / "recipe.yaml", []).get("evaluate") or {})


def _is_run(path: Path) -> bool:
    manifest = path / "manifest.json"
    return manifest.is_file() and read_json(manifest).get("kind") == "train"


def models_of(run: Path) -> dict[int, Path]:
    """The models and adapters of a run by step; at the last step the final model, with that checkpoint's weights."""
    models = {}
    for folder in (run / "checkpoints").glob("step-*"):
        match = _STEP.fullmatch(folder.name)
        model = _model_in(folder)
        if match and model is not None:
            models[int(match[1])] = model
    if (run / "model").is_dir():
        models[_final_step(run)] = run / "model"
    return models


def _model_in(checkpoint: Path) -> Path | None:
    """What a checkpoint holds: a model, or the adapter alone."""
    return next((checkpoint / name for name in _INSIDE if (checkpoint / name).is_dir()), None)


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (path / ADAPTER_FILE).is_file() and not (path / "config.json").is_file()


def _final_step(run: Path) -> int:
    events = run / "events.jsonl"
    rows = read_jsonl(events, partial_last_line=True) if events.is_file() else []
    steps = [row["step"] for row in rows if row.get("kind") in ("train", "end")]
    if not steps:
        raise ValueError(f"{events} has no training step, so the step of the model in {run / 'model'} is not known.")
    return int(steps[-1])


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).strip(".-") or "model"
