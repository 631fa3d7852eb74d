"""Writing a prepared dataset: a folder that appears complete or not at all."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dftune.data.dataset import MANIFEST_NAME, TOKENIZER_NAME, Manifest, PreparedDataset, read_manifest
from dftune.data.examples import Example
from dftune.files import sync, umask_mode, write_json

_ROWS_PER_GROUP = 10_000
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OURS = {
    *(MANIFEST_NAME, TOKENIZER_NAME, "train.parquet", "validation.parquet"),
    *("contamination.jsonl", "contamination.html", "quality.json"),
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised example."""

    example: Example
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
    splits: Mapping[str, Sequence[Encoded]],
    files: Mapping[str, str] | None = None,
) -> None:
    """Write splits, tokenizer, manifest and further texts into a folder beside ``folder``, then rename it.

    Raises:
        OSError: the disk is full; what was written is removed again.
    """
    folder = folder.resolve() if folder.is_symlink() else folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    num_bytes = sum(_size(item) for part in splits.values() for item in part)
    with _full_disk_explained(folder, num_bytes):
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        try:
            for name, part in splits.items():
                _write_split(temporary / f"{name}.parquet", part, with_negatives="negatives" in manifest)
            tokenizer.save_pretrained(str(temporary / TOKENIZER_NAME))
            for name, text in (files or {}).items():
                (temporary / name).write_text(text, encoding="utf-8")
            write_json(temporary / MANIFEST_NAME, manifest)
            temporary.chmod(umask_mode() | (umask_mode() & 0o444) >> 2)
            for path in [*sorted(temporary.rglob("*")), temporary]:
                sync(path)
            _install(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _size(item: Encoded) -> int:
    num_negative = sum(len(tokens) for _, tokens in item.negatives)
    texts = len(item.example.problem) + len(item.example.solution)
    return 5 * len(item.tokens) + 4 * num_negative + texts  # 4 bytes an id, 1 of mask


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


def _write_split(path: Path, part: Sequence[Encoded], with_negatives: bool) -> None:
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    fields = [(name, pa.string()) for name in ("id", "source", "problem", "solution", "answer")]
    fields += [("input_ids", pa.list_(pa.int32())), ("completion_mask", pa.list_(pa.bool_()))]
    if with_negatives:
        fields += [("negative_numbers", pa.list_(pa.int64())), ("negatives", pa.list_(pa.list_(pa.int32())))]
    schema = pa.schema(fields)
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, len(part), _ROWS_PER_GROUP):
            writer.write_table(_table(part[start : start + _ROWS_PER_GROUP], schema))


def _table(part: Sequence[Encoded], schema: Any) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    texts = [
        pa.array([getattr(item.example, name) for item in part], pa.string())
        for name in ("id", "source", "problem", "solution", "answer")
    ]
    lengths = [len(item.tokens) for item in part]
    masks = [item.mask for item in part]
    lists = [_lists(np.concatenate([item.tokens for item in part]), lengths), _lists(np.concatenate(masks), lengths)]
    if "negatives" in schema.names:
        negatives = [negative for item in part for negative in item.negatives]
        counts = [len(item.negatives) for item in part]
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


@contextmanager
def _full_disk_explained(folder: Path, num_bytes: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the tokenizer's writer raises a bare Exception
        full = isinstance(error, OSError) and error.errno in _FULL
        if not full and not any(f"(os error {number})" in str(error) for number in _FULL):
            raise
        free = shutil.disk_usage(folder.parent).free
        raise OSError(
            f"The disk is full: {folder} needs up to {num_bytes / 1e6:.2f} MB and its tokenizer, and "
            f"{free / 1e6:.2f} MB are free. Nothing was left behind. "
            "Free space, or set data.prepared to a folder on another disk."
        ) from error
