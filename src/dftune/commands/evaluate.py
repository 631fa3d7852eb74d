"""Complete benchmarks with a model, grade the completions, print accuracy with an interval."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dftune.evaluate.config import EvaluateConfig
    from dftune.evaluate.results import EvalSummary

EPILOG = """\
examples:
  dftune evaluate runs/my-run --benchmarks math500.jsonl
      the final model of a run; results go into runs/my-run/evals/step-N
  dftune evaluate runs/my-run --all-checkpoints
      every checkpoint too, on the benchmarks that the run's recipe names
  dftune evaluate Qwen/Qwen2.5-Math-1.5B --benchmarks math500.jsonl:100 --prompt-format qwen-boxed
      the first 100 problems, with a model of the Hugging Face hub
  dftune evaluate runs/my-run --benchmarks aime24.jsonl --protocol sample --num-samples 16
      sixteen completions a problem; the accuracy is their mean, the interval is over problems

Options that are left out are taken from the `evaluate` section of the run's recipe, where there is one.
A benchmark is a JSONL file, one problem a line: {"id": ..., "problem": ..., "answer": ...}.
A killed evaluation is continued by the same command: completions that are there are kept.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from dftune.general.options import EPILOG as TASKS_EPILOG  # noqa: PLC0415
    from dftune.general.options import add_task_arguments  # noqa: PLC0415

    parser.epilog = f"{EPILOG}\n{TASKS_EPILOG}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run of dftune, one of its checkpoints, a Hugging Face folder, or a model id")
    add("--benchmarks", nargs="+", metavar="SPEC", help="JSONL files or dataset ids; SPEC:N takes the first N rows")
    add("--protocol", choices=("greedy", "sample"), help="greedy: one completion at temperature 0 (default); sample")
    add("--num-samples", type=int, metavar="N", help="completions a problem, for --protocol sample (default 1)")
    add("--temperature", type=float, metavar="T", help="for --protocol sample (default 1.0)")
    add("--top-p", type=float, metavar="P", help="nucleus sampling, for --protocol sample (default 1.0: off)")
    add("--max-tokens", type=int, metavar="N", help="most tokens of a completion (default 1024)")
    add("--batch-size", type=int, metavar="N", help="completions generated together (default 64)")
    add(
        "--prompt-format",
        metavar="NAME",
        help="how a problem becomes a prompt; default: as the model was trained, else its chat template, else plain",
    )
    add("--seed", type=int, metavar="N", help="seed of the sampling (default 0)")
    add("--output", type=Path, metavar="FOLDER", help="where results go (default: the run, else runs/eval-NAME)")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--step", type=int, metavar="N", help="of a run: the checkpoint of step N, not the final model")
    steps.add_argument("--all-checkpoints", action="store_true", help="of a run: every checkpoint and the final model")
    add("--overwrite", action="store_true", help="throw away results that are there already")
    add("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1...")
    add_task_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table."""
    from dftune.environment import set_threads  # noqa: PLC0415
    from dftune.evaluate.locate import plan, recipe_section  # noqa: PLC0415
    from dftune.evaluate.results import table  # noqa: PLC0415
    from dftune.evaluate.runner import evaluate  # noqa: PLC0415  (seconds to import)

    plans = plan(args.model, args.output, step=args.step, all_checkpoints=args.all_checkpoints)
    config = configure(args, recipe_section(args.model))
    set_threads()
    if args.tasks:
        from dftune.general.options import run_tasks  # noqa: PLC0415

        run_tasks(args, plans, config)
        if not args.benchmarks:
            return 0
    summaries: list[EvalSummary] = []
    for item in plans:
        summaries += evaluate(
            item.model,
            config.benchmarks,
            config,
            item.output,
            step=item.step,
            overwrite=args.overwrite,
            device=args.device,
        )
    print(table(summaries))
    return 0


def configure(args: argparse.Namespace, recipe: dict[str, Any]) -> EvaluateConfig:
    """The recipe's section with the options of the command line over it."""
    from dftune.config import validate  # noqa: PLC0415
    from dftune.evaluate.config import EvaluateConfig  # noqa: PLC0415

    given = {key: getattr(args, key) for key in EvaluateConfig.model_fields if getattr(args, key) is not None}
    values = {**recipe, **given}
    if given.get("protocol") == "greedy" and "num_samples" not in given:
        values["num_samples"] = 1  # the recipe's number was for its own protocol
    return validate(values, EvaluateConfig, "evaluate")
