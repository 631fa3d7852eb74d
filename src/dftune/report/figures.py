"""Which charts the report has: each a drawing, a legend and one sentence that says how to read it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from dftune.evaluate.classify import CATEGORIES
from dftune.report.charts import (
    Line,
    Part,
    Span,
    histogram,
    interval_chart,
    line_chart,
    linear_scale,
    log_scale,
    stacked_bars,
    swatch,
)
from dftune.report.conditions import Column, Condition
from dftune.report.curves import accuracy_curves, line_of, metric_curves
from dftune.report.panels import panels
from dftune.report.sensitivity import sensitivity_charts
from dftune.report.tables import ResultTable
from dftune.report.wording import interval, one_line, percent

Legend = tuple[tuple[Markup, str], ...]

MOST_BANDS = 6
"""More bands over one another hide what they are to show."""
MOST_LEGEND = 45
"""Characters of a legend above a chart; a longer one stands once above its section."""
MOST_SPAN = 42
"""Characters of label and value together in a row of an interval chart."""
MOST_BAR = 48
"""Characters of a label above a stacked bar."""


@dataclass(frozen=True)
class Figure:
    """One chart.

    Attributes:
        title: above the chart.
        svg: the drawing.
        caption: how to read it.
        legend: (swatch, label) pairs; empty where the chart names its parts itself.
    """

    title: str
    svg: Markup
    caption: str
    legend: Legend = ()


@dataclass(frozen=True)
class Section:
    """Charts that belong together, with one legend for all of them where each would need a long one."""

    title: str
    figures: tuple[Figure, ...]
    legend: Legend = ()


@dataclass(frozen=True)
class _Metric:
    key: str
    kind: str
    title: str
    y_label: str
    caption: str
    zero: bool = False


_LOSSES = (
    _Metric(
        "loss",
        "train",
        "Training loss",
        "loss",
        "What each objective minimises; different objectives are on different scales and cannot be compared.",
    ),
    _Metric(
        "nll",
        "train",
        "NLL on the training batches",
        "nats per token",
        "Mean of −log p over each batch: the same quantity for every objective; lower is closer to the data.",
    ),
    _Metric(
        "nll",
        "validation",
        "NLL on held-out rows",
        "nats per token",
        "The same on rows kept out of training; it rises where a model overfits or sharpens away from them.",
    ),
)
_INSIDE = (
    _Metric(
        "p_mean",
        "train",
        "Mean token probability",
        "p",
        "Mean probability of the demonstrated tokens in each batch; 1 would be certainty.",
        True,
    ),
    _Metric(
        "ess",
        "train",
        "Effective sample size",
        "share of tokens",
        "(Σw)² / (T Σw²) of the objective's token weights: 1 weighs all tokens alike, near 0 a few tokens decide.",
        True,
    ),
    _Metric(
        "p_eot",
        "train",
        "End-of-turn probability",
        "p",
        "Mean probability of stopping where the demonstration stops; a model that loses it runs on to the token limit.",
        True,
    ),
    _Metric(
        "grad_norm",
        "train",
        "Gradient norm",
        "L2 norm",
        "Norm of the gradient before clipping; objectives that weigh tokens down have smaller gradients.",
        True,
    ),
    _Metric("lr", "train", "Learning rate", "learning rate", "The schedule, as it was applied.", True),
)


def build_sections(table: ResultTable, swept: ResultTable) -> tuple[Section, ...]:
    """Every chart for which the runs hold data; those over learning rate and batch size are from ``swept``."""
    kinds = (_intervals, _accuracy_curves, _outcomes, _lengths)
    scores = [kind(table, column) for kind in kinds for column in table.whole_columns]
    found = (
        Section("Scores", tuple(figure for kind in scores for figure in kind)),
        _with_one_legend(Section("Sensitivity", tuple(_sensitivity(table, swept)))),
        _with_one_legend(Section("Loss", tuple(_curves(table.trained, _LOSSES)))),
        Section("Token probabilities before and after", tuple(_histograms(table.trained))),
        _with_one_legend(Section("Inside the training", (*_weights(table.trained), *_curves(table.trained, _INSIDE)))),
    )
    return tuple(section for section in found if section.figures)


def _with_one_legend(section: Section) -> Section:
    longest: Legend = max((figure.legend for figure in section.figures), key=len, default=())
    if sum(len(label) for _, label in longest) <= MOST_LEGEND:
        return section
    return Section(section.title, tuple(replace(figure, legend=()) for figure in section.figures), longest)


def _curves(trained: Sequence[Condition], metrics: Sequence[_Metric]) -> Iterator[Figure]:
    for metric in metrics:
        # Training and held-out NLL share their scale, so that the gap between them can be seen.
        same = [other for other in metrics if other.key == metric.key] if len(metrics) > 1 else [metric]
        drawn = [line for other in same for row in trained if (line := _line(row, other, row.label)) is not None]
        y_scale = linear_scale([y for line in drawn for y in line.values], zero=metric.zero)
        for panel in panels(trained):
            lines = [line for row in panel.rows if (line := _line(row, metric, panel.label(row))) is not None]
            if lines:
                title = f"{metric.title}{panel.title}"
                svg = line_chart(
                    _readable(lines),
                    title=title,
                    description=f"{title} over optimizer steps: {_ends(lines)}. {metric.caption}",
                    x_label="optimizer steps",
                    y_label=metric.y_label,
                    y_scale=y_scale,
                )
                yield Figure(title, svg, metric.caption, _legend(_readable(lines)))


def _line(row: Condition, metric: _Metric, label: str) -> Line | None:
    curves = metric_curves(row, metric.kind, metric.key)
    return line_of(label, row.style, curves, markers=max(map(len, curves)) <= 25) if curves else None


def _readable(lines: list[Line]) -> list[Line]:
    """The lines, without their bands where these would be too many."""
    return lines if len(lines) <= MOST_BANDS else [replace(line, band=()) for line in lines]


def _ends(lines: Sequence[Line]) -> str:
    return "; ".join(f"{line.label} from {line.mean[0][1]:.3g} to {line.mean[-1][1]:.3g}" for line in lines)


def _legend(lines: Sequence[Line]) -> Legend:
    entries = [(swatch(line.style, markers=line.markers), line.label) for line in lines]
    if any(line.replicates for line in lines):
        entries.append((swatch(0, thin=True), "single seeds"))
    if any(line.band for line in lines):
        entries.append((Markup('<span class="key band"></span>'), "from the lowest to the highest seed"))
    return tuple(entries)


def _on(table: ResultTable, column: Column) -> str:
    return f" on {table.name(column)}" if len(table.columns) > 1 else ""


def _intervals(table: ResultTable, column: Column) -> Iterator[Figure]:
    rows = [(row, estimate) for row in table.conditions if (estimate := table.cell(row, column).estimate) is not None]
    if not rows:
        return
    shown = [f"{percent(e.mean)} ({interval(e.low, e.high)})" for _, e in rows]
    if any(len(row.label) + len(text) > MOST_SPAN for (row, _), text in zip(rows, shown, strict=True)):
        shown = [percent(e.mean) for _, e in rows]
    spans = [
        Span(one_line(row.label, MOST_SPAN - 2), row.style, 100 * e.mean, 100 * e.low, 100 * e.high, text)
        for (row, e), text in zip(rows, shown, strict=True)
    ]
    title = f"Accuracy{_on(table, column)}"
    svg = interval_chart(
        spans,
        title=title,
        description="; ".join(f"{s.label}: {s.value:.1f} ({s.low:.1f} to {s.high:.1f})" for s in spans),
        x_label="accuracy, %",
        most=100.0,
    )
    caption = "Lines are 95 % intervals; they may overlap although the paired difference in the table is clear."
    yield Figure(title, svg, caption)


def _accuracy_curves(table: ResultTable, column: Column) -> Iterator[Figure]:
    for panel in panels(table.trained):
        found = [(row, accuracy_curves(row, column)) for row in panel.rows]
        lines = [line_of(panel.label(row), row.style, curves, markers=True) for row, curves in found if curves]
        if lines:
            title = f"Accuracy over training{_on(table, column)}{panel.title}"
            svg = line_chart(
                _readable(lines),
                title=title,
                description=f"Accuracy in per cent by optimizer steps: {_ends(lines)}.",
                x_label="optimizer steps",
                y_label="accuracy, %",
                zero=True,
            )
            caption = "Accuracy of each evaluated step, complete evaluations only; step 0 is the base model."
            yield Figure(title, svg, caption, _legend(_readable(lines)))


def _sensitivity(table: ResultTable, swept: ResultTable) -> Iterator[Figure]:
    for chart in sensitivity_charts(swept, table.trained):
        lines = _readable(list(chart.lines))
        svg = line_chart(
            lines,
            title=chart.title,
            description=f"{chart.title}: {_ends(lines)}.",
            x_label=chart.x_label,
            y_label=chart.y_label,
            x_scale=log_scale([x for line in lines for x, _ in line.mean]),
            y_scale=chart.y_scale,
        )
        yield Figure(chart.title, svg, chart.caption, _legend(lines))


def _outcomes(table: ResultTable, column: Column) -> Iterator[Figure]:
    rows = [
        (
            one_line(row.label, MOST_BAR),
            [Part(name, stats.count, _listed(stats.reasons)) for name, stats in found.categories.items()],
        )
        for row in table.conditions
        if (found := table.cell(row, column).diagnosis) is not None
    ]
    if rows:
        title = f"How the completions ended{_on(table, column)}"
        shown = (f"{label}: {', '.join(f'{part.amount} {part.name}' for part in parts)}" for label, parts in rows)
        svg = stacked_bars(rows, title=title, description="; ".join(shown))
        present = [name for name in CATEGORIES if any(part.name == name for _, parts in rows for part in parts)]
        key = Markup('<span class="key o-{}"></span>')
        caption = (
            "Share of all completions. Wrong: an answer that differs. Format failure: stopped without an answer in its "
            "place. Truncated: met the token limit. Repetition loop: ends in one, cut off or not. Ungraded ones are "
            "left out of the accuracy. The tables in report.md give the reasons."
        )
        yield Figure(title, svg, caption, tuple((key.format(name.replace(" ", "-")), name) for name in present))


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {amount:,}" for reason, amount in reasons.items())


def _lengths(table: ResultTable, column: Column) -> Iterator[Figure]:
    """Lengths of correct and of wrong completions; those that were cut off are as long as the limit allows."""
    rows = [
        (row, name, stats.tokens)
        for row in table.conditions
        if (found := table.cell(row, column).diagnosis) is not None
        for name, stats in found.categories.items()
        if name in ("correct", "wrong") and stats.tokens
    ]
    if not rows:
        return
    title = f"Length by verdict{_on(table, column)}"
    spans = [
        Span(
            f"{one_line(row.label, MOST_SPAN - 6 - len(name))}: {name}",
            *(row.style, tokens[0.5], tokens[0.1], tokens[0.9]),
            shown=f"{tokens[0.5]:,}",
        )
        for row, name, tokens in rows
    ]
    svg = interval_chart(
        spans,
        title=title,
        description="; ".join(f"{s.label}: {s.value:,} ({s.low:,} to {s.high:,})" for s in spans),
        x_label="tokens of a completion",
    )
    caption = "Median, and a line from the 10 % to the 90 % quantile, of correct and of wrong completions, all seeds."
    yield Figure(title, svg, caption)


def _weights(trained: Sequence[Condition]) -> Iterator[Figure]:
    """What each objective made of its tokens at the end; runs of older versions have not recorded it."""
    spans = []
    for row in trained:
        last = [run.train[-1] for run in row.runs if run.train and run.train[-1].keys() >= _WEIGHTS]
        if last:
            low, middle, high = (
                math.fsum(float(one[f"weight_{name}"]) for one in last) / len(last) for name in ("q10", "q50", "q90")
            )
            label = one_line(row.label, MOST_SPAN - 8)
            spans.append(Span(label, row.style, middle, low, high, f"{middle:.3g}"))
    if spans:
        svg = interval_chart(
            spans,
            title="Weights of tokens",
            description="; ".join(f"{s.label}: {s.value:.3g} ({s.low:.3g} to {s.high:.3g})" for s in spans),
            x_label="weight",
            least=-math.inf,
        )
        caption = (
            "Median, and a line from the 10 % to the 90 % quantile, of the weight w = \N{MINUS SIGN}∂total/∂log p that "
            "the objective gave each supervised token of the last step, mean over seeds. 1 for all is plain SFT."
        )
        yield Figure("Weights of tokens", svg, caption)


_WEIGHTS = frozenset({"weight_q10", "weight_q50", "weight_q90"})


def _histograms(trained: Sequence[Condition]) -> Iterator[Figure]:
    pairs = [(row, *_before_and_after(row)) for row in trained]
    counts = [count for _, before, after in pairs for count in (*before, *after)]
    if not any(counts):
        return
    scale = log_scale(counts, low=1)
    for row, before, after in pairs:
        if before and after:
            shares = (
                f"Under 0.1: {_share(before, 0, 0.1)} before, {_share(after, 0, 0.1)} after; "
                f"over 0.9: {_share(before, 0.9, 1)} before, {_share(after, 0.9, 1)} after."
            )
            svg = histogram(
                before,
                after,
                row.style,
                title=f"Token probabilities of {row.label}",
                description=shares,
                x_label="probability of the demonstrated token",
                y_label="tokens (log scale)",
                y_scale=scale,
            )
            caption = f"Held-out tokens by their probability, all seeds together, log scale. {shares}"
            legend = (
                (Markup('<span class="key before"></span>'), "before"),
                (Markup(f'<span class="key fill s{row.style}"></span>'), "after"),
            )
            yield Figure(row.label, svg, caption, legend)


def _before_and_after(row: Condition) -> tuple[list[float], list[float]]:
    """Counts of the first and the last validation of each seed, added up; empty where no seed has two."""
    rows = [[one["p_histogram"] for one in run.validation if one.get("p_histogram")] for run in row.runs]
    pairs = [(counts[0], counts[-1]) for counts in rows if len(counts) > 1]
    return [sum(bins) for bins in zip(*(first for first, _ in pairs), strict=True)], [
        sum(bins) for bins in zip(*(last for _, last in pairs), strict=True)
    ]


def _share(counts: Sequence[float], low: float, high: float) -> str:
    width = 1 / len(counts)
    inside = math.fsum(n for i, n in enumerate(counts) if low - 1e-9 <= i * width and (i + 1) * width <= high + 1e-9)
    return f"{percent(inside / max(math.fsum(counts), 1))} %"
