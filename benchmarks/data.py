"""Preparing data: examples a second for tokenising, packing and decontaminating, and peak memory.

    python benchmarks/data.py ROWS.jsonl                      # every part, a few minutes on two cores
    python benchmarks/data.py ROWS.jsonl --only tokenise --rows 50000
    python benchmarks/data.py ROWS.jsonl --only decontaminate --rows 860000 --benchmarks math500.jsonl aime24.jsonl

ROWS.jsonl holds real rows (problem, solution); they are repeated, one word changed in each, until there are enough.
Every side of every part runs in a process of its own; both sides of a part run one after the other. TRL is an extra
(`pip install 'dftune[trl]'`). The parts:

    tokenise       text to token ids and masks on disk: `Encoder` and the tables; TRL's SFTTrainer in two processes
    pack           lengths to rows of 8,192 tokens: `best_fit`; TRL's pack_dataset (bfd), which copies tokens as well
    decontaminate  against benchmarks: `dftune.decontaminate.scan` with two workers; TRL has no such step
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BUDGET, MAX_LENGTH, VOCAB = 8192, 1024, 8192


def rows_of(path: Path, num: int) -> Iterator[dict[str, str]]:
    """Real rows, over and over, each with one word of its own."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(itertools.islice(itertools.cycle(rows), num)):
        words = row["problem"].split()
        words[number * 7919 % len(words)] = f"w{number}"
        yield {"problem": " ".join(words), "solution": row["solution"]}


def make_tokenizer(path: Path, folder: Path) -> Any:
    """A byte-level BPE tokenizer of the rows, saved beside a configuration; the same for both sides."""
    from transformers import AutoTokenizer, Qwen2Config

    from dftune.data.tokenizer import train_tokenizer

    if not (folder / "config.json").exists():
        texts = [text for row in rows_of(path, 3000) for text in row.values()]
        train_tokenizer(texts, VOCAB).save_pretrained(folder)
        Qwen2Config(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1
        ).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def tokenise_ours(path: Path, num: int, folder: Path) -> dict[str, float]:
    from dftune.data.config import DataConfig
    from dftune.data.encode import Encoder, check_some_left
    from dftune.data.examples import Ledger, select_examples
    from dftune.data.prompts import get_format
    from dftune.data.store import _Tables

    tokenizer = make_tokenizer(path, folder)
    config = DataConfig(source="rows", prepared=folder / "out", prompt_format="plain", max_length=MAX_LENGTH)
    (folder / "out").mkdir()
    rows = list(rows_of(path, num))
    start = Clock()
    ledger = Ledger()
    examples, _ = select_examples((("row", row) for row in rows), config, ledger, folder=folder)
    encoder = Encoder(config, get_format("plain", tokenizer), ledger, lambda *_: None, folder)
    encoding = encoder.encode_with(tokenizer, examples, range(len(examples)))
    with _Tables(folder / "out", with_negatives=False) as tables:
        for place, encoded in encoding.rows:
            tables.add("train", examples[place], encoded)
    check_some_left(len(encoding.rows), config, ledger)
    return start.read(num, tokens=sum(encoding.num_tokens))


def tokenise_trl(path: Path, num: int, folder: Path) -> dict[str, float]:
    import datasets
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = make_tokenizer(path, folder)
    model = Qwen2ForCausalLM(Qwen2Config.from_pretrained(folder))
    rows = [{"prompt": row["problem"] + "\n", "completion": row["solution"]} for row in rows_of(path, num)]
    dataset = datasets.Dataset.from_list(rows)
    config = SFTConfig(
        output_dir=str(folder / "out"),
        max_length=MAX_LENGTH,
        dataset_num_proc=2,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    start = Clock()
    trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    read = start.read(num)
    return {**read, "tokens": sum(map(len, trainer.train_dataset["input_ids"]))}


def lengths_of(num: int) -> Any:
    """Lengths like those of chains of thought: log-normal, median 300, at most 4,096."""
    import numpy as np

    return np.clip(np.random.default_rng(0).lognormal(np.log(300), 0.8, num), 16, 4096).astype(np.int64)


def pack_ours(path: Path, num: int, folder: Path) -> dict[str, float]:
    from dftune.data.packing import best_fit

    lengths = lengths_of(num)
    start = Clock()
    rows = best_fit(lengths, BUDGET)
    return {**start.read(num, tokens=int(lengths.sum())), "unused": 1 - lengths.sum() / (len(rows) * BUDGET)}


def pack_trl(path: Path, num: int, folder: Path) -> dict[str, float]:
    import datasets
    import numpy as np
    import pyarrow as pa
    from trl import pack_dataset

    lengths = lengths_of(num)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = pa.array(np.zeros(offsets[-1], np.int32))
    column = pa.LargeListArray.from_arrays(pa.array(offsets), values)
    dataset = datasets.Dataset(pa.table({"input_ids": column}))
    start = Clock()
    packed = pack_dataset(dataset, BUDGET, "bfd")
    return {**start.read(num, tokens=int(lengths.sum())), "unused": 1 - lengths.sum() / (len(packed) * BUDGET)}


def decontaminate_ours(path: Path, num: int, folder: Path, benchmarks: list[str]) -> dict[str, float]:
    from dftune.decontaminate.decide import Problem
    from dftune.decontaminate.index import BenchmarkRow, Index
    from dftune.decontaminate.scan import scan
    from dftune.evaluate.benchmarks import load_benchmark

    loaded = [load_benchmark(name) for name in benchmarks]
    index = Index(
        BenchmarkRow(
            each.name, row.id, Problem(row.problem, (row.target,) if isinstance(row.target, str) else tuple(row.target))
        )
        for each in loaded
        for row in each.rows
    )
    start = Clock()
    problems = (Problem(row["problem"], (), row["solution"]) for row in rows_of(path, num))
    same = sum(any(hit.decision.same for hit in hits) for hits in scan(problems, index, workers=2))
    return {**start.read(num), "same": same, "benchmark_rows": sum(len(each.rows) for each in loaded)}


class Clock:
    """Wall and processor seconds, children's too, and the peak memory above that at the start."""

    def __init__(self) -> None:
        self._rss = self._peak()
        self._wall, self._cpu = time.perf_counter(), self._processor()

    def read(self, num: int, **more: float) -> dict[str, float]:
        wall, cpu = time.perf_counter() - self._wall, self._processor() - self._cpu
        return {"wall": wall, "cpu": cpu, "per_s": num / wall, "mib": self._peak() - self._rss, **more}

    @staticmethod
    def _processor() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    @staticmethod
    def _peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


PARTS: dict[str, tuple[Any, ...]] = {
    "tokenise": (tokenise_ours, tokenise_trl),
    "pack": (pack_ours, pack_trl),
    "decontaminate": (decontaminate_ours,),
}
ROWS = {"tokenise": 20_000, "pack": 1_000_000, "decontaminate": 20_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--benchmarks", nargs="*", default=["math500"])
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side = next(side for part in PARTS.values() for side in part if side.__name__ == args.side)
        more = (args.benchmarks,) if side is decontaminate_ours else ()
        with tempfile.TemporaryDirectory() as folder:
            print("RESULT", json.dumps(side(args.source, args.rows, Path(folder), *more)))
        return
    print(f"{'':<22}{'examples':>10}{'wall s':>9}{'cpu s':>9}{'a second':>10}{'MiB':>8}")
    for part in [args.only] if args.only else PARTS:
        num = args.rows or ROWS[part]
        for side in PARTS[part]:
            command = [sys.executable, __file__, str(args.source), "--side", side.__name__, "--rows", str(num)]
            done = subprocess.run(
                [*command, "--benchmarks", *args.benchmarks],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"},
            )
            found = json.loads(done.stdout.rpartition("RESULT ")[2])
            line = f"{side.__name__:<22}{num:>10,}{found.pop('wall'):>9.1f}{found.pop('cpu'):>9.1f}"
            print(f"{line}{found.pop('per_s'):>10,.0f}{found.pop('mib'):>8.0f}   {found}", flush=True)


if __name__ == "__main__":
    main()
