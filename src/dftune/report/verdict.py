"""What the numbers say, in words: the paragraph at the top, and the notes below the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dftune.evaluate.metrics import Difference
from dftune.report.conditions import Condition
from dftune.report.flagged import trained_on
from dftune.report.groups import LEARNING_RATE
from dftune.report.load import Evaluation, Run, inner
from dftune.report.tables import Cell, ResultTable
from dftune.report.wording import count, interval, listed, one_line, percent, plural, signed

FEW_SEEDS = 3
"""With fewer, the spread between seeds is hardly known."""
MANY_GAINS = 6
"""More than a paragraph should list; the table has them."""
MOST_NOISE = 3
"""More comparisons of a benchmark without a finding are summed up."""
MOST_NAMES = 6
"""Runs that a note lists by name."""

Details = tuple[tuple[str, str], ...]

_PROTOCOLS = {
    "greedy": ("greedy", "with greedy decoding"),
    "sample": ("sampled", "when sampled"),
    "lm_eval": ("by lm_eval", "by lm_eval"),
}
"""How a protocol is called at the first number of a sentence, and at further ones."""


@dataclass(frozen=True)
class Comparison:
    """A condition against its reference on one benchmark, under every protocol that both were scored with.

    Attributes:
        benchmark: its name.
        row: the condition.
        reference: what the other one is called.
        shared: details of both sides' labels in which they agree, ``(("data.source", "source noisy"),)``.
        found: protocols and differences, the clear ones first.
    """

    benchmark: str
    row: Condition
    reference: str
    shared: Details
    found: tuple[tuple[str, Difference], ...]


def verdict(table: ResultTable) -> str:
    """One paragraph. A winner is named only where interval and test both exclude zero."""
    if not table.columns:
        return "None of these runs holds an evaluation, so there is no score to compare; the charts show the training."
    return " ".join([*_sentences(table), *_gains(table), *_confidence(table), *_reservations(table)])


def _sentences(table: ResultTable) -> Iterator[str]:
    """A sentence a comparison: benchmark by benchmark, and on each what is clear before what is not."""
    compared = list(_comparisons(table))
    benchmarks = list(dict.fromkeys(one.benchmark for one in compared))
    for benchmark in benchmarks:
        of_benchmark = [one for one in compared if one.benchmark == benchmark]
        questions = plural(min(d.num_questions for one in of_benchmark for _, d in one.found), "question")
        of_benchmark.sort(key=lambda one: one.found[0][1].sign == 0)
        quiet = [one for one in of_benchmark if not one.found[0][1].sign]
        told = of_benchmark if len(quiet) <= MOST_NOISE else [one for one in of_benchmark if one not in quiet]
        for index, one in enumerate(told):
            where = f"On {benchmark} ({questions})" if index == 0 else f"On {benchmark}" if len(benchmarks) > 1 else ""
            yield _sentence(one, where)
        if len(told) < len(of_benchmark):
            yield _all_noise(f"On {benchmark}{'' if told else f' ({questions})'}", quiet, others=bool(told))
        noise = [difference for one in of_benchmark for _, difference in one.found if not difference.sign]
        if noise:
            yield _too_small(benchmark, noise)
    if table.num_comparisons > 1:
        yield f"What is called a difference here holds for all {table.num_comparisons} comparisons together (Holm)."
    if not compared and len([row for row in table.conditions if row.kind != "base"]) > 1:
        yield "No two conditions have complete evaluations on the same questions, so none is compared with another."


def _all_noise(where: str, quiet: Sequence[Comparison], *, others: bool) -> str:
    """Many comparisons without a finding, in one sentence; the table has each."""
    means = sorted(difference.mean for one in quiet for _, difference in one.found)
    which = "all other differences are" if others else "all differences between a condition and its reference are"
    return f"{where}, {which} within the noise ({signed(means[0])} to {signed(means[-1])} points)."


def _too_small(benchmark: str, noise: Sequence[Difference]) -> str:
    """What could not have been counted on to be seen, by the comparison that saw least."""
    least = max(noise, key=lambda difference: difference.detectable)
    seeds = "one seed" if least.num_seeds == 1 else plural(least.num_seeds, "seed")
    sees = f"{benchmark} has {plural(least.num_questions, 'question')}: with {seeds}, "
    if least.detectable >= 1:
        return f"{sees}no difference can be told from the noise, however large."
    return f"{sees}differences under about {percent(least.detectable)} points cannot be seen reliably."


def _comparisons(table: ResultTable) -> Iterator[Comparison]:
    versions = list(dict.fromkeys((one.benchmark + one.left_out, one.fingerprint) for one in table.columns))
    names = Counter(name for name, _ in versions)
    for version in versions:
        shown = version[0] if names[version[0]] == 1 else f"{version[0]}, version {version[1][:6]}"
        columns = [one for one in table.columns if (one.benchmark + one.left_out, one.fingerprint) == version]
        for row in table.conditions:
            cells = [(column.protocol, table.cell(row, column)) for column in columns]
            found = [(protocol, cell.versus) for protocol, cell in cells if cell.versus is not None]
            if found:
                found.sort(key=lambda one: one[1].sign == 0)
                other = next(other for other in table.conditions if other.label == table.compared_with[row.label])
                shared = _shared_details(row, other)
                reference = next(cell.reference for _, cell in cells if cell.versus is not None)
                yield Comparison(shown, row, _own_name(other, shared) if shared else reference, shared, tuple(found))


def _shared_details(row: Condition, reference: Condition) -> Details:
    """The circumstances under which the two meet; none where they differ in more than objective and learning rate."""
    ours, theirs = (
        {key: shown for key, shown in (side.group.details if side.group else ()) if not key.startswith("objective.")}
        for side in (row, reference)
    )
    differing = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
    return tuple(one for one in ours.items() if one[0] not in differing) if differing <= {LEARNING_RATE} else ()


def _own_name(condition: Condition, shared: Details) -> str:
    """What a condition is called beside others under the same circumstances."""
    own = [one[1] for one in (condition.group.details if condition.group else ()) if one not in shared]
    return f"{condition.name} ({', '.join(own)})" if own else condition.name


def _sentence(one: Comparison, where: str) -> str:
    circumstances, name = _circumstances(one)
    opening = ", ".join(part for part in (where, circumstances) if part)
    (protocol, first), *others = one.found
    if first.sign:
        more, ends = _amount(first)
        begun = f"{name} answers {more} than {one.reference}"
    else:
        begun = f"the difference between {name} and {one.reference} is within the noise: {signed(first.mean)} points"
        ends = interval(first.low, first.high)
    begun = f"{begun} ({_PROTOCOLS.get(protocol, (protocol,))[0]}, 95 % interval {ends})"
    sentence = f"{begun}{''.join(_further(first, other, protocol) for protocol, other in others)}."
    sentence = f"{opening}{': ' if circumstances else ', '}{sentence}" if opening else sentence
    # Names keep their case; the opening and the article are ours.
    return sentence[0].upper() + sentence[1:] if opening or not first.sign else sentence


def _circumstances(one: Comparison) -> tuple[str, str]:
    """What both sides share and other comparisons do not, and the name of the condition without it."""
    if not one.shared or one.row.group is None:
        return "", one.row.label
    return " ".join(_circumstance(key, shown) for key, shown in one.shared), _own_name(one.row, one.shared)


def _circumstance(key: str, shown: str) -> str:
    return f"trained on {shown.split(' ', 1)[1]}" if key == "data.source" else f"with {shown}"


def _amount(difference: Difference) -> tuple[str, str]:
    """``13.0 points more`` and its interval, both as positive numbers."""
    more = difference.mean > 0
    ends = (difference.low, difference.high) if more else (-difference.high, -difference.low)
    return f"{percent(abs(difference.mean))} points {'more' if more else 'fewer'}", interval(*ends)


def _further(first: Difference, other: Difference, protocol: str) -> str:
    """The same comparison under another protocol."""
    when = _PROTOCOLS.get(protocol, ("", f"under {protocol}"))[1]
    if other.sign:
        more, ends = _amount(other)
        return f" {'and' if other.sign == first.sign else 'but'} {more} {when} ({ends})"
    amount = f"{signed(other.mean)} points, {interval(other.low, other.high)}"
    if first.sign:
        return f"; {when} the difference is within the noise ({amount})"
    return f"; {when} as well ({amount})"


def _gains(table: ResultTable) -> Iterator[str]:
    """What training has added to each base model."""
    if len(table.trained) * len(table.columns) > MANY_GAINS:
        return
    for column in table.columns:
        for base in (row for row in table.conditions if row.kind == "base"):
            estimate = table.cell(base, column).estimate
            started = [row for row in table.trained if table.base_of(row, column) is base]
            gains = [(row.label, gain) for row in started if (gain := table.cell(row, column).gain) is not None]
            if estimate is not None and gains:
                parts = [_gain(label, gain) for label, gain in gains]
                model = "the base model" if base.label == "base" else base.label
                yield f"Over the {percent(estimate.mean)} % of {model} on {table.name(column)}, {listed(parts)}."


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
            "how much another seed would change is not part of the intervals."
        )
    elif fewest < FEW_SEEDS:
        yield f"{what} rests on {fewest} seeds, so how much seeds vary is only roughly known."


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
