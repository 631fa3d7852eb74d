"""``dftune top``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from dftune.watch.overview import Overview

EPILOG = """\
examples:
  dftune top runs
      every run in the folder, those of its studies and sweeps too, drawn again every two seconds; Ctrl-C ends it
  dftune top runs/my-study
      the runs of a study; `dftune study status` shows its tasks
  dftune top runs/sft runs/dynamic_ft --once
      printed once, as it also is where the output is no terminal

Columns: steps done; loss of the objective; nll of the training tokens, with its course; held-out nll; accuracy of the
newest evaluated checkpoint and its step; checkpoints evaluated of those written; tokens a second; time left. A run that
is "stopped" has neither a process nor an end: `dftune train --resume` continues it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EPILOG
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUNS", help="folders of runs, studies or sweeps")
    parser.add_argument("--once", action="store_true", help="print once and stop")
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between two looks (default 2)")


def run(args: argparse.Namespace) -> int:
    """Draw the table, again and again on a terminal."""
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    from dftune.watch.overview import Follower, find  # noqa: PLC0415

    followers = {path: Follower(path) for path in find(args.runs)}
    if args.once or not sys.stdout.isatty():
        _print([follower.look() for follower in followers.values()])
        return 0
    with Live(console=Console(), auto_refresh=False) as live:
        try:
            while True:
                for path in find(args.runs):  # runs that began since
                    followers.setdefault(path, Follower(path))
                live.update(_table([follower.look() for follower in followers.values()]), refresh=True)
                time.sleep(args.every)
        except KeyboardInterrupt:
            return 0


def _print(found: list[Overview]) -> None:
    from dftune.evaluate.summary import lay_out  # noqa: PLC0415
    from dftune.watch.overview import HEAD, cells  # noqa: PLC0415

    print("\n".join(lay_out([HEAD, *map(cells, found)], num_names=2)))


def _table(found: list[Overview]) -> Table:
    from rich.table import Table  # noqa: PLC0415

    from dftune.watch.overview import HEAD, cells  # noqa: PLC0415

    table = Table(box=None, header_style="bold")
    for index, name in enumerate(HEAD):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=index < 2)
    colours = {"running": "green", "failed": "red", "stopped": "yellow", "interrupted": "yellow", "requeue": "yellow"}
    for one in found:
        name, state, *rest = (cell.replace("[", r"\[") for cell in cells(one))
        colour = colours.get(state)
        table.add_row(name, f"[{colour}]{state}[/]" if colour else state, *rest)
    return table
