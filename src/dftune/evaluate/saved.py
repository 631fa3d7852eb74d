"""Evaluations that are on disk: where they are for a run, a checkpoint, a folder or a model, and reading one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dftune.evaluate.locate import locate, plan
from dftune.evaluate.protocols import Protocol, stored_protocols
from dftune.evaluate.questions import QuestionTally
from dftune.files import read_json, read_jsonl

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Saved:
    """One stored evaluation.

    Attributes:
        path: the completions, ``BENCHMARK.SAMPLING.jsonl``.
        settings: ``BENCHMARK.SAMPLING.json``, how they were made.
        view: the protocol that it is seen under; None for the whole file.
        whole: of a view, the whole file, which is read once for all of them.
    """

    path: Path
    settings: Row
    view: Protocol | None = None
    whole: Saved | None = None

    @property
    def benchmark(self) -> str:
        """Name of the benchmark."""
        return str(self.settings["benchmark"])

    @property
    def sampling(self) -> str:
        """Name of the file of completions: ``greedy``, ``sample`` or another."""
        return self.path.stem.removeprefix(f"{self.benchmark}.")

    @property
    def protocol(self) -> str:
        """Such as ``greedy`` or ``maj@16``; of the whole file, what it is called."""
        return self.sampling if self.view is None else self.view.name

    def views(self) -> list[Saved]:
        """The file under every protocol that it was made for."""
        return [replace(self, view=protocol, whole=self) for protocol in stored_protocols(self.settings)]

    @property
    def label(self) -> str:
        """The run or folder that holds it, and the step where that says something."""
        step = self.path.parent.name
        if not step.startswith("step-"):
            return str(self.path.parent)
        return f"{self.path.parent.parent.parent}{'' if step == 'step-0' else f' ({step})'}"

    @cached_property
    def rows(self) -> list[Row]:
        """Completions; of one that stands twice the later line counts."""
        if self.whole is not None and self.view is not None:
            return self.view.used(self.whole.rows)
        found = read_jsonl(self.path, partial_last_line=True)
        return list({(str(row["id"]), row.get("sample", 0)): row for row in found}.values())

    @cached_property
    def scores(self) -> Mapping[str, float]:
        """Score by question id; a question without one (nothing graded, say) is left out."""
        return self.tally.shares() if self.view is None else self.view.scores(self.rows)

    @property
    def averages(self) -> bool:
        """The score of a question is the mean over its graded completions."""
        return self.view is None or self.view.averages

    @cached_property
    def tally(self) -> QuestionTally:
        """Its completions by question."""
        return QuestionTally.of(self.rows)

    @property
    def num_samples(self) -> int:
        """Completions a problem that the protocol looks at."""
        there = int(self.settings["num_samples"])
        return there if self.view is None else self.view.num_used(there)

    @property
    def num_expected(self) -> int:
        """Completions when it is complete."""
        return int(self.settings["num_problems"]) * self.num_samples


def find_saved(where: str, *, step: int | None = None, output: Path | None = None) -> list[Saved]:
    """The evaluations that ``where`` stands for, by benchmark and protocol; empty where there are none.

    Args:
        where: one file of completions; a folder of them (``evals/step-N``); a run, with the evaluations at ``step`` or
            at its largest evaluated step; a checkpoint of a run; or a model, whose results are in ``output`` or else
            in ``runs/eval-NAME``.
        step: of a run.
        output: where the results of a model went, if not where `plan` puts them.
    """
    path = Path(where).expanduser()
    if path.is_file() and path.suffix in (".jsonl", ".json"):
        one = path.with_suffix(".jsonl")
        return [Saved(one, read_json(one.with_suffix(".json")))] if one.with_suffix(".json").is_file() else []
    if path.is_dir() and (found := _in_folder(path)):
        return found
    run, at = locate(path)
    if (path / "evals").is_dir():
        run, at = path, step
    elif run is None:
        run, at = plan(where, output)[0].output, step
    if at is not None:
        return _in_folder((output or run) / "evals" / f"step-{at}")
    folders = [folder for folder in ((output or run) / "evals").glob("step-*") if folder.name[5:].isdigit()]
    by_step = (_in_folder(folder) for folder in sorted(folders, key=lambda folder: -int(folder.name[5:])))
    return next((found for found in by_step if found), [])


def _in_folder(folder: Path) -> list[Saved]:
    """Files of completions with their settings beside them."""
    paths = sorted(path for path in folder.glob("*.jsonl") if path.with_suffix(".json").is_file())
    read = [(path, read_json(path.with_suffix(".json"))) for path in paths]
    return [Saved(path, settings) for path, settings in read if "benchmark" in settings and "num_samples" in settings]
