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
  dftune serve runs/my-run --swap --port 8000
      for `dftune watch runs/my-run --server http://127.0.0.1:8000/v1`, which gives it one checkpoint after another

vLLM serves where it has an environment: `make serve-env` makes .venv-serve, --vllm PATH names another. Without one it
is `transformers serve` of this environment, which also runs on a CPU: it ignores n and log-probabilities, and with
continuous batching samples every request as it did the first one; the client notices and says so.
The server listens on this machine only. It has no key; whoever reaches --host can use it. With --swap, vLLM has its
development routes, by which anybody who reaches it can run its methods, so it stays on this machine; without vLLM it is
a server of dftune's own, which loads models of that run and no others (docs/watch.md).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EPILOG
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run of dftune, one of its checkpoints, a Hugging Face folder, or a model id")
    add("--swap", action="store_true", help="a server whose weights `dftune watch MODEL --server URL` may change")
    add("--vllm", type=Path, metavar="PATH", help="the vllm command, or the python, of vLLM's own environment")
    add("--transformers", action="store_true", help="use transformers serve even where there is a vLLM")
    add("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine only)")
    add("--port", type=int, default=0, help="port to listen at (default: one that is free)")
    add("--device", default="auto", help="for all but vLLM: auto, cpu, cuda, cuda:1")
    add("--no-continuous-batching", action="store_true", help="transformers serve: one request after the other")
    add("--num-blocks", type=int, default=1024, metavar="N", help="transformers serve: blocks of 32 cached tokens")
    add("--wait", type=float, default=600.0, metavar="S", help="longest time until it is healthy (default 600 s)")
    add("--log", type=Path, metavar="FILE", help="keep what the server prints")
    add("--server-options", default="", metavar="TEXT", help='options of the server itself: --server-options="--a 1"')


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from dftune.generate.serve import LOOPBACK, find_vllm  # noqa: PLC0415

    if args.transformers and args.vllm is not None:
        raise ValueError("--transformers and --vllm contradict each other; give one of them.")
    vllm = None if args.transformers else find_vllm(args.vllm)
    if args.swap and vllm is not None and args.host not in (LOOPBACK, "localhost", "::1"):
        raise ValueError(
            f"--swap gives vLLM its development routes, by which whoever reaches {args.host} can run its methods. "
            "Leave --host out, and run the watcher on this machine."
        )
    for number in (signal.SIGTERM, signal.SIGHUP):  # the server is in a session of its own and would stay
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        if args.swap and vllm is None:
            return _serve_checkpoints(args)
        return _serve(args, vllm)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 0


def _serve(args: argparse.Namespace, vllm: Path | None) -> int:
    """By vLLM or `transformers serve`, in a process of its own."""
    from dftune.generate.serve import BatchSizes, serving  # noqa: PLC0415

    model = _first_model(args) if args.swap else _model(args)
    sizes = None if args.no_continuous_batching else BatchSizes(num_blocks=args.num_blocks)
    started: list[Server] = []
    print(f"Starting {'vLLM' if vllm else 'transformers serve'} for {model} ...", file=sys.stderr, flush=True)
    with serving(
        model,
        vllm=vllm,
        host=args.host,
        port=args.port,
        sizes=sizes,
        device=args.device,
        more=shlex.split(args.server_options),
        variables={"VLLM_SERVER_DEV_MODE": "1"} if args.swap else None,
        wait_s=args.wait,
        log=args.log,
        on_start=started.append,
    ) as url:
        _say_ready(args, url)
        status = started[0].process.wait()
        raise ValueError(f"the server ended with status {status}.\n{started[0].tail()}")


def _serve_checkpoints(args: argparse.Namespace) -> int:
    """By dftune's own server, in this process."""
    from dftune.generate.serve import free_port  # noqa: PLC0415
    from dftune.watch.checkpoint_server import CheckpointServer  # noqa: PLC0415  (seconds to import)

    if args.server_options or args.log is not None:
        raise ValueError("--server-options and --log are for servers of others; dftune's own has no use for them.")
    port = free_port(args.host, args.port)
    with CheckpointServer(Path(args.model), host=args.host, port=port, device=args.device) as server:
        _say_ready(args, server.url)
        server.serve_forever()
    return 0


def _say_ready(args: argparse.Namespace, url: str) -> None:
    print(url, flush=True)
    use = f"dftune {'watch' if args.swap else 'evaluate'} {args.model} --server {url}"
    print(f"  {use}{'' if args.swap else ' --benchmarks FILE'}\nCtrl-C stops it.", file=sys.stderr, flush=True)


def _model(args: argparse.Namespace) -> str:
    """The model that is to be served: its folder, or its id."""
    from dftune.evaluate.locate import plan  # noqa: PLC0415
    from dftune.generate.load import find_model  # noqa: PLC0415

    (item,) = plan(args.model)
    folder = find_model(item.model)
    return str(folder.resolve()) if Path(item.model).expanduser().exists() else item.model


def _first_model(args: argparse.Namespace) -> str:
    """What vLLM starts with: the newest whole model of a run, its base where there is none; else MODEL itself."""
    from dftune.config import read_yaml  # noqa: PLC0415
    from dftune.evaluate.locate import is_adapter, locate, models_of  # noqa: PLC0415
    from dftune.generate.load import find_model  # noqa: PLC0415

    run, step = locate(Path(args.model).expanduser())
    if run is None or step is not None:
        return _model(args)
    whole = [folder for _, folder in sorted(models_of(run).items()) if not is_adapter(folder)]
    base = read_yaml(run / "recipe.yaml", [])["model"]
    return str((whole[-1] if whole else find_model(base["path"], base.get("revision"))).resolve())


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
