"""What the numbers say, in words: the paragraph at the top."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dftune.evaluate.metrics import Difference
from dftune.report.conditions import Condition
from dftune.report.groups import LEARNING_RATE
from dftune.report.tables import ResultTable
from dftune.report.tuning import Tuning
from dftune.report.wording import doubt, interval, listed, percent, plural, signed

FEW_SEEDS = 3
"""With fewer, the spread between seeds is hardly known."""
MANY_GAINS = 6
"""More than a paragraph should list; the table has them."""
MOST_NOISE = 3
"""Of more comparisons under the same circumstances, those without a finding are summed up."""
MANY_FINDINGS = 6
"""More findings than these are listed without their intervals, which are in the table."""
WIDE = 1.5
"""Comparisons whose detectable differences are further apart than this factor are given both ends."""

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
        at_same_rate: learning rate of the condition, and the first of these differences with a reference of that rate;
            None where it had none other.
    """

    benchmark: str
    row: Condition
    reference: str
    shared: Details
    found: tuple[tuple[str, Difference], ...]
    at_same_rate: tuple[str, Difference] | None = None

    @property
    def is_clear(self) -> bool:
        """Under one protocol at least there is a finding."""
        return self.found[0][1].sign != 0


_OUR_WORDS = ("the difference", "none of", "no other", "better than", "worse than")
"""How sentences begin that do not begin with a name."""


def verdict(table: ResultTable, tuning: Tuning | None = None) -> str:
    """One paragraph. A winner is named only where interval and test both exclude zero.

    Args:
        table: what is compared.
        tuning: how learning rates were chosen.
    """
    if not table.columns:
        return "None of these runs holds an evaluation, so there is no score to compare; the charts show the training."
    return " ".join([*_sentences(table, tuning), *_gains(table), *_confidence(table), *_reservations(table, tuning)])


def _sentences(table: ResultTable, tuning: Tuning | None) -> Iterator[str]:
    """Benchmark by benchmark, and on each under the same circumstances together: those with a finding first."""
    compared = list(_comparisons(table, tuning))
    benchmarks = list(dict.fromkeys(one.benchmark for one in compared))
    short = sum(one.is_clear for one in compared) > MANY_FINDINGS
    for benchmark in benchmarks:
        of_benchmark = [one for one in compared if one.benchmark == benchmark]
        questions = plural(min(d.num_questions for one in of_benchmark for _, d in one.found), "question")
        alike: dict[Details, list[Comparison]] = defaultdict(list)
        for one in of_benchmark:
            alike[one.shared].append(one)
        first = True
        for members in sorted(alike.values(), key=lambda members: not any(one.is_clear for one in members)):
            where = f"On {benchmark} ({questions})" if first else f"On {benchmark}" if len(benchmarks) > 1 else ""
            yield from _told(members, where, table.num_comparisons, short=short)
            first = False
        noise = [difference for one in of_benchmark for _, difference in one.found if not difference.sign]
        if noise:
            yield _too_small(benchmark, noise)
    if table.num_comparisons > 1:
        yield f"What is called a difference here holds for all {table.num_comparisons} comparisons together (Holm)."
    if not compared and len([row for row in table.conditions if row.kind != "base"]) > 1:
        yield "No two conditions have complete evaluations on the same questions, so none is compared with another."


def _told(members: Sequence[Comparison], where: str, num_comparisons: int, *, short: bool) -> Iterator[str]:
    """Comparisons under the same circumstances: findings by themselves, of many others that there are none."""
    members = sorted(members, key=lambda one: not one.is_clear)
    clear = [one for one in members if one.is_clear]
    quiet = members[len(clear) :] if short or len(members) > MOST_NOISE else []
    single = [] if short else clear if quiet else members
    sentences = [
        *([_summed_up(clear)] if short and clear else []),
        *(_sentence(one, num_comparisons) for one in single),
    ]
    if quiet:
        means = sorted(difference.mean for one in quiet for _, difference in one.found)
        ends = f"({' to '.join(dict.fromkeys(signed(means[place]) for place in (0, -1)))} points)"
        none = f"none of {len(quiet)} conditions differs clearly from {_references(quiet)} {ends}."
        sentences.append(f"no other difference is clear {ends}." if clear else none)
    for index, sentence in enumerate(sentences):
        circumstances = _circumstances(members[0])
        opening = ", ".join(part for part in (where, circumstances) if part) if index == 0 else ""
        opening = f"{opening}{': ' if circumstances else ', '}" if opening else "there, " if circumstances else ""
        # Names keep their case; openings and articles are ours.
        whole = f"{opening}{sentence}"
        yield whole[0].upper() + whole[1:] if opening or sentence.startswith(_OUR_WORDS) else whole


def _summed_up(clear: Sequence[Comparison]) -> str:
    """Many findings in one sentence, each by its first clear protocol."""
    parts: list[str] = []
    for sign, word in ((1, "better"), (-1, "worse")):
        found = [(_own_name(one.row, one.shared), one.found[0][1]) for one in clear if one.found[0][1].sign == sign]
        points = [
            f"{signed(difference.mean)}{'' if parts or index else ' points'}"
            for index, (_, difference) in enumerate(found)
        ]
        names = [f"{name} ({amount})" for (name, _), amount in zip(found, points, strict=True)]
        verb = "is" if len(names) == 1 else "are"
        parts += [f"{word} than {_references(clear)} {verb} {listed(names)}"] if names else []
    return f"{'; '.join(parts)}."


def _references(members: Sequence[Comparison]) -> str:
    names = {one.reference for one in members}
    return next(iter(names)) if len(names) == 1 else "their references"


def _too_small(benchmark: str, noise: Sequence[Difference]) -> str:
    """What could not have been counted on to be seen, in the comparisons that found nothing."""
    most, least = (choose(noise, key=lambda difference: difference.detectable) for choose in (min, max))
    seeds = "one seed" if least.num_seeds == 1 else plural(least.num_seeds, "seed")
    sees = f"{benchmark} has {plural(least.num_questions, 'question')}: with {seeds}, "
    if least.detectable >= 1:
        return f"{sees}no difference can be told from the noise, however large."
    if least.detectable < WIDE * most.detectable:
        return f"{sees}differences under about {percent(least.detectable)} points cannot be seen reliably."
    ends = f"{percent(most.detectable)} to {percent(least.detectable)}"
    return f"{sees}differences under about {ends} points, depending on what is compared, cannot be seen reliably."


def _comparisons(table: ResultTable, tuning: Tuning | None) -> Iterator[Comparison]:
    versions = list(dict.fromkeys((one.benchmark + one.left_out, one.fingerprint) for one in table.columns))
    names = Counter(name for name, _ in versions)
    shared = _circumstances_of(table)
    for version in versions:
        shown = version[0] if names[version[0]] == 1 else f"{version[0]}, version {version[1][:6]}"
        columns = [one for one in table.columns if (one.benchmark + one.left_out, one.fingerprint) == version]
        for row in table.conditions:
            cells = [(column, cell) for column in columns if (cell := table.cell(row, column)).versus is not None]
            cells.sort(key=lambda one: one[1].versus is None or one[1].versus.sign == 0)
            found = tuple((column.protocol, cell.versus) for column, cell in cells if cell.versus is not None)
            if found:
                other, alike = _reference(table, row), shared[row.label]
                same = tuning.at_same_rate(row, cells[0][0]) if tuning and _rate(row) != _rate(other) else None
                reference = _own_name(other, alike) if alike else cells[0][1].reference
                yield Comparison(shown, row, reference, alike, found, (_rate(row), same) if same else None)


def _reference(table: ResultTable, row: Condition) -> Condition:
    return next(other for other in table.conditions if other.label == table.compared_with[row.label])


def _rate(row: Condition) -> str:
    """The learning rate, as labels have it; empty where none names it."""
    details = row.group.details if row.group else ()
    return next((shown.split(" ", 1)[1] for key, shown in details if key == LEARNING_RATE), "")


def _circumstances_of(table: ResultTable) -> dict[str, Details]:
    """What each condition shares with its reference, by label.

    A learning rate is a circumstance where all have it, or where there are references of several rates; else it is part
    of the names.
    """
    pairs = {row.label: (row, _reference(table, row)) for row in table.conditions if row.label in table.compared_with}
    shared = {label: _shared_details(*pair) for label, pair in pairs.items()}
    without = {label: tuple(one for one in alike if one[0] != LEARNING_RATE) for label, alike in shared.items()}
    references: dict[Details, set[str]] = defaultdict(set)
    rates: dict[Details, set[str]] = defaultdict(set)
    for label, alike in without.items():
        references[alike].add(pairs[label][1].label)
        rates[alike] |= {_rate(side) for side in pairs[label]}
    in_names = {alike for alike in rates if len(references[alike]) == 1 and len(rates[alike]) > 1}
    return {label: alike if alike in in_names else shared[label] for label, alike in without.items()}


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


def _sentence(one: Comparison, num_comparisons: int) -> str:
    name = _own_name(one.row, one.shared)
    (protocol, first), *others = one.found
    if first.sign:
        more, ends = _amount(first)
        begun = f"{name} answers {more} than {one.reference}"
    else:
        verdict = f"is {doubt(first, num_comparisons)}: {signed(first.mean)} points"
        begun, ends = f"the difference between {name} and {one.reference} {verdict}", interval(first.low, first.high)
    begun = f"{begun} ({_asked(protocol)[0]}, 95 % interval {ends})"
    same = f"; {_at_same_rate(*one.at_same_rate)}" if first.sign and one.at_same_rate else ""
    return f"{begun}{same}{''.join(_further(first, other, protocol, num_comparisons) for protocol, other in others)}."


def _at_same_rate(rate: str, difference: Difference) -> str:
    return (
        f"with both at lr {rate} it is {signed(difference.mean)} points ({interval(difference.low, difference.high)})"
    )


def _asked(protocol: str) -> tuple[str, str]:
    """How a protocol is called at the first number of a sentence, and at further ones."""
    kind, _, number = protocol.partition("@")
    if kind == "avg" and number.isdigit():
        return f"mean of {plural(int(number), 'sample')}", f"over {plural(int(number), 'sample')} a question"
    if kind == "maj" and number.isdigit():
        return f"majority of {plural(int(number), 'sample')}", f"by majority of {plural(int(number), 'sample')}"
    return _PROTOCOLS.get(protocol, (protocol, f"under {protocol}"))


def _circumstances(one: Comparison) -> str:
    """What both sides share and other comparisons do not."""
    return " ".join(_circumstance(key, shown) for key, shown in one.shared) if one.row.group else ""


def _circumstance(key: str, shown: str) -> str:
    return f"trained on {shown.split(' ', 1)[1]}" if key == "data.source" else f"with {shown}"


def _amount(difference: Difference) -> tuple[str, str]:
    """``13.0 points more`` and its interval, both as positive numbers."""
    more = difference.mean > 0
    ends = (difference.low, difference.high) if more else (-difference.high, -difference.low)
    return f"{percent(abs(difference.mean))} points {'more' if more else 'fewer'}", interval(*ends)


def _further(first: Difference, other: Difference, protocol: str, num_comparisons: int) -> str:
    """The same comparison under another protocol."""
    when = _asked(protocol)[1]
    if other.sign:
        more, ends = _amount(other)
        return f" {'and' if other.sign == first.sign else 'but'} {more} {when} ({ends})"
    amount = f"{signed(other.mean)} points, {interval(other.low, other.high)}"
    if first.sign or doubt(first, num_comparisons) != doubt(other, num_comparisons):
        return f"; {when} the difference is {doubt(other, num_comparisons)} ({amount})"
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


def _reservations(table: ResultTable, tuning: Tuning | None) -> Iterator[str]:
    cells = list(table.cells.values())
    at_edge = sum(bool(row.edge) for row in tuning.rows) if tuning else 0
    whose = f"{at_edge} of {len(tuning.rows)} conditions" if tuning else ""
    chosen_by = tuning.protocol if tuning and {column.protocol for column in table.columns} - {tuning.protocol} else ""
    reasons = [
        *([f"learning rates were chosen by {chosen_by} answers alone"] if chosen_by else []),
        *([f"the best learning rate of {whose} is an end of its grid"] if at_edge else []),
        *(["some evaluations are incomplete"] if any(cell.incomplete for cell in cells) else []),
        *(["some prompts differ from those of the training"] if any(cell.format_differs for cell in cells) else []),
    ]
    if reasons:
        yield f"Mind the notes below the table: {listed(reasons)}."
