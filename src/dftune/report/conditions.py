"""The rows and columns of the result table: which model, which benchmark, which evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from dftune.report.groups import Group
from dftune.report.load import Evaluation, Run, inner
from dftune.report.wording import plural

NUM_STYLES = 16
"""Styles that style.css tells apart, eight colours with two dashes and markers each; further conditions begin again."""
MOST_LINES = 8
"""Lines of one chart whose colours differ; with more conditions a method has one style under all circumstances."""


@dataclass(frozen=True, order=True)
class Column:
    """One benchmark under one protocol. Two versions of a benchmark, by fingerprint, are two columns.

    So are a benchmark and what remains of it ``without`` the questions that some run was trained on.
    """

    benchmark: str
    protocol: str
    fingerprint: str
    without: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """``BENCHMARK.PROTOCOL``, and how many questions were taken out."""
        return f"{self.benchmark}.{self.protocol}{self.left_out}"

    @property
    def left_out(self) -> str:
        """`` without 3 flagged questions``; empty where none were taken out."""
        return f" without {plural(len(self.without), 'flagged question')}" if self.without else ""


@dataclass(frozen=True)
class Scored:
    """The evaluation of one run's final model.

    Attributes:
        run: whose model it is.
        evaluation: its completions.
        base: the evaluation of the model that the run started from, where there is one.
    """

    run: Run
    evaluation: Evaluation
    base: Evaluation | None = None


@dataclass(frozen=True)
class Condition:
    """A row of the table: the base model, a group of replicates, or another evaluated model.

    Attributes:
        label: what it is called.
        kind: ``base``, ``trained`` or ``model``.
        style: number of its colour, dash and marker; 0 is the base's grey.
        runs: the training runs, or the run in which the model was evaluated.
        scored: by column, one entry for each run that was evaluated on it; for a base, one.
        group: the replicates behind a trained condition.
    """

    label: str
    kind: str
    style: int
    runs: tuple[Run, ...]
    scored: Mapping[Column, tuple[Scored, ...]] = field(default_factory=dict)
    group: Group | None = None

    @property
    def details(self) -> str:
        """What tells it from other conditions of its name: ``source noisy, alpha 0.5``."""
        return ", ".join(shown for _, shown in self.group.details) if self.group else ""

    @property
    def method(self) -> str:
        """Its objective with what of its options tells it from others."""
        return self.group.method if self.group else self.label

    @property
    def name(self) -> str:
        """The label without its details."""
        return self.group.name if self.group else self.label


def find_columns(runs: Sequence[Run]) -> tuple[Column, ...]:
    """Every benchmark and protocol that any run was evaluated on."""
    return tuple(sorted({column_of(evaluation) for run in runs for evaluation in run.evaluations}))


def column_of(evaluation: Evaluation) -> Column:
    """The column an evaluation belongs to."""
    version = str(evaluation.settings.get("benchmark_fingerprint", ""))
    return Column(evaluation.benchmark, evaluation.protocol, version, evaluation.without)


def find_conditions(
    groups: Sequence[Group], evaluated: Sequence[Run], columns: Sequence[Column]
) -> tuple[Condition, ...]:
    """The rows: base, groups of replicates, then evaluated models that no run started from.

    Args:
        groups: replicates.
        evaluated: runs of kind ``evaluate``. One is a base if a run started from that very model, by fingerprint; a
            single one that matches nothing is taken for the base too.
        columns: of the table.
    """
    trained = [run for group in groups for run in group.runs]
    started_from = {run.model_fingerprint for run in trained} - {None}
    bases = [run for run in evaluated if run.model_fingerprint in started_from]
    if not bases and trained and len(evaluated) == 1:
        bases = list(evaluated)
    rows = _base_rows(trained, bases, columns)
    styles = styles_of([group.method for group in groups])
    for group, style in zip(groups, styles, strict=True):
        scored = {column: _scored(group.runs, bases, column) for column in columns}
        rows.append(Condition(group.label, "trained", style, group.runs, scored, group))
    further = [run for run in evaluated if run not in bases]
    for style, run in enumerate(further, max(styles, default=0)):
        last = {column: _scored([run], [], column, first_step=0) for column in columns}
        rows.append(Condition(_unused(run.name, rows), "model", style % NUM_STYLES + 1, (run,), last))
    return tuple(rows)


def styles_of(methods: Sequence[str]) -> list[int]:
    """One for each; of more than fit into a chart one a method, so that it looks the same under all circumstances.

    Args:
        methods: what each is trained with, objective and options.
    """
    places = {method: place for place, method in enumerate(dict.fromkeys(methods))}
    by_place = range(len(methods)) if len(methods) <= MOST_LINES else [places[method] for method in methods]
    return [place % NUM_STYLES + 1 for place in by_place]


def _base_rows(trained: Sequence[Run], bases: Sequence[Run], columns: Sequence[Column]) -> list[Condition]:
    """A row a model that runs started from, and a prompt format that it was asked in: their mean is nobody's score."""
    found: dict[_Asked, dict[Column, tuple[Scored, ...]]] = {}
    for column in columns:
        for run in trained:
            evaluation = _base_of(run, bases, column)
            if evaluation is not None:  # the same model evaluated in several runs is no second seed
                scored = found.setdefault(_asked(run, evaluation), {})
                scored.setdefault(column, (Scored(run, evaluation),))
    rows = []
    for label, scored in zip(_base_labels(found), found.values(), strict=True):
        runs = {one.run.name: one.run for (one,) in scored.values()}
        rows.append(Condition(label, "base", 0, tuple(runs.values()), scored))
    return rows


def _base_labels(found: Mapping[_Asked, Mapping[Column, tuple[Scored, ...]]]) -> list[str]:
    """``base``, or with several of them what tells them apart."""
    examples = {asked: next(iter(scored.values()))[0] for asked, scored in found.items()}
    paths = {asked[0]: str(inner(one.run.manifest, "model", "path") or "") for asked, one in examples.items()}
    models = {name: PurePosixPath(path).name for name, path in paths.items()}
    if len(set(models.values())) < len(models):
        models = {name: f"{shown} {str(name)[:6]}" for name, shown in models.items()}
    labels = []
    for asked, one in examples.items():
        model = [models[asked[0]]] if len(models) > 1 else []
        several = sum(other[0] == asked[0] for other in examples) > 1
        format_name = inner(one.evaluation.settings, "prompt_format", "name")
        parts = [*model, *([f"asked as {format_name}"] if several else [])]
        labels.append(f"base ({', '.join(parts)})" if parts else "base")
    return labels


def same_base(one: Scored, base: Scored) -> bool:
    """Whether a run gains over the model and the prompts behind a base's evaluation."""
    return one.base is not None and _asked(one.run, one.base) == _asked(base.run, base.evaluation)


_Asked = tuple[str | None, str | None]
"""Fingerprints of a model that training started from, and of the format of its prompts."""


def _asked(run: Run, evaluation: Evaluation) -> _Asked:
    return run.model_fingerprint, _format(evaluation)


def _base_of(run: Run, bases: Sequence[Run], column: Column) -> Evaluation | None:
    """The evaluation of the model that ``run`` started from: its own step 0, or a base run's.

    Those in the prompt format of the run's own evaluations come first, then complete ones.
    """
    matching = [base for base in bases if base.model_fingerprint == run.model_fingerprint] or list(bases)
    on_column = [one for holder in (run, *matching) for one in holder.evaluations if column_of(one) == column]
    own = {_format(one) for one in run.evaluations if one.step > 0 and column_of(one) == column}
    found = [one for one in on_column if one.step == 0]
    return min(found, key=lambda one: (_format(one) not in own, not one.complete), default=None)  # stable


def _format(evaluation: Evaluation) -> str | None:
    found = inner(evaluation.settings, "prompt_format", "fingerprint")
    return None if found is None else str(found)


def _scored(runs: Sequence[Run], bases: Sequence[Run], column: Column, first_step: int = 1) -> tuple[Scored, ...]:
    """The evaluation at the largest step of each run that has one."""
    found = []
    for run in runs:
        steps = [one for one in run.evaluations if column_of(one) == column and one.step >= first_step]
        if steps:
            last = max(steps, key=lambda evaluation: evaluation.step)
            found.append(Scored(run, last, _base_of(run, bases, column)))
    return tuple(found)


def _unused(name: str, rows: Sequence[Condition]) -> str:
    return name if all(row.label != name for row in rows) else f"{name} (evaluated)"
