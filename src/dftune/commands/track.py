"""``dftune track``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dftune.track.config import TrackerName
    from dftune.track.export import Exporter

EPILOG = """\
examples:
  dftune track sync runs/my-run --to tensorboard
      then: tensorboard --logdir runs
  dftune track sync runs/* --to wandb --wandb-mode offline
      then, where there is a network: wandb sync runs/*/track/wandb/offline-run-*
  dftune track sync runs/my-run
      to the trackers that the run's recipe names (track.to), after the fact

Training and evaluation metrics of a run go into one run of the tracker, with optimizer steps as the axis. Everything is
read from events.jsonl, so this works at any time, also for a run that goes on; called again it sends what is new and
nothing twice. `track.to=[tensorboard]` in a recipe has `dftune train` do it while it trains (docs/tracking.md).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = EPILOG
    add = parser.add_argument
    add("action", choices=("sync",), help="sync: send what is new")
    add("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    add("--to", nargs="+", metavar="NAME", help="tensorboard, wandb, trackio, mlflow; default: those of the recipe")
    add("--project", metavar="NAME", help="project of W&B and trackio, experiment of MLflow (default dftune)")
    add("--wandb-mode", choices=("online", "offline"), help="default: WANDB_MODE, else online")
    add("--mlflow-uri", metavar="URI", help="MLflow's store (default: MLFLOW_TRACKING_URI, else MLflow's own)")
    add("--parent", action="store_true", help=argparse.SUPPRESS)  # standard input is a pipe of `dftune train`


def run(args: argparse.Namespace) -> int:
    """Export; 1 when a tracker failed."""
    if args.parent:
        return _follow(args.runs[0])
    from dftune.track.export import Exporter, exporting, track_config  # noqa: PLC0415

    given = {key: getattr(args, key) for key in ("to", "project", "wandb_mode", "mlflow_uri")}
    given = {key: value for key, value in given.items() if value is not None}
    failed = False
    for folder in args.runs:
        config = track_config(folder, given)
        with exporting(folder):
            for name in config.to:
                exporter = Exporter(folder, name, config)
                failed |= not _sync(exporter, say=print)
                exporter.close()
    return int(failed)


def _sync(exporter: Exporter, say: Any) -> bool:
    """Send what is new; whatever a tracker's library raises is said, and the other trackers go on."""
    try:
        sent = exporter.sync()
    except Exception as error:
        _complain(f"{exporter.name} failed: {type(error).__name__}: {error}")
        return False
    say(f"{exporter.run}: {sent} points to {exporter.name}" if sent else f"{exporter.run}: {exporter.name} has it all")
    return True


def _follow(folder: Path) -> int:
    """Export while `dftune train` trains; ends when it says so."""
    from dftune.child import follow_parent, give_way  # noqa: PLC0415
    from dftune.run import RunFolder  # noqa: PLC0415
    from dftune.track.export import Exporter, exporting, track_config  # noqa: PLC0415

    finished = follow_parent(sys.stdin.buffer)
    give_way(19)
    begun = RunFolder(folder).has_begun
    while not begun() and not finished.wait(1.0):
        pass
    config = track_config(folder, {})
    with exporting(folder):
        exporters = [made for name in config.to if (made := _make(Exporter, folder, name, config)) is not None]
        missing = len(config.to) - len(exporters)
        last = False
        while not last:
            last = finished.wait(config.poll_s)
            fine = [_sync(exporter, say=lambda line: None) for exporter in exporters]
        for exporter in exporters:
            exporter.close()
    return int(missing > 0 or not all(fine))


def _make(kind: Any, folder: Path, name: TrackerName, config: Any) -> Exporter | None:
    try:
        made: Exporter = kind(folder, name, config)
    except ValueError as error:
        _complain(str(error))
        return None
    return made


def _complain(message: str) -> None:
    print(f"dftune track: {message}", file=sys.stderr, flush=True)
