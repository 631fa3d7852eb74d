"""Time and peak memory of the head alone, forward and backward, against full logits, torch.compile and TRL.

    python benchmarks/token_logps.py                       # the published shapes, half an hour on two cores
    python benchmarks/token_logps.py --quick               # small shapes, a minute
    python benchmarks/token_logps.py --only recompute trl  # some back ends
    python benchmarks/token_logps.py --device cuda         # bfloat16, N=8192, d=1536, V=151,936; Triton and Liger too

Every back end runs in its own process, one after another, on the same inputs, with Dynamic FT as the loss. On a CPU the
metric is CPU seconds (user and system, all threads): other work on the machine moves them little, and wall time a lot.
Peak memory is the resident set's above the inputs, gradients included. On a GPU it is wall time between two
synchronisations, and the allocator's peak. The first calls, which compile or initialise, are not timed. Errors are
relative, against float64. A row that cannot run here is left out, and the reason is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHECKED_ROWS = 64
TRL_VOCAB_CHUNK = 32_768  # trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE


@dataclasses.dataclass(frozen=True)
class Job:
    backend: str
    dtype: str
    tokens: int
    hidden: int
    vocab: int
    threads: int
    repeats: int
    device: str = "cpu"


Loss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of hidden, weight and targets: the mean loss, and the log-probabilities."""


def dynamic_ft(logps: Tensor) -> Tensor:
    return -(logps.detach().exp() * logps).mean()


def one_liner(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = F.linear(hidden, weight).float()
    logps = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return dynamic_ft(logps), logps.detach()


def trl_loss(outputs: tuple[str, ...]) -> Loss:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        found = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, TRL_VOCAB_CHUNK, None, 1.0, outputs)
        return dynamic_ft(found[0]), found[0].detach()

    return loss


def our_loss(route: str, logits_dtype: torch.dtype | None = None, *, one_pass: bool = False) -> Loss:
    from dftune.ops.token_logps import TokenStats, token_logps, token_objective

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if not one_pass:
            logps = token_logps(hidden, weight, targets, route=route, logits_dtype=logits_dtype)
            return dynamic_ft(logps), logps.detach()

        def fn(chunk: TokenStats, rows: slice) -> Tensor:
            return dynamic_ft(chunk.logps) * (len(chunk.logps) / len(targets))

        total, stats, _ = token_objective(hidden, weight, targets, fn, route=route, logits_dtype=logits_dtype)
        return total, stats.logps

    return loss


BACKENDS: dict[str, Callable[[], Loss]] = {
    "trl": lambda: trl_loss(("log_probs", "entropy", "is_top1")),
    "trl, log-probs only": lambda: trl_loss(("log_probs",)),
    "one-liner": lambda: one_liner,
    "torch.compile of it": lambda: torch.compile(one_liner),
    "recompute": lambda: our_loss("recompute"),
    "recompute, bf16 logits": lambda: our_loss("recompute", torch.bfloat16),
    "one pass": lambda: our_loss("one_pass", one_pass=True),
    "one pass, bf16 logits": lambda: our_loss("one_pass", torch.bfloat16, one_pass=True),
    "triton": lambda: our_loss("triton"),
    "triton, one pass": lambda: our_loss("triton", one_pass=True),
    "liger": lambda: our_loss("liger"),
    "trl, frozen head": lambda: trl_loss(("log_probs", "entropy", "is_top1")),
    "frozen head": lambda: our_loss("frozen_head"),
    "frozen head, bf16 logits": lambda: our_loss("frozen_head", torch.bfloat16),
}


def skip_reason(job: Job) -> str | None:
    """Why a back end cannot run here, or would not measure what its name says; None where it can."""
    name, on_cuda = job.backend, job.device == "cuda"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    reasons = (
        ("bf16" in name and job.dtype != "bfloat16", "rounded logits are for bfloat16"),
        (name.startswith("trl") and not importlib.util.find_spec("trl"), "TRL is not installed: the extra `trl`"),
        (name.startswith("triton") and not importlib.util.find_spec("triton"), "Triton is not installed"),
        (name.startswith("triton") and not (on_cuda or interpreted), "Triton kernels run on CUDA"),
        (name == "liger" and not importlib.util.find_spec("liger_kernel"), "liger-kernel is not installed"),
        (name == "liger" and not on_cuda, "Liger's kernels run on Hopper; its fallback is not what is compared"),
        (name == "liger" and job.dtype != "bfloat16", "Liger's kernels read bfloat16"),
    )
    return next((reason for holds, reason in reasons if holds), None)


def inputs(job: Job) -> tuple[Tensor, Tensor, Tensor]:
    """Logits up to about 25, targets with probabilities from 0 to nearly 1."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(job.vocab, job.hidden, generator=generator).mul_(5.3 / job.hidden**0.5)
    targets = torch.randint(job.vocab, (job.tokens,), generator=generator)
    hidden = torch.randn(job.tokens, job.hidden, generator=generator)
    hidden += torch.rand(job.tokens, 1, generator=generator) * weight[targets]
    where: dict[str, Any] = {"device": job.device, "dtype": getattr(torch, job.dtype)}
    trained = "frozen head" not in job.backend
    return (
        hidden.to(**where).requires_grad_(),
        weight.to(**where).requires_grad_(trained),
        targets.to(job.device),
    )


class CpuMeter:
    """CPU and wall seconds since it was made, and the peak of the resident set above what it then was."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self.resident, self.cpu, self.wall = _status("VmRSS"), _cpu_seconds(), time.perf_counter()

    def read(self) -> dict[str, float]:
        cpu, wall = _cpu_seconds() - self.cpu, time.perf_counter() - self.wall
        return {"cpu_s": cpu, "wall_s": wall, "peak": _status("VmHWM") - self.resident}


class CudaMeter:
    """The same on a GPU: time until it is done, and the peak of allocated memory."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.allocated, self.cpu, self.wall = torch.cuda.memory_allocated(), _cpu_seconds(), time.perf_counter()

    def read(self) -> dict[str, float]:
        torch.cuda.synchronize()
        cpu, wall = _cpu_seconds() - self.cpu, time.perf_counter() - self.wall
        return {"cpu_s": cpu, "wall_s": wall, "peak": torch.cuda.max_memory_allocated() - self.allocated}


def metric(device: str) -> str:
    """The field that times are compared by."""
    return "wall_s" if device == "cuda" else "cpu_s"


def measure(job: Job) -> dict[str, Any]:
    """Forward and backward in this process: the least time of the repeats, and the first one's peak memory."""
    torch.set_num_threads(job.threads)
    hidden, weight, targets = inputs(job)
    loss = BACKENDS[job.backend]()
    meter = CudaMeter if job.device == "cuda" else CpuMeter
    whole = "compile" in job.backend or job.device == "cuda"  # kernels are compiled for a shape
    warm = job.tokens if whole else min(32, job.tokens)
    loss(hidden[:warm], weight, targets[:warm])[0].backward()
    found: list[dict[str, Any]] = []
    for _ in range(job.repeats):
        hidden.grad = weight.grad = logps = None
        running = meter()
        total, logps = loss(hidden, weight, targets)
        total.backward()
        found.append(running.read())
        del total
    best = min(found, key=lambda one: one[metric(job.device)])
    assert logps is not None
    return {**dataclasses.asdict(job), **best, "peak": found[0]["peak"], **_errors(hidden, weight, targets, logps)}


def _errors(hidden: Tensor, weight: Tensor, targets: Tensor, logps: Tensor) -> dict[str, float]:
    """Against float64, on the first rows, whose results depend on no other row."""
    rows = slice(0, CHECKED_ROWS)
    leaf = hidden.detach()[rows].double().requires_grad_()
    logits = leaf @ weight.detach().double().T
    exact = logits.log_softmax(-1).gather(-1, targets[rows].unsqueeze(-1)).squeeze(-1)
    (gradient,) = torch.autograd.grad(-(exact.detach().exp() * exact).sum() / len(targets), leaf)
    assert hidden.grad is not None
    difference = logps[rows].double() - exact.detach()
    return {
        "logp_error": float(difference.abs().max()),
        "logp_relative_error": float(difference.norm() / exact.detach().norm()),
        "gradient_error": float((hidden.grad[rows].double() - gradient).norm() / gradient.norm()),
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _status(field: str) -> int:
    """Bytes, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}; this benchmark needs Linux.")


def run_in_process(job: Job) -> dict[str, Any]:
    """Measure a job in a process of its own."""
    threads = str(job.threads)
    # passive: a thread that waits for another must not count as work
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, __file__, "--job", json.dumps(dataclasses.asdict(job))]
    load = os.getloadavg()[0]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {**dataclasses.asdict(job), "error": last[0], "load": load}
    return {**json.loads(done.stdout.splitlines()[-1]), "load": load}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, one table for each dtype and number of tokens."""
    lines: list[str] = []
    for dtype, tokens in dict.fromkeys((row["dtype"], row["tokens"]) for row in results):
        rows = [row for row in results if (row["dtype"], row["tokens"]) == (dtype, tokens)]
        by_name = {row["backend"]: row for row in rows}
        where = "CUDA" if rows[0]["device"] == "cuda" else f"{rows[0]['threads']} threads"
        lines += [f"### {dtype}, N={tokens}, d={rows[0]['hidden']}, V={rows[0]['vocab']:,}, {where}", ""]
        lines += ["| back end | CPU s | wall s | time of TRL's | peak MiB | of TRL's | logp error | dH error | load |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
        for row in rows:
            peer = by_name.get("trl, frozen head" if "frozen head" in row["backend"] else "trl", {})
            lines.append(_line(row, peer))
        lines.append("")
    return "\n".join(lines)


def _line(row: dict[str, Any], peer: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {row['backend']} | failed: {row['error']} | | | | | | | |"
    time_ratio, memory_ratio = (
        f"{row[key] / peer[key]:.2f}" if peer.get(key) else "" for key in (metric(row["device"]), "peak")
    )
    return (
        f"| {row['backend']} | {row['cpu_s']:.2f} | {row['wall_s']:.4g} | {time_ratio} | {row['peak'] / 2**20:.0f} "
        f"| {memory_ratio} | {row['logp_relative_error']:.1e} | {row['gradient_error']:.1e} | {row['load']:.1f} |"
    )


def environment(threads: int, device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": models[0].split(":", 1)[1].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    for package in ("trl", "triton", "liger-kernel"):
        if importlib.util.find_spec(package.replace("-", "_")):
            found[package] = importlib.metadata.version(package)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="N=256, d=128, V=8,192")
    parser.add_argument("--tokens", type=int, nargs="+", help="N; 1024 and 4096, on CUDA 8192")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], help="both, on CUDA bfloat16")
    parser.add_argument("--only", nargs="+", choices=list(BACKENDS), default=list(BACKENDS), help="back ends to run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, help="the least time of so many; 1, or 5 with --quick or on CUDA")
    parser.add_argument("--output", type=Path, default=Path("token_logps.json"), help="JSON with every measurement")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(measure(Job(**json.loads(arguments.job)))))
        return
    on_cuda = arguments.device == "cuda"
    if on_cuda and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    hidden, vocab, tokens = (1536, 151_936, [8192]) if on_cuda else (896, 151_936, [1024, 4096])
    if arguments.quick:
        hidden, vocab, tokens = 128, 8192, [256]
    repeats = arguments.repeats or (5 if arguments.quick or on_cuda else 1)
    results, skipped = [], {}
    for dtype in arguments.dtypes or (["bfloat16"] if on_cuda else ["float32", "bfloat16"]):
        for count in arguments.tokens or tokens:
            for backend in arguments.only:
                job = Job(backend, dtype, count, hidden, vocab, arguments.threads, repeats, arguments.device)
                if reason := skip_reason(job):
                    skipped[f"{backend}, {dtype}"] = reason
                    continue
                results.append(run_in_process(job))
                print(_line(results[-1], {}), file=sys.stderr, flush=True)
    found = {**environment(arguments.threads, arguments.device), "results": results, "skipped": skipped}
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    print(table(results))
    print("\n".join(f"left out: {name}: {reason}" for name, reason in skipped.items()))


if __name__ == "__main__":
    main()
