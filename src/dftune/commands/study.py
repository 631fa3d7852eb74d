"""``dftune study``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_EPILOG = """\
examples:
  dftune study recipes/examples/study-tiny.yaml --dry-run     the plan: cells, steps, tokens, disk, time
  dftune study recipes/examples/study-tiny.yaml --workers 2   two runs side by side
  dftune study my.yaml study.seeds=[0,1,2,3,4]                more seeds: what is there is kept
  dftune study my.yaml --retry-failed                         what failed is tried again
  dftune study status studies/my                              how far it is, until it has ended
  dftune study status studies/my --once                       the same, once

A recipe with a `study` section names objectives, learning rates, seeds, models and data conditions. Every combination
is an ordinary run in FOLDER/cells, on the same examples in the same order, for the same number of steps. Learning rates
are chosen on held-out rows or problems, never on the benchmarks of the result.

The same command again takes a stopped study up where it was. On several machines that share the folder it may run at
the same time: each run is done once, and what a dead machine leaves is taken over. docs/study.md says more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("recipe", type=Path, nargs="?", help="YAML recipe with a study section; or: status FOLDER")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="recipe keys to override")
    parser.add_argument("--workers", type=int, help="runs side by side (default: CUDA devices, else cores, at most 4)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop; nothing is kept")
    parser.add_argument("--no-probe", action="store_true", help="with --dry-run: do not time a few steps")
    parser.add_argument("--retry-failed", action="store_true", help="try again what failed")
    parser.add_argument(
        "--stale-after",
        type=float,
        default=120.0,
        metavar="S",
        help="take over the run of another machine that gives no sign for S seconds (default 120)",
    )
    parser.add_argument("--title", help="heading of the report")
    parser.add_argument("--once", action="store_true", help="with status: print it once")
    parser.add_argument("--keys", action="store_true", help="list every key of the study section and stop")


def run(args: argparse.Namespace) -> int:
    """Run a study, or say how far one is."""
    if str(args.recipe) == "status":
        return _status(args)
    if args.keys:
        return _keys()
    if args.recipe is None:
        raise ValueError(
            "which recipe? `dftune study RECIPE`; there is a small one in recipes/examples/study-tiny.yaml."
        )
    from dftune.study.config import load_study  # noqa: PLC0415
    from dftune.study.plan import Plan  # noqa: PLC0415

    recipe = load_study(args.recipe, args.overrides)
    if args.stale_after <= 0:
        raise ValueError(f"--stale-after is {args.stale_after:g}; it must be above 0 seconds.")
    if args.dry_run:
        from dftune.study.estimate import describe_plan  # noqa: PLC0415

        plan = Plan(recipe)
        plan.check()
        print(describe_plan(plan, workers=args.workers, probe=not args.no_probe))
        return 0

    from dftune.study.run import run_study  # noqa: PLC0415
    from dftune.study.status import choice_lines  # noqa: PLC0415

    outcome = run_study(
        recipe,
        workers=args.workers,
        stale_after_s=args.stale_after,
        retry_failed=args.retry_failed,
        title=args.title,
    )
    if outcome.report is not None:
        print("\n" + outcome.report.summary())
        for note in outcome.report.notes:
            print(f"note: {note}")
    if recipe.study.tunes:
        print("\n" + "\n".join(choice_lines(outcome.choices or ())))
    for difference in outcome.unequal:
        print(f"Not equal: {difference}", file=sys.stderr)
    for name, error in outcome.failed.items():
        print(f"Failed: {name}: {error}", file=sys.stderr)
    if outcome.failed:
        print("`--retry-failed` tries again what failed.", file=sys.stderr)
    if outcome.html is not None:
        print(f"\nReport: {outcome.html}")
    return 0 if outcome.sound else 1


def _status(args: argparse.Namespace) -> int:
    from dftune.study.status import show, status  # noqa: PLC0415

    return show(status, args.overrides, "study", once=args.once)


def _keys() -> int:
    from dftune import config  # noqa: PLC0415
    from dftune.study.config import ObjectiveChoice, StudyConfig  # noqa: PLC0415

    print("\n".join(config.describe_with(StudyConfig, "study", "objectives", ObjectiveChoice)))
    return 0
