"""Complete benchmarks with a model, grade the completions, print accuracy with an interval."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dftune.evaluate.config import EvaluateConfig
    from dftune.evaluate.saved import Saved
    from dftune.evaluate.summary import EvalSummary

EPILOG = """\
examples:
  dftune evaluate runs/my-run --benchmarks math500 --data-dir data
      the final model of a run; results go into runs/my-run/evals/step-N
  dftune evaluate runs/my-run --all-checkpoints
      every checkpoint too, adapters of LoRA included, on the benchmarks that the run's recipe names
  dftune evaluate Qwen/Qwen2.5-Math-1.5B --benchmarks math500:100 --prompt-format qwen-boxed --by subject level
      the first 100 problems, with a model of the Hugging Face hub, broken down
  dftune evaluate runs/my-run --benchmarks aime24 --protocol avg@16 maj@16 pass@8 --temperature 0.6
      sixteen completions a problem, and three scores read off them
  dftune evaluate runs/my-run --benchmarks aime24 --protocol avg@64 --temperature 0.6
      48 more: what is there is kept
  dftune evaluate runs/my-run --benchmarks math500 --server http://127.0.0.1:8000/v1
      the model is served there (dftune serve runs/my-run); several URLs share the load
  dftune evaluate runs/dynamic_ft --against runs/sft
      better, worse or cannot tell, question by question, from results that are there: no model is loaded
  dftune evaluate runs/my-run --diagnose
      wrong, format failure, truncated, loop: what went wrong, how long, and in which subject

Options that are left out are taken from the `evaluate` section of the run's recipe, where there is one.
A benchmark is a name (`--list` shows them with the protocols), a JSONL, CSV or parquet file with one problem a row
(id, problem, answer), or a dataset of the hub: owner/name, owner/name@split, owner/name:config@split.
A killed evaluation is continued by the same command: completions that are there are kept.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from dftune.general.options import EPILOG as TASKS_EPILOG  # noqa: PLC0415
    from dftune.general.options import add_task_arguments  # noqa: PLC0415

    parser.epilog = f"{EPILOG}\n{TASKS_EPILOG}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a run of dftune, one of its checkpoints, a Hugging Face folder, a LoRA adapter, or a model id",
    )
    add("--list", action="store_true", help="list the named benchmarks and the protocols, and stop")
    add("--benchmarks", nargs="+", metavar="SPEC", help="names, files or dataset ids; SPEC:N takes the first N rows")
    add("--data-dir", type=Path, metavar="FOLDER", help="local copies of named benchmarks (default $DFTUNE_DATA)")
    add(
        "--protocol",
        nargs="+",
        metavar="NAME",
        help="greedy (default), avg@N, maj@N, pass@K, rm@N, strict-format; several are read off the same completions",
    )
    add("--num-samples", type=int, metavar="N", help="samples a problem, where a protocol needs no more (default 1)")
    add("--temperature", type=float, metavar="T", help="of samples (default 1.0)")
    add("--top-p", type=float, metavar="P", help="nucleus sampling (default 1.0: off)")
    add("--max-tokens", type=int, metavar="N", help="most tokens of a completion (default 1024)")
    add("--batch-size", type=int, metavar="N", help="completions generated together (default 64)")
    add(
        "--prompt-format",
        metavar="NAME",
        help="how a problem becomes a prompt; default: as the model was trained, else its chat template, else plain",
    )
    add("--seed", type=int, metavar="N", help="seed of the sampling (default 0)")
    add("--label", metavar="NAME", help="name of the file of samples (default sample), for a second temperature")
    add("--by", nargs="+", metavar="COLUMN", help="break the scores down by subject, level, ...")
    add("--scores", type=Path, metavar="FILE", help="JSONL with id, sample and score of completions, for rm@N")
    _add_server_arguments(parser)
    add("--output", type=Path, metavar="FOLDER", help="where results go (default: the run, else runs/eval-NAME)")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--step", type=int, metavar="N", help="of a run: the checkpoint of step N, not the final model")
    steps.add_argument("--all-checkpoints", action="store_true", help="of a run: every checkpoint and the final model")
    add(
        "--against",
        metavar="OTHER",
        help="compare with saved results of OTHER (a run, a checkpoint, a folder evals/step-N, a file, or a model): "
        "paired difference, interval, permutation p, smallest detectable difference; without --benchmarks nothing is "
        "generated where MODEL has results too",
    )
    add("--show", type=int, default=5, metavar="N", help="with --against: questions listed that flipped (default 5)")
    add("--json", type=Path, metavar="FILE", help="with --against: write the comparison there")
    add(
        "--diagnose",
        action="store_true",
        help="print what went wrong; stored beside the completions as JSON",
    )
    add("--overwrite", action="store_true", help="throw away results that are there already")
    add("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1...")
    add_task_arguments(parser)


def _add_server_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("servers", "the model is served elsewhere (dftune serve, vLLM, ...)").add_argument
    add("--server", nargs="+", metavar="URL", help="base URLs such as http://127.0.0.1:8000/v1; they share the load")
    add("--served-model", metavar="NAME", help="the model's name at the server (default: MODEL)")
    add("--chat", action="store_true", default=None, help="send messages, rendered by the server's chat template")
    add("--concurrency", type=int, metavar="N", help="most requests in flight at each server (default 64)")
    add("--samples-per-request", type=int, metavar="N", help="most samples of a problem asked at once (default 8)")
    add("--request-timeout-s", type=float, metavar="S", help="longest time for one request (default 600)")
    add("--max-retries", type=int, metavar="N", help="how often a request is tried again (default 8)")
    add("--outage-s", type=float, metavar="S", help="how long to wait when no server can be reached (default 300)")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the table, unless all that is asked about is on disk; then diagnose and compare."""
    if args.list:
        return _list()
    if args.model is None:
        raise ValueError(
            "which model? `dftune evaluate MODEL --benchmarks NAME`; --list shows benchmarks and protocols."
        )
    from dftune.generate.base import IncompleteError  # noqa: PLC0415

    if args.json is not None and args.against is None:
        raise ValueError("--json is where a comparison goes; give --against OTHER too.")
    theirs = _others(args.against) if args.against is not None else []
    saved: list[Saved] = []
    stored = not (args.benchmarks or args.tasks or args.protocol or args.all_checkpoints or args.overwrite)
    if (theirs or args.diagnose) and stored:
        from dftune.evaluate.saved import find_saved  # noqa: PLC0415

        saved = find_saved(args.model, step=args.step, output=args.output)
    try:
        saved = saved or _evaluate(args)
    except IncompleteError as error:
        said = f"dftune evaluate: {error}\nWhat was delivered is saved; the same command asks for the rest."
        print(said, file=sys.stderr)
        return 1
    if args.diagnose:
        _diagnose(saved)
    if theirs:
        _compare(saved, theirs, args)
    return 0


def _others(where: str) -> list[Saved]:
    """What to compare with, before any work is done.

    Raises:
        ValueError: nothing is saved there.
    """
    from dftune.evaluate.saved import find_saved  # noqa: PLC0415

    found = find_saved(where)
    if not found:
        raise ValueError(
            f"--against {where}: no saved results there. Give a run, a checkpoint, a folder evals/step-N or a model "
            f"that was evaluated, or evaluate it first: dftune evaluate {where} --benchmarks ..."
        )
    return found


def _diagnose(saved: Sequence[Saved]) -> None:
    from dftune.evaluate.describe import format_diagnosis  # noqa: PLC0415
    from dftune.evaluate.diagnose import diagnose  # noqa: PLC0415

    for one in saved:
        diagnosis = diagnose(one.rows)
        stored = diagnosis.write(one.path, one.settings.get("grader"))
        print(f"\n{one.path}\n\n{format_diagnosis(diagnosis)}\n\ndiagnosis: {stored}")


def _compare(saved: Sequence[Saved], theirs: Sequence[Saved], args: argparse.Namespace) -> None:
    from dftune.evaluate.against import compare_all, format_comparisons  # noqa: PLC0415
    from dftune.files import write_json  # noqa: PLC0415

    found = compare_all(saved, theirs, args.against)
    print(f"\n{format_comparisons(found, args.show)}")
    if args.json is not None:
        write_json(args.json, {"comparisons": [one.to_json() for one in found]})
        print(f"\ncomparison: {args.json}")


def _evaluate(args: argparse.Namespace) -> list[Saved]:
    """Generate what is missing, print the table."""
    from dftune.environment import set_threads  # noqa: PLC0415
    from dftune.evaluate.locate import plan, recipe_section  # noqa: PLC0415
    from dftune.evaluate.record import record  # noqa: PLC0415
    from dftune.evaluate.runner import evaluate  # noqa: PLC0415  (seconds to import)
    from dftune.evaluate.saved import find_saved  # noqa: PLC0415
    from dftune.evaluate.summary import table  # noqa: PLC0415
    from dftune.generate.base import IncompleteError  # noqa: PLC0415

    plans = plan(args.model, args.output, step=args.step, all_checkpoints=args.all_checkpoints)
    config = configure(args, recipe_section(args.model))
    set_threads()
    paths: Iterable[str] = ()
    if args.tasks:
        from dftune.general.options import run_tasks  # noqa: PLC0415

        paths = run_tasks(args, plans, config)
        if not args.benchmarks:
            return [one for path in paths for one in find_saved(path)]
    summaries: list[EvalSummary] = []
    for item in plans:
        try:
            found = evaluate(
                item.model,
                config.benchmarks,
                config,
                item.output,
                step=item.step,
                overwrite=args.overwrite,
                device=args.device,
                scores=args.scores,
            )
            record(item.output, found, "evaluate")
            summaries += found
        except IncompleteError:
            if summaries:
                print(table(summaries))
            raise
    print(table(summaries))
    paths = dict.fromkeys([*paths, *(str(summary.completions) for summary in summaries)])
    return [one for path in paths for one in find_saved(path)]


def _list() -> int:
    from dftune.evaluate.named import describe_benchmarks  # noqa: PLC0415
    from dftune.evaluate.protocols import describe_protocols  # noqa: PLC0415

    print(f"benchmarks (rows)\n{describe_benchmarks()}\n\nprotocols\n{describe_protocols()}")
    return 0


def configure(args: argparse.Namespace, recipe: dict[str, Any]) -> EvaluateConfig:
    """The recipe's section with the options of the command line over it."""
    from dftune.config import validate  # noqa: PLC0415
    from dftune.evaluate.config import EvaluateConfig  # noqa: PLC0415

    given = {key: getattr(args, key, None) for key in EvaluateConfig.model_fields}
    given = {key: value for key, value in given.items() if value is not None}
    values = {**recipe, **given}
    if "protocol" in given and "num_samples" not in given and "sample" not in (args.protocol or ()):
        values["num_samples"] = 1  # the recipe's number was for its own protocol
    return validate(values, EvaluateConfig, "evaluate")
