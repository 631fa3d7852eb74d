"""What a recipe would do, told from what lies on the disk: no network, no weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dftune.data.hub import looks_like_path
from dftune.evaluate.named import NAMED, local_copy
from dftune.evaluate.protocols import get_protocol
from dftune.files import read_json
from dftune.objectives import get_objective
from dftune.recipe import Recipe
from dftune.train.memory import STATE_BYTES
from dftune.train.room import memory_lines

_BILLIONS = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*([bBmM])(?![a-zA-Z])")
_MAX_HEADER = 100_000_000


def plan_of(recipe: Recipe) -> list[str]:
    """Lines that say what a run would read, compute and keep, what must be fetched and what is not there.

    Sizes are exact where the prepared data or the checkpoint lie on the disk, bounds or estimates where they do not,
    and the line says which.
    """
    return [*_model(recipe), *_data(recipe), *_objective(recipe), *_evaluation(recipe), *_fetched(recipe)]


def _model(recipe: Recipe) -> Iterator[str]:
    config = recipe.model
    if config.scratch is not None:
        yield "model: new, with random weights"
        yield from memory_lines(recipe, recipe.distributed.world_size or 1, strict=False)
        return
    assert config.path is not None
    count, how = num_parameters(config.path)
    yield f"model: {config.path}" + (f", {_amount(count)} parameters {how}" if count else "")
    exact = list(memory_lines(recipe, recipe.distributed.world_size or 1, offline=True, strict=False))
    yield from exact
    if exact or not count:
        return
    if config.lora is not None:
        size = 2 if recipe.train.precision == "bf16" else 4
        yield f"memory: {_gib(size * count)} for frozen weights of {8 * size} bits; adapter and activations on top"
        return
    ranks = recipe.distributed.world_size
    share = f", {_gib(STATE_BYTES * count / ranks)} in each of {ranks} processes with fsdp" if ranks else ""
    yield (
        f"memory: {_gib(STATE_BYTES * count)} for weights, gradients and AdamW in float32{share}; activations of "
        f"{recipe.train.micro_batch_tokens:,} tokens on top"
    )


def num_parameters(name: str) -> tuple[int, str]:
    """How many parameters a model has, and how that is known: from its files, or from its name. 0 where it is not."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        counts = [_in_file(path) for path in sorted(folder.glob("*.safetensors"))]
        return sum(counts), "by its files"
    found = _BILLIONS.search(name.rpartition("/")[2].replace("-", " "))
    if not found:
        return 0, ""
    return round(float(found[1]) * (1e9 if found[2] in "bB" else 1e6)), "by its name"


def _in_file(path: Path) -> int:
    """Numbers in a safetensors file, from its header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            raise ValueError(f"{path}: not a safetensors file (its header would have {length:,} bytes).")
        header: dict[str, Any] = json.loads(file.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _data(recipe: Recipe) -> Iterator[str]:
    data, train = recipe.data, recipe.train
    manifest = data.prepared / "manifest.json"
    if manifest.is_file():
        found = read_json(manifest)
        number, bound = int(found["num_train"]), ""
        length = float(found["tokens"]["total"]["mean"])
        yield f"data: {data.prepared}, prepared: {number:,} examples of {length:.0f} tokens on average"
    else:
        number, bound, length = _most_rows(recipe), "at most ", float(data.max_length)
        yield f"data: {data.source}, not prepared yet" + (f"; at most {number:,} examples" if number else "")
    if train.steps is not None:
        steps, visits, most = train.steps, train.steps * train.batch_size, ""
    elif number and train.epochs is not None:
        visits, most = max(1, round(train.epochs * number)), bound
        steps = math.ceil(visits / train.batch_size)
    else:
        yield f"training: epochs {train.epochs:g}, batch size {train.batch_size}; the number of steps is not known yet"
        return
    tokens = f"{'about' if not bound else 'at most'} {visits * length:,.0f} tokens"
    yield f"training: {most}{steps:,} steps of {train.batch_size} examples, {tokens} (negatives not counted)"


def _most_rows(recipe: Recipe) -> int:
    """A bound of the rows of an unprepared source; 0 where none is known."""
    source, limit = Path(recipe.data.source).expanduser(), recipe.data.limit
    if source.suffix in (".jsonl", ".ndjson") and source.is_file():
        with source.open("rb") as file:
            rows = sum(not line.isspace() for line in file)
        return min(rows, limit or rows)
    return limit or 0


def _objective(recipe: Recipe) -> Iterator[str]:
    objective = get_objective(recipe.objective.name, **recipe.objective.options)
    yield f"objective: {objective.name}, {objective.entry.formula}; learning rate {recipe.optimizer.lr:g}"
    needs = objective.needs
    if needs & {"ref_logps", "ref_kl"}:
        yield "before training: log-probabilities of the model as it starts, one pass over the data, kept beside it"
    if "groups" in needs:
        yield f"negatives: column {recipe.data.columns.negatives}, {recipe.data.num_negatives or 'all'} a row and epoch"


def _evaluation(recipe: Recipe) -> Iterator[str]:
    config = recipe.evaluate
    total = 0
    for spec in config.benchmarks:
        name, _, limit = spec.rpartition(":") if re.search(r":\d+$", spec) else (spec, "", "")
        questions = int(limit) if limit else NAMED[name].sizes[0] if name in NAMED else 0
        modes = [get_protocol(_spelled(recipe, protocol)) for protocol in config.protocols]
        samples = max((mode.num_samples for mode in modes if mode.sampled), default=0)
        completions = samples + any(not mode.sampled for mode in modes)
        total += questions * completions
        asked = f"{questions:,} questions" if questions else "all questions"
        yield f"evaluation: {spec}, {asked}, {completions} completion{'s' if completions > 1 else ''} each"
    if total:
        yield f"evaluation: {total:,} completions, at most {total * config.max_tokens:,} tokens"


def _spelled(recipe: Recipe, protocol: str) -> str:
    return f"avg@{recipe.evaluate.num_samples}" if protocol == "sample" else protocol


def _fetched(recipe: Recipe) -> Iterator[str]:
    """What the hub would be asked for, and what should be there and is not."""
    named = [("model", recipe.model.path), ("tokenizer", recipe.model.tokenizer), ("data set", recipe.data.source)]
    if (recipe.data.prepared / "manifest.json").is_file():
        named.pop()
    for what, name in named:
        if name is not None and not Path(name).expanduser().exists():
            absent = looks_like_path(name)
            yield f"missing: {what} {name}" if absent else f"to fetch: {what} {name}, unless it is in the hub's cache"
    for spec in recipe.evaluate.benchmarks:
        name = re.sub(r":\d+$", "", spec)
        if name in NAMED and local_copy(name, recipe.evaluate.data_dir) is None:
            yield f"to fetch: benchmark {NAMED[name].hub}, unless it is in the hub's cache"
        elif name not in NAMED and looks_like_path(name) and not Path(name).expanduser().exists():
            yield f"missing: benchmark {name}"


def _amount(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.2f} million"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
