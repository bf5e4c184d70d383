"""Charts: valid SVG, whatever is drawn."""

import math
from xml.etree import ElementTree

import pytest

from mlxdist.report.charts import HEIGHT, WIDTH, Line, bar_chart, line_chart, number

LABELS = {"x_label": "step", "y_label": "loss", "from_zero": False}


def svg_of(chart):
    """Return the chart's svg element; it may have a legend behind it."""
    return ElementTree.fromstring(f"<div>{chart}</div>").find("svg")


def texts(svg):
    return [text.text for text in svg.iter("text")]


def numbers_in(path):
    """Return the coordinates of a path of M and L, in pairs."""
    words = path.replace("M", " ").replace("L", " ").replace("Z", "").split()
    return list(zip(map(float, words[::2]), map(float, words[1::2]), strict=True))


def test_line_is_drawn_inside_and_described_in_words():
    points = [(1, 3.0), (2, 2.0), (3, 2.5)]
    svg = svg_of(line_chart("Loss", [Line("training", points)], **LABELS))
    (path,) = [p for p in svg.iter("path") if p.get("class") == "s0"]
    places = numbers_in(path.get("d"))
    assert len(places) == 3
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    assert places[0][1] < places[2][1] < places[1][1]  # the largest is at the top
    assert places[0][0] < places[1][0] < places[2][0]
    label = svg.get("aria-label")
    assert label == "Loss. training: 3 at 1, 2.5 at 3; from 2 to 3."
    assert {"step", "loss"} <= set(texts(svg))


def test_value_that_is_not_finite_leaves_a_gap():
    points = [(1, 1.0), (2, 2.0), (3, math.nan), (4, 1.0), (5, math.inf), (6, 2.0)]
    svg = svg_of(line_chart("t", [Line("a", points)], **LABELS))
    (path,) = [p for p in svg.iter("path") if p.get("class") == "s0"]
    assert path.get("d").count("M") == 3
    assert len(numbers_in(path.get("d"))) == 4


def test_steps_without_a_finite_value_are_on_the_axis():
    points = [(1, 1.0), (50, 2.0), (100, math.nan)]
    svg = svg_of(line_chart("t", [Line("a", points)], **LABELS))
    assert "100" in texts(svg)


@pytest.mark.parametrize(
    "values", [[], [math.nan], [math.inf, math.nan], [1e308, -1e308]]
)
def test_chart_without_a_finite_value_is_empty(values):
    assert line_chart("t", [Line("a", list(enumerate(values)))], **LABELS) == ""


@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [0.0, 0.0],
        [5.0],
        [5.0, 5.0],
        [-3.0, -2.0],
        [-1e-9, 1e-9],
        [1e-300, 2e-300],
        [1e99, -1e99],
        [1e15, 1e15 + 1],
    ],
)
@pytest.mark.parametrize("from_zero", [True, False])
def test_any_finite_values_can_be_drawn(values, from_zero):
    lines = [Line("a", list(enumerate(values)))]
    chart = line_chart("t", lines, **{**LABELS, "from_zero": from_zero})
    svg = svg_of(chart)
    for path in svg.iter("path"):
        assert "nan" not in path.get("d")
        assert "inf" not in path.get("d")
    assert len(texts(svg)) < 20


@pytest.mark.parametrize("band", [(), [(step, -1.0, 2.0) for step in range(10_000)]])
def test_many_points_are_drawn_as_means_with_their_extremes(band):
    points = [(step, float(step % 2)) for step in range(10_000)]
    points[5000] = (5000, 9.0)
    points[7000] = (7000, math.nan)
    chart = line_chart("t", [Line("a", points, band)], **LABELS)
    svg = svg_of(chart)
    (path,) = [p for p in svg.iter("path") if p.get("class") == "s0"]
    (behind,) = [p for p in svg.iter("path") if p.get("class") == "b0"]
    assert len(numbers_in(path.get("d"))) == 295
    assert len(numbers_in(behind.get("d"))) == 2 * 295
    what = "means" if band else "means and range"
    assert (
        f"a, {what} of 34 points"
        in ElementTree.fromstring(f"<p>{chart}</p>")[1][0][0].tail
    )  # the legend says so
    if not band:  # 9 is drawn, as the highest point of the range
        top = min(y for _, y in numbers_in(behind.get("d")))
        assert top < min(y for _, y in numbers_in(path.get("d"))) - 100


def test_axis_from_zero_begins_there():
    lines = [Line("a", [(0, 10.0), (1, 11.0)])]
    assert "0" in texts(svg_of(line_chart("t", lines, **{**LABELS, "from_zero": True})))
    assert "8" not in texts(svg_of(line_chart("t", lines, **LABELS)))


def test_bars_share_the_width_by_their_parts():
    rows = {"rank 0": {"computing": 3.0, "wire": 1.0}, "rank 1": {"computing": 0.0}}
    svg = svg_of(bar_chart("t", rows))
    widths = [float(rect.get("width")) for rect in svg.iter("rect")]
    assert widths[0] == pytest.approx(3 * widths[1], abs=0.01)
    assert widths[2] == 0
    assert svg.find("rect/title").text == "rank 0, computing: 75.0%"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.25, "0.25"), (1234.5, "1,234"), (1e-5, "1e-05"), (2e9, "2e+09")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("steps", "ticks"),
    [
        ([7], ["0", "2", "4", "6"]),
        ([0], ["0", "1"]),
        ([1, 2], ["0", "1", "2"]),
        ([900, 1000], ["900", "920", "940", "960", "980", "1,000"]),
    ],
)
def test_steps_are_counted_from_0_unless_a_run_went_on(steps, ticks):
    lines = [Line("a", [(step, 3.0) for step in steps])]
    svg = svg_of(line_chart("t", lines, **LABELS))
    middle = [x.text for x in svg.iter("text") if x.get("text-anchor") == "middle"]
    assert middle[:-2] == ticks
