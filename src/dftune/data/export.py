"""A prepared dataset in the formats that other training code reads."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from dftune.data.config import DataConfig
from dftune.data.dataset import PreparedDataset, Split
from dftune.data.examples import Example, Ledger, select_examples
from dftune.data.messages import Message, as_dicts
from dftune.data.named import named_source
from dftune.data.sources import open_rows
from dftune.files import jsonl_line, sync, umask_mode

Kind = Literal["chat-jsonl", "verl-parquet", "generated"]
KINDS: dict[Kind, str] = {
    "chat-jsonl": "train.jsonl with the keys instruction and output",
    "verl-parquet": "train.parquet with data_source, prompt, ability, reward_model, extra_info, as verl reads it",
    "generated": "train.parquet with the conversations real, generated_0, generated_1, ... (Discriminative FT)",
}
"""What is written for each kind; the held-out rows go into files called validation."""

VERL_REQUEST = " Let's think step by step and output the final answer within \\boxed{}."
"""What verl's preparation of math problems puts behind the problem."""

_ROWS_PER_GROUP = 1000


@dataclass(frozen=True)
class Exported:
    """One row to write.

    Attributes:
        example: the text.
        index: its place in its split, from 0.
        split: train or validation.
        data_source: the name of the set.
        numbers: of the negatives that were kept.
    """

    example: Example
    index: int
    split: Split
    data_source: str
    numbers: frozenset[int]


def export(kind: Kind, dataset: PreparedDataset, data: DataConfig, folder: Path) -> dict[str, int]:
    """Write the rows of a prepared dataset as another system's files; the folder appears complete or not at all.

    The texts are read from the source again: the tables hold tokens where the format needs the text of negatives.

    Args:
        kind: the format.
        dataset: says which rows and which negatives.
        data: the ``data`` section that it was prepared with.
        folder: to write into; it must not exist, or be empty.

    Returns:
        The number of rows by the name of the file.

    Raises:
        ValueError: the folder holds something, the source has changed, or a row does not go into the format.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty. Give --export a folder of its own.")
    make, ending = _FORMATS[kind]
    if kind == "generated" and dataset.train.negatives is None:
        raise ValueError(
            "the prepared dataset has no negatives, which the format generated is for. Set data.columns.negatives."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        counts: dict[str, int] = {}
        for split, examples in _splits(dataset, data).items():
            if not dataset.ids(split):
                continue
            path = temporary / f"{split}{ending}"
            width = _most_negatives(dataset) if kind == "generated" else 0
            rows = (make(item, width) for item in examples)
            is_table = ending == ".parquet"
            counts[path.name] = _write_parquet(path, rows, kind, width) if is_table else _write_jsonl(path, rows)
        temporary.chmod(umask_mode() | (umask_mode() & 0o444) >> 2)
        for path in temporary.iterdir():
            sync(path)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return counts


def _splits(dataset: PreparedDataset, data: DataConfig) -> dict[Split, Iterator[Exported]]:
    rows, config, _ = open_rows(data)
    examples, rows_sha256 = select_examples(rows, config, Ledger(), keep_duplicates=data.keep_duplicates)
    if rows_sha256 != dataset.manifest["rows_sha256"]:
        raise ValueError(
            f"the rows of {data.source} have changed since {dataset.folder} was prepared. Run `dftune prepare RECIPE "
            "--force`, and export again."
        )
    by_id = {example.id: example for example in examples}
    name = _name_of(data)

    def of(split: Split) -> Iterator[Exported]:
        for index, identity in enumerate(dataset.ids(split)):
            yield Exported(by_id[identity], index, split, name, _numbers(dataset, split, index))

    return {"train": of("train"), "validation": of("validation")}


def _name_of(data: DataConfig) -> str:
    named = named_source(data.source)
    if named is not None:
        return named.hub
    return Path(data.source).name if Path(data.source).expanduser().exists() else data.source


def _numbers(dataset: PreparedDataset, split: Split, index: int) -> frozenset[int]:
    negatives = dataset.split(split).negatives
    if negatives is None:
        return frozenset()
    start, end = negatives.starts[index : index + 2]
    return frozenset(negatives.numbers[start:end].tolist())


def _most_negatives(dataset: PreparedDataset) -> int:
    """One more than the highest number of a negative that was kept."""
    parts = (part.negatives for part in (dataset.train, dataset.validation) if part.negatives is not None)
    return 1 + max((int(part.numbers.max()) for part in parts if len(part.numbers)), default=-1)


def _chat(item: Exported, _: int) -> dict[str, Any]:
    example = item.example
    if example.history:
        raise ValueError(
            f"{example.location}: a conversation of several messages does not go into instruction and output. "
            "Export it as generated or verl-parquet."
        )
    return {"instruction": example.problem, "output": example.solution}


def _verl(item: Exported, _: int) -> dict[str, Any]:
    example = item.example
    asked = Message("user", example.problem + VERL_REQUEST)
    return {
        "data_source": item.data_source,
        "prompt": as_dicts((*example.history, asked)),
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": example.answer},
        "extra_info": {
            "split": item.split,
            "index": item.index,
            "answer": example.solution,
            "question": example.problem,
        },
    }


def _generated(item: Exported, width: int) -> dict[str, Any]:
    example = item.example
    before = (*example.history, Message("user", example.problem))
    row: dict[str, Any] = {"id": example.id, "real": as_dicts((*before, Message("assistant", example.solution)))}
    texts = {number: text for number, text in example.negatives if number in item.numbers}
    for number in range(width):
        text = texts.get(number)
        row[f"generated_{number}"] = None if text is None else as_dicts((*before, Message("assistant", text)))
    return row


_FORMATS: dict[Kind, tuple[Callable[[Exported, int], dict[str, Any]], str]] = {
    "chat-jsonl": (_chat, ".jsonl"),
    "verl-parquet": (_verl, ".parquet"),
    "generated": (_generated, ".parquet"),
}


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with path.open("wb") as file:
        for count, row in enumerate(rows, 1):  # noqa: B007
            file.write(jsonl_line(row))
    return count


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], kind: Kind, width: int) -> int:
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    text = pa.string()
    conversation = pa.list_(pa.struct([("role", text), ("content", text)]))
    if kind == "verl-parquet":
        extra = [("split", text), ("index", pa.int64()), ("answer", text), ("question", text)]
        fields = [
            ("data_source", text),
            ("prompt", conversation),
            ("ability", text),
            ("reward_model", pa.struct([("style", text), ("ground_truth", text)])),
            ("extra_info", pa.struct(extra)),
        ]
    else:
        fields = [("id", text), ("real", conversation)]
        fields += [(f"generated_{number}", conversation) for number in range(width)]
    schema = pa.schema(fields)
    count = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while part := list(islice(rows, _ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(part, schema=schema))
            count += len(part)
    return count
