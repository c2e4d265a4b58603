"""Charts: well formed, inside their frame, every number drawn or said to be left out."""

import math
import xml.etree.ElementTree as ET

import pytest
import reports
from hypothesis import given
from hypothesis import strategies as st

from theodolite.auditing import svg
from theodolite.theorems.base import Chart

NAN, INF = math.nan, math.inf
SERIES = {
    "usual": [1.0, 2.5, -3.0, 4.0],
    "one": [3.0],
    "equal": [2.0] * 5,
    "zeros": [0.0] * 4,
    "with gaps": [1.0, NAN, INF, -INF, 2.0],
    "tiny": [1e-300, 1e-299],
    "huge": [1e300, -1e300],
    "decades": [1e-9, 1.0, 1e9],
    "subnormal": [0.0, 5e-324, 1.0],
    "least": [0.0, 5e-324],
    "near": [1.0, 1.0 + 1e-12],
    "many": [math.sin(i) for i in range(500)],
    "no numbers": [NAN, INF],
    "empty": [],
}


def elements(drawn: str) -> list[ET.Element]:
    return list(ET.fromstring(drawn).iter())


def check(drawn: str) -> None:
    """Every shape is finite and inside the frame; so is every text, by its estimated width."""
    root = ET.fromstring(drawn)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        at = element.attrib
        if element.tag == "rect":
            x, y, w, h = (float(at[k]) for k in ("x", "y", "width", "height"))
            assert w > 0
            assert h > 0
            assert x >= -1
            assert x + w <= width + 1
            assert y >= -1
            assert y + h <= height + 1
        elif element.tag in ("text", "circle", "line"):
            numbers = [
                float(value)
                for key, value in at.items()
                if key in ("x", "y", "cx", "cy", "x1", "x2", "y1", "y2", "r")
            ]
            assert all(math.isfinite(n) and -2 <= n <= max(width, height) + 1 for n in numbers)
            if element.tag == "text":
                assert float(at["y"]) <= height
                before = {"start": 0.0, "middle": 0.5, "end": 1.0}[at["text-anchor"]]
                length = 5.0 * len(element.text or "")
                assert float(at["x"]) - before * length >= -6, element.text
                assert float(at["x"]) + (1 - before) * length <= width + 6, element.text
        elif element.tag == "polyline":
            for point in at["points"].split():
                assert all(math.isfinite(float(n)) for n in point.split(","))


@pytest.mark.parametrize("kind", ["histogram", "bars", "line"])
@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("labelled", [False, True])
def test_every_kind_draws_every_series(kind, name, labelled):
    numbers = SERIES[name]
    labels = [f"layer.{i}" for i in range(len(numbers))] if labelled else []
    drawn = svg.draw(Chart(kind, {"norm": numbers}, labels, "x", "y", "title"), "key")
    finite = [n for n in numbers if math.isfinite(n)]
    if not finite:
        assert drawn == ""
        return
    check(drawn)
    missing = len(numbers) - len(finite)
    assert (f"{missing} values are not finite" in drawn) == (missing > 0)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("n", [1, 3, 60])
def test_intervals(n, labelled):
    low = [float(i) for i in range(n)]
    high = [i + 0.5 if i % 2 else INF for i in range(n)]
    labels = [f"layer {i}" for i in range(n)] if labelled else []
    drawn = svg.draw(Chart("intervals", {"below": low, "above": high}, labels, "layer", "norm"), "key")
    check(drawn)
    circles = sum(element.tag == "circle" for element in elements(drawn))
    assert circles == n + n // 2  # an end at infinity has a line and no dot


def test_two_series_have_a_legend():
    drawn = svg.draw(Chart("histogram", {"right": [1.0, 2.0], "wrong": [0.0]}, x_label="margin"), "key")
    texts = [element.text for element in elements(drawn)]
    assert "right" in texts
    assert "wrong" in texts


def test_a_histogram_counts_every_number():
    drawn = svg.draw(Chart("histogram", {"m": [0.0, 0.0, 0.5, 1.0, NAN]}), "key")
    counts = [
        int(e.text.split()[0]) for e in elements(drawn) if e.tag == "title" and " from " in (e.text or "")
    ]
    assert sum(counts) == 4


def test_bars_have_their_lengths():
    drawn = svg.draw(Chart("bars", {"norm": [1.0, 2.0, 4.0]}, ["a", "b", "c"]), "key")
    widths = [float(e.attrib["width"]) for e in elements(drawn) if e.tag == "rect"]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.02)
    assert widths[2] == pytest.approx(4 * widths[0], rel=0.02)


def test_labels_are_escaped_and_long_ones_cut():
    chart = Chart(
        "bars",
        {reports.EVIL: [1.0, 2.0]},
        [reports.EVIL, reports.LONG],
        reports.EVIL,
        reports.EVIL,
        reports.EVIL,
    )
    drawn = svg.draw(chart, "key")
    assert "<script" not in drawn
    texts = [e.text for e in elements(drawn) if e.tag == "text"]
    assert f"…{reports.LONG[-19:]}" in texts


@pytest.mark.parametrize("kind", ["histogram", "bars", "line", "intervals"])
@pytest.mark.parametrize("n", [2, 60])
def test_long_texts_stay_inside(kind, n):
    long = "long " * 40
    chart = Chart(
        kind, {f"a {long}": [1.0] * n, f"b {long}": [1e9] * n}, [f"{i} {long}" for i in range(n)], long, long
    )
    check(svg.draw(chart, "key"))


@pytest.mark.parametrize("kind", ["histogram", "bars", "line"])
@pytest.mark.parametrize("labels", [(), ("a", "b", "c"), [str(i) for i in range(30)]])
def test_axes_have_their_texts(kind, labels):
    numbers = [float(i) for i in range(len(labels) or 3)]
    drawn = svg.draw(Chart(kind, {"n": numbers}, labels, "along", "up"), "key")
    texts = " ".join(element.text or "" for element in elements(drawn) if element.tag == "text")
    # rows of bars have their numbers along the axis and their names at its side
    assert ("up" if kind == "bars" and 0 < len(labels) <= 24 else "along") in texts


def test_a_reader_hears_title_and_range():
    drawn = svg.draw(Chart("bars", {"norm": [1.0, 2.0]}, ["a", "b"], title="Norms"), "key")
    root = ET.fromstring(drawn)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-labelledby"] == "key-t key-d"
    described = {e.attrib["id"]: e.text for e in root if "id" in e.attrib}
    assert described == {"key-t": "Norms", "key-d": "Bars. norm: 2 values from 1 to 2."}


def test_series_of_unequal_length_draw_what_belongs_together():
    check(svg.draw(Chart("bars", {"a": [1.0, 2.0, 3.0], "b": [1.0]}, ["x", "y"]), "key"))
    check(svg.draw(Chart("line", {"a": [1.0, 2.0], "b": [1.0, 2.0, 3.0]}, ["0", "1", "2"]), "key"))


numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)


@given(
    kind=st.sampled_from(["histogram", "bars", "line"]),
    series=st.lists(numbers, max_size=30),
    labelled=st.booleans(),
)
def test_no_series_breaks_a_chart(kind, series, labelled):
    labels = [str(i) for i in range(len(series))] if labelled else []
    drawn = svg.draw(Chart(kind, {"n": series}, labels, "x", "y"), "key")
    if drawn:
        check(drawn)


@given(pairs=st.lists(st.tuples(numbers, numbers), max_size=30), labelled=st.booleans())
def test_no_interval_breaks_a_chart(pairs, labelled):
    labels = [str(i) for i in range(len(pairs))] if labelled else []
    chart = Chart("intervals", {"low": [a for a, _ in pairs], "high": [b for _, b in pairs]}, labels)
    drawn = svg.draw(chart, "key")
    if drawn:
        check(drawn)
