"""What checkpoints cost, what a second process costs, and on a GPU what compiling, recomputing and the route bring.

    python benchmarks/scaling.py                     # on a CPU: checkpoints, 1 against 2 processes; a minute or two
    python benchmarks/scaling.py --device cuda       # 0.5b and 1.5b, packed 4,096 and 8,192: tokens/s, MFU, memory

On a CPU, a checkpoint of a random model: the time in which training stands still, with and without a background writer,
and the time until the files are complete. Then the same run of `dftune train` in 1 and in 2 processes, in turn, each
process with one thread: tokens a second as the ratio to one process.

On a GPU, one optimizer step of random examples on Qwen2.5's shapes with random weights, bfloat16 compute, each
combination in its own process. `--shapes tiny` tries the code out on any device.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from train_step import SETTINGS, PeakMemory, Setting, make_examples, make_model, now, summary

SHAPES = {
    "tiny": SETTINGS["tiny"],
    "0.5b": Setting(vocab=151_936, bf16=True, hidden=896, intermediate=4864, layers=24, heads=14, max_length=2048),
    "1.5b": SETTINGS["1.5b"],
}
COMPILE, RECOMPUTE, ROUTES = (False, True), ("none", "selective", "full"), ("auto", "recompute")


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


def write_recipe(folder: Path, steps: int) -> Path:
    import yaml

    from dftune.demo.problems import generate
    from dftune.demo.run import BASE_MODEL, write_problems

    write_problems(folder / "train.jsonl", generate(600, seed=0, split="train"))
    recipe = {
        "name": "run",
        "output": str(folder / "run"),
        "data": {
            "source": str(folder / "train.jsonl"),
            "prompt_format": "plain",
            "max_length": 256,
            "prepared": str(folder / "prepared"),
        },
        "model": {"path": str(BASE_MODEL)},
        "objective": {"name": "dynamic_ft"},
        "optimizer": {"lr": 3e-4},
        "train": {"steps": steps, "batch_size": 64, "micro_batch_tokens": 4096, "device": "cpu", "threads": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


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
        recipe = write_recipe(Path(folder), steps)
        for _ in range(rounds):
            for way in ways:
                found[way].append(tokens_per_s(recipe, *way))
    print("\n| processes | strategy | to a sequence | tokens/s | of one process |\n|---:|---|---:|---:|---:|")
    alone = statistics.median(found[ways[0]])
    for (ranks, strategy, parts), speeds in found.items():
        speed = statistics.median(speeds)
        print(f"| {ranks} | {strategy} | {parts} | {speed:,.0f} | {speed / alone:.2f} |", flush=True)


def run_steps(case: dict[str, Any], device: str, steps: int) -> dict[str, float]:
    """One combination on this device."""
    import numpy as np
    import torch

    from dftune.data.batches import Example, micro_batches
    from dftune.objectives import get_objective
    from dftune.ops.attention import register
    from dftune.train.config import OptimizerConfig
    from dftune.train.model import ScoredModel
    from dftune.train.optim import make_optimizer
    from dftune.train.recompute import compile_blocks, recompute
    from dftune.train.step import Pass, train_step

    setting, tokens = SHAPES[case["shape"]], case["tokens"]
    model = make_model(setting, register()).to(device)
    recompute(model, case["recompute"])
    if case["compile"]:
        compile_blocks(model)
    scored = ScoredModel(model, torch.bfloat16).train()
    optimizer, objective = make_optimizer(scored, OptimizerConfig(lr=1e-5)), get_objective("dynamic_ft")
    rows = [
        Example(str(index), np.array(row["input_ids"], np.int32), np.array(row["completion_mask"], bool))
        for index, row in enumerate(make_examples(2 * tokens // setting.mean_length, setting))
    ]
    batches = [batch.to(torch.device(device)) for batch in micro_batches(rows, max_tokens=tokens)][:2]
    how = Pass(route=case["route"])
    with PeakMemory(device) as memory:
        for step in range(steps + 2):
            if step == 2:  # the first two warm up, and compile
                started = now(device)
            train_step(scored, optimizer, objective, batches, lr=1e-5, max_grad_norm=1.0, how=how)
        found = summary(scored, device, steps * sum(batch.num_tokens for batch in batches), started, 0.0)
    return found | {"peak_mib": _peak_mib(memory, device)}


def _peak_mib(memory: PeakMemory, device: str) -> float:
    import torch

    return (torch.cuda.max_memory_allocated() if device == "cuda" else memory.peak) / 2**20


def combinations(shapes: list[str], lengths: list[int], device: str, steps: int) -> None:
    """Print tokens a second, MFU and peak memory of every combination; what does not fit is said so."""
    print("| shape | packed | compile | recompute | route | tokens/s | MFU | peak memory, MiB |")
    print("|---|---:|---|---|---|---:|---:|---:|")
    for shape, tokens, compiled, kind, route in itertools.product(shapes, lengths, COMPILE, RECOMPUTE, ROUTES):
        case = {"shape": shape, "tokens": tokens, "compile": compiled, "recompute": kind, "route": route}
        command = [sys.executable, __file__, "--device", device, "--steps", str(steps), "--case", json.dumps(case)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        name = f"| {shape} | {tokens:,} | {'yes' if compiled else 'no'} | {kind} | {route} |"
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"{name} {'does not fit' if 'OutOfMemory' in reason else reason[:80]} | | |", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        mfu = f"{100 * found['mfu']:.1f} %" if found["mfu"] else ""
        print(f"{name} {found['tokens_per_s']:,.0f} | {mfu} | {found['peak_mib']:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, help="measure combinations of these (on cuda all others)"
    )
    parser.add_argument("--tokens", nargs="+", type=int, default=[4096, 8192], help="of a packed forward pass")
    parser.add_argument("--steps", type=int, default=10, help="timed steps (default 10)")
    parser.add_argument("--rounds", type=int, default=2, help="of what is run in turn")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_steps(json.loads(arguments.case), arguments.device, arguments.steps)))
        return
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: torch sees no CUDA device")
        print(torch.cuda.get_device_name())
    elif not arguments.shapes:
        print(f"load {os.getloadavg()[0]:.1f}\n")
        checkpoints(2 * arguments.rounds + 1)
        processes(arguments.rounds, arguments.steps)
        print(f"\nload {os.getloadavg()[0]:.1f}")
        return
    combinations(arguments.shapes or ["0.5b", "1.5b"], arguments.tokens, arguments.device, arguments.steps)


if __name__ == "__main__":
    main()
