"""Two evaluations of the same questions side by side: better, worse, or cannot tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dftune.evaluate.describe import aligned
from dftune.evaluate.diagnose import estimate_to_json
from dftune.evaluate.family import correct
from dftune.evaluate.metrics import Difference, Estimate, estimate_scores, paired_difference
from dftune.evaluate.saved import Saved

Row = Mapping[str, Any]
_MARKED = ("sampling", "grader", "engine", "precision")
"""Settings in which two evaluations should agree; where they do not, the comparison says so."""
_IDS_NAMED = 5


@dataclass(frozen=True)
class Flip:
    """A question on which the two sides differ.

    Attributes:
        id: of the question.
        ours: our score on it, in [0, 1].
        theirs: the other side's.
        our_answer: what was extracted from our first sample.
        their_answer: from theirs.
        target: the reference answer.
    """

    id: str
    ours: float
    theirs: float
    our_answer: str | None
    their_answer: str | None
    target: Any


@dataclass(frozen=True)
class Comparison:
    """One benchmark under one protocol.

    Attributes:
        benchmark: its name.
        protocol: of our side.
        our_label, their_label: where the evaluations are.
        ours, theirs: accuracy of either side on the questions compared.
        difference: ours less theirs, paired by question, with interval, permutation p and detectable difference; among
            several comparisons corrected for their number.
        sampling_error: the part of its standard error that comes from drawing samples, so the part that more samples
            would take away; None where it cannot be told from the rest.
        num_left_out: questions that one side could not grade.
        marks: what differs beside the model, in words.
        gained: questions with a higher score on our side, the largest difference first.
        lost: those with a lower one.
    """

    benchmark: str
    protocol: str
    our_label: str
    their_label: str
    ours: Estimate
    theirs: Estimate
    difference: Difference
    sampling_error: float | None
    num_left_out: int
    marks: tuple[str, ...]
    gained: tuple[Flip, ...]
    lost: tuple[Flip, ...]

    def to_json(self) -> dict[str, Any]:
        """As docs/evaluation.md lists it."""
        difference = self.difference
        return {
            "benchmark": self.benchmark,
            "protocol": self.protocol,
            "finding": difference.word,
            "difference": {
                **(estimate_to_json(difference) or {}),
                "p_value": difference.p_value,
                "p": difference.p,
                "p_adjusted": difference.p_adjusted,
                "detectable": difference.detectable,
                "sampling_error": self.sampling_error,
            },
            "ours": {"where": self.our_label, **(estimate_to_json(self.ours) or {})},
            "theirs": {"where": self.their_label, **(estimate_to_json(self.theirs) or {})},
            "num_left_out": self.num_left_out,
            "marks": list(self.marks),
            "gained": [asdict(flip) for flip in self.gained],
            "lost": [asdict(flip) for flip in self.lost],
        }


def compare_all(ours: Sequence[Saved], theirs: Sequence[Saved], their_name: str) -> list[Comparison]:
    """Compare every benchmark and protocol of ``ours`` with the same of ``theirs``, corrected for their number (Holm).

    Where the other side has not been scored under the same protocol, but under a single other one or, for a mean over
    samples, by a single other mean over samples, that one is taken, and marked.

    Args:
        ours: as `dftune.evaluate.saved.find_saved` gives them.
        theirs: likewise.
        their_name: what the other side was called on the command line.

    Raises:
        ValueError: there is no benchmark in common, or two evaluations cannot be compared (`compare`).
    """
    mine, others = ([view for one in side for view in one.views()] for side in (ours, theirs))
    pairs = [(one, other) for one in mine if (other := _counterpart(one, others)) is not None]
    if not pairs:
        held = [", ".join(sorted({f"{one.benchmark}.{one.protocol}" for one in side})) for side in (mine, others)]
        raise ValueError(
            f"There is nothing to compare: {held[0] or 'no results'} here, {held[1]} in {their_name}. "
            "Evaluate both on the same benchmark under the same protocol."
        )
    found = [compare(one, other) for one, other in pairs]
    corrected = correct([one.difference for one in found]) if len(found) > 1 else [one.difference for one in found]
    return [replace(one, difference=difference) for one, difference in zip(found, corrected, strict=True)]


def _counterpart(one: Saved, others: Sequence[Saved]) -> Saved | None:
    same = [other for other in others if other.benchmark == one.benchmark]
    exact = [other for other in same if other.protocol == one.protocol]
    exact = [other for other in exact if other.sampling == one.sampling] or exact
    means = [other for other in same if one.averages and other.averages]
    return next((found[0] for found in (exact, means, same) if len(found) == 1), None)


def compare(ours: Saved, theirs: Saved) -> Comparison:
    """Paired difference of two evaluations of the same questions.

    Args:
        ours: the evaluation in question.
        theirs: what it is compared with. Questions that have no score on either side are not compared.

    Raises:
        ValueError: the benchmarks' rows differ (the message names ids), an evaluation is incomplete, or no question
            was graded on both sides.
    """
    _check_same_questions(ours, theirs)
    mine, other = ours.scores, theirs.scores
    places = [place for place, name in enumerate(ours.tally.names) if name in mine and name in other]
    names = [ours.tally.names[place] for place in places]
    if not names:
        raise ValueError(f"No question of {ours.benchmark} was graded in both {ours.path} and {theirs.path}.")
    clusters = ours.tally.clusters(places)
    columns = [[[side[name]] for name in names] for side in (mine, other)]
    parts = [saved.tally.components() for saved in (ours, theirs) if saved.averages]
    sampling = [part.sampling for part in parts if part is not None and part.sampling is not None]
    flips = _flips(ours, theirs, mine, other, names)
    estimates = [
        estimate_scores((side[name] for name in names), sum(saved.tally.counts["graded"]), clusters)
        for side, saved in ((mine, ours), (other, theirs))
    ]
    assert estimates[0] is not None
    assert estimates[1] is not None
    return Comparison(
        benchmark=ours.benchmark,
        protocol=ours.protocol,
        our_label=ours.label,
        their_label=theirs.label,
        ours=estimates[0],
        theirs=estimates[1],
        difference=paired_difference(columns[0], columns[1], seeds_match=True, clusters=clusters),
        sampling_error=math.sqrt(sum(sampling)) if len(sampling) == 2 else None,
        num_left_out=len(ours.tally) - len(names),
        marks=tuple(_marks(ours, theirs)),
        gained=tuple(flip for flip in flips if flip.ours > flip.theirs),
        lost=tuple(flip for flip in flips if flip.ours < flip.theirs),
    )


def _flips(
    ours: Saved, theirs: Saved, mine: Mapping[str, float], other: Mapping[str, float], names: Sequence[str]
) -> list[Flip]:
    differing = sorted((name for name in names if mine[name] != other[name]), key=lambda n: -abs(mine[n] - other[n]))
    first, second = ({str(row["id"]): row for row in reversed(side.rows)} for side in (ours, theirs))
    return [
        Flip(
            *(name, mine[name], other[name], first[name].get("answer"), second[name].get("answer")),
            target=first[name].get("target"),
        )
        for name in differing
    ]


def _check_same_questions(ours: Saved, theirs: Saved) -> None:
    first, second = ({str(row["id"]): _content(row) for row in saved.rows} for saved in (ours, theirs))
    for saved in (ours, theirs):
        if len(saved.rows) != saved.num_expected:
            raise ValueError(
                f"{saved.path} holds {len(saved.rows)} of {saved.num_expected} completions, so it is no evaluation of "
                "the benchmark yet. Complete it: run `dftune evaluate` again as it was started, with --benchmarks."
            )
    only = [[name for name in one if name not in other] for one, other in ((first, second), (second, first))]
    changed = [name for name in first if name in second and first[name] != second[name]]
    if only[0] or only[1] or changed:
        parts = [
            *([f"only in {ours.path}: {_named(only[0])}"] if only[0] else []),
            *([f"only in {theirs.path}: {_named(only[1])}"] if only[1] else []),
            *([f"with another problem or reference answer: {_named(changed)}"] if changed else []),
        ]
        raise ValueError(
            f"The two evaluations of {ours.benchmark} are of different questions. Ids {'; '.join(parts)}. A paired "
            "difference needs the same questions: evaluate both on one benchmark file (PATH:N takes its first N rows)."
        )


def _content(row: Row) -> tuple[Any, ...]:
    return (row.get("problem"), row.get("target"))


def _named(ids: Sequence[str]) -> str:
    rest = len(ids) - _IDS_NAMED
    return ", ".join(ids[:_IDS_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _marks(ours: Saved, theirs: Saved) -> list[str]:
    """What differs beside the model."""
    marks = []
    if ours.protocol != theirs.protocol:
        marks.append(f"other protocol: {ours.protocol} here, {theirs.protocol} there")
    if ours.num_samples != theirs.num_samples:
        marks.append(f"other number of samples: {ours.num_samples} here, {theirs.num_samples} there")
    for key in _MARKED:
        values = [_without_seed(saved.settings.get(key)) for saved in (ours, theirs)]
        if values[0] != values[1]:
            marks.append(f"other {key.replace('_', ' ')}: {values[0]} here, {values[1]} there")
    formats = [saved.settings.get("prompt_format") or {} for saved in (ours, theirs)]
    if formats[0].get("fingerprint") != formats[1].get("fingerprint"):
        marks.append(f"other prompt format: {formats[0].get('name')} here, {formats[1].get('name')} there")
    for saved, side in ((ours, "here"), (theirs, "there")):
        trained, used = saved.settings.get("trained_prompt_format"), saved.settings.get("prompt_format")
        if trained and used and trained.get("fingerprint") != used.get("fingerprint"):
            marks.append(
                f"prompts {side} are rendered as {used.get('name')}, the model was trained on {trained['name']}"
            )
    return marks


def _without_seed(value: object) -> str:
    if isinstance(value, Mapping):  # two seeds of one sampling make the same score, up to chance
        return ", ".join(f"{key} {value[key]}" for key in value if key != "seed")
    return str(value)


def format_comparisons(comparisons: Sequence[Comparison], num_shown: int = 5) -> str:
    """A table with a line a benchmark, what differs beside the model, and questions that flipped.

    Args:
        comparisons: of one side with another.
        num_shown: most questions listed each way.
    """
    labels = dict.fromkeys((one.our_label, one.their_label) for one in comparisons)
    lines = [f"{ours} against {theirs}" for ours, theirs in labels]
    corrected = any(one.difference.p_adjusted is not None for one in comparisons)
    rows = [
        [
            *("benchmark", "protocol", "finding", "difference", "95 % interval", "p"),
            *(["p, Holm"] if corrected else []),
            *("detectable", "here", "there", "n"),
        ]
    ]
    for one in comparisons:
        found = one.difference
        rows.append(
            [
                *(one.benchmark, one.protocol, found.word, f"{100 * found.mean:+.1f}"),
                f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
                f"{found.p:.4f}",
                *([] if found.p_adjusted is None else [f"{found.p_adjusted:.4f}"]),
                f"{100 * found.detectable:.1f}",
                *(f"{100 * one.ours.mean:.1f} %", f"{100 * one.theirs.mean:.1f} %", str(found.num_questions)),
            ]
        )
    lines += ["", *aligned(rows, text_columns=3)]
    if corrected:
        lines += [
            "",
            f"Findings hold for all {len(comparisons)} comparisons together (Holm); intervals are of each alone.",
        ]
    for one in comparisons:
        lines += _details(one, num_shown)
    return "\n".join(lines)


def _details(one: Comparison, num_shown: int) -> list[str]:
    lines = ["", f"{one.benchmark}.{one.protocol}"]
    if not one.difference.sign:
        lines.append(f"  {_too_small(one)}")
    if one.num_left_out:
        lines.append(f"  left out, not graded on one side: {one.num_left_out}")
    lines += [f"  mind: {mark}" for mark in one.marks]
    for flips, what in ((one.gained, "better here"), (one.lost, "worse here")):
        shown = flips[: max(num_shown, 0)]
        lines.append(f"  {len(flips)} question{'s' * (len(flips) != 1)} {what}" + (":" if shown else ""))
        several = any(flip.ours not in (0, 1) or flip.theirs not in (0, 1) for flip in flips)
        for flip in shown:
            scores = f"{100 * flip.ours:.0f} % here, {100 * flip.theirs:.0f} % there; " if several else ""
            answers = f"{_short(flip.our_answer)} here, {_short(flip.their_answer)} there; "
            lines.append(f"    {flip.id}: {scores or answers}reference {_short(flip.target)}")
    return lines


def _too_small(one: Comparison) -> str:
    found = one.difference
    sentence = f"differences under {100 * found.detectable:.1f} points can go unseen with these {found.num_questions}"
    if one.sampling_error is not None and found.standard_error > 0:
        share = min(one.sampling_error / found.standard_error, 1.0) ** 2
        return f"{sentence} questions; {100 * share:.0f} % of the variance is from sampling, which more samples reduce"
    return f"{sentence} questions"


def _short(value: object) -> str:
    text = " ".join(("none" if value is None else value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 60 else f"{text[:59]}…"
