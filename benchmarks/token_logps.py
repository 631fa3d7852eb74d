"""Time and peak memory of the head alone, forward and backward, against full logits, torch.compile and TRL.

    python benchmarks/token_logps.py                       # the published shapes, half an hour on two cores
    python benchmarks/token_logps.py --quick               # small shapes, a minute
    python benchmarks/token_logps.py --only recompute trl  # some back ends

Every back end runs in its own process, one after another, on the same inputs, with Dynamic FT as the loss. CPU seconds
(user and system, all threads) are the metric: other work on the machine moves them little, and wall time a lot. Peak
memory is the resident set's above the inputs, gradients included. The first call that compiles or initialises is not
timed. Errors are relative, against float64. Rows of TRL need the `trl` extra and are left out without it.
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


def our_loss(route: str, logits_dtype: torch.dtype | None) -> Loss:
    from dftune.ops.token_logps import TokenStats, token_logps, token_objective

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if route != "one_pass":
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
    "recompute": lambda: our_loss("recompute", None),
    "recompute, bf16 logits": lambda: our_loss("recompute", torch.bfloat16),
    "one pass": lambda: our_loss("one_pass", None),
    "one pass, bf16 logits": lambda: our_loss("one_pass", torch.bfloat16),
    "trl, frozen head": lambda: trl_loss(("log_probs", "entropy", "is_top1")),
    "frozen head": lambda: our_loss("frozen_head", None),
    "frozen head, bf16 logits": lambda: our_loss("frozen_head", torch.bfloat16),
}


def inputs(job: Job) -> tuple[Tensor, Tensor, Tensor]:
    """Logits up to about 25, targets with probabilities from 0 to nearly 1."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(job.vocab, job.hidden, generator=generator).mul_(5.3 / job.hidden**0.5)
    targets = torch.randint(job.vocab, (job.tokens,), generator=generator)
    hidden = torch.randn(job.tokens, job.hidden, generator=generator)
    hidden += torch.rand(job.tokens, 1, generator=generator) * weight[targets]
    dtype = getattr(torch, job.dtype)
    trained = "frozen head" not in job.backend
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(trained), targets


def measure(job: Job) -> dict[str, Any]:
    """Forward and backward in this process: the least CPU time of the repeats, and the first one's peak memory."""
    torch.set_num_threads(job.threads)
    hidden, weight, targets = inputs(job)
    loss = BACKENDS[job.backend]()
    warm = job.tokens if "compile" in job.backend else min(32, job.tokens)
    loss(hidden[:warm], weight, targets[:warm])[0].backward()
    found: list[dict[str, Any]] = []
    for _ in range(job.repeats):
        hidden.grad = weight.grad = logps = None
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        resident, cpu, wall = _status("VmRSS"), _cpu_seconds(), time.perf_counter()
        total, logps = loss(hidden, weight, targets)
        total.backward()
        cpu, wall = _cpu_seconds() - cpu, time.perf_counter() - wall
        found.append({"cpu_s": cpu, "wall_s": wall, "peak": _status("VmHWM") - resident})
        del total
    best = min(found, key=lambda one: one["cpu_s"])
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
        shape = f"N={tokens}, d={rows[0]['hidden']}, V={rows[0]['vocab']:,}, {rows[0]['threads']} threads"
        lines += [f"### {dtype}, {shape}", ""]
        lines += ["| back end | CPU s | of TRL's | wall s | peak MiB | of TRL's | logp error | dH error | load |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
        for row in rows:
            peer = by_name.get("trl, frozen head" if "frozen head" in row["backend"] else "trl", {})
            lines.append(_line(row, peer))
        lines.append("")
    return "\n".join(lines)


def _line(row: dict[str, Any], peer: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {row['backend']} | failed: {row['error']} | | | | | | | |"
    time_ratio, memory_ratio = (f"{row[key] / peer[key]:.2f}" if key in peer else "" for key in ("cpu_s", "peak"))
    return (
        f"| {row['backend']} | {row['cpu_s']:.2f} | {time_ratio} | {row['wall_s']:.2f} | {row['peak'] / 2**20:.0f} "
        f"| {memory_ratio} | {row['logp_relative_error']:.1e} | {row['gradient_error']:.1e} | {row['load']:.1f} |"
    )


def environment(threads: int) -> dict[str, Any]:
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
    if importlib.util.find_spec("trl"):
        found["trl"] = importlib.metadata.version("trl")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="N=256, d=128, V=8,192")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--only", nargs="+", choices=list(BACKENDS), default=list(BACKENDS), help="back ends to run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, help="the least CPU time of so many; 1, or 5 with --quick")
    parser.add_argument("--output", type=Path, default=Path("token_logps.json"), help="JSON with every measurement")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(measure(Job(**json.loads(arguments.job)))))
        return
    hidden, vocab, tokens = (128, 8192, [256]) if arguments.quick else (896, 151_936, arguments.tokens)
    repeats = arguments.repeats or (5 if arguments.quick else 1)
    results = []
    for dtype in arguments.dtypes:
        for count in tokens:
            for backend in arguments.only:
                needs_trl = backend.startswith("trl") and not importlib.util.find_spec("trl")
                if needs_trl or ("bf16" in backend and dtype != "bfloat16"):
                    continue
                job = Job(backend, dtype, count, hidden, vocab, arguments.threads, repeats)
                results.append(run_in_process(job))
                print(_line(results[-1], {}), file=sys.stderr, flush=True)
    arguments.output.write_text(json.dumps({**environment(arguments.threads), "results": results}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
