"""``dftune serve``."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dftune.generate.serve import Server

EPILOG = """\
examples:
  dftune serve runs/my-run
      the final model of a run; prints the URL, serves until Ctrl-C
  dftune serve Qwen/Qwen2.5-Math-1.5B --port 8000 --server-options="--max-model-len 4096"
      with an option of vLLM itself
  dftune serve models/my-model --no-continuous-batching
      one request after the other, each with its own temperature

vLLM serves where it has an environment: `make serve-env` makes .venv-serve, --vllm PATH names another. Without one it
is `transformers serve` of this environment, which also runs on a CPU: it ignores n and log-probabilities, and with
continuous batching samples every request as it did the first one; the client notices and says so.
The server listens on this machine only. It has no key; whoever reaches --host can use it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EPILOG
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run of dftune, one of its checkpoints, a Hugging Face folder, or a model id")
    add("--vllm", type=Path, metavar="PATH", help="the vllm command, or the python, of vLLM's own environment")
    add("--transformers", action="store_true", help="use transformers serve even where there is a vLLM")
    add("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)")
    add("--port", type=int, default=0, help="port to listen at (default: one that is free)")
    add("--device", default="auto", help="for transformers serve: auto, cpu, cuda")
    add("--no-continuous-batching", action="store_true", help="transformers serve: one request after the other")
    add("--num-blocks", type=int, default=1024, metavar="N", help="transformers serve: blocks of 32 cached tokens")
    add("--wait", type=float, default=600.0, metavar="S", help="longest time until it is healthy (default 600 s)")
    add("--log", type=Path, metavar="FILE", help="keep what the server prints")
    add("--server-options", default="", metavar="TEXT", help='options of the server itself: --server-options="--a 1"')


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from dftune.evaluate.locate import plan  # noqa: PLC0415
    from dftune.generate.load import find_model  # noqa: PLC0415
    from dftune.generate.serve import BatchSizes, find_vllm, serving  # noqa: PLC0415

    (item,) = plan(args.model)
    folder = find_model(item.model)
    model = str(folder.resolve()) if Path(item.model).expanduser().exists() else item.model
    if args.transformers and args.vllm is not None:
        raise ValueError("--transformers and --vllm contradict each other; give one of them.")
    vllm = None if args.transformers else find_vllm(args.vllm)
    sizes = None if args.no_continuous_batching else BatchSizes(num_blocks=args.num_blocks)
    started: list[Server] = []
    for number in (signal.SIGTERM, signal.SIGHUP):  # the server is in a session of its own and would stay
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    print(f"Starting {'vLLM' if vllm else 'transformers serve'} for {model} ...", file=sys.stderr, flush=True)
    try:
        with serving(
            model,
            vllm=vllm,
            host=args.host,
            port=args.port,
            sizes=sizes,
            device=args.device,
            more=shlex.split(args.server_options),
            wait_s=args.wait,
            log=args.log,
            on_start=started.append,
        ) as url:
            print(url, flush=True)
            print(f"  dftune evaluate {args.model} --server {url} --benchmarks FILE\nCtrl-C stops it.", file=sys.stderr)
            status = started[0].process.wait()
            raise ValueError(f"the server ended with status {status}.\n{started[0].tail()}")
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
