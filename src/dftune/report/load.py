"""Read run folders: recipe, manifest, events and evaluations (docs/run-folder.md)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dftune.evaluate.diagnose import DIAGNOSIS_SUFFIX
from dftune.evaluate.protocols import GREEDY, SAMPLE, Mean, Protocol, stored_protocols
from dftune.evaluate.questions import QuestionTally
from dftune.files import read_json, read_jsonl

Row = Mapping[str, Any]

_VERDICTS = ("correct", "incorrect", "scored", "ungraded")
_COLLECTIONS = ("cells", "base", "trials")
"""Folders inside a study or a sweep that hold its runs."""
ENERGY = ("gpu_joules", "cpu_joules")
"""Keys of events that count energy since the session began."""
_STEP_FOLDER = re.compile(r"step-(\d+)")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The completions of one model on one benchmark, with their verdicts, seen under one protocol.

    Attributes:
        step: optimizer steps of the model that was evaluated.
        settings: ``BENCHMARK.SAMPLING.json``, how the completions were made.
        completions: one row a problem and sample, in the order of the file: those that the protocol looks at.
        num_repeated: lines that stood twice; the last one counts.
        view: the protocol; None for files that list none, whose score is the mean over all samples.
        without: ids of questions that were taken out, since some run was trained on them.
    """

    step: int
    settings: Row
    completions: tuple[Row, ...]
    num_repeated: int = 0
    view: Protocol | None = None
    without: tuple[str, ...] = ()

    @property
    def benchmark(self) -> str:
        """Name of the benchmark."""
        return str(self.settings["benchmark"])

    @property
    def protocol(self) -> str:
        """Such as ``greedy`` or ``maj@16``; with the name of the file of samples where that is an own one."""
        if self.view is None:
            return self.sampling
        return self.view.name if self.sampling in (GREEDY, SAMPLE) else f"{self.view.name}.{self.sampling}"

    @property
    def sampling(self) -> str:
        """Name of the file of completions: ``greedy``, ``sample`` or another."""
        return str(self.settings["protocol"])

    @property
    def num_samples(self) -> int:
        """Completions a problem that the protocol looks at."""
        there = int(self.settings["num_samples"])
        return there if self.view is None else self.view.num_used(there)

    @property
    def averages(self) -> bool:
        """The score of a question is the mean over its graded completions."""
        return self.view is None or self.view.averages

    @property
    def num_expected(self) -> int:
        """Completions of a complete file."""
        return int(self.settings["num_problems"]) * self.num_samples

    @property
    def complete(self) -> bool:
        """Every completion is there."""
        return len(self.completions) == self.num_expected

    @property
    def format_differs(self) -> bool:
        """The prompts were rendered in another format than the one the model was trained with."""
        trained = self.settings.get("trained_prompt_format")
        used = self.settings.get("prompt_format")
        return bool(trained and used and trained.get("fingerprint") != used.get("fingerprint"))

    @cached_property
    def scores(self) -> dict[str, float]:
        """Score by problem id under the protocol; a problem without one (nothing graded, say) is left out."""
        return (self.view or Mean("mean", self.num_samples)).scores(self.completions)

    @cached_property
    def tally(self) -> QuestionTally:
        """Completions by question."""
        return QuestionTally.of(self.completions)


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder in memory.

    Attributes:
        name: name of the run.
        kind: ``train`` or ``evaluate``.
        manifest: ``manifest.json``.
        recipe: ``recipe.yaml``; empty for an evaluated model.
        train: rows of kind ``train`` by step.
        validation: rows of kind ``validation`` by step.
        status: of the last ``end`` row, or ``unfinished``; empty for an evaluated model.
        seconds: wall time of training over all its sessions.
        energy: joules of training over all its sessions, by the keys ``ENERGY``; without what is not known.
        evaluations: every evaluation, by step.
    """

    name: str
    kind: str
    manifest: Row
    recipe: Row
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    status: str
    seconds: float
    energy: Mapping[str, float]
    evaluations: tuple[Evaluation, ...]

    @property
    def model_fingerprint(self) -> str | None:
        """Fingerprint of the model that training started from, or that was evaluated."""
        found = inner(self.manifest, "model", "fingerprint")
        return None if found is None else str(found)

    @property
    def objective(self) -> str:
        """Name of the objective; empty for an evaluated model."""
        return str(inner(self.manifest, "objective", "name") or inner(self.recipe, "objective", "name") or "")

    @property
    def seed(self) -> int | None:
        """The training seed."""
        seed = self.manifest.get("seed", self.recipe.get("seed"))
        return None if seed is None else int(seed)


def inner(mapping: Row, *keys: str) -> Any:
    """The value under nested keys, None where any of them is missing."""
    value: Any = mapping
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The run folders that ``paths`` name: each one itself, or the run folders directly inside it.

    Of a study these are its cells and base models, of a sweep its trials.

    Raises:
        ValueError: a folder is missing, or is no run and holds none.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            what = "a file" if path.is_file() else "missing"
            raise ValueError(f"{path} is {what}; `dftune report` wants run folders, or a folder that holds them.")
        inside = [path] if _is_run(path) else [run for folder in (path, *_inside(path)) for run in _runs_in(folder)]
        if not inside:
            raise ValueError(
                f"{path} is not a run folder and holds none: no manifest.json in it, one level down, or in "
                "its cells, base or trials. "
                "`dftune train` and `dftune evaluate` write such folders."
            )
        found += inside
    unique = {path.resolve(): path for path in found}
    return list(unique.values())


def is_collection(path: Path) -> bool:
    """The folder of a study or a sweep, whose runs lie in folders of their own and which has a page of its own."""
    return not _is_run(path) and any(_runs_in(folder) for folder in _inside(path))


def _inside(path: Path) -> list[Path]:
    return [path / name for name in _COLLECTIONS if (path / name).is_dir()]


def _runs_in(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if _is_run(child))


def _is_run(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def read_run(path: Path) -> Run:
    """Read one run folder.

    Raises:
        ValueError: it is not a run folder, or a file in it is damaged; the message names the file.
    """
    if not _is_run(path):
        raise ValueError(f"{path} is not a run folder: it has no manifest.json.")
    manifest = _read_object(path / "manifest.json")
    kind = str(manifest.get("kind", "train"))
    events = _read_events(path / "events.jsonl")
    ends = [row for row in events if row["kind"] == "end"]
    started = [row for row in events if row["kind"] == "start"]
    finished = bool(ends) and (not started or events.index(ends[-1]) > events.index(started[-1]))
    return Run(
        name=str(manifest.get("name") or path.resolve().name),
        kind=kind,
        manifest=manifest,
        recipe=_read_recipe(path / "recipe.yaml"),
        train=_last_by_step(events, "train"),
        validation=_last_by_step(events, "validation"),
        status="" if kind != "train" else str(ends[-1].get("status")) if finished else "unfinished",
        seconds=_wall_time(events),
        energy=_energy(events),
        evaluations=tuple(
            one for step, settings in find_evaluations(path) for one in _views(_read_evaluation(step, settings))
        ),
    )


def _read_object(path: Path) -> Row:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def _read_recipe(path: Path) -> Row:
    if not path.is_file():
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML ({error}).") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a mapping, found {type(value).__name__}.")
    return value


def _read_events(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = read_jsonl(path, partial_last_line=True)
    for number, row in enumerate(rows, 1):
        missing = [key for key in ("kind", "step", "time") if key not in row]
        if missing:
            raise ValueError(f"{path}, row {number}: no {', '.join(missing)}; every event has kind, step and time.")
    return rows


def _last_by_step(events: Iterable[Row], kind: str) -> tuple[Row, ...]:
    by_step = {int(row["step"]): row for row in events if row["kind"] == kind}
    return tuple(by_step[step] for step in sorted(by_step))


def _sessions(events: Sequence[Row]) -> list[list[Row]]:
    """The rows of training, session by session; a session begins with a ``start`` row.

    Evaluations are left out, which may come when training has long ended, and samples of the machine.
    """
    sessions: list[list[Row]] = []
    for row in events:
        if row["kind"] in ("evaluation", "system"):
            continue
        if row["kind"] == "start" or not sessions:
            sessions.append([])
        sessions[-1].append(row)
    return sessions


def _wall_time(events: Sequence[Row]) -> float:
    """Seconds between the first and last row of each session, added up."""
    return sum(float(rows[-1]["time"]) - float(rows[0]["time"]) for rows in _sessions(events))


def _energy(events: Sequence[Row]) -> dict[str, float]:
    """The last count of each session that trained, added up; a key that one of them lacks is not known."""
    trained = [rows for rows in _sessions(events) if any(row["kind"] == "train" for row in rows)]
    counts = [{key: float(row[key]) for row in rows for key in ENERGY if key in row} for rows in trained]
    known = [key for key in ENERGY if counts and all(key in count for count in counts)]
    return {key: math.fsum(count[key] for count in counts) for key in known}


def find_evaluations(run: Path) -> Iterable[tuple[int, Path]]:
    """Step and ``BENCHMARK.SAMPLING.json`` of every evaluation of a run, by step."""
    folder = run / "evals"
    children = folder.iterdir() if folder.is_dir() else ()
    steps = {int(match[1]): child for child in children if (match := _STEP_FOLDER.fullmatch(child.name))}
    for step in sorted(steps):
        paths = sorted(steps[step].glob("*.json"))
        yield from ((step, path) for path in paths if not path.name.endswith(DIAGNOSIS_SUFFIX))


def _views(whole: Evaluation) -> Iterable[Evaluation]:
    """A file of completions under every protocol that it was made for."""
    if "protocols" not in whole.settings:
        yield whole
        return
    for protocol in stored_protocols(whole.settings):
        yield replace(whole, completions=tuple(protocol.used(whole.completions)), view=protocol)


def completion_key(path: Path, number: int, row: Row) -> tuple[str, int]:
    """Id and sample of a completion, which a later line with the same ones replaces.

    Raises:
        ValueError: it has no id or no verdict; names the file and the row.
    """
    unscored = row.get("verdict") == "scored" and not isinstance(row.get("score"), int | float)
    if "id" not in row or row.get("verdict") not in _VERDICTS or unscored:
        raise ValueError(
            f"{path}, row {number}: every completion needs an id and a verdict of correct, incorrect, "
            f"ungraded or scored with a score; found id {row.get('id')!r}, verdict {row.get('verdict')!r}, score "
            f"{row.get('score')!r}. `dftune grade` adds verdicts."
        )
    return str(row["id"]), row.get("sample", 0)


def read_settings(path: Path) -> Row:
    """``BENCHMARK.SAMPLING.json``.

    Raises:
        ValueError: it is damaged, or lacks a key that every such file has.
    """
    settings = _read_object(path)
    missing = [key for key in ("benchmark", "protocol", "num_problems", "num_samples") if key not in settings]
    if missing:
        raise ValueError(f"{path}: no {', '.join(missing)}; docs/run-folder.md lists what such a file holds.")
    return settings


def _read_evaluation(step: int, path: Path) -> Evaluation:
    settings = read_settings(path)
    completions = path.with_suffix(".jsonl")
    rows = read_jsonl(completions, partial_last_line=True) if completions.is_file() else []
    unique = {completion_key(completions, number, row): row for number, row in enumerate(rows, 1)}
    return Evaluation(step, settings, tuple(unique.values()), num_repeated=len(rows) - len(unique))
