"""``dftune sweep``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_EPILOG = """\
examples:
  dftune sweep recipes/sweeps/tiny.yaml                   search with one worker a core
  dftune sweep recipes/sweeps/tiny.yaml --workers 2       two trials side by side
  dftune sweep my.yaml sweep.num_trials=40                go on searching
  dftune sweep my.yaml --dry-run                          the space, and the recipe of one point in it
  dftune sweep status sweeps/my                           trials so far

A recipe with a `sweep` section names dotted keys with their ranges or values, and a metric of held-out rows or
problems. Optuna chooses the next values (TPE) and stops trials that fall behind (successive halving). Every trial is an
ordinary run in FOLDER/trials. The best recipe is written to FOLDER/best.yaml, with sweep.json and sweep.html beside it.

The same command again takes a stopped sweep up where it was: trials that were cut short go on from their checkpoints.
It may run on several machines that share the folder at the same time. docs/sweep.md says more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("recipe", type=Path, nargs="?", help="YAML recipe with a sweep section; or: status FOLDER")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="recipe keys to override")
    parser.add_argument("--workers", type=int, help="trials side by side (default: devices, else cores, at most 4)")
    parser.add_argument("--dry-run", action="store_true", help="print the space and the recipe of one point, and stop")
    parser.add_argument(
        "--stale-after",
        type=float,
        default=120.0,
        metavar="S",
        help="take over the trial of another machine that gives no sign for S seconds (default 120)",
    )
    parser.add_argument("--once", action="store_true", help="with status: print it once")
    parser.add_argument("--keys", action="store_true", help="list every key of the sweep section and stop")


def run(args: argparse.Namespace) -> int:
    """Run a sweep, or say how far one is."""
    from dftune import config  # noqa: PLC0415

    if str(args.recipe) == "status":
        return _status(args)
    if args.keys:
        return _keys()
    if args.recipe is None:
        raise ValueError("which recipe? `dftune sweep RECIPE`; there is a small one in recipes/sweeps/tiny.yaml.")
    from dftune.sweep.config import load_sweep  # noqa: PLC0415

    recipe = load_sweep(args.recipe, args.overrides)
    if args.stale_after <= 0:
        raise ValueError(f"--stale-after is {args.stale_after:g}; it must be above 0 seconds.")
    if args.dry_run:
        recipe.check()
        print(f"# {recipe.sweep.size} trials in {recipe.output}, of which this is one point of the space")
        print(config.dump(recipe.trial(0, recipe.first)), end="")
        return 0

    from dftune.sweep.run import run_sweep  # noqa: PLC0415
    from dftune.sweep.status import status  # noqa: PLC0415

    found = run_sweep(recipe, workers=args.workers, stale_after_s=args.stale_after)
    print("\n" + status(recipe.output)[0])
    if found.best is None:
        print(f"No trial was trained to the end; {recipe.output / 'logs'} says why.", file=sys.stderr)
        return 1
    print(f"best recipe: {found.best}")
    print(f"page: {found.page}")
    return 0


def _status(args: argparse.Namespace) -> int:
    from dftune.study.status import show  # noqa: PLC0415
    from dftune.sweep.status import status  # noqa: PLC0415

    return show(status, args.overrides, "sweep", once=args.once)


def _keys() -> int:
    from dftune import config  # noqa: PLC0415
    from dftune.sweep.config import Dimension, SweepConfig  # noqa: PLC0415

    print("\n".join(config.describe_with(SweepConfig, "sweep", "space", Dimension)))
    return 0
