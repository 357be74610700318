"""Charts as inline SVG, with colours from the style sheet and a title on every mark.

Not by matplotlib: its SVG is four times as large, has the colours of one colour scheme only, and has no titles.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from html import escape

from markupsafe import Markup

LONGEST_LABEL = 22  # characters that fit beside a bar
SERIES = tuple(f"series-{number}" for number in range(1, 7))


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """Returns a colour for each name, in order; after six they repeat."""
    return dict(zip(names, itertools.cycle(SERIES), strict=False))


@dataclasses.dataclass(frozen=True)
class Bar:
    """A value with a label; `color` is a variable of the style sheet."""

    label: str
    value: float
    color: str


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a stacked bar; compile time is hatched."""

    label: str
    value: float
    color: str
    hatched: bool = False


def bars(rows: Sequence[Bar], *, reference: tuple[str, float] | None = None, label_width: int = 150) -> Markup:
    """Returns horizontal bars from 0 with their values, and a dashed line for a reference value."""
    width, step, thick, top = 480, 32, 18, 20 if reference else 4
    room = width - label_width - 48
    largest = max([row.value for row in rows] + ([reference[1]] if reference else []) + [1e-9])
    height = top + step * len(rows) + 2
    marks = []
    for place, row in enumerate(rows):
        y = top + place * step + (step - thick) / 2
        length = max(room * row.value / largest, 1.0)
        middle = y + thick / 2 + 4
        marks += [
            _text(label_width - 10, middle, row.label, "end"),
            f'<path d="{_right_rounded(label_width, y, length, thick)}" fill="var(--{row.color})">'
            f"<title>{escape(row.label)}: {row.value:.4f}</title></path>",
            _text(label_width + length + 7, middle, f"{row.value:.3f}", "start", "strong"),
        ]
    if reference:
        x = label_width + room * reference[1] / largest
        anchor = "end" if reference[1] / largest > 0.7 else "middle"
        marks += [
            f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height}"/>',
            _text(
                x + (4 if anchor == "end" else 0),
                top - 7,
                f"{reference[0]} {reference[1]:.3f}",
                anchor,
                "strong",
            ),
        ]
    return _svg(width, height, marks)


def grouped_bars(groups: Sequence[tuple[str, Sequence[Bar]]], *, reference: tuple[str, float] | None = None) -> Markup:
    """Returns groups of vertical bars on one scale from 0."""
    width, height, left, bottom, top = 960, 250, 40, 26, 18
    values = [bar.value for _, group in groups for bar in group] + ([reference[1]] if reference else [])
    ticks = nice_ticks(0, max(values + [1e-9]), 4)
    scale = (height - top - bottom) / ticks[-1]
    base = height - bottom
    marks = _grid(ticks, left, width, lambda tick: base - tick * scale, axis=True)
    room = (width - left) / max(len(groups), 1)
    thick = min(34.0, room * 0.8 / max(max((len(group) for _, group in groups), default=1), 1))
    for place, (label, group) in enumerate(groups):
        middle = left + room * (place + 0.5)
        marks.append(_text(middle, height - 7, label, "middle"))
        for number, bar in enumerate(group):
            x = middle + (number - len(group) / 2) * thick + 1
            tall = max(bar.value * scale, 1.0)
            marks += [
                f'<path d="{_top_rounded(x, base, thick - 2, tall)}" fill="var(--{bar.color})">'
                f"<title>{escape(label)}, {escape(bar.label)}: {bar.value:.4f}</title></path>",
                _text(x + thick / 2 - 1, base - tall - 5, f"{bar.value:.3f}".lstrip("0"), "middle"),
            ]
    if reference:
        y = base - reference[1] * scale
        marks += [
            f'<line class="reference" x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>',
            _text(left + 4, y - 6, f"{reference[0]} {reference[1]:.3f}", "start", "strong"),
        ]
    return _svg(width, height, marks)


def line(points: Sequence[tuple[float, float]], color: str) -> Markup:
    """Returns a curve over steps: faint points, a strong running mean, and the last mean as a number."""
    width, height, left, bottom, top, right = 460, 190, 46, 24, 10, 48
    smoothed = smooth([value for _, value in points])
    shown = _inner_range([value for _, value in points], smoothed)
    ticks = nice_ticks(*shown, 4)
    first, last = min(0.0, points[0][0]), points[-1][0]
    across = (width - left - right) / max(last - first, 1e-9)
    up = (height - top - bottom) / max(ticks[-1] - ticks[0], 1e-9)

    def at(step: float, value: float) -> tuple[float, float]:
        value = min(max(value, ticks[0]), ticks[-1])
        return left + (step - first) * across, height - bottom - (value - ticks[0]) * up

    marks = _grid(ticks, left, width - right, lambda tick: at(first, tick)[1])
    for tick in nice_ticks(first, last, 4):
        if first <= tick <= last:
            marks.append(_text(at(tick, 0)[0], height - 6, f"{tick:,.0f}", "middle"))
    chosen = range(0, len(points), max(1, len(points) // 400))
    chosen = [*chosen, *([len(points) - 1] if chosen[-1] != len(points) - 1 else [])]
    steps = [points[place][0] for place in chosen]
    raw = [at(step, points[place][1]) for step, place in zip(steps, chosen, strict=True)]
    mean = [at(step, smoothed[place]) for step, place in zip(steps, chosen, strict=True)]
    marks += [
        f'<polyline class="raw" stroke="var(--{color})" points="{_points(raw)}"/>',
        f'<polyline class="smooth" stroke="var(--{color})" points="{_points(mean)}"/>',
        f'<circle cx="{mean[-1][0]:.1f}" cy="{mean[-1][1]:.1f}" r="3.5" fill="var(--{color})"/>',
        _text(mean[-1][0] + 8, mean[-1][1] + 4, f"{smoothed[-1]:.3g}", "start", "strong"),
    ]
    for place in chosen[:: max(1, len(chosen) // 60)]:
        x = at(points[place][0], 0)[0]
        marks.append(
            f'<rect class="hit" x="{x - 3:.1f}" y="{top}" width="6" height="{height - top - bottom}">'
            f"<title>step {points[place][0]:,.0f}: {points[place][1]:.4g}, "
            f"mean {smoothed[place]:.4g}</title></rect>"
        )
    return _svg(width, height, marks)


def scatter(points: Sequence[tuple[float, float, str]], color: str) -> Markup:
    """Returns points over a parameter; its axis is logarithmic if it spans more than a factor of 20."""
    width, height, left, bottom, top, right = 460, 210, 52, 24, 12, 16
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    logarithmic = min(xs) > 0 and max(xs) / min(xs) > 20

    def place(x: float) -> float:
        return math.log10(x) if logarithmic else x

    first, last = place(min(xs)), place(max(xs))
    ticks = nice_ticks(min(ys), max(ys), 4)
    margin = 0.06 * (last - first) or 1.0
    across = (width - left - right) / (last - first + 2 * margin)
    up = (height - top - bottom) / (ticks[-1] - ticks[0])

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (place(x) - first + margin) * across, height - bottom - (y - ticks[0]) * up

    marks = _grid(ticks, left, width - right, lambda tick: at(xs[0], tick)[1])
    labelled = sorted({*xs})
    for x in labelled if len(labelled) <= 6 else (labelled[0], labelled[len(labelled) // 2], labelled[-1]):
        marks.append(_text(at(x, 0)[0], height - 6, f"{x:.4g}", "middle"))
    for x, y, title in points:
        across_x, across_y = at(x, y)
        marks.append(
            f'<circle cx="{across_x:.1f}" cy="{across_y:.1f}" r="4.5" fill="var(--{color})" fill-opacity="0.75">'
            f"<title>{escape(title)}: {y:.4g}</title></circle>"
        )
    return _svg(width, height, marks)


def stacked(segments: Sequence[Segment]) -> Markup:
    """Returns one bar of parts, each as wide as its share."""
    width, height, gap = 960, 40, 2
    total = sum(segment.value for segment in segments)
    marks = [
        '<defs><pattern id="compile" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect width="2" height="6" fill="var(--card)"/></pattern></defs>'
    ]
    x = 0.0
    for segment in segments:
        room = width * segment.value / total
        shape = f'x="{x:.2f}" y="0" width="{max(room - gap, 0.75):.2f}" height="{height}" rx="3"'
        title = f"<title>{escape(segment.label)}: {segment.value:,.1f} s ({segment.value / total:.1%})</title>"
        marks.append(f'<rect {shape} fill="var(--{segment.color})">{title}</rect>')
        if segment.hatched:
            marks.append(f'<rect {shape} fill="url(#compile)">{title}</rect>')
        x += room
    return _svg(width, height, marks)


def _grid(
    ticks: Sequence[float], left: float, right: float, place: Callable[[float], float], *, axis: bool = False
) -> list[str]:
    """Returns horizontal lines at the ticks with their numbers; that of 0 is an axis if `axis`."""
    marks = []
    for tick in ticks:
        y, kind = place(tick), "axis-line" if axis and tick == 0 else "grid-line"
        marks += [
            f'<line class="{kind}" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>',
            _text(left - 8, y + 4, _number(tick, ticks[1] - ticks[0]), "end"),
        ]
    return marks


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Returns at least two evenly spaced round numbers, from at most `low` to at least `high`."""
    span = high - low if high > low else abs(high) or 1.0
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    start = math.floor(low / step + 1e-9)
    stop = max(math.ceil(high / step - 1e-9), start + 1)
    return [number * step for number in range(start, stop + 1)]


def smooth(values: Sequence[float]) -> list[float]:
    """Returns the running mean over a twentieth of the points, at least one and at most fifty."""
    window = min(max(len(values) // 20, 1), 50)
    total, means = 0.0, []
    for place, value in enumerate(values):
        total += value - (values[place - window] if place >= window else 0.0)
        means.append(total / min(place + 1, window))
    return means


def _inner_range(values: Sequence[float], smoothed: Sequence[float]) -> tuple[float, float]:
    """Returns the range to show: all of the mean, and the points without the outermost hundredth on each side."""
    ordered = sorted(values)
    cut = len(ordered) // 100
    return min([ordered[cut], *smoothed]), max([ordered[-1 - cut], *smoothed])


def _number(value: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0
    digits += 0 if abs(round(step, digits) - step) < step * 1e-6 else 1
    return f"{value:,.{digits}f}"


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def _right_rounded(x: float, y: float, length: float, thick: float) -> str:
    r = min(4.0, length)
    return (
        f"M{x:.1f},{y:.1f}h{length - r:.1f}q{r:.1f},0 {r:.1f},{r:.1f}v{thick - 2 * r:.1f}"
        f"q0,{r:.1f} -{r:.1f},{r:.1f}h-{length - r:.1f}z"
    )


def _top_rounded(x: float, base: float, thick: float, tall: float) -> str:
    r = min(4.0, tall, thick / 2)
    return (
        f"M{x:.1f},{base:.1f}v-{tall - r:.1f}q0,-{r:.1f} {r:.1f},-{r:.1f}h{thick - 2 * r:.1f}"
        f"q{r:.1f},0 {r:.1f},{r:.1f}v{tall - r:.1f}z"
    )


def _text(x: float, y: float, content: str, anchor: str, kind: str = "") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _svg(width: int, height: float, marks: Sequence[str]) -> Markup:
    return Markup(f'<svg viewBox="0 0 {width} {height:.0f}" role="img">{"".join(marks)}</svg>')
