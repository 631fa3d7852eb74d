"""``dftune generate``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dftune.generate.sets import Completions
    from dftune.recipe import Recipe

_EPILOG = """\
what:
  negatives   completions to hold against the solutions (Discriminative FT): sampled, joined to the solutions by id in
              columns real, generated_0, generated_1, ...
  rollouts    completions of every problem, graded, all kept with their verdicts; prints how hard the problems are
  rft         from the rollouts: the correct ones, a few distinct ones a problem
  pairs       from the rollouts: a correct one against an incorrect one, for dpo
  weighted    from the rollouts: repeated in proportion to their quality, for iw-SFT(Q)
  reference   log-probabilities of the training examples under the model as it starts, which `dftune train` finds

examples:
  dftune generate recipes/examples/arithmetic-negatives.yaml negatives
  dftune generate my.yaml negatives generate.server=[http://127.0.0.1:8000/v1] generate.negatives.num_samples=16
      sixteen samples a problem from a server (dftune serve MODEL); what is there already is kept
  dftune generate recipes/examples/arithmetic-offline.yaml rollouts
  dftune generate recipes/examples/arithmetic-offline.yaml pairs generate.pairs.balance_lengths=true
  dftune generate my.yaml weighted --scores scores.jsonl
      quality from a reward model: one line each with id, sample and score
  dftune generate recipes/examples/arithmetic-negatives.yaml reference

Everything goes into the recipe's `generate.folder` (default generated/NAME): KIND.samples.jsonl and .json with every
completion, and a set with its manifest beside it. The sets are ordinary data: `data.source` of a recipe reads them.
A killed command is continued by the same command: completions that are there are kept. rft, pairs and weighted need
no model, and make the same files again. docs/generated-data.md shows both flows.
"""
_SAMPLED = ("negatives", "rollouts")
_DERIVED = ("rft", "pairs", "weighted")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("recipe", type=Path, help="YAML recipe; .yaml may be left out")
    add("what", choices=[*_SAMPLED, *_DERIVED, "reference"], help="what to make, see below")
    add("overrides", nargs="*", metavar="a.b=c", help="recipe keys to override")
    add("--output", type=Path, metavar="FOLDER", help="where everything goes (recipe key generate.folder)")
    add("--overwrite", action="store_true", help="throw away completions that are there already")
    add("--scores", type=Path, metavar="FILE", help="for weighted: JSONL with id, sample and score of each completion")
    add("--push-to-hub", metavar="OWNER/NAME", help="upload the set as a dataset of the Hugging Face hub")
    add("--public", action="store_true", help="with --push-to-hub: a repository that is made is public, not private")
    add("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1...")


def run(args: argparse.Namespace) -> int:
    """Sample, derive or compute, and say what came of it."""
    from dftune.recipe import load_recipe  # noqa: PLC0415

    recipe = load_recipe(args.recipe, args.overrides)
    if args.output is not None:
        generate = recipe.generate.model_copy(update={"folder": args.output})
        recipe = recipe.model_copy(update={"generate": generate})
    _check(args)
    if args.what == "reference":
        made = _reference(recipe)
    elif args.what in _SAMPLED:
        made = _sampled(recipe, args)
    else:
        made = _derived(recipe, args)
    if args.push_to_hub is not None:
        from dftune.generate.push import push_set  # noqa: PLC0415

        print(f"uploaded: {push_set(made, args.push_to_hub, private=not args.public)}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be done before any work.

    Raises:
        ValueError: an option does not go with what is to be made, or nothing could be uploaded.
    """
    if args.scores is not None and args.what != "weighted":
        raise ValueError(f"--scores goes with weighted, not with {args.what}.")
    if args.overwrite and args.what not in _SAMPLED:
        raise ValueError(f"--overwrite throws completions away, and {args.what} makes none. Leave it out.")
    if args.public and args.push_to_hub is None:
        raise ValueError("--public goes with --push-to-hub.")
    if args.push_to_hub is not None:
        from dftune.generate.push import check_can_push  # noqa: PLC0415

        if args.what in ("rollouts", "reference"):
            raise ValueError(f"--push-to-hub uploads a training set, and {args.what} makes none.")
        check_can_push(args.push_to_hub)


def _reference(recipe: Recipe) -> Path:
    from dftune.data.prepare import prepared  # noqa: PLC0415
    from dftune.train.loop import precompute_reference  # noqa: PLC0415
    from dftune.train.needs import check_recipe  # noqa: PLC0415

    check_recipe(recipe)  # what cannot be trained is not worth preparing data for
    data = prepared(recipe)
    stored = precompute_reference(recipe, data)
    return data.folder / "reference" / stored.fingerprint


def _sampled(recipe: Recipe, args: argparse.Namespace) -> Path:
    from dftune.environment import set_threads  # noqa: PLC0415
    from dftune.generate.rollouts import sample  # noqa: PLC0415  (seconds to import)

    set_threads()
    sampled = sample(recipe, args.what, overwrite=args.overwrite, device=args.device)
    read = _read(recipe, args.what)
    print(f"completions: {read.path}")
    if args.what == "rollouts":
        return _difficulty(read)
    from dftune.generate.describe import format_counts  # noqa: PLC0415
    from dftune.generate.merge import merge_negatives, write_merged  # noqa: PLC0415
    from dftune.generate.sets import write_manifest  # noqa: PLC0415

    config, keep = recipe.generate.negatives, recipe.generate.keep_truncated
    rows, counts = merge_negatives(sampled.problems.examples, read, config, keep_truncated=keep)
    path = read.path.with_name(f"negatives.{config.file}")
    write_merged(path, rows)
    settings = {**config.model_dump(mode="json"), "keep_truncated": keep}
    origin = {**read.origin(), "problems": sampled.problems.describe()}
    write_manifest(path, len(rows), origin=origin, settings=settings, counts=counts)
    print(format_counts(counts))
    columns = "data.columns.problem=real data.columns.solution=real data.columns.negatives=generated_"
    print(f"\nset: {path}\ntrain on it: data.source={path} {columns}")
    return path


def _read(recipe: Recipe, kind: str) -> Completions:
    from dftune.generate.sets import output_folder, read_completions  # noqa: PLC0415

    return read_completions(output_folder(recipe) / f"{kind}.samples.jsonl", f"dftune generate RECIPE {kind}")


def _difficulty(rollouts: Completions) -> Path:
    from dftune.files import write_json  # noqa: PLC0415
    from dftune.generate.derive import difficulty  # noqa: PLC0415
    from dftune.generate.describe import format_difficulty  # noqa: PLC0415

    found = difficulty(rollouts)
    path = rollouts.path.with_name("rollouts.difficulty.json")
    write_json(path, found)
    print(f"{format_difficulty(found)}\n\ndifficulty: {path}")
    return path


def _derived(recipe: Recipe, args: argparse.Namespace) -> Path:
    from dftune.files import sha256_file  # noqa: PLC0415
    from dftune.generate.derive import pair_set, rft_set, weighted_set  # noqa: PLC0415
    from dftune.generate.describe import format_counts  # noqa: PLC0415
    from dftune.generate.sets import write_set  # noqa: PLC0415

    rollouts = _read(recipe, "rollouts")
    if args.scores is not None:
        rollouts = _with_scores(rollouts, args.scores)
    makers: dict[str, Callable[..., Any]] = {"rft": rft_set, "pairs": pair_set, "weighted": weighted_set}
    config, keep = getattr(recipe.generate, args.what), recipe.generate.keep_truncated
    rows, counts = makers[args.what](rollouts, config, keep_truncated=keep)
    path = rollouts.path.with_name(f"{args.what}.jsonl")
    settings = {**config.model_dump(mode="json"), "keep_truncated": keep}
    origin = rollouts.origin()
    if args.scores is not None:
        origin["scores"] = {"file": args.scores.name, "sha256": sha256_file(args.scores)}
    write_set(path, rows, origin=origin, settings=settings, counts=counts)
    more = {"pairs": " data.columns.negatives=rejected", "weighted": " data.keep_duplicates=true"}.get(args.what, "")
    print(f"{format_counts(counts)}\n\nset: {path}\ntrain on it: data.source={path}{more}")
    return path


def _with_scores(rollouts: Completions, path: Path) -> Completions:
    """The rollouts with the score of each as ``reward``.

    Raises:
        ValueError: there is no such file, or it lacks a score.
    """
    from dataclasses import replace  # noqa: PLC0415

    from dftune.evaluate.protocols import read_scores, with_scores  # noqa: PLC0415
    from dftune.files import read_jsonl  # noqa: PLC0415

    if not path.is_file():
        raise ValueError(f"There is no file {path}. --scores wants JSONL with id, sample and score.")
    return replace(
        rollouts, rows=tuple(with_scores(rollouts.rows, read_scores(read_jsonl(path), str(path)), str(path)))
    )
