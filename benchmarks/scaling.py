"""What checkpoints cost, what a second process costs, and on a GPU what each switch brings, with TRL beside.

    python benchmarks/scaling.py                     # on a CPU: checkpoints, 1 against 2 processes; a minute or two
    python benchmarks/scaling.py --device cuda --record benchmarks/RESULTS.md
                                                     # 0.5b and 1.5b, packed 4,096 and 8,192: tokens/s, MFU, memory
    python benchmarks/scaling.py --device cuda --kernels none liger --attention auto flash_attention_3

On a CPU, a checkpoint of a random model: the time in which training stands still, with and without a background writer,
and the time until the files are complete. Then the same run of `dftune train` in 1 and in 2 processes, in turn, each
process with one thread: tokens a second as the ratio to one process.

On a GPU, optimizer steps of one packed forward pass each, random examples on Qwen2.5's shapes with random weights,
bfloat16 compute, float32 weights and AdamW, objective dynamic_ft; each combination in its own process. The rows of TRL
are its SFTTrainer with its dft loss, as in train_step.py, on the same examples in the same run. Real tokens only; MFU
is dftune's on both sides; memory is the most that the allocator gave out. `--record FILE` appends what is printed,
with device, versions and date. `--shapes tiny` tries the code out on any device.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo_recipe import write_recipe
from train_step import SETTINGS, Setting, make_examples, make_model, now, run_trl, summary

SHAPES = {
    "tiny": SETTINGS["tiny"],
    "0.5b": Setting(vocab=151_936, bf16=True, hidden=896, intermediate=4864, layers=24, heads=14, max_length=2048),
    "1.5b": SETTINGS["1.5b"],
}
SWITCHES = {
    "compile": ("no", "yes"),
    "recompute": ("none", "selective", "full"),
    "scorer": ("fused", "plain"),
    "kernels": ("none", "liger"),
    "attention": ("auto", "sdpa", "flash_attention_2", "flash_attention_3"),
}
"""Each with its values; `scorer: plain` makes the logits of all supervised tokens. The last two vary when asked to."""
TARGET_MFU = 0.45


def checkpoints(repeats: int) -> None:
    """Print the blocking and the whole time of a checkpoint, in the foreground and in the background."""
    import torch
    from transformers import AutoTokenizer

    from dftune.demo.run import BASE_MODEL
    from dftune.train.checkpoint import Contents
    from dftune.train.config import OptimizerConfig
    from dftune.train.optim import make_optimizer
    from dftune.train.saver import Saver

    model = make_model(dataclasses.replace(SETTINGS["small"], vocab=32_768, hidden=512, layers=6, heads=8), "sdpa")
    optimizer = make_optimizer(model, OptimizerConfig(lr=1e-3))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    contents = Contents(model, AutoTokenizer.from_pretrained(BASE_MODEL), optimizer, {})
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"| checkpoint of {count / 1e6:.0f} M parameters | training stands still, s | complete after, s |")
    print("|---|---:|---:|")
    times: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for step in range(repeats):
        for background, rows in times.items():
            with tempfile.TemporaryDirectory() as folder:
                saver = Saver(Path(folder), background=background, done=lambda step, path: None)
                started = time.perf_counter()
                saver.save(step, contents)
                blocked = time.perf_counter() - started
                saver.finish()
                rows.append((blocked, time.perf_counter() - started))
    for background, rows in times.items():
        blocked, whole = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {'in the background' if background else 'at once'} | {blocked:.2f} | {whole:.2f} |", flush=True)


def tokens_per_s(recipe: Path, ranks: int, strategy: str, parts: int) -> float:
    """The median over the steps of a run, the first two left out."""
    from dftune.files import read_jsonl

    command = [sys.executable, "-m", "dftune", "train", str(recipe), "--overwrite", "--no-evaluate"]
    if ranks > 1:
        settings = [f"distributed.strategy={strategy}", f"distributed.sequence_parallel={parts}"]
        command += [*settings, "--nproc", str(ranks)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    rows = [row for row in read_jsonl(recipe.parent / "run" / "events.jsonl") if row["kind"] == "train"]
    return statistics.median(row["tokens_per_s"] for row in rows[2:])


def processes(rounds: int, steps: int) -> None:
    """Print the throughput of 1 process, and of 2 under either strategy, and with the positions divided among them."""
    ways = [(1, "none", 1), (2, "ddp", 1), (2, "fsdp", 1), (2, "ddp", 2), (2, "fsdp", 2)]
    found: dict[tuple[int, str, int], list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        train = {"steps": steps, "batch_size": 64, "micro_batch_tokens": 4096, "device": "cpu", "threads": 1}
        recipe = write_recipe(Path(folder), 600, train=train)
        for _ in range(rounds):
            for way in ways:
                found[way].append(tokens_per_s(recipe, *way))
    print("\n| processes | strategy | to a sequence | tokens/s | of one process |\n|---:|---|---:|---:|---:|")
    alone = statistics.median(found[ways[0]])
    for (ranks, strategy, parts), speeds in found.items():
        speed = statistics.median(speeds)
        print(f"| {ranks} | {strategy} | {parts} | {speed:,.0f} | {speed / alone:.2f} |", flush=True)


def run_steps(case: dict[str, Any], device: str, steps: int) -> dict[str, float]:
    """One combination on this device: ours, or TRL's."""
    import torch

    setting = SHAPES[case["shape"]]
    rows = max(1, case["tokens"] // setting.max_length)
    setting = dataclasses.replace(setting, rows=rows, recompute=case["recompute"] != "none")
    examples = make_examples((steps + 3) * case["tokens"] // setting.mean_length, setting)
    found = run_trl(setting, device, examples, steps) if case["side"] == "trl" else _ours(case, device, examples, steps)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else found["peak_rss_mib"]
    return found | {"peak_mib": peak}


def _ours(case: dict[str, Any], device: str, examples: list[dict[str, Any]], steps: int) -> dict[str, float]:
    import numpy as np
    import torch

    from dftune.data.batches import Example, micro_batches
    from dftune.objectives import get_objective
    from dftune.ops.attention import register
    from dftune.train.config import OptimizerConfig
    from dftune.train.kernels import use_liger
    from dftune.train.model import ScoredModel
    from dftune.train.optim import make_optimizer
    from dftune.train.recompute import compile_blocks, recompute
    from dftune.train.step import Pass, train_step

    setting, place = SHAPES[case["shape"]], torch.device(device)
    model = make_model(setting, register(case["attention"])).to(device)
    recompute(model, case["recompute"])
    if case["compile"] == "yes":
        compile_blocks(model)
    scored = ScoredModel(model, torch.bfloat16).train()
    if case["kernels"] == "liger":
        use_liger([scored], place, vocab_size=setting.vocab)
    optimizer, objective = make_optimizer(scored, OptimizerConfig(lr=1e-5)), get_objective("dynamic_ft")
    rows = [
        Example(str(index), np.array(row["input_ids"], np.int32), np.array(row["completion_mask"], bool))
        for index, row in enumerate(examples)
    ]
    batches = [batch.to(place) for batch in micro_batches(rows, max_tokens=case["tokens"])]
    how, tokens = Pass(route="auto" if case["scorer"] == "fused" else "plain"), 0
    for step in range(steps + 2):
        if step == 2:  # the first two warm up, and compile
            started = now(device)
        batch = batches[step % len(batches)]
        train_step(scored, optimizer, objective, [batch], lr=1e-5, max_grad_norm=1.0, how=how)
        tokens += batch.num_tokens if step >= 2 else 0
    return summary(scored, device, tokens, started, 0.0)


def combinations(shapes: list[str], lengths: list[int], chosen: dict[str, list[str]], device: str, steps: int) -> None:
    """Print tokens a second, MFU and peak memory of every combination, and of TRL; what does not fit is said so."""
    print(f"| shape | packed | side | {' | '.join(SWITCHES)} | tokens/s | MFU | peak memory, MiB |")
    print(f"|---|---:|---|{'---|' * len(SWITCHES)}---:|---:|---:|")
    for shape, tokens in itertools.product(shapes, lengths):
        best: dict[str, dict[str, float]] = {}
        cases = [{"side": "ours", **dict(zip(SWITCHES, values, strict=True))} for values in _product(chosen)]
        cases += [{"side": "trl", "recompute": kind} for kind in ("none", "full") if kind in chosen["recompute"]]
        for case in cases:
            found = _measure({"shape": shape, "tokens": tokens, **case}, device, steps)
            switches = " | ".join(case.get(name, "") for name in SWITCHES)
            name = f"| {shape} | {tokens:,} | {case['side']} | {switches} |"
            if isinstance(found, str):
                print(f"{name} {found} | | |", flush=True)
                continue
            mfu = f"{100 * found['mfu']:.1f} %" if found["mfu"] else ""
            print(f"{name} {found['tokens_per_s']:,.0f} | {mfu} | {found['peak_mib']:,.0f} |", flush=True)
            best[case["side"]] = max(found, best.get(case["side"], found), key=lambda one: one["tokens_per_s"])
        if len(best) == 2:
            ratio = best["ours"]["tokens_per_s"] / best["trl"]["tokens_per_s"]
            mfu = f"{100 * best['ours']['mfu']:.1f} % (aim {100 * TARGET_MFU:.0f} %)" if best["ours"]["mfu"] else ""
            ends = f"{'' if ratio >= 1 else 'BELOW TRL: '}{ratio:.2f}"
            print(
                f"| {shape} | {tokens:,} | best ours / best trl |{' |' * len(SWITCHES)} {ends} | {mfu} | |", flush=True
            )


def _product(chosen: dict[str, list[str]]) -> Iterator[tuple[str, ...]]:
    return itertools.product(*(chosen[name] for name in SWITCHES))


def _measure(case: dict[str, Any], device: str, steps: int) -> dict[str, float] | str:
    """Figures of a combination in a process of its own, or why there are none."""
    command = [sys.executable, __file__, "--device", device, "--steps", str(steps), "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return "does not fit" if any("OutOfMemory" in line for line in lines) else lines[-1][:80].replace("|", "/")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


class Recorder:
    """Standard output, and at the end of a file what is written to it."""

    def __init__(self, file: Path) -> None:
        self._file, self._out = file, sys.stdout

    def write(self, text: str) -> None:
        self._out.write(text)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(text)

    def flush(self) -> None:
        self._out.flush()


def machine(device: str) -> str:
    """Date, device and versions, for what is recorded."""
    from importlib import metadata

    import torch

    versions = []
    for name in ("torch", "transformers", "trl", "liger-kernel", "flash-attn"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{time.strftime('%Y-%m-%d')}. {where}; {', '.join(versions)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, help="measure combinations of these (on cuda all others)"
    )
    parser.add_argument("--tokens", nargs="+", type=int, default=[4096, 8192], help="of a packed forward pass")
    parser.add_argument("--steps", type=int, default=10, help="timed steps (default 10)")
    parser.add_argument("--rounds", type=int, default=2, help="of what is run in turn")
    for name, values in SWITCHES.items():
        default = values[:1] if name in ("kernels", "attention") else values
        parser.add_argument(f"--{name}", nargs="+", choices=values, default=default, help=f"(default {default})")
    parser.add_argument("--record", type=Path, metavar="FILE", help="append what is printed to a file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_steps(json.loads(arguments.case), arguments.device, arguments.steps)))
        return
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: torch sees no CUDA device")
    if arguments.record:
        sys.stdout = Recorder(arguments.record)
        print("\n## On one device: `benchmarks/scaling.py`\n")
    if arguments.device == "cuda" or arguments.shapes:
        print(f"{machine(arguments.device)}; `python {' '.join(sys.argv)}`\n")
    elif not arguments.shapes:
        print(f"load {os.getloadavg()[0]:.1f}\n")
        checkpoints(2 * arguments.rounds + 1)
        processes(arguments.rounds, arguments.steps)
        print(f"\nload {os.getloadavg()[0]:.1f}")
        return
    chosen = {name: getattr(arguments, name) for name in SWITCHES}
    combinations(arguments.shapes or ["0.5b", "1.5b"], arguments.tokens, chosen, arguments.device, arguments.steps)


if __name__ == "__main__":
    main()
