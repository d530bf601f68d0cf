"""Charts: where bars, whiskers, ticks and points stand."""

import re

import numpy as np
import pytest
from report_examples import read

from polyvec.evaluate.report import charts


def elements(chart, name, **wanted):
    return [one.attributes for one in read(str(chart)).all(name, **wanted)]


def test_a_bar_with_its_whisker_and_the_published_score():
    chart = charts.bar(
        0.5, "half", scale=charts.score_scale([0.5]), interval=(0.4, 0.65), published=0.7
    )
    assert read(str(chart)).one("svg").attributes["aria-label"] == "half"
    (fill,) = elements(chart, "rect", kind="fill")
    assert (fill["x"], fill["width"]) == ("0%", "50%")
    whisker = elements(chart, "line", kind="whisker")
    assert [(one["x1"], one["x2"]) for one in whisker] == [
        ("40%", "65%"),
        ("40%", "40%"),
        ("65%", "65%"),
    ]
    assert elements(chart, "line", kind="published")[0]["x1"] == "70%"


def test_negative_scores_go_left_from_zero():
    scale = charts.score_scale([0.3, -0.4])
    (fill,) = elements(charts.bar(-0.4, "", scale=scale), "rect", kind="fill")
    assert (fill["x"], fill["width"]) == ("30%", "20%")
    (fill,) = elements(charts.bar(0.3, "", scale=scale), "rect", kind="fill")
    assert (fill["x"], fill["width"]) == ("50%", "15%")
    assert charts.score_scale([0.3]).low == 0


def test_what_is_no_number_has_no_bar():
    chart = charts.bar(float("nan"), "", scale=charts.score_scale([0.1]))
    assert not elements(chart, "rect", kind="fill")
    nan = float("nan")
    chart = charts.difference(nan, nan, nan, charts.Scale(-1, 1), "")
    assert "nan" not in chart


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 5.0, [0, 1, 2, 3, 4, 5]),
        (-0.165, 0.99, [-0.2, 0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.071, 0.9, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.5, 0.5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (812.0, 1290.0, [800, 900, 1000, 1100, 1200, 1300]),
    ],
)
def test_axes_have_round_numbers(low, high, ticks):
    assert charts.axis(low, high) == pytest.approx(ticks)


def test_axes_hold_their_ends_wherever_they_are():
    draw = np.random.default_rng(0)
    for _ in range(500):
        low, high = np.sort(draw.normal(0, 10.0 ** draw.integers(-4, 5), 2))
        ticks = charts.axis(low, high)
        assert ticks[0] <= low + 1e-7 and high - 1e-7 <= ticks[-1] and 2 <= len(ticks) <= 7


def test_a_histogram_has_a_curve_a_group_of_equal_area():
    """Shares, not numbers: 100 and 10,000 values of one distribution look alike."""
    values = np.linspace(0, 1, 40, endpoint=False) + 0.0125
    chart = charts.histogram([("a", values), ("<b>", np.repeat(values, 100))], "two <groups>")
    first, second = (one["d"] for one in elements(chart, "path", kind="edge"))
    assert first == second and len(re.findall("V", first)) == 41
    assert read(str(chart)).one("svg").attributes["aria-label"] == "two <groups>"
    assert len(elements(chart, "line", kind="mean")) == 2


def test_points_stand_where_their_values_are_and_are_few():
    x, y = np.array([0.0, 1, 2, np.nan]), np.array([0.0, 0.5, 1, 1])
    chart = charts.scatter(x, y, [2], "")
    (points,) = elements(chart, "path", kind="points")
    assert points["d"] == "M0.0 100.0h0M50.0 50.0h0M100.0 0.0h0"
    assert elements(chart, "path", kind="marked")[0]["d"] == "M100.0 0.0h0"
    many = np.arange(10_000.0)
    (points,) = elements(charts.scatter(many, many, [], ""), "path", kind="points")
    assert 600 < points["d"].count("M") <= 700
