"""A sweep as one HTML file: the best values, every trial, importances, parallel coordinates, curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template

from dftune import report
from dftune.report.charts import Frame, Line, Scale, line_chart, linear_scale, log_scale, tick_label
from dftune.report.wording import duration, visible
from dftune.sweep.config import Dimension, Value
from dftune.sweep.results import Results, Trial

_TITLE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<main>
<header class="top"><h1>$title</h1><p class="verdict">$verdict</p></header>
$sections
</main>
</body>
</html>
""")
_PRUNED_TOO = (
    "A line a trial; the thick one is the best, grey ones were pruned. The axis of the metric is that of the trials "
    "trained to the end; what is beyond it is drawn at its end."
)
_WIDE = Frame(width=700, height=300, left=24, right=24, top=34, bottom=26)
_BAR_HEIGHT = 30
_WIDE_RANGE = 5
"""Curves of values that differ by more than this factor are drawn on a log scale."""


def render_page(results: Results) -> str:
    """The whole file: no script, nothing loaded."""
    style = (Path(report.__file__).parent / "style.css").read_text(encoding="utf-8")
    sections = [
        ("Trials", _table(results)),
        ("What mattered", _importances(results)),
        ("Values and metric", parallel_coordinates(results)),
        ("While they trained", _curves(results)),
    ]
    shown = "\n".join(f"<section><h2>{title}</h2>{body}</section>" for title, body in sections if body)
    return _TITLE.substitute(title=_text(results.recipe.name), style=style, verdict=_verdict(results), sections=shown)


def _text(value: object) -> str:
    return escape(visible(str(value)))


def shown(value: Value) -> str:
    """A value of a recipe in few characters."""
    return f"{value:.4g}" if isinstance(value, float) else "null" if value is None else str(value)


def _verdict(results: Results) -> str:
    select, best = results.recipe.sweep.select, results.best
    ends = [trial.state for trial in results.trials]
    counted = f"{ends.count('complete')} trained to the end, {ends.count('pruned')} pruned, {ends.count('fail')} failed"
    head = f"{len(ends)} trials: {counted}. "
    if best is None:
        return _text(head + "None has been completed.")
    values = ", ".join(f"{key}={shown(value)}" for key, value in best.values.items())
    return _text(
        f"{head}The best {select.metric}, {best.value:.4g}, is that of trial {best.number}: {values}. It was chosen "
        "among many, so it flatters that trial a little; a study with several seeds says how good it is."
    )


def _table(results: Results) -> str:
    keys = list(results.recipe.sweep.space)
    worst = float("-inf") if results.recipe.sweep.select.higher_is_better else float("inf")
    sign = -1 if results.recipe.sweep.select.higher_is_better else 1
    ordered = sorted(
        results.trials,
        key=lambda trial: (trial.state != "complete", sign * (worst if trial.value is None else trial.value)),
    )
    head = "".join(
        f"<th>{_text(name)}</th>" for name in ("trial", *keys, results.recipe.sweep.select.metric, "end", "time")
    )
    rows = [
        "<tr>"
        + f'<th scope="row">{trial.number}</th>'
        + "".join(f"<td>{_text(shown(trial.values.get(key)))}</td>" for key in keys)
        + f"<td>{'&mdash;' if trial.value is None else f'{trial.value:.4g}'}</td>"
        + f"<td>{_text(trial.state)}</td>"
        + f"<td>{'&mdash;' if trial.seconds is None else duration(trial.seconds)}</td></tr>"
        for trial in ordered
    ]
    body = "\n".join(rows)
    note = f"The value of a pruned trial is the {results.recipe.sweep.pruned_by} that it was pruned at."
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="how">{_text(note)}</p>'
    )


def _importances(results: Results) -> str:
    importances = results.importances
    if not importances:
        return ""
    frame = Frame(width=700, height=len(importances) * _BAR_HEIGHT + 8, left=190, right=60, top=4, bottom=4)
    parts = []
    for index, (key, share) in enumerate(sorted(importances.items(), key=lambda item: -item[1])):
        y = frame.top + index * _BAR_HEIGHT
        width = frame.x(share) - frame.x(0)
        parts.append(f'<text class="name" x="0" y="{y + 18:.1f}">{_text(key)}</text>')
        parts.append(f'<rect class="area s1" x="{frame.x(0):.1f}" y="{y + 5:.1f}" width="{width:.1f}" height="18"/>')
        parts.append(f'<text class="value" x="{frame.x(share) + 6:.1f}" y="{y + 18:.1f}">{100 * share:.0f} %</text>')
    how = (
        f"Share of the spread between trials that each key accounts for by itself, {results.importances_of} "
        "(PED-ANOVA, arXiv 2304.10255). With few trials it is a hint."
    )
    return f"<figure>{_svg(frame, 'Importance of each key', parts)}<figcaption>{_text(how)}</figcaption></figure>"


def parallel_coordinates(results: Results) -> str:
    """One axis a key and one for the metric; a line a trial."""
    trials = [trial for trial in results.trials if trial.value is not None and trial.state in ("complete", "pruned")]
    ended = [trial for trial in trials if trial.state == "complete"]
    if not ended:
        return ""
    axes = [_axis(key, dimension, trials) for key, dimension in results.recipe.sweep.space.items()]
    metric = linear_scale([trial.value or 0.0 for trial in ended])
    axes.append(_Axis(results.recipe.sweep.select.metric, metric, lambda trial: metric.share(trial.value or 0.0)))
    frame, parts = _WIDE, []
    places = [frame.x(index / (len(axes) - 1)) for index in range(len(axes))]
    for x, axis in zip(places, axes, strict=True):
        anchor = "start" if x == places[0] else "end" if x == places[-1] else "middle"
        parts.append(f'<path class="axis" d="M{x:.1f} {frame.y(0):.1f}V{frame.y(1):.1f}"/>')
        parts.append(
            f'<text class="unit" x="{x:.1f}" y="{frame.top - 16:.1f}" text-anchor="{anchor}">{_text(axis.name)}</text>'
        )
        for share, label in axis.labels():
            side = 6 if anchor == "start" else -6
            end = "start" if anchor == "start" else "end"
            y = frame.y(share) + 4
            parts.append(f'<text class="tick" x="{x + side:.1f}" y="{y:.1f}" text-anchor="{end}">{_text(label)}</text>')
    comparable = results.recipe.sweep.pruned_by == results.recipe.sweep.select.metric
    drawn = [trial for trial in trials if trial.state == "complete" or comparable]
    best = results.best
    for trial in sorted(drawn, key=lambda trial: trial is best):
        kind = "line s2" if trial is best else "seed s1" if trial.state == "complete" else "seed s0"
        points = "L".join(f"{x:.1f} {frame.y(axis.share(trial)):.1f}" for x, axis in zip(places, axes, strict=True))
        name = f"trial {trial.number}, {trial.state}: {trial.value:.4g}"
        parts.append(f'<path class="{kind}" fill="none" d="M{points}"><title>{_text(name)}</title></path>')
    how = _PRUNED_TOO if comparable else "A line a trial."
    return f"<figure>{_svg(frame, 'Parallel coordinates', parts)}<figcaption>{_text(how)}</figcaption></figure>"


class _Axis:
    def __init__(self, name: str, scale: Scale | Sequence[Value], share: Callable[[Trial], float]) -> None:
        self.name, self.scale, self.share = name, scale, share

    def labels(self) -> Iterator[tuple[float, str]]:
        """Where along the axis something is written, and what."""
        if isinstance(self.scale, Scale):
            yield from ((self.scale.share(tick), tick_label(tick, self.scale.high)) for tick in self.scale.ticks)
            return
        for index, value in enumerate(self.scale):
            yield _place(index, len(self.scale)), shown(value)


def _place(index: int, num: int) -> float:
    return index / (num - 1) if num > 1 else 0.5


def _axis(key: str, dimension: Dimension, trials: Sequence[Trial]) -> _Axis:
    if dimension.values is not None:
        values = dimension.values
        return _Axis(key, values, lambda trial: _place(values.index(trial.values[key]), len(values)))
    found = [float(trial.values[key] or 0.0) for trial in trials] + [dimension.low or 0.0, dimension.high or 0.0]
    scale = log_scale(found) if dimension.log else linear_scale(found)
    return _Axis(key, scale, lambda trial: scale.share(float(trial.values[key] or 0.0)))


def _curves(results: Results) -> str:
    """What trials were compared by, over the share of the training."""
    lines = [
        Line(f"trial {trial.number}", 2 if trial is results.best else 0, trial.curve)
        for trial in results.trials
        if len(trial.curve) > 1
    ]
    if not lines:
        return ""
    metric = results.recipe.sweep.pruned_by
    reported = [value for line in lines for _, value in line.mean]
    wide = min(reported) > 0 and max(reported) > _WIDE_RANGE * min(reported)
    chart = line_chart(
        lines,
        title=f"{metric} during training",
        description=f"{metric} of {len(lines)} trials",
        x_label="% of the training",
        y_label=metric,
        y_scale=log_scale(reported) if wide else None,
        frame=Frame(width=700, height=300),
    )
    how = f"{metric} over the held-out rows. A line that ends early is a trial that was pruned."
    return f"<figure>{chart}<figcaption>{_text(how)}</figcaption></figure>"


def _svg(frame: Frame, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {frame.width:g} {frame.height:g}" role="img">'
        f"<title>{_text(title)}</title>{''.join(parts)}</svg>"
    )
