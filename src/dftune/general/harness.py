"""Run tasks with lm_eval, in this process, on a model that we have loaded."""

from __future__ import annotations

import difflib
import logging
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dftune.data.hub import hub_reachable, offline
from dftune.files import fingerprint, sha256_file
from dftune.general.samples import Row, benchmark_fingerprint, choose_metric, make_rows
from dftune.general.tasks import Task

if TYPE_CHECKING:
    from dftune.generate.local import LocalEngine

SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""lm_eval's own, so that the examples in prompts are those behind published numbers."""
_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class HarnessOptions:
    """How tasks are run.

    Attributes:
        include_path: folder with YAML files of further tasks; what stands there goes before lm_eval's own.
        limit: only the first questions of each (sub)task; None for all.
        num_fewshot: examples in the prompt of every task, in place of the task's own number.
        chat_template: render prompts with the tokenizer's chat template, each example as a turn.
        batch_size: sequences scored or generated together.
    """

    include_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    chat_template: bool = False
    batch_size: int = 8

    def __post_init__(self) -> None:
        """Check the ranges."""
        if (self.limit is not None and self.limit < 1) or (self.num_fewshot or 0) < 0 or self.batch_size < 1:
            raise ValueError(
                f"--limit and --batch-size must be at least 1, --num-fewshot at least 0; found limit {self.limit}, "
                f"batch size {self.batch_size}, {self.num_fewshot} examples."
            )
        if self.include_path is not None and not self.include_path.is_dir():
            raise ValueError(f"--include-path {self.include_path} is no folder; give one with YAML files of tasks.")


@dataclass(frozen=True)
class Outcome:
    """What a task gave.

    Attributes:
        rows: one a question.
        found: what is known of the task only after it ran: ``num_problems``, ``benchmark_fingerprint``, ``metric``,
            ``num_fewshot`` and ``versions`` by subtask, and lm_eval's own ``results``.
    """

    rows: list[Row]
    found: dict[str, Any]


def harness_version() -> str:
    """The version of lm_eval.

    Raises:
        ValueError: it is not installed.
    """
    if find_spec("lm_eval") is None:
        raise ValueError("general tasks are run by lm_eval, which is not installed: pip install 'dftune[lm-eval]'")
    return metadata.version("lm_eval")


class Harness:
    """lm_eval's tasks, and its view of a model."""

    def __init__(self, tasks: Sequence[Task], options: HarnessOptions) -> None:
        """Load the questions of every task, before any model is loaded.

        Raises:
            ValueError: there is no such task, its data cannot be had, or it lacks the metric.
        """
        self.options = options
        self._managers: dict[bool, Any] = {}
        with _quiet(), offline(not hub_reachable()):
            self._loaded = {task.name: self._load(task) for task in tasks}
        self._model: Any = None

    def _load(self, task: Task) -> Any:
        loaded = self._find(task)
        for name, part in loaded["tasks"].items():
            if getattr(part, "UNSAFE_CODE", False):
                raise ValueError(f"task {name} runs code that the model wrote; dftune does not run such tasks.")
            _check_metric(name, part, task.metric)
            shots = part.get_config("num_fewshot")
            if task.num_fewshot is not None and shots != 0:  # a 0 in a task's file is part of the task, says lm_eval
                part.set_config(key="num_fewshot", value=task.num_fewshot)
            elif shots is None:
                part.set_config(key="num_fewshot", value=0)
            part.set_fewshot_seed(seed=SEEDS["fewshot"])
        return loaded

    def _find(self, task: Task) -> Any:
        """The task or group with its questions: from the user's folder, or from lm_eval's own tasks."""
        name, folder = task.harness_name, self.options.include_path
        if folder is not None:  # to read the index of all of lm_eval's own tasks takes seconds
            own = self._manager(include_defaults=False)
            with suppress(KeyError):  # a group may name tasks of lm_eval's own
                if name in own.all_tasks:
                    return _load_named(own, name)
        every = self._manager(include_defaults=True)
        if name not in every.all_tasks:
            near = difflib.get_close_matches(name, every.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them."
            raise ValueError(f"lm_eval has no task {name}; {hint} Your own: --include-path FOLDER.")
        return _load_named(every, name)

    def _manager(self, *, include_defaults: bool) -> Any:
        from lm_eval.tasks import TaskManager  # noqa: PLC0415

        if include_defaults not in self._managers:
            folder = self.options.include_path
            path = None if folder is None else str(folder)
            self._managers[include_defaults] = TaskManager(include_path=path, include_defaults=include_defaults)
        return self._managers[include_defaults]

    def use(self, engine: LocalEngine) -> None:
        """Take the model that the tasks are for."""
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

        with _quiet():
            self._model = HFLM(
                pretrained=engine.model,
                tokenizer=engine.tokenizer,
                backend="causal",
                batch_size=self.options.batch_size,
            )

    def run(self, task: Task) -> Outcome:
        """Run one task.

        Raises:
            ValueError: the device's memory does not suffice, or lm_eval fails.
        """
        import torch  # noqa: PLC0415
        from lm_eval.evaluator import evaluate  # noqa: PLC0415

        _seed()
        try:
            results = evaluate(
                lm=self._model,
                task_dict=self._loaded[task.name],
                limit=self.options.limit,
                bootstrap_iters=_BOOTSTRAPS,
                log_samples=True,
                apply_chat_template=self.options.chat_template,
                fewshot_as_multiturn=self.options.chat_template,
            )
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"the device has too little memory for batches of {self.options.batch_size} prompts of {task.name}. "
                "Lower --batch-size; tasks that are done are kept."
            ) from error
        except AssertionError as error:  # how lm_eval says, among others, that the context is too short
            raise ValueError(f"lm_eval cannot run {task.name} on this model: {error}") from error
        except ImportError as error:
            raise ValueError(_missing(task.harness_name, error)) from error
        return _outcome(task, results)


def task_files_fingerprint(task: Task, folder: Path | None) -> str | None:
    """Of everything in the folder of local tasks, where one of its YAML files names the task; None elsewhere.

    Changes with the definition of a local task and with data beside it, without lm_eval being asked.
    """
    if folder is None:
        return None
    named = re.compile(
        rf"^\s*(?:-\s*)?(?:(?:task|group|tag):\s*)?(['\"]?){re.escape(task.harness_name)}\1\s*$", re.MULTILINE
    )
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in folder.rglob("*.y*ml"))
    if not any(named.search(text) for text in texts):
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return fingerprint({str(path.relative_to(folder)): sha256_file(path) for path in files})


def _outcome(task: Task, results: Mapping[str, Any]) -> Outcome:
    samples, configs = results["samples"], results["configs"]
    key = choose_metric(samples, task.metric)
    num_fewshot = {name: results["n-shot"].get(name, 0) for name in samples}
    rows = make_rows(samples, key, configs)
    found = {
        "num_problems": len(rows),
        "benchmark_fingerprint": benchmark_fingerprint(samples, key, num_fewshot),
        "metric": key,
        "num_fewshot": num_fewshot,
        "versions": {name: str(version) for name, version in results["versions"].items()},
        "results": {name: _plain(values) for name, values in results["results"].items()},
    }
    return Outcome(rows, found)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of numpy as numbers of Python; what is neither number nor text is left out."""
    plain: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, str | bool | int):
            plain[key] = value
        elif hasattr(value, "__float__") and math.isfinite(float(value)):
            plain[key] = float(value)
    return plain


def _load_named(manager: Any, name: str) -> Any:
    try:
        return manager.load([name])
    except KeyError:
        raise
    except ImportError as error:
        raise ValueError(_missing(name, error)) from error
    except Exception as error:  # data sets raise whatever their readers do
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ValueError(
            f"task {name} could not be loaded: {type(error).__name__}: {reason}. "
            "Without a network its data must be local, or in the cache of datasets already."
        ) from error


def _check_metric(name: str, part: Any, wanted: str | None) -> None:
    listed = [entry.get("metric") for entry in part.get_config("metric_list") or []]
    known = [str(metric) for metric in listed if metric]
    if wanted is not None and known and wanted.partition(",")[0] not in known:
        raise ValueError(f"task {name} has no metric {wanted}; it has {', '.join(known)}.")


def _missing(name: str, error: ImportError) -> str:
    return (
        f"task {name} needs a package that is not installed ({error}). "
        f"lm_eval has an extra for many such tasks: pip install 'lm-eval[{name}]'."
    )


def _seed() -> None:
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415

    random.seed(SEEDS["python"])
    np.random.seed(SEEDS["numpy"])  # noqa: NPY002  (lm_eval's tasks draw from the global generators)
    torch.manual_seed(SEEDS["torch"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm_eval's remarks on defaults; its errors stay."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
