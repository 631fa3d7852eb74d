"""The general tasks by name: which task of lm_eval each stands for, with how many examples, scored by what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dftune.files import check_name

ALPACA_EVAL = "alpaca_eval"


@dataclass(frozen=True)
class Task:
    """One task to be run by lm_eval.

    Attributes:
        name: ours; names the files of its results.
        harness_name: lm_eval's, of a task, group or tag.
        num_fewshot: examples in the prompt; None stands for what the task's own configuration says.
        metric: ``METRIC`` or ``METRIC,FILTER`` as lm_eval writes it; None: the first that is a number from 0 to 1 for
            every question.
    """

    name: str
    harness_name: str
    num_fewshot: int | None = None
    metric: str | None = None


TASKS = {
    task.name: task
    for task in (
        Task("mmlu", "mmlu", 5, "acc"),
        Task("truthfulqa", "truthfulqa_mc2", 0, "acc"),
        Task("hellaswag", "hellaswag", 10, "acc_norm"),
        Task("winogrande", "winogrande", 5, "acc"),
        Task("gsm8k", "gsm8k", 5, "exact_match,strict-match"),
        Task("arc", "arc_challenge", 25, "acc_norm"),
        Task("ifeval", "ifeval", 0, "prompt_level_strict_acc"),
    )
}
"""Examples and metrics of the first Open LLM Leaderboard, as lm_eval's group ``openllm`` has them; IFEval by prompts
followed to the letter (Zhou et al. 2023, arXiv:2311.07911)."""

SETS = {
    "open-llm-leaderboard": ("arc", "hellaswag", "mmlu", "truthfulqa", "winogrande", "gsm8k"),
    "general": tuple(TASKS),  # the columns of Discriminative FT's table, in its order
}
"""Names that stand for several tasks."""


def resolve(specs: Sequence[str], num_fewshot: int | None = None) -> tuple[list[Task], bool]:
    """The tasks that names on the command line stand for, each once, and whether AlpacaEval is among them.

    Args:
        specs: names of `TASKS` or `SETS`, ``alpaca_eval``, or names of lm_eval; ``NAME:METRIC`` asks for a metric.
        num_fewshot: examples in the prompt of every task, in place of the task's own number.

    Raises:
        ValueError: a name cannot be a file name, or one name is asked for with two metrics.
    """
    names = [name for spec in specs for name in SETS.get(spec, (spec,))]
    tasks: dict[str, Task] = {}
    for spec in names:
        if spec == ALPACA_EVAL:
            continue
        name, _, metric = spec.partition(":")
        check_name(name, "task")
        task = TASKS.get(name, Task(name, name))
        if metric:
            task = replace(task, metric=metric)
        if num_fewshot is not None:
            task = replace(task, num_fewshot=num_fewshot)
        if tasks.setdefault(name, task) != task:
            raise ValueError(
                f"task {name} is asked for with the metrics {tasks[name].metric} and {task.metric}, and both would "
                "go to one file. Choose one; all metrics of a task are in its result file anyway."
            )
    return list(tasks.values()), ALPACA_EVAL in names
