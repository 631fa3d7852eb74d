"""The prepared dataset: what ``dftune prepare`` wrote, held in a few flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

import numpy as np
import numpy.typing as npt

from dftune.files import read_json

if TYPE_CHECKING:
    from dftune.recipe import Recipe

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer"
_RUN_PREPARE = "Run `dftune prepare RECIPE`."

Split = Literal["train", "validation"]


class Dropped(TypedDict):
    """Rows left out for one reason."""

    count: int
    examples: list[str]
    """Where the first of them stand, such as ``data.jsonl, line 7``."""


class Counts(TypedDict):
    """What became of every row read: ``rows_read`` = ``kept`` + the sum of ``dropped``."""

    rows_read: int
    kept: int
    dropped: dict[str, Dropped]


class Manifest(TypedDict):
    """What a prepared dataset holds and what it was made from (``manifest.json``)."""

    kind: Literal["prepared"]
    fingerprint: str
    """Changes with anything that decides the content: data settings, prompt format, tokenizer, rows."""
    settings: dict[str, Any]
    """The ``data`` section of the recipe, without ``prepared``."""
    tokenizer: dict[str, Any]
    """Where the tokenizer came from: ``{"path", "revision"}`` or ``{"scratch": {"vocab_size"}}``."""
    tokenizer_fingerprint: str
    prompt_format: dict[str, str]
    rows_sha256: str
    """Over the rows as read, in their order."""
    counts: Counts
    num_train: int
    num_validation: int
    tokens: dict[str, dict[str, float]]
    """min, mean, median, p95, max and sum of ``prompt``, ``completion`` and ``total``, over both splits."""
    versions: dict[str, str]


@dataclass(frozen=True)
class PreparedSplit:
    """The examples of one split, end to end.

    Attributes:
        ids: stable id of each example.
        tokens: (tokens,) int32, prompt and completion of all examples.
        mask: (tokens,) bool, True on completion tokens, the end token included.
        offsets: (examples + 1,) int64; example ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``.
    """

    ids: tuple[str, ...]
    tokens: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(examples,) int64, tokens in prompt and completion."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class PreparedDataset:
    """Examples ready to train on.

    Attributes:
        folder: where they were read from.
        manifest: what they were made from.
        train: examples to train on, in the order of the source.
        validation: held-out examples.
    """

    folder: Path
    manifest: Manifest
    train: PreparedSplit
    validation: PreparedSplit

    @classmethod
    def load(cls, folder: Path) -> PreparedDataset:
        """Read a prepared dataset.

        Raises:
            ValueError: the folder or a file is missing, or the tables do not hold what the manifest says.
        """
        manifest = read_manifest(folder)
        splits = {name: _read_split(folder / f"{name}.parquet") for name in ("train", "validation")}
        for name, split in splits.items():
            expected = manifest["num_train"] if name == "train" else manifest["num_validation"]
            if len(split) != expected:
                raise ValueError(
                    f"{folder / name}.parquet holds {len(split)} rows and {MANIFEST_NAME} says {expected}: "
                    f"the prepared dataset was changed. {_RUN_PREPARE}"
                )
        return cls(folder, manifest, splits["train"], splits["validation"])

    @property
    def fingerprint(self) -> str:
        """Of everything that decided the content."""
        return self.manifest["fingerprint"]

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the tokenizer the examples were tokenised with; ``AutoTokenizer`` loads it."""
        return self.folder / TOKENIZER_NAME

    def split(self, split: Split) -> PreparedSplit:
        """The examples of a split."""
        return self.train if split == "train" else self.validation

    def ids(self, split: Split) -> tuple[str, ...]:
        """Stable ids of the examples of a split."""
        return self.split(split).ids

    def lengths(self, split: Split) -> npt.NDArray[np.int64]:
        """(examples,) int64, tokens in prompt and completion."""
        return self.split(split).lengths

    def input_ids(self, split: Split, index: int) -> npt.NDArray[np.int32]:
        """(tokens,) int32, prompt then completion of one example: a view, not a copy."""
        part = self.split(split)
        return part.tokens[part.offsets[index] : part.offsets[index + 1]]

    def completion_mask(self, split: Split, index: int) -> npt.NDArray[np.bool_]:
        """(tokens,) bool, True exactly on the completion's tokens, its one end token included: a view."""
        part = self.split(split)
        return part.mask[part.offsets[index] : part.offsets[index + 1]]

    def check_matches(self, recipe: Recipe) -> None:
        """Check that the folder was prepared with the recipe's settings.

        Raises:
            ValueError: names every setting that differs.
        """
        differences = differing_settings(self.manifest, recipe)
        if differences:
            listed = "\n".join(f"  {difference}" for difference in differences)
            raise ValueError(
                f"{self.folder} was prepared with other settings than the recipe's:\n{listed}\n"
                "Run `dftune prepare RECIPE --force` to replace it, or set data.prepared to another folder."
            )


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a prepared dataset.

    Raises:
        ValueError: the folder or its manifest is missing, or is something else.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no prepared dataset at {folder}. {_RUN_PREPARE}")
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(f"{folder} is not a prepared dataset: it has no {MANIFEST_NAME}. {_RUN_PREPARE}")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("kind") != "prepared":
        raise ValueError(f"{path} is not the manifest of a prepared dataset. {_RUN_PREPARE}")
    missing = sorted(Manifest.__required_keys__ - manifest.keys())
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: another version wrote it. {_RUN_PREPARE}")
    return cast(Manifest, manifest)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The ``data`` section of a recipe without ``prepared``, as a manifest records it."""
    return recipe.data.model_dump(mode="json", exclude={"prepared"})


def tokenizer_origin(recipe: Recipe) -> dict[str, Any]:
    """Where the recipe's tokenizer comes from, as a manifest records it."""
    model = recipe.model
    if model.scratch is not None:
        return {"scratch": {"vocab_size": model.scratch.vocab_size}}
    return {"path": model.tokenizer or model.path, "revision": None if model.tokenizer else model.revision}


def differing_settings(manifest: Manifest, recipe: Recipe) -> list[str]:
    """What a prepared dataset was made with that the recipe has otherwise, one line a setting."""
    found = list(_differences("data.", manifest["settings"], settings_of(recipe)))
    before, now = manifest["tokenizer"], tokenizer_origin(recipe)
    if "scratch" in before and "scratch" in now:
        found += _differences("model.scratch.", before["scratch"], now["scratch"])
    elif before != now and not _same_tokenizer(manifest, recipe):
        found.append(f"model: prepared with the tokenizer {_named(before)}, the recipe has {_named(now)}")
    return found


def _differences(prefix: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = dict(_flat(before)), dict(_flat(now))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{prefix}{key}: prepared with {old.get(key)!r}, the recipe has {new.get(key)!r}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _named(origin: Mapping[str, Any]) -> str:
    if "scratch" in origin:
        return "trained for model.scratch"
    return f"of {origin['path']}" + (f" at {origin['revision']}" if origin["revision"] else "")


def _same_tokenizer(manifest: Manifest, recipe: Recipe) -> bool:
    # Two sizes of a model family share a tokenizer, and then they may share a prepared dataset.
    if recipe.model.scratch is not None or "scratch" in manifest["tokenizer"]:
        return False
    from dftune.data.tokenizer import load_tokenizer, tokenizer_fingerprint  # noqa: PLC0415

    return tokenizer_fingerprint(load_tokenizer(recipe.model)) == manifest["tokenizer_fingerprint"]


def _read_split(path: Path) -> PreparedSplit:
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    if not path.is_file():
        raise ValueError(f"The prepared dataset lacks {path}. {_RUN_PREPARE}")
    ids: list[str] = []
    tokens: list[npt.NDArray[np.int32]] = [np.zeros(0, np.int32)]
    masks: list[npt.NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
    lengths: list[npt.NDArray[np.int64]] = [np.zeros(1, np.int64)]
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["id", "input_ids", "completion_mask"]):
                ids += batch.column("id").to_pylist()
                column = batch.column("input_ids")
                tokens.append(column.flatten().to_numpy())
                masks.append(batch.column("completion_mask").flatten().to_numpy(zero_copy_only=False))
                lengths.append(column.value_lengths().to_numpy().astype(np.int64))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}). {_RUN_PREPARE}") from error
    split = PreparedSplit(
        tuple(ids), np.concatenate(tokens), np.concatenate(masks), np.cumsum(np.concatenate(lengths), dtype=np.int64)
    )
    if len(split.tokens) != len(split.mask) or len(split.tokens) != split.offsets[-1]:
        raise ValueError(f"{path}: input_ids and completion_mask differ in length. {_RUN_PREPARE}")
    for array in (split.tokens, split.mask, split.offsets):
        array.flags.writeable = False
    return split
