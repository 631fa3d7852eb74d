"""The prepared dataset: what ``dftune prepare`` wrote, held in a few flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

import numpy as np
import numpy.typing as npt

from dftune.data.negatives import negative_id
from dftune.data.tables import read_lists
from dftune.files import read_json

if TYPE_CHECKING:
    from dftune.data.batches import Example
    from dftune.recipe import Recipe

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer"
_RUN_PREPARE = "Run `dftune prepare RECIPE`."

LAYOUT = 2
"""Raised when a prepared dataset changes in a way that training on an old one would be wrong."""

_WITHOUT_INFLUENCE = {"prepared", "num_negatives", "rotate_negatives", "data_dir", "streaming"}

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


class NegativeCounts(TypedDict):
    """What became of every negative read: ``read`` = ``kept`` + the sum of ``dropped``."""

    read: int
    kept: int
    per_row: dict[str, int]
    """min and max of the negatives kept in a row."""
    dropped: dict[str, Dropped]


class _Sometimes(TypedDict, total=False):
    recognised: str
    """Only where the layout of the source was told by its columns: which one, and the settings for it."""
    negatives: NegativeCounts
    """Only where ``data.columns.negatives`` is set."""


class Manifest(_Sometimes):
    """What a prepared dataset holds and what it was made from (``manifest.json``)."""

    kind: Literal["prepared"]
    layout: int
    """`LAYOUT` of the version that wrote it."""
    fingerprint: str
    """Changes with anything that decides the content: data settings, prompt format, tokenizer, rows."""
    settings: dict[str, Any]
    """The ``data`` section of the recipe, without what does not decide the content."""
    tokenizer: dict[str, Any]
    """Where the tokenizer came from: ``{"path", "revision"}`` or ``{"scratch": {"vocab_size"}}``."""
    tokenizer_fingerprint: str
    prompt_format: dict[str, Any]
    """Name, fingerprint and definition."""
    rows_sha256: str
    """Over the rows as read, in their order."""
    counts: Counts
    truncated: dict[str, Dropped]
    """Rows and negatives that were cut to ``data.max_length`` and kept, by what was cut."""
    contamination: dict[str, Any]
    """What was done with training rows that are benchmark problems, and for each benchmark that was checked its
    fingerprint, number of rows, the ids found, and the number of training rows that are one."""
    num_train: int
    num_validation: int
    tokens: dict[str, dict[str, float]]
    """min, mean, median, p95, max and sum of ``prompt``, ``completion``, ``total`` and, where there are any,
    ``negative``, over both splits."""
    versions: dict[str, str]


@dataclass(frozen=True)
class Negatives:
    """The negatives of one split, end to end.

    Attributes:
        numbers: (negatives,) int64, the number of each within its row, part of its id.
        tokens: (tokens,) int32, their completions, each with its end token.
        offsets: (negatives + 1,) int64; negative ``j`` is ``tokens[offsets[j]:offsets[j + 1]]``.
        starts: (examples + 1,) int64; example ``i`` has the negatives ``starts[i]`` to ``starts[i + 1] - 1``.
    """

    numbers: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


@dataclass(frozen=True)
class PreparedSplit:
    """The examples of one split, end to end.

    Attributes:
        ids: stable id of each example.
        tokens: (tokens,) int32, prompt and completion of all examples.
        mask: (tokens,) bool, True on the tokens to be predicted: those of the completions, their end tokens included.
        offsets: (examples + 1,) int64; example ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``.
        negatives: None where the dataset was prepared without.
    """

    ids: tuple[str, ...]
    tokens: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    negatives: Negatives | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(examples,) int64, tokens in prompt and completion."""
        return np.diff(self.offsets)

    def example(self, index: int) -> Example:
        """One example by itself, without its negatives."""
        from dftune.data.batches import Example  # noqa: PLC0415

        span = slice(self.offsets[index], self.offsets[index + 1])
        return Example(self.ids[index], self.tokens[span], self.mask[span])

    def group(
        self, index: int, *, epoch: int = 0, num_negatives: int | None = None, rotate: bool = False
    ) -> list[Example]:
        """One example and its negatives, the example first.

        Args:
            index: of the example.
            epoch: of the visit, from 0.
            num_negatives: how many of them (m); all by default. An example that has fewer gives what it has.
            rotate: epoch e takes the negatives e * m to e * m + m - 1, from the first again after the last; otherwise
                every epoch takes the first m.

        Raises:
            ValueError: the dataset was prepared without negatives.
        """
        from dftune.data.batches import Example  # noqa: PLC0415

        if self.negatives is None:
            raise ValueError(
                "the prepared dataset has no negatives. Set data.columns.negatives to the column that holds them, and "
                "run `dftune prepare RECIPE`."
            )
        chosen = replace(self.example(index), group=self.ids[index])
        num_prompt = int(chosen.completion_mask.argmax())
        prompt = chosen.input_ids[:num_prompt]
        group = [chosen]
        for place in self._places(index, epoch, num_negatives, rotate):
            completion = self.negatives.tokens[self.negatives.offsets[place] : self.negatives.offsets[place + 1]]
            tokens = np.concatenate([prompt, completion])
            group.append(
                Example(
                    negative_id(chosen.id, int(self.negatives.numbers[place])),
                    tokens,
                    np.arange(len(tokens)) >= num_prompt,
                    group=chosen.id,
                    is_chosen=False,
                )
            )
        return group

    def _places(self, index: int, epoch: int, num_negatives: int | None, rotate: bool) -> list[int]:
        assert self.negatives is not None
        start, end = (int(bound) for bound in self.negatives.starts[index : index + 2])
        num_used = min(num_negatives or end - start, end - start)
        first = epoch * num_used if rotate else 0
        return [start + (first + place) % (end - start) for place in range(num_used)]


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
        grouped = "negatives" in manifest
        splits = {name: _read_split(folder / f"{name}.parquet", grouped) for name in ("train", "validation")}
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
        """(tokens,) bool, True exactly on the completions' tokens, the one end token of each included: a view."""
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
    if manifest.get("layout", 1) != LAYOUT:
        raise ValueError(
            f"{folder} was prepared by another version of dftune (layout {manifest.get('layout', 1)}, this one reads "
            f"{LAYOUT}). Run `dftune prepare RECIPE --force`."
        )
    missing = sorted(Manifest.__required_keys__ - manifest.keys())
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: another version wrote it. {_RUN_PREPARE}")
    return cast(Manifest, manifest)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The ``data`` section of a recipe without what does not decide the content, as a manifest records it."""
    settings = recipe.data.model_dump(mode="json", exclude=_WITHOUT_INFLUENCE)
    for key in ("negatives", "input"):  # so that a dataset without them stays what it was before there were any
        if settings["columns"][key] is None:
            del settings["columns"][key]
    if not settings["keep_duplicates"]:
        del settings["keep_duplicates"]
    return settings


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


def _read_split(path: Path, with_negatives: bool) -> PreparedSplit:
    if not path.is_file():
        raise ValueError(f"The prepared dataset lacks {path}. {_RUN_PREPARE}")
    try:
        ids, lists = read_lists(path, ("negative_numbers", "negatives") if with_negatives else ())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}). {_RUN_PREPARE}") from error
    tokens, mask = lists["input_ids"], lists["completion_mask"]
    if not np.array_equal(tokens.offsets, mask.offsets):
        raise ValueError(f"{path}: input_ids and completion_mask differ in length. {_RUN_PREPARE}")
    negatives = None
    if with_negatives:
        numbers, completions = lists["negative_numbers"], lists["negatives"]
        negatives = Negatives(numbers.values, completions.values, completions.offsets, numbers.offsets)
        if len(negatives.numbers) != len(negatives.offsets) - 1:
            raise ValueError(f"{path}: negatives and negative_numbers differ in length. {_RUN_PREPARE}")
    return PreparedSplit(tuple(ids), tokens.values, mask.values, tokens.offsets, negatives)
