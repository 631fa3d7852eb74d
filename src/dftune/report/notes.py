"""What a reader must know before trusting the numbers: the notes below the result table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dftune.report.conditions import Condition
from dftune.report.flagged import trained_on
from dftune.report.load import Evaluation, Run, inner
from dftune.report.tables import Cell, ResultTable
from dftune.report.wording import count, listed, one_line, percent, plural

MOST_NAMES = 6
"""Runs that a note lists by name."""


def notes(table: ResultTable, runs: Sequence[Run]) -> tuple[str, ...]:
    """Everything a reader must know before trusting a number, most serious first."""
    found = (
        *_incomplete(table),
        *_unfinished(runs),
        *_trained_on(runs),
        *_formats(table),
        *_settings_differ(table),
        *_steps_differ(table),
        *table.notes,
        *_repeated(runs),
        *_ungraded(table),
    )
    return tuple(one_line(note, 500) for note in dict.fromkeys(found))


def _cells(table: ResultTable) -> Iterator[tuple[str, str, Condition, Cell]]:
    for row in table.conditions:
        for column in table.columns:
            yield row.label, table.name(column), row, table.cell(row, column)


def _incomplete(table: ResultTable) -> Iterator[str]:
    for label, benchmark, row, cell in _cells(table):
        for shortfall in cell.incomplete:
            yield f"Incomplete on {benchmark}, left out of {label}: {shortfall}."
        if cell.missing and len(cell.missing) < len(row.runs):
            yield f"Not evaluated on {benchmark}, left out of {label}: {', '.join(cell.missing)}."


def _unfinished(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        if run.kind == "train" and run.status != "finished":
            last = max((int(row["step"]) for row in run.train), default=0)
            yield f"{run.name} is {run.status}; its last recorded step is {last}."


def _trained_on(runs: Sequence[Run]) -> Iterator[str]:
    seen: dict[str, list[str]] = {}
    for run in runs:
        for name, ids in trained_on(run).items():
            rows = inner(run.manifest, "data", "contamination", "benchmarks", name, "rows")
            seen.setdefault(f"trained on {len(ids)} of the {rows} problems of {name}", []).append(run.name)
    for what, names in seen.items():
        were, scores = ("was", "its score there is") if len(names) == 1 else ("were", "their scores there are")
        shown = (
            [*names[:MOST_NAMES], plural(len(names) - MOST_NAMES, "other run")] if len(names) > MOST_NAMES else names
        )
        yield f"{listed(shown)} {were} {what}: {scores} partly memory."


def _formats(table: ResultTable) -> Iterator[str]:
    for label, benchmark, _, cell in _cells(table):
        for evaluation in cell.evaluations:
            if evaluation.format_differs:
                used, trained = evaluation.settings["prompt_format"], evaluation.settings["trained_prompt_format"]
                yield (
                    f"{label} was scored on {benchmark} with prompt format {used.get('name')}, but trained with "
                    f"{trained.get('name')}: such a score says little about the training."
                )


def _settings_differ(table: ResultTable) -> Iterator[str]:
    for column in table.columns:
        evaluations = [one for row in table.conditions for one in table.cell(row, column).evaluations]
        for key in ("sampling", "num_samples", "grader", "engine", "task"):
            values = sorted({_setting(one, key) for one in evaluations})
            if len(values) > 1:
                yield f"Scores on {table.name(column)} differ in {key}: {'; '.join(values)}."


def _setting(evaluation: Evaluation, key: str) -> str:
    value = evaluation.num_samples if key == "num_samples" else evaluation.settings.get(key)
    if isinstance(value, Mapping):  # the seed of the sampling may follow the seed of the training
        return ", ".join(f"{name} {value[name]}" for name in value if name != "seed")
    return str(value)


def _steps_differ(table: ResultTable) -> Iterator[str]:
    """Where what is compared, or averaged, was trained for different numbers of steps."""
    rows = {row.label: row for row in table.conditions}
    for label, benchmark, row, cell in _cells(table):
        column = next(column for column in table.columns if table.name(column) == benchmark)
        steps = _steps(cell)
        if row.kind == "trained" and len(steps) > 1:
            yield f"{label} averages runs scored on {benchmark} after {_listed_steps(steps)} steps."
        reference = rows.get(table.compared_with.get(label, ""))
        others = _steps(table.cell(reference, column)) if reference else []
        if reference and cell.versus is not None and steps != others:
            counts = f"{_listed_steps(steps)} steps, {reference.label} after {_listed_steps(others)}"
            yield f"{label} was scored on {benchmark} after {counts}."


def _steps(cell: Cell) -> list[int]:
    return sorted({evaluation.step for evaluation in cell.evaluations})


def _listed_steps(steps: Sequence[int]) -> str:
    return listed([count(step) for step in steps])


def _repeated(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        repeated = sum(evaluation.num_repeated for evaluation in run.evaluations)
        if repeated:
            yield f"{run.name} holds {plural(repeated, 'completion')} twice; the later line counts."


def _ungraded(table: ResultTable) -> Iterator[str]:
    for label, benchmark, _, cell in _cells(table):
        if cell.estimate is not None and cell.num_ungraded:
            if not all(one.averages for one in cell.evaluations):
                yield f"{label} on {benchmark}: {plural(cell.num_ungraded, 'completion')} could not be graded."
                continue
            total, right = cell.num_completions, cell.total_score
            low, high = percent(right / total), percent((right + cell.num_ungraded) / total)
            yield (
                f"{label} on {benchmark}: {count(cell.num_ungraded)} of {count(total)} completions could not be "
                f"graded and are left out; counted as wrong or as right they would make it {low} or {high} %."
            )
