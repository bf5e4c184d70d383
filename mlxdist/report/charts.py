"""Charts as SVG, to be put into a page: its style gives the colors, light and dark.

Lines have the classes s0, s1, ..., bands b0, b1, ..., bars the names of their parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from .markup import Markup, element, join
from .run_files import Points
from .words import share

WIDTH, HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 20, 12, 40
_MOST_POINTS = 300  # of a line; more are drawn as means and ranges of neighbors

_MANY_BARS = 16  # above that they are thinner
_LARGEST = 1e100

_Value = TypeVar("_Value")

Band = Sequence[tuple[float, float, float]]  # x, least and largest y


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: for the legend.
        points: those that are not finite leave a gap.
        band: a range behind the line, as over ranks.
        dots: whether each point is drawn, as of rare ones.
    """

    name: str
    points: Points
    band: Band = ()
    dots: bool = False


@dataclass(frozen=True)
class _Scale:
    """Maps numbers to a direction of the drawing."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return round(self.start + part * (self.stop - self.start), 2)

    def ticks(self, most: int, least: float = 0.0) -> list[float]:
        step = max(least, _tick_step(self.high - self.low, most))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def line_chart(
    title: str, lines: Sequence[Line], *, x_label: str, y_label: str, from_zero: bool
) -> Markup:
    """Return a chart of lines; empty if none has a finite point.

    Args:
        y_label: with the unit.
        from_zero: whether the vertical axis begins at 0.
    """
    given, lines = lines, [_thinned(line) for line in lines]
    finite = [p for line in lines for p in line.points if drawable(p[1])]
    if not finite:
        return Markup("")
    bounds = [y for line in lines for _, *ys in line.band for y in ys]
    ys = [y for _, y in finite] + [y for y in bounds if drawable(y)]
    x = _steps([p[0] for line in lines for p in line.points])
    y = _scale([*ys, *([0.0] * from_zero)], HEIGHT - _BOTTOM, _TOP, pad=0.05)
    if from_zero and min(ys) >= 0:
        y = _Scale(0.0, y.high, y.start, y.stop)
    drawn = [_axes(x, y, x_label, y_label)]
    drawn += [_line(index, line, x, y) for index, line in enumerate(lines)]
    name = f"{title}. {' '.join(map(_description, lines))}"
    chart = _svg(name, HEIGHT, join(drawn))
    explains = len(lines) > 1 or lines != given or bool(lines[0].band)
    return join([chart, _legend(lines)] if explains else [chart])


def drawable(value: float) -> bool:
    """Return whether a number can be drawn: it is finite, and so are differences."""
    return abs(value) < _LARGEST


def _tick_step(span: float, most: int) -> float:
    """Return 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(m * power for m in (1, 2, 5, 10, 20) if span / (m * power) <= most)


def _scale(values: Sequence[float], start: float, stop: float, *, pad: float) -> _Scale:
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(high), abs(low), 1e-9):
        margin = max(abs(high) * 0.05, 1e-6)
        low, high = low - margin, high + margin
    margin = pad * (high - low)
    return _Scale(low - margin, high + margin, start, stop)


def _steps(values: Sequence[float]) -> _Scale:
    """Return the horizontal scale: from 0, unless a run went on from a late step."""
    low, high = min(values), max(values)
    low = low if low > high / 2 and high > low else min(0.0, low)
    return _Scale(low, max(high, low + 1), _LEFT, WIDTH - _RIGHT)


def _thinned(line: Line) -> Line:
    """Return a line of at most 300 points: means of neighbors, and their range."""
    size = -(-len(line.points) // _MOST_POINTS)
    if size <= 1:
        return line
    ranges = line.band or [(x, y, y) for x, y in line.points]
    ranges = [each for each in ranges if all(map(drawable, each))]
    band = [
        (fmean(p[0] for p in part), min(p[1] for p in part), max(p[2] for p in part))
        for part in _parts(ranges, size)
    ]
    points = [
        (fmean(p[0] for p in part), _mean([p[1] for p in part]))
        for part in _parts(line.points, size)
    ]
    what = "means" if line.band else "means and range"
    return Line(f"{line.name}, {what} of {size} points", points, band, line.dots)


def _parts(values: Sequence[_Value], size: int) -> Iterator[Sequence[_Value]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if drawable(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def number(value: float) -> str:
    """Return a number for a label, with at most four digits that count."""
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def step_number(value: float) -> str:
    """Return a step for a label, with all its digits."""
    return f"{value:,.10g}"


def _axes(x: _Scale, y: _Scale, x_label: str, y_label: str) -> Markup:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    center, middle = (_LEFT + right) / 2, (_TOP + bottom) / 2
    parts: list[Markup] = []
    for tick in y.ticks(5):
        parts.append(_path("grid", f"M{_LEFT} {y(tick)}H{right}"))
        parts.append(_text(number(tick), _LEFT - 6, y(tick) + 4, anchor="end"))
    for tick in x.ticks(5, least=1.0):
        parts.append(_path("tick", f"M{x(tick)} {bottom}v4"))
        parts.append(_text(step_number(tick), x(tick), bottom + 17, anchor="middle"))
    parts.append(_path("axis", f"M{_LEFT} {bottom}H{right}"))
    parts.append(_text(x_label, center, HEIGHT - 5, anchor="middle"))
    turn = f"rotate(-90 12 {middle})"
    parts.append(_text(y_label, 12, middle, anchor="middle", transform=turn))
    return join(parts)


def _path(cls: str, d: str) -> Markup:
    return element("path", cls=cls, d=d)


def _text(text: str, x: float, y: float, *, anchor: str, transform: str = "") -> Markup:
    turned = {"transform": transform} if transform else {}
    return element("text", text, x=x, y=y, text_anchor=anchor, **turned)


def _line(index: int, line: Line, x: _Scale, y: _Scale) -> Markup:
    parts: list[Markup] = []
    band = [p for p in line.band if all(map(drawable, p))]
    if len(band) > 1:
        there = [f"{x(p[0])} {y(p[2])}" for p in band]
        back = [f"{x(p[0])} {y(p[1])}" for p in reversed(band)]
        parts.append(_path(f"b{index}", f"M{'L'.join(there + back)}Z"))
    path, pen = [], "M"
    for px, py in line.points:
        if drawable(py):
            path.append(f"{pen}{x(px)} {y(py)}")
        pen = "L" if drawable(py) else "M"
    parts.append(_path(f"s{index}", "".join(path)))
    if line.dots or len(line.points) == 1:
        finite = [p for p in line.points if drawable(p[1])]
        parts += [_dot(index, x(px), y(py)) for px, py in finite]
    return join(parts)


def _dot(index: int, x: float, y: float) -> Markup:
    return element("circle", cls=f"d{index}", cx=x, cy=y, r=3)


def _description(line: Line) -> str:
    """Return a line in words, for who can't see it."""
    finite = [p for p in line.points if drawable(p[1])]
    if not finite:
        return f"{line.name}: no finite value."
    least, most = min(p[1] for p in finite), max(p[1] for p in finite)
    first, last = finite[0], finite[-1]
    return (
        f"{line.name}: {number(first[1])} at {step_number(first[0])}, "
        f"{number(last[1])} at {step_number(last[0])}; "
        f"from {number(least)} to {number(most)}."
    )


def _legend(lines: Sequence[Line]) -> Markup:
    items = [
        element("li", join([element("i", cls=f"key k{index}"), line.name]))
        for index, line in enumerate(lines)
        if line.points
    ]
    return element("ul", join(items), cls="legend")


def bar_chart(title: str, rows: Mapping[str, Mapping[str, float]]) -> Markup:
    """Return a bar for each row: its parts, as shares of their sum.

    Args:
        rows: the parts of each, by the row's label.
    """
    width, bar, gap = WIDTH - _LEFT - _RIGHT, 20, 8
    if len(rows) > _MANY_BARS:
        bar, gap = 11, 3
    height = len(rows) * (bar + gap) + 30
    drawn: list[Markup] = []
    for index, (label, parts) in enumerate(rows.items()):
        top, left, whole = index * (bar + gap) + 4, float(_LEFT), sum(parts.values())
        drawn.append(_text(label, _LEFT - 6, top + bar / 2 + 4, anchor="end"))
        for name, value in parts.items():
            size = round(width * value / whole, 2) if whole > 0 else 0.0
            tip = element("title", f"{label}, {name}: {share(value, whole)}")
            drawn.append(
                element("rect", tip, cls=name, x=left, y=top, width=size, height=bar)
            )
            left = round(left + size, 2)
    for percent in range(0, 101, 25):
        at = _LEFT + width * percent / 100
        anchor = "end" if percent == 100 else "middle"
        drawn.append(_text(f"{percent}%", at, height - 8, anchor=anchor))
    return _svg(title, height, join(drawn))


def _svg(title: str, height: float, content: Markup) -> Markup:
    # The label is what readers of the screen say; a title would be shown as a tip too.
    return element(
        "svg", content, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=title
    )
