"""What the numbers say, in words: the paragraph at the top, and the notes below the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dftune.evaluate.metrics import Difference
from dftune.report.conditions import Column, Condition
from dftune.report.load import Run
from dftune.report.tables import Cell, ResultTable
from dftune.report.wording import count, interval, listed, one_line, percent, plural, signed

FEW_SEEDS = 3
"""With fewer, the spread between seeds is hardly known."""
MANY_COMPARISONS = 4
"""With more, chance findings are worth a word."""
MANY_GAINS = 6
"""More than a paragraph should list; the table has them."""

Compared = tuple[Condition, Cell, Difference]


def verdict(table: ResultTable) -> str:
    """One paragraph. A winner is named only where interval and test both exclude zero."""
    if not table.columns:
        return "None of these runs holds an evaluation, so there is no score to compare; the charts show the training."
    return " ".join([*_comparisons(table), *_gains(table), *_confidence(table), *_reservations(table)])


def _comparisons(table: ResultTable) -> Iterator[str]:
    """What is clear, benchmark by benchmark, then what is not."""
    compared = [(column, _compared(table, column)) for column in table.columns]
    for column, found in compared:
        clear = [(row, cell, versus) for row, cell, versus in found if versus.sign]
        if clear:
            yield f"On {_where(table, column, clear)}, {'; '.join(_clear(*one) for one in clear)}."
    for column, found in compared:
        unclear = [(row, cell, versus) for row, cell, versus in found if not versus.sign]
        if unclear:
            yield _unclear(_where(table, column, unclear), unclear)
    num_compared = sum(len(found) for _, found in compared)
    if num_compared > MANY_COMPARISONS:
        yield f"These are {num_compared} comparisons, and where nothing differs one in twenty looks clear by chance."
    if not num_compared and len([row for row in table.conditions if row.kind != "base"]) > 1:
        yield "No two conditions have complete evaluations on the same questions, so none is compared with another."


def _compared(table: ResultTable, column: Column) -> list[Compared]:
    cells = [(row, table.cell(row, column)) for row in table.conditions]
    return [(row, cell, cell.versus) for row, cell in cells if cell.versus is not None]


def _where(table: ResultTable, column: Column, found: Sequence[Compared]) -> str:
    fewest = min(versus.num_questions for _, _, versus in found)
    return f"{table.name(column)} ({plural(fewest, 'question')})"


def _clear(row: Condition, cell: Cell, versus: Difference) -> str:
    more = "more" if versus.mean > 0 else "fewer"
    ends = (versus.low, versus.high) if versus.mean > 0 else (-versus.high, -versus.low)
    return (
        f"{row.label} answers {percent(abs(versus.mean))} points {more} than {cell.reference} "
        f"(95 % interval {interval(*ends)})"
    )


def _unclear(where: str, found: Sequence[Compared]) -> str:
    largest = percent(max(versus.detectable for _, _, versus in found))
    if len(found) == 1:
        ((row, cell, versus),) = found
        return (
            f"On {where} the difference between {row.label} and {cell.reference}, {signed(versus.mean)} points, is "
            f"within the noise (95 % interval {interval(versus.low, versus.high)}; such a comparison sees differences "
            f"from about {largest} points)."
        )
    amounts = [f"{row.label} {signed(versus.mean)} points against {cell.reference}" for row, cell, versus in found]
    sees = f"such comparisons see differences from about {largest} points"
    return f"On {where} within the noise: {listed(amounts)} ({sees})."


def _gains(table: ResultTable) -> Iterator[str]:
    base = next((row for row in table.conditions if row.kind == "base"), None)
    if len(table.trained) * len(table.columns) > MANY_GAINS:
        return
    for column in table.columns:
        estimate = table.cell(base, column).estimate if base else None
        gains = [(row.label, gain) for row in table.trained if (gain := table.cell(row, column).gain) is not None]
        if estimate is not None and gains:
            parts = [_gain(label, gain) for label, gain in gains]
            yield f"Over the base model's {percent(estimate.mean)} % on {table.name(column)}, {listed(parts)}."


def _gain(label: str, gain: Difference) -> str:
    if gain.sign == 0:
        return f"{label} stays within the noise ({signed(gain.mean)} points)"
    return f"{label} {'gains' if gain.sign > 0 else 'loses'} {percent(abs(gain.mean))} points"


def _confidence(table: ResultTable) -> Iterator[str]:
    cells = [table.cell(row, column).estimate for row in table.trained for column in table.columns]
    seeds = [estimate.num_seeds for estimate in cells if estimate is not None]
    fewest = min(seeds, default=FEW_SEEDS)
    what = "This" if max(seeds, default=fewest) == fewest else "Part of this"
    if fewest == 1:
        yield (
            f"{what} rests on one seed and so speaks of these models, not of the way they were trained: "
            "how much another seed would change is not known and not part of the intervals."
        )
    elif fewest < FEW_SEEDS:
        yield f"{what} rests on {fewest} seeds: how much outcomes vary from seed to seed is itself only roughly known."


def _reservations(table: ResultTable) -> Iterator[str]:
    cells = list(table.cells.values())
    reasons = [
        *(["some evaluations are incomplete"] if any(cell.incomplete for cell in cells) else []),
        *(["some prompts differ from those of the training"] if any(cell.format_differs for cell in cells) else []),
    ]
    if reasons:
        yield f"Mind the notes below the table: {listed(reasons)}."


def notes(table: ResultTable, runs: Sequence[Run]) -> tuple[str, ...]:
    """Everything a reader must know before trusting a number, most serious first."""
    found = (
        *_incomplete(table),
        *_unfinished(runs),
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
        for key in ("sampling", "num_samples", "grader", "engine"):
            values = sorted({_setting(one.settings, key) for one in evaluations})
            if len(values) > 1:
                yield f"Scores on {table.name(column)} differ in {key}: {'; '.join(values)}."


def _setting(settings: Mapping[str, object], key: str) -> str:
    value = settings.get(key)
    if isinstance(value, Mapping):  # the seed of the sampling may follow the seed of the training
        return ", ".join(f"{name} {value[name]}" for name in value if name != "seed")
    return str(value)


def _steps_differ(table: ResultTable) -> Iterator[str]:
    for column in table.columns:
        scored = [one for row in table.trained for one in table.cell(row, column).scored]
        if len({one.evaluation.step for one in scored}) > 1:
            shown = ", ".join(f"{one.run.name} after {one.evaluation.step}" for one in scored)
            yield f"Scores on {table.name(column)} were taken after different numbers of steps: {shown}."


def _repeated(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        repeated = sum(evaluation.num_repeated for evaluation in run.evaluations)
        if repeated:
            yield f"{run.name} holds {plural(repeated, 'completion')} twice; the later line counts."


def _ungraded(table: ResultTable) -> Iterator[str]:
    for label, benchmark, _, cell in _cells(table):
        if cell.estimate is not None and cell.num_ungraded:
            total, right = cell.num_completions, cell.outcomes["correct"]
            low, high = percent(right / total), percent((right + cell.num_ungraded) / total)
            yield (
                f"{label} on {benchmark}: {count(cell.num_ungraded)} of {count(total)} completions could not be "
                f"graded and are left out; counted as wrong or as right they would make it {low} or {high} %."
            )
