"""The options of `dftune evaluate` on general tasks, and what they start."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dftune.evaluate.config import EvaluateConfig
    from dftune.evaluate.locate import Plan

EPILOG = """\
general tasks:
  dftune evaluate runs/my-run --tasks mmlu hellaswag truthfulqa
      by lm_eval (pip install 'dftune[lm-eval]'), into the same run folder and the same report
  dftune evaluate runs/my-run --tasks general
      mmlu, truthfulqa, hellaswag, winogrande, gsm8k, arc and ifeval; open-llm-leaderboard: without ifeval
  dftune evaluate runs/my-run --tasks my_task --include-path tasks/
      a task of your own, a YAML file of lm_eval's in tasks/; any name of lm_eval's works, NAME:METRIC picks a metric
  dftune evaluate runs/my-run --tasks alpaca_eval --max-tokens 2048
      AlpacaEval: outputs are generated here and judged by alpaca_eval where it can be called
"""


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument_group("general tasks").add_argument
    add("--tasks", nargs="+", metavar="TASK", help="general, mmlu, ..., alpaca_eval, or any task of lm_eval")
    add("--include-path", type=Path, metavar="FOLDER", help="YAML files of further tasks of lm_eval")
    add("--limit", type=int, metavar="N", help="only the first N questions of each task")
    add("--num-fewshot", type=int, metavar="N", help="examples in the prompt (default: the task's own number)")
    add("--chat-template", action="store_true", help="render lm_eval's prompts with the tokenizer's chat template")
    add("--instructions", type=Path, metavar="FILE", help="alpaca_eval: JSON or JSONL (default: AlpacaEval's 805)")
    add("--reference-outputs", type=Path, metavar="FILE", help="alpaca_eval: outputs to be compared with")
    add("--annotator", metavar="NAME", help="alpaca_eval: name or folder of the judge's configuration")
    add("--alpaca-eval", metavar="PROGRAM", help="alpaca_eval: the program, in the environment where it is installed")


def run_tasks(args: argparse.Namespace, plans: Sequence[Plan], config: EvaluateConfig) -> list[str]:
    """Run the tasks on every model, print the table; returns the files of rows."""
    from dftune.general.alpaca import evaluate_alpaca  # noqa: PLC0415  (seconds to import)
    from dftune.general.harness import HarnessOptions  # noqa: PLC0415
    from dftune.general.judge import JudgeOptions  # noqa: PLC0415
    from dftune.general.run import evaluate_tasks  # noqa: PLC0415
    from dftune.general.summary import task_table  # noqa: PLC0415
    from dftune.general.tasks import resolve  # noqa: PLC0415

    batch_size = {} if args.batch_size is None else {"batch_size": args.batch_size}
    options = HarnessOptions(args.include_path, args.limit, args.num_fewshot, args.chat_template, **batch_size)
    tasks, alpaca = resolve(args.tasks, args.num_fewshot)
    judge = JudgeOptions(args.alpaca_eval, args.annotator, args.reference_outputs)
    common = {"overwrite": args.overwrite, "device": args.device}
    summaries = []
    for plan in plans:
        if tasks:
            summaries += evaluate_tasks(plan.model, args.tasks, plan.output, step=plan.step, options=options, **common)
        if alpaca:
            summaries.append(
                evaluate_alpaca(
                    plan.model,
                    config,
                    plan.output,
                    step=plan.step,
                    instructions=args.instructions,
                    limit=args.limit,
                    judge=judge,
                    **common,
                )
            )
    print(task_table(summaries))
    return [str(summary.results) for summary in summaries]
