"""``dftune train``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dftune.recipe import Recipe

_EPILOG = """\
examples:
  dftune train recipes/examples/gsm8k-tiny.yaml
  dftune train my.yaml objective.name=dynamic_ft optimizer.lr=1e-4 name=my-dynamic
  dftune train my.yaml --dry-run            every key with its value; steps, memory, and what would be fetched
  dftune train my.yaml --resume             continue a killed run from its last checkpoint
  dftune train my.yaml --nproc 8            eight processes on this machine, one a GPU where there are GPUs
  torchrun --nproc-per-node 8 -m dftune train my.yaml      the same; with torchrun's rendezvous, over several machines

The run's folder (recipe key `output`, default runs/NAME) holds the recipe, a manifest, metrics in events.jsonl, the
checkpoints and the final model. Data is prepared first where `dftune prepare` has not done so. Benchmarks listed under
`evaluate` are run on the final model.

Some objectives need more than the model itself: log-probabilities of the model as it was at the start (computed once
and kept beside the prepared data), negatives, or an inner loop. docs/training.md says which, and how each is met.

`dftune train --keys` lists every key of a recipe with its meaning.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("recipe", type=Path, nargs="?", help="YAML recipe; .yaml may be left out")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="recipe keys to override")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved recipe and what it would do, and stop"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder from its last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    parser.add_argument("--no-evaluate", action="store_true", help="leave out the recipe's benchmarks")
    parser.add_argument(
        "--nproc", type=int, metavar="N", help="train in N processes on this machine (docs/training.md)"
    )
    parser.add_argument("--keys", action="store_true", help="list every key of a recipe and stop")


def run(args: argparse.Namespace) -> int:
    """Train."""
    from dftune import config  # noqa: PLC0415
    from dftune.recipe import Recipe, load_recipe  # noqa: PLC0415

    if args.keys:
        print("\n".join(config.describe(Recipe)))
        return 0
    if args.recipe is None:
        raise ValueError("which recipe? `dftune train RECIPE`; there are some in recipes/examples/.")
    recipe = load_recipe(args.recipe, args.overrides)

    from dftune.train.needs import check_recipe  # noqa: PLC0415

    check_recipe(recipe)  # what cannot be trained is not worth preparing data for
    if args.dry_run:
        from dftune.train.plan import plan_of  # noqa: PLC0415

        print(config.dump(recipe), end="")
        print("\n".join(f"# {line}" for line in plan_of(recipe)))  # so that the output is a recipe still
        return 0
    if args.nproc is not None:
        return _launch(args, recipe)
    return _train(args, recipe)


def _launch(args: argparse.Namespace, recipe: Recipe) -> int:
    """The same command in several processes."""
    from dftune.launch import launch  # noqa: PLC0415

    if "RANK" in os.environ:
        raise ValueError("this is a process of torchrun's already; leave --nproc out.")
    asked = recipe.distributed.world_size
    if args.nproc < 1 or asked not in (None, args.nproc):
        wanted = "at least 1" if asked is None else f"{asked}, which distributed.world_size asks for"
        raise ValueError(f"--nproc is {args.nproc}, and must be {wanted}.")
    flags = [f"--{name.replace('_', '-')}" for name in ("resume", "overwrite", "no_evaluate") if getattr(args, name)]
    return launch(args.nproc, ["train", str(args.recipe), *args.overrides, *flags])


def _train(args: argparse.Namespace, recipe: Recipe) -> int:
    from dftune.data.prepare import prepared  # noqa: PLC0415
    from dftune.train.beside import Beside  # noqa: PLC0415
    from dftune.train.distributed import joined  # noqa: PLC0415
    from dftune.train.loop import train  # noqa: PLC0415
    from dftune.train.room import memory_lines  # noqa: PLC0415

    beside = Beside(recipe)
    with joined(recipe) as world:
        for line in world.from_main(lambda: list(memory_lines(recipe, world.size))):
            if world.main:
                print(line)
        world.from_main(lambda: prepared(recipe) is not None)  # the others find it prepared
        again = {"resume": args.resume, "overwrite": args.overwrite}
        folder = train(recipe, prepared(recipe), **again, world=world, beside=beside)
    if not world.main:
        return 0
    print(f"model: {folder.model}")
    beside.finish_watcher()
    if recipe.evaluate.benchmarks and not args.no_evaluate:
        _evaluate(recipe, folder.path)
    beside.finish()
    return 0


def _evaluate(recipe: Recipe, run: Path) -> None:
    """Run the benchmarks on the final model: what a watcher has left, on the watcher's device, as it began."""
    from dftune.evaluate.record import record  # noqa: PLC0415
    from dftune.evaluate.runner import evaluate_run  # noqa: PLC0415
    from dftune.evaluate.summary import table  # noqa: PLC0415
    from dftune.watch.check import with_servers  # noqa: PLC0415
    from dftune.watch.swap import ServedCheckpoints  # noqa: PLC0415
    from dftune.watch.watcher import watch_device  # noqa: PLC0415

    config, device, load = recipe.evaluate, "auto", None
    if recipe.watch.enabled:
        config, device = with_servers(config, recipe.watch.server), watch_device(recipe.watch, run)
        load = ServedCheckpoints(config) if config.server else None
    summaries = evaluate_run(run, config, device=device, load=load)
    record(run, summaries, "train")
    print(table(summaries))
