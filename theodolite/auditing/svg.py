"""Small charts as inline SVG: no script, colors from the page, readable by screen readers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

from theodolite.theorems.base import Chart
from theodolite.value import format_number

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 36
_ROW, _MOST_ROWS = 15, 24
_BINS = 24
_LARGEST = 1e300
_CHARACTER = 5.6  # mean width of one at the font size of the page's charts


class _Axis:
    """Maps numbers to pixels, linearly or by their logarithm."""

    def __init__(
        self, numbers: Sequence[float], start: float, end: float, *, from_zero: bool = False
    ) -> None:
        low, high = min(numbers), max(numbers)
        self.log = low > 0 and high / low > 1e3
        if from_zero and not self.log:
            low, high = min(low, 0.0), max(high, 0.0)
        low, high = _apart(low, high)
        self.start, self.end = start, end
        self.ticks = _log_ticks(low, high) if self.log else _ticks(low, high)
        self.low, self.high = min(low, self.ticks[0]), max(high, self.ticks[-1])

    def __call__(self, number: float) -> float:
        low, high, at = self.low, self.high, number
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(number, self.low))
        return self.start + (self.end - self.start) * (at - low) / (high - low)


def _apart(low: float, high: float) -> tuple[float, float]:
    """Widen a range that is too narrow for ticks between its ends."""
    size = max(abs(low), abs(high))
    if high - low > 1e-9 * size:
        return low, high
    return low - (size / 2 or 0.5), high + (size / 2 or 0.5)


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    raw = (high - low) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = size * next(m for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * size >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    stride = max(1, math.ceil((last - first) / 4))
    return [10.0**k for k in range(first, last + stride, stride)]


def draw(chart: Chart, key: str) -> str:
    """Return a chart as an SVG element.

    Parameters
    ----------
    chart : Chart
        Numbers that are not finite are left out, and the description says so.
    key : str
        Unique in the page, for the ids of its texts.

    Returns
    -------
    str
        ``<svg role="img">`` with a title and a description; "" when nothing can be drawn.
    """
    series = {name: [_number(number) for number in numbers] for name, numbers in chart.series.items()}
    if chart.kind != "histogram":  # what belongs together is drawn together
        n = min(
            [len(numbers) for numbers in series.values()] + ([len(chart.labels)] if chart.labels else []),
            default=0,
        )
        chart = dataclasses.replace(chart, labels=chart.labels[:n])
        series = {name: numbers[:n] for name, numbers in series.items()}
    finite = [number for numbers in series.values() for number in numbers if math.isfinite(number)]
    if not finite:
        return ""
    if chart.kind == "histogram":
        body, height = _histogram(chart, series)
    elif chart.kind == "line":
        body, height = _line(chart, series)
    elif chart.labels and len(chart.labels) <= _MOST_ROWS:
        body, height = _rows(chart, series)
    else:
        body, height = _columns(chart, series)
    missing = sum(map(len, series.values())) - len(finite)
    description = _description(chart, series) + (
        f" {missing} values are not finite and not drawn." if missing else ""
    )
    title = chart.title or chart.y_label or chart.x_label
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(description)}</desc>{body}</svg>'
    )


def _number(number: float) -> float:
    """Return the number, or infinity or 0 where the arithmetic of an axis would over- or underflow."""
    if abs(number) > _LARGEST:
        return math.copysign(math.inf, number)
    return 0.0 if abs(number) < 1 / _LARGEST else float(number)


def _description(chart: Chart, series: dict[str, list[float]]) -> str:
    parts = []
    for name, numbers in series.items():
        finite = [n for n in numbers if math.isfinite(n)]
        if finite:
            low, high = format_number(min(finite), "down"), format_number(max(finite), "up")
            parts.append(f"{name}: {len(numbers)} values from {low} to {high}.")
    return " ".join([f"{chart.kind.capitalize()}.", *parts])


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css}>{escape(text)}</text>'


def _cut(text: str, width: float) -> str:
    """Return a text that fits into a width."""
    most = max(4, int(width / _CHARACTER))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _ends(labels: Sequence[str], y: float) -> str:
    """Return the first and the last label below an axis."""
    half = (_WIDTH - _RIGHT - _LEFT) / 2 - 8
    first = _text(_LEFT, y, _cut(labels[0], half), "start")
    return first + (_text(_WIDTH - _RIGHT, y, _cut(labels[-1], half), "end") if len(labels) > 1 else "")


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _tick(number: float) -> str:
    return (
        f"{number:.0e}".replace("e+0", "e").replace("e-0", "e-")
        if 0 < abs(number) < 1e-4 or abs(number) >= 1e5
        else f"{number:g}"
    )


def _grid(chart: Chart, x: _Axis | None, y: _Axis | None, top: float, bottom: float, left: float) -> str:
    parts = []
    if y:
        for tick in y.ticks:
            parts.append(_rule(left, y(tick), _WIDTH - _RIGHT, y(tick), "grid"))
            parts.append(_text(left - 5, y(tick) + 3.5, _tick(tick), "end"))
    last = -math.inf
    if x:
        for tick in x.ticks:
            parts.append(_rule(x(tick), top, x(tick), bottom, "grid"))
            half = len(_tick(tick)) * _CHARACTER / 2
            at = min(max(x(tick), half), _WIDTH - half)
            if at - half > last + 4:
                parts.append(_text(at, bottom + 13, _tick(tick)))
                last = at + half
    log = " (log scale)" if x and x.log else ""
    if chart.x_label or log:
        x_label = _cut(chart.x_label, _WIDTH + _RIGHT - left - len(log) * _CHARACTER) + log
        parts.append(_text((left + _WIDTH - _RIGHT) / 2, bottom + 28, x_label.strip(), kind="label"))
    return "".join(parts)


def _y_label(chart: Chart, y: _Axis) -> tuple[str, float]:
    """Return the label above the axis and the room that it takes."""
    log = " (log scale)" if y.log else ""
    label = _cut(chart.y_label, _WIDTH - len(log) * _CHARACTER) + log
    return (_text(2, 10, label, "start", "label"), 10.0) if label.strip() else ("", 0.0)


def _legend(names: Sequence[str], top: float) -> tuple[str, float]:
    if len(names) < 2:
        return "", 0.0
    parts, x = [], 2.0
    for k, name in enumerate(_cut(name, _WIDTH / len(names) - 30) for name in names):
        parts.append(f'<rect x="{x:.1f}" y="{top + 2:.1f}" width="9" height="9" class="s{k + 1} mark"/>')
        parts.append(_text(x + 13, top + 10, name, "start"))
        x += 26 + len(name) * _CHARACTER
    return "".join(parts), 16.0


def _histogram(chart: Chart, series: dict[str, list[float]]) -> tuple[str, float]:
    finite = {name: [n for n in numbers if math.isfinite(n)] for name, numbers in series.items()}
    together = [n for numbers in finite.values() for n in numbers]
    low, high = _apart(min(together), max(together))
    width = (high - low) / _BINS
    counts = {name: [0] * _BINS for name in finite}
    for name, numbers in finite.items():
        for number in numbers:
            counts[name][min(_BINS - 1, int((number - low) / width))] += 1
    legend, room = _legend(list(series), 0)
    top, bottom = _TOP + room, _HEIGHT + room - _BOTTOM
    y = _Axis([0, max(max(c) for c in counts.values())], bottom, top, from_zero=True)
    label, more = _y_label(chart, y) if chart.y_label and not legend else ("", 0.0)
    y = _Axis([0, max(max(c) for c in counts.values())], bottom, top + more, from_zero=True)
    x = _Linear(low, low + _BINS * width, _LEFT, _WIDTH - _RIGHT)
    parts = [legend, label, _grid(chart, x, y, top + more, bottom, _LEFT)]
    share = (x(low + width) - x(low)) / len(counts)
    for k, numbers_in in enumerate(counts.values()):
        for i, count in enumerate(numbers_in):
            if count:
                left = x(low + i * width) + k * share
                parts.append(
                    _bar(
                        left + 0.5,
                        y(count),
                        share - 1,
                        bottom - y(count),
                        k,
                        f"{count} from {low + i * width:.4g}",
                    )
                )
    return "".join(parts), _HEIGHT + room


class _Linear(_Axis):
    """An axis that keeps the given ends."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, False
        self.ticks = [t for t in _ticks(low, high) if low <= t <= high]


def _bar(x: float, y: float, width: float, height: float, k: int, tip: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.6):.1f}" height="{max(height, 0.6):.1f}" '
        f'class="s{k + 1}"><title>{escape(tip)}</title></rect>'
    )


def _rows(chart: Chart, series: dict[str, list[float]]) -> tuple[str, float]:
    """One labelled row an entry, for names of layers."""
    names, columns = list(series), list(series.values())
    longest = max(map(len, chart.labels))
    shown = [label if len(label) <= 20 else f"…{label[-19:]}" for label in chart.labels]
    left = min(longest, 20) * _CHARACTER + 10
    legend, room = _legend(names, 0)
    top = 4 + room
    each = _ROW * (len(series) if chart.kind == "bars" else 1) ** 0.5
    bottom = top + each * len(chart.labels)
    finite = [n for numbers in columns for n in numbers if math.isfinite(n)]
    x = _Axis(finite, left, _WIDTH - _RIGHT - 4, from_zero=chart.kind == "bars")
    # the numbers run along x here, so the axis text is that of the values
    flipped = Chart(chart.kind, chart.series, chart.labels, chart.y_label or chart.x_label, "", chart.title)
    parts = [legend, _grid(flipped, x, None, top, bottom, left)]
    origin = x(0.0) if x.low <= 0 <= x.high and not x.log else x(x.low)
    for i, label in enumerate(shown):
        middle = top + each * (i + 0.5)
        parts.append(_text(left - 6, middle + 3.5, label, "end"))
        if chart.kind == "intervals" and len(columns) == 2:
            parts.append(_interval(x, columns[0][i], columns[1][i], middle, chart.labels[i], horizontal=True))
            continue
        thick = each * 0.68 / len(columns)
        for k, numbers in enumerate(columns):
            if math.isfinite(numbers[i]):
                a, b = sorted((origin, x(numbers[i])))
                y = middle - each * 0.34 + k * thick
                parts.append(_bar(a, y, b - a, thick, k, f"{chart.labels[i]}: {numbers[i]:.4g}"))
    return "".join(parts), bottom + (34 if flipped.x_label or x.log else 20)


def _interval(
    axis: _Axis, low: float, high: float, at: float, tip: str, *, horizontal: bool, radius: float = 2.4
) -> str:
    ends = [axis(n) if math.isfinite(n) else (axis.start if n < 0 else axis.end) for n in (low, high)]
    points = [(e, at) if horizontal else (at, e) for e in ends]
    line = _rule(*points[0], *points[1], "range")
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" class="s{k + 1}"/>'
        for k, ((x, y), number) in enumerate(zip(points, (low, high), strict=True))
        if math.isfinite(number)
    )
    return f"<g><title>{escape(f'{tip}: {low:.4g} to {high:.4g}'.lstrip(': '))}</title>{line}{dots}</g>"


def _columns(chart: Chart, series: dict[str, list[float]]) -> tuple[str, float]:
    """Many entries side by side, with few of their labels."""
    columns = list(series.values())
    n = max(map(len, columns))
    legend, room = _legend(list(series), 0)
    finite = [v for numbers in columns for v in numbers if math.isfinite(v)]
    bottom, zero = _HEIGHT + room - _BOTTOM, chart.kind == "bars"
    label, more = _y_label(chart, _Axis(finite, 0, 1, from_zero=zero))
    label = f'<g transform="translate(0,{room:.0f})">{label}</g>' if label else ""
    y = _Axis(finite, bottom, _TOP + room + more, from_zero=zero)
    parts = [legend, label, _grid(chart, None, y, 0, bottom, _LEFT)]
    step = (_WIDTH - _RIGHT - _LEFT) / n
    origin = y(0.0) if y.low <= 0 <= y.high and not y.log else bottom
    for i in range(n):
        left, tip = _LEFT + step * i, chart.labels[i] if i < len(chart.labels) else f"{i + 1}"
        if chart.kind == "intervals" and len(columns) == 2:
            ends = columns[0][i], columns[1][i]
            parts.append(
                _interval(y, *ends, left + step / 2, tip, horizontal=False, radius=min(2.4, 0.5 + step / 3))
            )
            continue
        share = step * 0.8 / len(columns)
        for k, numbers in enumerate(columns):
            if i < len(numbers) and math.isfinite(numbers[i]):
                a, b = sorted((origin, y(numbers[i])))
                parts.append(
                    _bar(left + step * 0.1 + k * share, a, share, b - a, k, f"{tip}: {numbers[i]:.4g}")
                )
    if chart.labels:
        parts.append(_ends(chart.labels, bottom + 13))
    return "".join(parts), _HEIGHT + room


def _line(chart: Chart, series: dict[str, list[float]]) -> tuple[str, float]:
    n = max(map(len, series.values()))
    places = _numbers(chart.labels) if len(chart.labels) == n else None
    at = places or [float(i) for i in range(n)]
    legend, room = _legend(list(series), 0)
    finite = [v for numbers in series.values() for v in numbers if math.isfinite(v)]
    bottom = _HEIGHT + room - _BOTTOM
    label, more = _y_label(chart, _Axis(finite, 0, 1))
    label = f'<g transform="translate(0,{room:.0f})">{label}</g>' if label else ""
    y = _Axis(finite, bottom, _TOP + room + more)
    x = _Linear(*_apart(min(at), max(at)), _LEFT, _WIDTH - _RIGHT)
    parts = [legend, label, _grid(chart, x if places else None, y, _TOP + room + more, bottom, _LEFT)]
    for k, numbers in enumerate(series.values()):
        points = [f"{x(a):.1f},{y(v):.1f}" for a, v in zip(at, numbers, strict=False) if math.isfinite(v)]
        parts.append(f'<polyline points="{" ".join(points)}" class="l{k + 1}"/>')
    if chart.labels and not places:
        parts.append(_ends(chart.labels, bottom + 13))
    return "".join(parts), _HEIGHT + room


def _numbers(labels: Sequence[str]) -> list[float] | None:
    try:
        found = [float(label) for label in labels]
    except ValueError:
        return None
    return found if found and all(map(math.isfinite, found)) else None
