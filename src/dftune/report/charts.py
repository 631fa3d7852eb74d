"""A small writer of SVG charts: lines, histograms, intervals and stacked bars.

Colours, dashes and type come from style.css through class names (``s0`` is the base, ``s1`` ... the conditions), so
one drawing serves light, dark and print. The view box keeps the proportions; widths are chosen so that text stays
readable when a chart is shrunk to a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from markupsafe import Markup

from dftune.report.wording import MINUS, visible

MOST_POINTS = 240
"""A curve of more points is averaged into so many."""

Point = tuple[float, float]
Curve = Sequence[Point]


@dataclass(frozen=True)
class Line:
    """One condition in a line chart.

    Attributes:
        label: for the accessible description.
        style: number of its colour, dash and marker.
        mean: the curve to read.
        replicates: the seeds behind it, drawn thin.
        markers: mark every point, for curves of few points.
        band: ``(x, low, high)`` of many seeds, drawn as an area instead of their lines.
    """

    label: str
    style: int
    mean: Curve
    replicates: Sequence[Curve] = ()
    markers: bool = False
    band: Sequence[tuple[float, float, float]] = ()

    @property
    def values(self) -> list[float]:
        """Every height that is drawn."""
        ends = [end for _, low, high in self.band for end in (low, high)]
        return [y for curve in (self.mean, *self.replicates) for _, y in curve] + ends


@dataclass(frozen=True)
class Frame:
    """Size and margins of a chart in view-box units."""

    width: float = 330
    height: float = 230
    left: float = 40
    right: float = 14
    top: float = 28
    bottom: float = 40

    def x(self, share: float) -> float:
        """Horizontal position of a share of the plotting area."""
        return self.left + share * (self.width - self.left - self.right)

    def y(self, share: float) -> float:
        """Vertical position; 0 is the bottom."""
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)


@dataclass(frozen=True)
class Scale:
    """Values to shares of an axis, linear or logarithmic, with its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies between the ends; beyond them is clipped."""
        low, high, value = (math.log10(max(v, 1e-300)) if self.log else v for v in (self.low, self.high, value))
        return min(max((value - low) / (high - low), -0.02), 1.02) if high > low else 0.5


def linear_scale(values: Sequence[float], *, zero: bool = False, num_ticks: int = 5) -> Scale:
    """Ends and ticks at round numbers around ``values``; ``zero`` makes zero the lower end."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    low = min(low, 0.0) if zero else low
    if high - low < 1e-12:
        pad = abs(high) / 10 or 1.0
        low, high = (low if zero and low == 0 else low - pad), high + pad
    step = _round_step((high - low) / num_ticks)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(index * step, 12) for index in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def _tight_scale(values: Sequence[float]) -> Scale:
    """Ends at the data, ticks at the round numbers between them: steps need no room to either side."""
    ticks = linear_scale(values, num_ticks=4).ticks
    low, high = min(values), max(values)
    return Scale(low, high, tuple(tick for tick in ticks if low <= tick <= high))


def log_scale(values: Sequence[float], low: float | None = None) -> Scale:
    """Whole decades around the positive ``values``."""
    positive = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    first = math.floor(math.log10(low or min(positive)) + 1e-9)
    last = max(math.ceil(math.log10(max(positive)) - 1e-9), first + 1)
    every = math.ceil((last - first) / 6)
    return Scale(10.0**first, 10.0**last, tuple(10.0**power for power in range(first, last + 1, every)), log=True)


def _round_step(step: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(step))
    return next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= step * 0.999)


def tick_label(value: float, largest: float | None = None) -> str:
    """A tick as people write it: 0.5, 20k, 1e-5.

    Args:
        value: of the tick.
        largest: of its axis, so that all its labels are written in one way.
    """
    size = abs(value) if largest is None else abs(largest)
    if value == 0:
        shown = "0"
    elif size >= 1e9 or size <= 2e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        shown = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    elif size >= 1e4:
        shown = f"{value / 1e6:g}M" if size >= 1e6 else f"{value / 1e3:g}k"
    else:
        shown = f"{value:.4g}"
    return shown.replace("-", MINUS)


def thin_out(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """At most ``most`` points, each the mean of its neighbours in the original curve."""
    if len(curve) <= most:
        return curve
    edges = [round(index * len(curve) / most) for index in range(most + 1)]
    parts = [curve[start:stop] for start, stop in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    x_scale: Scale | None = None,
    y_scale: Scale | None = None,
    zero: bool = False,
    frame: Frame | None = None,
) -> Markup:
    """Curves over a common x axis; thin lines or a band for seeds, a thick line for their mean."""
    frame = frame or Frame()
    curves = [curve for line in lines for curve in (line.mean, *line.replicates)]
    x_scale = x_scale or _tight_scale([x for curve in curves for x, _ in curve])
    y_scale = y_scale or linear_scale([y for line in lines for y in line.values], zero=zero)
    parts = _axes(frame, x_scale, y_scale, x_label, y_label)
    parts += [_band(frame, x_scale, y_scale, line) for line in lines if line.band]
    for line in lines:
        parts += [_path(frame, x_scale, y_scale, curve, f"seed s{line.style}") for curve in line.replicates]
    for line in lines:
        parts.append(_path(frame, x_scale, y_scale, line.mean, f"line s{line.style}"))
        if line.markers:
            parts += [marker(frame.x(x_scale.share(x)), frame.y(y_scale.share(y)), line.style) for x, y in line.mean]
    return _svg(frame, title, description, parts)


def histogram(
    before: Sequence[float],
    after: Sequence[float],
    style: int,
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    y_scale: Scale,
    frame: Frame | None = None,
) -> Markup:
    """Two histograms over the same equal bins of [0, 1]: after filled, before as a grey outline."""
    frame = frame or Frame()
    x_scale = Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
    parts = _axes(frame, x_scale, y_scale, x_label, y_label)
    floor = frame.y(0)
    if after:
        steps = _steps(frame, y_scale, after)
        area = f"M{_xy(frame.x(0), floor)}L{'L'.join(_xy(*point) for point in steps)}L{_xy(frame.x(1), floor)}Z"
        parts.append(f'<path class="area s{style}" d="{area}"/>')
        parts.append(f'<path class="outline s{style}" d="M{"L".join(_xy(*point) for point in steps)}"/>')
    if before:
        outline = "L".join(_xy(*point) for point in _steps(frame, y_scale, before))
        parts.append(f'<path class="outline before" d="M{outline}"/>')
    return _svg(frame, title, description, parts)


def _steps(frame: Frame, y_scale: Scale, counts: Sequence[float]) -> list[Point]:
    width = 1 / len(counts)
    points = []
    for index, count in enumerate(counts):
        height = frame.y(max(y_scale.share(count), 0.0) if count > 0 else 0.0)
        points += [(frame.x(index * width), height), (frame.x((index + 1) * width), height)]
    return points


@dataclass(frozen=True)
class Span:
    """A value with its interval, for `interval_chart`."""

    label: str
    style: int
    value: float
    low: float
    high: float
    shown: str


def interval_chart(
    spans: Sequence[Span],
    *,
    title: str,
    description: str,
    x_label: str,
    least: float = 0.0,
    most: float = math.inf,
) -> Markup:
    """One row a condition: a marker at the value, a line over its interval; no axis beyond ``least`` and ``most``."""
    row_height, label_height = 38, 17
    frame = Frame(height=len(spans) * row_height + 46, left=10, top=4)
    ends = [end for span in spans for end in (span.low, span.high)]
    scale = linear_scale(ends, num_ticks=5)
    scale = Scale(max(scale.low, least), min(scale.high, most), tuple(t for t in scale.ticks if least <= t <= most))
    parts = _axes(frame, scale, None, x_label, "")
    for index, span in enumerate(spans):
        y = frame.top + index * row_height + label_height + 10
        low, value, high = (frame.x(scale.share(v)) for v in (span.low, span.value, span.high))
        parts.append(_text(frame.left, y - 12, span.label, "name"))
        parts.append(_text(frame.width - frame.right, y - 12, span.shown, "value", anchor="end"))
        parts.append(f'<path class="whisker s{span.style}" d="M{_xy(low, y)}H{high:.1f}"/>')
        parts.append(marker(value, y, span.style, radius=5))
    return _svg(frame, title, description, parts)


@dataclass(frozen=True)
class Part:
    """A part of a stacked bar: its name gives it the class ``o-NAME``, ``detail`` is shown on request."""

    name: str
    amount: int
    detail: str = ""


def stacked_bars(rows: Sequence[tuple[str, Sequence[Part]]], *, title: str, description: str) -> Markup:
    """One bar a row, divided into named parts, each with its share where there is room."""
    row_height = 46
    frame = Frame(height=len(rows) * row_height + 6, left=1, right=1, top=2, bottom=2)
    parts: list[str] = []
    for index, (label, counts) in enumerate(rows):
        y = frame.top + index * row_height
        parts.append(_text(frame.left, y + 13, label, "name"))
        total, start = sum(part.amount for part in counts), 0.0
        for part in counts:
            if not part.amount:
                continue
            share = part.amount / total
            left, right = frame.x(start), frame.x(start + share)
            kind = part.name.replace(" ", "-")
            shown = f"{part.name}: {part.amount:,} of {total:,}{f' ({part.detail})' if part.detail else ''}"
            parts.append(
                f'<rect class="bar o-{kind}" x="{left:.1f}" y="{y + 19:.1f}" width="{right - left:.1f}" height="20">'
                f"<title>{escape(visible(shown))}</title></rect>"
            )
            if right - left > 34:
                parts.append(
                    _text((left + right) / 2, y + 33.5, f"{100 * share:.0f} %", f"in o-{kind}", anchor="middle")
                )
            start += share
    return _svg(frame, title, description, parts)


def marker(x: float, y: float, style: int, radius: float = 3.6) -> str:
    """The marker of a style: circle, square, triangle or diamond in turn, hollow for the base and from style 9 on."""
    shape = (style - 1) % 4 if style else 0
    r = radius
    diamond = 1.35 * r
    drawn = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"',
        f'<rect x="{x - 0.9 * r:.1f}" y="{y - 0.9 * r:.1f}" width="{1.8 * r:.1f}" height="{1.8 * r:.1f}"',
        f'<path d="M{x:.1f} {y - 1.2 * r:.1f}l{1.15 * r:.1f} {2 * r:.1f}h{-2.3 * r:.1f}z"',
        f'<path d="M{x:.1f} {y - diamond:.1f}l{diamond:.1f} {diamond:.1f}l{-diamond:.1f} {diamond:.1f}'
        f'l{-diamond:.1f} {-diamond:.1f}z"',
    )
    return f'{drawn[shape]} class="mark s{style}"/>'


def swatch(style: int, *, markers: bool = False, thin: bool = False) -> Markup:
    """A piece of a line for a legend."""
    drawn = marker(15, 6, style) if markers else ""
    kind = "seed" if thin else "line"
    line = f'<path class="{kind} s{style}" d="M1 6H29"/>'
    return Markup(f'<svg class="swatch" viewBox="0 0 30 12" aria-hidden="true">{line}{drawn}</svg>')


def _axes(frame: Frame, x_scale: Scale, y_scale: Scale | None, x_label: str, y_label: str) -> list[str]:
    parts = []
    left, right, bottom = frame.x(0), frame.x(1), frame.y(0)
    for tick in y_scale.ticks if y_scale else ():
        assert y_scale is not None
        y = frame.y(y_scale.share(tick))
        parts.append(f'<path class="grid" d="M{_xy(left, y)}H{right:.1f}"/>')
        label = tick_label(tick, None if y_scale.log else y_scale.high)
        parts.append(_text(left - 7, y + 4, label, "tick", anchor="end"))
    for tick in x_scale.ticks:
        x = frame.x(x_scale.share(tick))
        mark = f'<path class="grid" d="M{_xy(x, frame.top)}V{bottom:.1f}"/>' if y_scale is None else ""
        parts.append(mark or f'<path class="axis" d="M{_xy(x, bottom)}v4"/>')
        parts.append(
            _text(x, bottom + 17, tick_label(tick, None if x_scale.log else x_scale.high), "tick", anchor="middle")
        )
    parts.append(f'<path class="axis" d="M{_xy(left, bottom)}H{right:.1f}"/>')
    parts.append(_text((left + right) / 2, frame.height - 7, x_label, "unit", anchor="middle"))
    if y_label:
        parts.append(_text(0, frame.top - 14, y_label, "unit"))
    return parts


def _band(frame: Frame, x_scale: Scale, y_scale: Scale, line: Line) -> str:
    low = thin_out([(x, y) for x, y, _ in line.band if math.isfinite(y)])
    high = thin_out([(x, y) for x, _, y in line.band if math.isfinite(y)])
    edge = [_xy(frame.x(x_scale.share(x)), frame.y(y_scale.share(y))) for x, y in (*low, *reversed(high))]
    return f'<path class="band s{line.style}" d="M{"L".join(edge)}Z"/>' if edge else ""


def _path(frame: Frame, x_scale: Scale, y_scale: Scale, curve: Curve, kind: str) -> str:
    """A polyline that breaks where a value is missing or not finite."""
    drawn, pen = [], "M"
    for x, y in thin_out(curve):
        if math.isfinite(y):
            drawn.append(f"{pen}{_xy(frame.x(x_scale.share(x)), frame.y(y_scale.share(y)))}")
            pen = "L"
        else:
            pen = "M"
    return f'<path class="{kind}" d="{"".join(drawn)}"/>'


def _xy(x: float, y: float) -> str:
    return f"{x:.1f} {y:.1f}"


def _text(x: float, y: float, text: str, kind: str, *, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(visible(text))}</text>'


def _svg(frame: Frame, title: str, description: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {frame.width:g} {frame.height:g}" role="img">'
        f"<title>{escape(visible(title))}</title><desc>{escape(visible(description))}</desc>{''.join(parts)}</svg>"
    )
