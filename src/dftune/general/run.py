"""General tasks from a model to result files (docs/general-tasks.md, docs/run-folder.md)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dftune.evaluate.results import check_same
from dftune.files import fingerprint, read_json, write_json, write_jsonl
from dftune.general.harness import SEEDS, Harness, HarnessOptions, harness_version, task_files_fingerprint
from dftune.general.subject import Subject, to_stderr
from dftune.general.summary import TaskSummary, summarize_task
from dftune.general.tasks import Task, resolve

PROTOCOL = "lm_eval"


def evaluate_tasks(
    model: str,
    tasks: Sequence[str],
    output: Path,
    *,
    step: int,
    options: HarnessOptions | None = None,
    overwrite: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    say: Callable[[str], None] = to_stderr,
) -> list[TaskSummary]:
    """Run tasks with lm_eval and write ``output/evals/step-N/TASK.lm_eval.json(l)``.

    A task is saved when it is done. Called again with the same settings, it runs only tasks that are not there.

    Args:
        model: folder of a Hugging Face checkpoint, or a model id of the hub.
        tasks: as `dftune.general.tasks.resolve` reads them, without ``alpaca_eval``.
        output: a run folder.
        step: optimizer steps of the model.
        options: of lm_eval.
        overwrite: throw away results that are there.
        device: ``auto``, ``cpu``, ``cuda``...
        dtype: of the weights; ``auto`` is bfloat16 on CUDA, float32 on the CPU.
        say: told how far things are.

    Raises:
        ValueError: lm_eval is not installed; a task, the model or a setting is wrong; or results of other settings are
            there.
    """
    options = options or HarnessOptions()
    version = harness_version()
    chosen, _ = resolve(tasks, options.num_fewshot)
    subject = Subject(model, output, step=step, device=device, dtype=dtype)
    wanted = {task.name: _settings(task, subject, options, version) for task in chosen}
    paths = {task.name: subject.results / f"{task.name}.{PROTOCOL}.json" for task in chosen}
    missing = [task for task in chosen if overwrite or not _finished(paths[task.name], wanted[task.name])]
    if missing:
        harness = Harness(missing, options)  # all questions before the model: a missing data set is told at once
        subject.begin()
        harness.use(subject.engine)
        for number, task in enumerate(missing, 1):
            say(f"[{number}/{len(missing)}] {task.name}: {task.harness_name} of lm_eval {version}")
            paths[task.name].unlink(missing_ok=True)  # without it the rows beside it do not count
            started = time.monotonic()
            outcome = harness.run(task)
            seconds = round(time.monotonic() - started, 3)
            write_jsonl(paths[task.name].with_suffix(".jsonl"), outcome.rows)
            write_json(paths[task.name], {**wanted[task.name], **outcome.found, "seconds": seconds})
    return [summarize_task(path) for path in paths.values()]


def _settings(task: Task, subject: Subject, options: HarnessOptions, version: str) -> dict[str, Any]:
    """Everything known before the task has run that its result depends on."""
    template = subject.tokenizer.chat_template if options.chat_template else None
    if options.chat_template and not template:
        raise ValueError(f"{subject.model['path']} has no chat template; leave --chat-template out.")
    return {
        "benchmark": task.name,
        "protocol": PROTOCOL,
        "benchmark_path": f"lm_eval:{task.harness_name}",
        "num_samples": 1,
        **subject.settings,
        "prompt_format": {"name": "lm_eval" + ("-chat" if template else ""), "fingerprint": fingerprint(template)},
        "trained_prompt_format": None,
        "grader": f"lm_eval {version}",
        "task": {
            "lm_eval": version,
            "name": task.harness_name,
            "files": task_files_fingerprint(task, options.include_path),
            "metric": task.metric,
            "examples": task.num_fewshot,
            "limit": options.limit,
            "chat_template": bool(template),
            "seeds": SEEDS,
        },
    }


def _finished(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the results are there; those of other settings are refused."""
    if not path.is_file():
        return False
    before = read_json(path)
    check_same(path, {key: before.get(key) for key in wanted}, wanted)
    return path.with_suffix(".jsonl").is_file()
