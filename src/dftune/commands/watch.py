"""``dftune watch``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  dftune watch runs/my-run
      evaluates each checkpoint as it appears, on the benchmarks that the run's recipe names; ends when training has
  dftune watch runs/my-run --device cuda:1 --policy newest --benchmarks math500:100
      on a GPU that training does not use, the newest checkpoint first
  dftune watch runs/my-run --once
      what is there now, and no more
  dftune watch runs/my-run --server http://127.0.0.1:8000/v1
      by a server whose weights it changes: `dftune serve runs/my-run --swap`, which is vLLM where that is installed
  taskset -c 15 dftune watch runs/my-run --threads 1
      on a core of its own

It may be started before the run, and killed and started again at any time: every checkpoint is evaluated once, also
when several watchers share the work. Results go into the run's folder (evals/step-N, and rows of events.jsonl), so
trackers and `dftune top` show them. `watch.enabled=true` in a recipe has `dftune train` start one (docs/watch.md).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EPILOG
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the run folder; it need not be there yet")
    add("--policy", choices=("all", "newest", "best"), help="all (oldest first), newest (first), best (so far, by nll)")
    add("--benchmarks", nargs="+", metavar="SPEC", help="as for dftune evaluate; default: those of the run's recipe")
    add("--protocol", nargs="+", metavar="NAME", help="greedy, avg@N, maj@N, ...; default: those of the recipe")
    add("--max-tokens", type=int, metavar="N", help="most tokens of a completion")
    add("--batch-size", type=int, metavar="N", help="completions generated together")
    add("--data-dir", type=Path, metavar="FOLDER", help="local copies of named benchmarks (default $DFTUNE_DATA)")
    add(
        "--server",
        nargs="+",
        metavar="URL",
        help="servers to be given each checkpoint's weights (dftune serve --swap)",
    )
    add("--device", help="cpu, cuda:1, ...; default: a CUDA device that training does not use, else the CPU")
    add("--threads", type=int, metavar="N", help="CPU threads (default: the cores that training leaves)")
    add("--nice", type=int, metavar="N", help="how far to give way to other processes, 0 to 19 (default 19)")
    add("--poll-s", type=float, metavar="S", help="seconds between two looks (default 2)")
    add("--once", action="store_true", help="evaluate what is there and stop")
    add("--parent", action="store_true", help=argparse.SUPPRESS)  # standard input is a pipe of `dftune train`


def run(args: argparse.Namespace) -> int:
    """Watch; 1 when a checkpoint could not be evaluated."""
    from dftune.child import follow_parent, give_way, wait_until  # noqa: PLC0415
    from dftune.commands.evaluate import configure  # noqa: PLC0415
    from dftune.config import read_yaml, validate  # noqa: PLC0415
    from dftune.environment import set_threads  # noqa: PLC0415
    from dftune.run import RunFolder  # noqa: PLC0415
    from dftune.watch.check import with_servers  # noqa: PLC0415
    from dftune.watch.config import WatchConfig  # noqa: PLC0415

    finished = follow_parent(sys.stdin.buffer) if args.parent else None
    folder: Path = args.run
    given = {key: getattr(args, key, None) for key in WatchConfig.model_fields}
    settings = validate({key: value for key, value in given.items() if value is not None}, WatchConfig, "watch")
    give_way(settings.nice)
    begun = RunFolder(folder).has_begun
    if not begun():
        if args.once:
            raise ValueError(f"{folder} holds no run that has begun. Leave --once out to wait for it.")
        _say(f"waiting for a run in {folder}")
        import dftune.watch.watcher  # noqa: F401, PLC0415  (to be ready when it begins)

        wait_until(begun, settings.poll_s)
    from dftune.watch.watcher import Watcher, watch_device, watch_threads  # noqa: PLC0415  (seconds to import)

    recipe = read_yaml(folder / "recipe.yaml", [])
    section: dict[str, Any] = {**(recipe.get("watch") or {}), **settings.model_dump(exclude_unset=True)}
    settings = validate(section, WatchConfig, "watch")
    config = with_servers(configure(args, recipe.get("evaluate") or {}), settings.server)
    if settings.benchmarks is not None:
        config = config.model_copy(update={"benchmarks": settings.benchmarks})
    set_threads(watch_threads(settings, folder))
    watcher = Watcher(
        folder,
        config,
        policy=settings.policy,
        device=watch_device(settings, folder),
        poll_s=settings.poll_s,
        say=_say,
        is_over=None if finished is None else finished.is_set,
    )
    steps = watcher.watch(once=args.once)
    _say(f"{len(steps)} evaluated, {watcher.engine.num_loaded} models loaded, {watcher.engine.num_swapped} swapped")
    return 1 if watcher.failed else 0


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
