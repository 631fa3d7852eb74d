"""Writing a prepared dataset: a folder that appears complete or not at all."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dftune.data.dataset import MANIFEST_NAME, TOKENIZER_NAME, Manifest, PreparedDataset, read_manifest
from dftune.data.examples import Example
from dftune.files import sync, umask_mode, write_json

_ROWS_PER_GROUP = 10_000
_TOKENS_PER_GROUP = 4_000_000
_TEXTS = ("id", "source", "problem", "solution", "answer")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OURS = {
    *(MANIFEST_NAME, TOKENIZER_NAME, "train.parquet", "validation.parquet"),
    *("contamination.jsonl", "contamination.html", "quality.json"),
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of an example."""

    tokens: npt.NDArray[np.int32]
    """(tokens,) prompt and completion."""
    spans: tuple[tuple[int, int], ...]
    """Start and end of every completion that is trained on, its end token included."""
    negatives: tuple[tuple[int, npt.NDArray[np.int32]], ...] = ()
    """Number and (tokens,) completion of each negative."""

    @property
    def num_supervised(self) -> int:
        """Tokens that are trained on."""
        return sum(end - start for start, end in self.spans)

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(tokens,) bool, true on the tokens that are trained on."""
        mask = np.zeros(len(self.tokens), np.bool_)
        for start, end in self.spans:
            mask[start:end] = True
        return mask


def find_existing(
    folder: Path, content: str, differing: Callable[[Manifest], list[str]], force: bool
) -> Manifest | None:
    """The manifest of a folder that already holds what would be written; None where it may be written.

    Args:
        folder: where the dataset is to be.
        content: fingerprint of what would be written.
        differing: what a manifest was made with that now is otherwise.
        force: whether a dataset of other content may be replaced.

    Raises:
        ValueError: something is there that must not be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not folder.is_dir() or not {entry.name for entry in folder.iterdir()} <= _OURS:
        raise ValueError(f"{folder} exists and is no prepared dataset. Set data.prepared to a folder of its own.")
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        if force:
            return None
        raise ValueError(f"{folder} holds a damaged dataset ({error}). Use --force to replace it.") from error
    if manifest["fingerprint"] == content:
        return manifest if _intact(folder) else None
    if force:
        return None
    differences = differing(manifest) or ["the rows of the source, or the tokenizer's files, have changed since"]
    listed = "\n".join(f"  {difference}" for difference in differences)
    raise ValueError(
        f"{folder} holds a dataset that was prepared otherwise:\n{listed}\n"
        "Use --force to replace it, or set data.prepared to another folder."
    )


def _intact(folder: Path) -> bool:
    try:
        PreparedDataset.load(folder)
    except ValueError:
        return False
    return (folder / TOKENIZER_NAME / "tokenizer_config.json").is_file()


def write_dataset(
    folder: Path,
    manifest: Manifest,
    tokenizer: Any,
    rows: Iterable[tuple[str, Example, Encoded]],
    files: Callable[[], Mapping[str, str]],
) -> None:
    """Write splits, tokenizer, manifest and further texts into a folder beside ``folder``, then rename it.

    Args:
        folder: where the dataset is to be.
        manifest: of the dataset.
        tokenizer: is saved with it.
        rows: split, example and tokens, in the order of the source.
        files: called after the last row; texts by their names.

    Raises:
        OSError: the disk is full; what was written is removed again.
    """
    folder = folder.resolve() if folder.is_symlink() else folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        with _Tables(temporary, with_negatives="negatives" in manifest) as tables:
            for split, example, encoded in rows:
                tables.add(split, example, encoded)
        tokenizer.save_pretrained(str(temporary / TOKENIZER_NAME))
        for name, text in files().items():
            (temporary / name).write_text(text, encoding="utf-8")
        write_json(temporary / MANIFEST_NAME, manifest)
        temporary.chmod(umask_mode() | (umask_mode() & 0o444) >> 2)
        for path in [*sorted(temporary.rglob("*")), temporary]:
            sync(path)
        _install(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _install(temporary: Path, folder: Path) -> None:
    aside = temporary.with_suffix(".old")
    if folder.exists():
        folder.rename(aside)
    try:
        temporary.rename(folder)
    except BaseException:
        if aside.exists():
            aside.rename(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


class _Tables:
    """The two tables, written group by group: as many rows as are in memory at once."""

    def __init__(self, folder: Path, *, with_negatives: bool) -> None:
        import pyarrow as pa  # noqa: PLC0415

        fields = [(name, pa.string()) for name in _TEXTS]
        fields += [("input_ids", pa.list_(pa.int32())), ("completion_mask", pa.list_(pa.bool_()))]
        if with_negatives:
            fields += [("negative_numbers", pa.list_(pa.int64())), ("negatives", pa.list_(pa.list_(pa.int32())))]
        self._schema = pa.schema(fields)
        self._folder = folder
        self._waiting: dict[str, list[tuple[Example, Encoded]]] = {}
        self._num_tokens: dict[str, int] = {}
        self._writers: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _Tables:
        from pyarrow import parquet  # noqa: PLC0415

        for split in ("train", "validation"):
            path = self._folder / f"{split}.parquet"
            self._writers[split] = self._stack.enter_context(
                parquet.ParquetWriter(path, self._schema, compression="zstd")
            )
            self._waiting[split], self._num_tokens[split] = [], 0
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._stack:  # closes the files in any case
            if kind is None:
                for split in self._writers:
                    self._flush(split)

    def add(self, split: str, example: Example, encoded: Encoded) -> None:
        """Take a row."""
        self._waiting[split].append((example, encoded))
        self._num_tokens[split] += len(encoded.tokens) + sum(len(tokens) for _, tokens in encoded.negatives)
        if len(self._waiting[split]) == _ROWS_PER_GROUP or self._num_tokens[split] > _TOKENS_PER_GROUP:
            self._flush(split)

    def _flush(self, split: str) -> None:
        if self._waiting[split]:
            self._writers[split].write_table(_table(self._waiting[split], self._schema))
        self._waiting[split], self._num_tokens[split] = [], 0


def _table(part: Sequence[tuple[Example, Encoded]], schema: Any) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    texts = [pa.array([getattr(example, name) for example, _ in part], pa.string()) for name in _TEXTS]
    rows = [encoded for _, encoded in part]
    lengths = [len(row.tokens) for row in rows]
    masks = [row.mask for row in rows]
    lists = [_lists(np.concatenate([row.tokens for row in rows]), lengths), _lists(np.concatenate(masks), lengths)]
    if "negatives" in schema.names:
        negatives = [negative for row in rows for negative in row.negatives]
        counts = [len(row.negatives) for row in rows]
        completions = _lists(
            np.concatenate([tokens for _, tokens in negatives]), [len(tokens) for _, tokens in negatives]
        )
        lists += [_lists([number for number, _ in negatives], counts), _lists(completions, counts)]
    return pa.table([*texts, *lists], schema=schema)


def _lists(values: Any, lengths: Sequence[int]) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = values if isinstance(values, pa.Array) else pa.array(values)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def existing_parent(folder: Path) -> Path:
    """The nearest folder above that exists."""
    return next(parent for parent in folder.resolve().parents if parent.is_dir())


@contextmanager
def full_disk_explained(folder: Path, num_bytes: Callable[[], int]) -> Iterator[None]:
    """Say what is needed and what is free where the block finds the disk full.

    Args:
        folder: of the dataset.
        num_bytes: about what its tables need, as far as that is known.

    Raises:
        OSError: the disk is full.
    """
    try:
        yield
    except Exception as error:  # the tokenizer's writer raises a bare Exception
        full = isinstance(error, OSError) and error.errno in _FULL
        if not full and not any(f"(os error {number})" in str(error) for number in _FULL):
            raise
        free = shutil.disk_usage(existing_parent(folder)).free
        raise OSError(
            f"The disk is full: {folder} needs up to {num_bytes() / 1e6:.2f} MB and its tokenizer, and "
            f"{free / 1e6:.2f} MB are free. Nothing was left behind. "
            "Free space, or set data.prepared to a folder on another disk."
        ) from error
