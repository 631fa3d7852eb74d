"""Log-probabilities under the frozen starting model: computed once, kept beside the data, found again by themselves."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dftune.data.batches import Example, MicroBatch
from dftune.files import canonical_json, fingerprint, read_json, sha256_file, sync, write_json
from dftune.progress import Progress
from dftune.train.model import ScoredModel
from dftune.train.shards import whole
from dftune.train.world import ALONE, World

_WINDOW = 256
"""Examples between two notes of how far the work is."""
_LOGPS, _OFFSETS, _MANIFEST, _PROGRESS = "logps.npy", "offsets.npy", "manifest.json", "progress.json"
_NOT_THE_MODEL = ("transformers_version", "dtype", "torch_dtype", "use_cache")

MakeBatches = Callable[[Sequence[Example]], list[MicroBatch]]


class StoredLogps:
    """Log-probabilities of the supervised tokens of every example, memory-mapped.

    Attributes:
        fingerprint: of the model and the examples that they belong to.
    """

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.fingerprint = folder.name
        self._logps: npt.NDArray[np.float32] = np.load(folder / _LOGPS, mmap_mode="r")
        self._offsets: npt.NDArray[np.int64] = np.load(folder / _OFFSETS)
        self._rows = {name: row for row, name in enumerate(ids)}

    def of(self, example_ids: Sequence[str]) -> Tensor:
        """Those of these examples, one after another: (tokens,) float32."""
        rows = [self._rows[name] for name in example_ids]
        return torch.from_numpy(np.concatenate([self._logps[self._offsets[i] : self._offsets[i + 1]] for i in rows]))


def reference_logps(
    model: ScoredModel,
    examples: Sequence[Example],
    make_batches: MakeBatches,
    folder: Path,
    key: Mapping[str, Any],
    *,
    say: Callable[[str], None] = print,
    world: World = ALONE,
) -> StoredLogps:
    """Log-probabilities of all examples under a model that is about to be trained, from the folder or computed.

    They are kept in ``folder/FINGERPRINT``, complete or absent. Work that was cut short is taken up again. Another
    process that wants the same waits for the first. Several ranks share the work; rank 0 writes.

    Args:
        model: with the weights of the reference, or an adapter on them, which is switched off.
        examples: all of them, each id once.
        make_batches: splits examples into forward passes, and gives this rank's share of them.
        folder: ``PREPARED/reference``.
        key: what decides the numbers beside the model's weights and the examples.
        say: receives lines for a person.
        world: the ranks; all call this.

    Raises:
        ValueError: an id comes twice, or what the folder holds is not what was written.
    """
    ids = [example.id for example in examples]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ValueError(
            f"the example id {twice!r} comes more than once. Reference log-probabilities go by id: make ids unique."
        )
    key = {**key, "model": weights_fingerprint(model), "examples": examples_fingerprint(examples)}
    path = folder / fingerprint(dict(key))
    with ExitStack() as stack:
        if world.main:  # another rank has nothing to write, and rank 0 what it holds the lock for
            stack.enter_context(_lock(folder, path.name))
        if world.from_main(lambda: _is_there(path, key)):
            say(f"reference log-probabilities: {path}")
        else:
            say(f"reference log-probabilities of {len(examples):,} examples: computed once, kept in {path}")
            with model.as_base():
                _compute(model, examples, make_batches, path, key, world=world)
    return StoredLogps(path, ids)


@torch.no_grad()
def logps_by_example(
    model: ScoredModel, batches: Sequence[MicroBatch], world: World = ALONE
) -> dict[str, npt.NDArray[np.float32]]:
    """Log-probabilities of each example's supervised tokens, without dropout; those of all ranks' batches."""
    was_training = model.training
    model.eval()
    found: dict[str, npt.NDArray[np.float32]] = {}
    for batch in batches:
        logps: Tensor = model(batch)
        if not batch.is_idle:
            ends = torch.bincount(batch.sequence_ids, minlength=batch.num_sequences).cumsum(0)[:-1].tolist()
            parts = np.split(logps.float().cpu().numpy(), ends)
            found |= dict(zip(batch.example_ids, parts, strict=True))
    model.train(was_training)
    return {name: logps for rank in world.gather(found) for name, logps in rank.items()}


def weights_fingerprint(model: ScoredModel) -> str:
    """Changes with the configuration or any weight of the model; an adapter does not count. All ranks call this."""
    digest = hashlib.sha256()
    config = model.model.config.to_dict()
    kept = {name: value for name, value in config.items() if name[0] != "_" and name not in _NOT_THE_MODEL}
    digest.update(canonical_json({name: repr(value) for name, value in kept.items()}))
    for name, parameter in model.base_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(whole(parameter.detach()).float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def examples_fingerprint(examples: Sequence[Example]) -> str:
    """Changes with the ids, tokens and masks of the examples, and with their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{len(example.id)}:{example.id}{len(example)}:".encode())
        digest.update(example.input_ids.tobytes())
        digest.update(example.completion_mask.tobytes())
    return digest.hexdigest()[:16]


def _compute(
    model: ScoredModel,
    examples: Sequence[Example],
    make_batches: MakeBatches,
    path: Path,
    key: Mapping[str, Any],
    *,
    world: World,
) -> None:
    counts = [int(example.completion_mask[1:].sum()) for example in examples]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    aside = path.with_name(f".incomplete-{path.name}")
    logps: np.memmap[Any, np.dtype[np.float32]] | None = None

    def take_up() -> int:
        nonlocal logps
        logps, done = _take_up(aside, offsets)
        return done

    done = world.from_main(take_up)
    with Progress("reference log-probabilities", len(examples), done=done, shown=world.main) as progress:
        for start in range(done, len(examples), _WINDOW):
            window = examples[start : start + _WINDOW]
            found = logps_by_example(model, make_batches(window), world)
            if logps is not None:
                for row, example in enumerate(window, start):
                    logps[offsets[row] : offsets[row + 1]] = found[example.id]
                logps.flush()
                write_json(aside / _PROGRESS, {"done": start + len(window)})
            progress.update(start + len(window))
    world.from_main(lambda: _finish(logps, aside, path, key))


def _finish(logps: npt.NDArray[np.float32] | None, aside: Path, path: Path, key: Mapping[str, Any]) -> None:
    """Check what was computed, and give it its name."""
    assert logps is not None, "rank 0 holds them"
    if not np.isfinite(logps).all():
        shutil.rmtree(aside)
        raise ValueError("the starting model gives log-probabilities that are not finite; check model.path.")
    (aside / _PROGRESS).unlink(missing_ok=True)
    files = {
        name: {"sha256": sha256_file(aside / name), "bytes": (aside / name).stat().st_size}
        for name in (_LOGPS, _OFFSETS)
    }
    write_json(aside / _MANIFEST, {"kind": "reference", "format": 1, "key": dict(key), "files": files})
    for file in (*aside.iterdir(), aside):
        sync(file)
    aside.rename(path)
    sync(path.parent)


def _take_up(aside: Path, offsets: npt.NDArray[np.int64]) -> tuple[np.memmap[Any, np.dtype[np.float32]], int]:
    """The array to be filled, and how many examples are done already."""
    try:
        done = int(read_json(aside / _PROGRESS)["done"])
        if np.array_equal(np.load(aside / _OFFSETS), offsets):
            return np.lib.format.open_memmap(aside / _LOGPS, mode="r+"), done
    except (OSError, ValueError, KeyError):
        pass  # nothing there, or cut short before the first note
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    np.save(aside / _OFFSETS, offsets)
    shape = (int(offsets[-1]),)
    return np.lib.format.open_memmap(aside / _LOGPS, mode="w+", dtype=np.float32, shape=shape), 0


def _is_there(path: Path, key: Mapping[str, Any]) -> bool:
    """Whether they have been computed.

    Raises:
        ValueError: what is there is something else.
    """
    if not path.exists():
        return False
    problem = "its manifest.json is of something else"
    try:
        manifest = read_json(path / _MANIFEST)
        if manifest["key"] == dict(key):
            changed = [
                name
                for name, expected in manifest["files"].items()
                if (path / name).stat().st_size != expected["bytes"] or sha256_file(path / name) != expected["sha256"]
            ]
            if not changed:
                return True
            problem = f"{', '.join(changed)} changed since"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = str(error)
    raise ValueError(
        f"the reference log-probabilities in {path} are not those of this model and data ({problem}). "
        "They are not used: delete that folder, and they will be computed again."
    )


@contextmanager
def _lock(folder: Path, name: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".lock-{name}").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
