"""The result table: every condition on every benchmark, with intervals, gains and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from dftune.evaluate.classify import CATEGORIES, Category
from dftune.evaluate.diagnose import Diagnosis, diagnose
from dftune.evaluate.family import correct
from dftune.evaluate.metrics import (
    Difference,
    Estimate,
    Spread,
    accuracy_estimate,
    estimate_scores,
    matched_differences,
    paired_difference,
    pool_spreads,
    seed_spread,
)
from dftune.evaluate.protocols import score_of
from dftune.report.conditions import Column, Condition, Scored, find_columns, find_conditions, same_base
from dftune.report.flagged import with_clean_views
from dftune.report.groups import group_runs, name_of_reference, reference_of
from dftune.report.load import Evaluation, Run
from dftune.report.wording import count

Matrix = list[list[float]]
Pair = tuple[Condition, Condition]

SHARED_REFERENCE = 0.25
"""Squared correlation of two differences that subtract the same seeds of one reference."""


@dataclass(frozen=True)
class Shortfall:
    """An evaluation that ended early, and is left out of every average."""

    run: str
    num_found: int
    num_expected: int

    @property
    def counts(self) -> str:
        """``n of N``."""
        return f"{count(self.num_found)} of {count(self.num_expected)}"

    def __str__(self) -> str:
        return f"{self.run}: {self.counts} completions"


@dataclass(frozen=True)
class Cell:
    """One condition on one benchmark.

    Attributes:
        scored: the complete evaluations behind it, one a seed.
        incomplete: evaluations that were left out because completions are missing.
        missing: names of runs of the condition without an evaluation on this benchmark.
        estimate: accuracy over graded completions; None without a complete evaluation.
        gain: difference to the base model on the same questions.
        versus: difference to the reference condition on the same questions.
        reference: what that condition is called here: its objective alone where nothing else differs.
    """

    scored: tuple[Scored, ...]
    incomplete: tuple[Shortfall, ...] = ()
    missing: tuple[str, ...] = ()
    estimate: Estimate | None = None
    gain: Difference | None = None
    versus: Difference | None = None
    reference: str = ""

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The complete evaluations."""
        return tuple(one.evaluation for one in self.scored)

    @property
    def num_samples(self) -> int:
        """Completions a question."""
        return self.evaluations[0].num_samples if self.scored else 0

    @property
    def num_completions(self) -> int:
        """Completions of all seeds."""
        return sum(len(evaluation.completions) for evaluation in self.evaluations)

    @property
    def num_ungraded(self) -> int:
        """Completions without a verdict, which the accuracy leaves out."""
        return self.outcomes["ungraded"]

    @property
    def total_score(self) -> float:
        """Sum of the scores; the number of correct completions where each is right or wrong."""
        return sum(score_of(row) or 0.0 for evaluation in self.evaluations for row in evaluation.completions)

    @property
    def num_truncated(self) -> int:
        """Completions cut off at the token limit, whatever their verdict."""
        return self.diagnosis.num_cut if self.diagnosis else 0

    @property
    def format_differs(self) -> bool:
        """At least one score was taken with another prompt format than the model was trained with."""
        return any(evaluation.format_differs for evaluation in self.evaluations)

    @cached_property
    def diagnosis(self) -> Diagnosis | None:
        """Of the completions of all seeds together; None without any."""
        rows = [row for evaluation in self.evaluations for row in evaluation.completions]
        return diagnose(rows) if rows else None

    @property
    def outcomes(self) -> dict[Category, int]:
        """How many completions ended how, over all seeds."""
        found = self.diagnosis.categories if self.diagnosis else {}
        return {name: found[name].count if name in found else 0 for name in CATEGORIES}


@dataclass(frozen=True)
class SeedSpreads:
    """How much seeds vary on one benchmark, over everything that was trained.

    Attributes:
        conditions: of the mean scores, pooled over conditions with several seeds.
        differences: of the mean differences seed by seed, pooled over comparisons whose seeds match.
    """

    conditions: Spread | None = None
    differences: Spread | None = None


@dataclass(frozen=True)
class ResultTable:
    """Everything the report says about scores.

    Attributes:
        columns: benchmarks and protocols.
        conditions: rows.
        cells: by label of the condition, and column.
        compared_with: label of the reference, by label of the condition.
        notes: on runs that were left out of a group.
        spreads: between seeds, by column.
    """

    columns: tuple[Column, ...]
    conditions: tuple[Condition, ...]
    cells: Mapping[tuple[str, Column], Cell]
    compared_with: Mapping[str, str]
    notes: tuple[str, ...]
    spreads: Mapping[Column, SeedSpreads]

    @property
    def trained(self) -> tuple[Condition, ...]:
        """The conditions that were trained."""
        return tuple(condition for condition in self.conditions if condition.kind == "trained")

    @property
    def has_base(self) -> bool:
        """There is a base model to gain over."""
        return any(condition.kind == "base" for condition in self.conditions)

    @property
    def whole_columns(self) -> tuple[Column, ...]:
        """The columns without those that leave out flagged questions of another."""
        return tuple(column for column in self.columns if not column.without)

    @property
    def num_comparisons(self) -> int:
        """Differences between a condition and its reference: the family that is corrected for."""
        return sum(cell.versus is not None for cell in self.cells.values())

    def cell(self, condition: Condition, column: Column) -> Cell:
        """One cell."""
        return self.cells[condition.label, column]

    def base_of(self, condition: Condition, column: Column) -> Condition | None:
        """The row of the model that a condition gains over on a benchmark."""
        ours = self.cell(condition, column).scored
        bases = ((row, base) for row in self.conditions if row.kind == "base" for base in row.scored.get(column, ()))
        return next((row for row, base in bases if any(same_base(one, base) for one in ours)), None)

    def references(self, column: Column) -> tuple[str, ...]:
        """What the conditions that others are compared with on this benchmark are called."""
        found = (self.cell(row, column).reference for row in self.conditions)
        return tuple(dict.fromkeys(label for label in found if label))

    def name(self, column: Column) -> str:
        """``BENCHMARK.PROTOCOL``, with the benchmark's fingerprint where two versions of it are in the table."""
        twins = [other for other in self.columns if other.label == column.label]
        return column.label if len(twins) == 1 else f"{column.label} ({column.fingerprint[:6]})"


def build_table(runs: Sequence[Run]) -> ResultTable:
    """Group the runs, find the base, and fill every cell.

    Differences to references are corrected for their number over the whole table, and so are gains over the base.
    """
    runs = with_clean_views(runs)
    groups, notes = group_runs([run for run in runs if run.kind == "train"])
    columns = find_columns(runs)
    rows = find_conditions(groups, [run for run in runs if run.kind != "train"], columns)
    pairs = [(row, reference) for row in rows if (reference := _reference(row, rows)) is not None]
    cells: dict[tuple[str, Column], Cell] = {}
    spreads = {}
    for column in columns:
        found = {row.label: _collect(row, column) for row in rows}
        spreads[column] = _spreads(rows, pairs, found)
        scored = {label: _score(cell, spreads[column]) for label, cell in found.items()}
        for row, reference in pairs:
            name = name_of_reference(row.group, reference.group) if row.group and reference.group else reference.label
            scored[row.label] = _versus(scored[row.label], found[reference.label], name, spreads[column])
        cells |= {(label, column): cell for label, cell in scored.items()}
    references = {row.label: reference.label for row, reference in pairs}
    return ResultTable(columns, rows, _corrected(cells), references, notes, spreads)


def _corrected(cells: dict[tuple[str, Column], Cell]) -> dict[tuple[str, Column], Cell]:
    versus = {key: cell.versus for key, cell in cells.items() if cell.versus is not None}
    gains = {key: cell.gain for key, cell in cells.items() if cell.gain is not None}
    for key, difference in zip(versus, correct(list(versus.values())), strict=True):
        cells[key] = replace(cells[key], versus=difference)
    for key, gain in zip(gains, correct(list(gains.values())), strict=True):
        cells[key] = replace(cells[key], gain=gain)
    return cells


def _reference(row: Condition, rows: Sequence[Condition]) -> Condition | None:
    """What a row is compared with; without any training, models are compared with the first of them."""
    if row.group:
        group = reference_of(row.group, [other.group for other in rows if other.group])
        return next((other for other in rows if group is not None and other.group is group), None)
    return rows[0] if row.kind == rows[0].kind == "model" and row is not rows[0] else None


def _collect(row: Condition, column: Column) -> Cell:
    found = row.scored.get(column, ())
    have = [one.run for one in found]
    return Cell(
        scored=tuple(one for one in found if one.evaluation.complete),
        incomplete=tuple(_shortfall(one) for one in found if not one.evaluation.complete),
        missing=tuple(run.name for run in row.runs if run not in have) if row.kind == "trained" else (),
    )


def _spreads(rows: Sequence[Condition], pairs: Sequence[Pair], cells: Mapping[str, Cell]) -> SeedSpreads:
    """Pool the spread between seeds over the trained conditions, and over the pairs whose seeds match."""
    trained = [_matrices(cells[row.label].evaluations, ())[0] for row in rows if row.kind == "trained"]
    by_reference: dict[str, list[Spread | None]] = {}
    for row, reference in pairs:
        ours, theirs = cells[row.label], cells[reference.label]
        scores, others, _ = _matrices(ours.evaluations, theirs.evaluations)
        if row.kind == "trained" and scores and _seeds(ours) == _seeds(theirs):
            spread = seed_spread(matched_differences(scores, others))
            by_reference.setdefault(reference.label, []).append(spread)
    return SeedSpreads(
        pool_spreads(seed_spread(scores) for scores in trained if scores),
        pool_spreads(pool_spreads(found, SHARED_REFERENCE) for found in by_reference.values()),
    )


def _seeds(cell: Cell) -> list[int | None]:
    return [one.run.seed for one in cell.scored]


def _score(cell: Cell, spreads: SeedSpreads) -> Cell:
    scores, _, clusters = _matrices(cell.evaluations, ())
    if not scores:
        return cell
    num_graded = cell.num_completions - cell.num_ungraded
    estimate = (
        estimate_scores((score for (score,) in scores), num_graded, clusters)
        if len(cell.scored) == 1
        else accuracy_estimate(scores, num_graded, pooled=spreads.conditions, clusters=clusters)
    )
    return replace(cell, estimate=estimate, gain=_gain(cell.scored, spreads))


def _shortfall(one: Scored) -> Shortfall:
    return Shortfall(one.run.name, len(one.evaluation.completions), one.evaluation.num_expected)


def _gain(scored: Sequence[Scored], spreads: SeedSpreads) -> Difference | None:
    bases = [one.base for one in scored if one.base is not None and one.base.complete]
    if len(bases) < len(scored):
        return None
    if len({base.settings.get("model_fingerprint") for base in bases}) == 1:
        bases = bases[:1]
    scores, reference, clusters = _matrices([one.evaluation for one in scored], bases)
    # Against one fixed model seeds vary as the condition's do; against several nothing is known of them together.
    pooled = spreads.conditions if len(bases) == 1 else None
    if not scores:
        return None
    return paired_difference(scores, reference, seeds_match=True, pooled=pooled, clusters=clusters)


def _versus(cell: Cell, other: Cell, name: str, spreads: SeedSpreads) -> Cell:
    scores, reference, clusters = _matrices(cell.evaluations, other.evaluations)
    if not scores or not cell.evaluations or not other.evaluations:
        return cell
    match = _seeds(cell) == _seeds(other)
    pooled = spreads.differences if match else spreads.conditions
    versus = paired_difference(scores, reference, seeds_match=match, pooled=pooled, clusters=clusters)
    return replace(cell, versus=versus, reference=name)


def _matrices(ours: Sequence[Evaluation], theirs: Sequence[Evaluation]) -> tuple[Matrix, Matrix, Sequence[str] | None]:
    """Scores of both sides on the questions that every one of them graded: a row a question, a column an evaluation.

    Beside them the cluster of each question, None where the benchmark names none.
    """
    graded = [set(evaluation.scores) for evaluation in (*ours, *theirs)]
    shared = sorted(set.intersection(*graded)) if graded else []
    return (
        [[evaluation.scores[name] for evaluation in ours] for name in shared],
        [[evaluation.scores[name] for evaluation in theirs] for name in shared],
        ours[0].tally.clusters_of(shared) if ours and shared else None,
    )
