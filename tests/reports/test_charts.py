"""Curves: thinning keeps what matters, and every chart comes out whole."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.charts import BUCKETS, LEFT, RIGHT, WIDTH, Chart, Level, Series, Span, draw, log_ticks, thin, ticks


def chart(x, y, **more):
    return Chart("k", "title", "step", "unit", [Series("a", np.asarray(x, float), np.asarray(y, float), "s1")], **more)


def test_thinning_keeps_first_last_least_and_greatest():
    y = np.random.default_rng(1).normal(size=100_000)
    y[54_321], y[77_777] = 99.0, -99.0
    x, kept = thin(np.arange(100_000.0), y)
    assert len(x) <= 2 * BUCKETS + 2
    assert {0, 54_321, 77_777, 99_999} <= set(x.astype(int))
    assert (np.diff(x) > 0).all()
    assert (y[x.astype(int)] == kept).all()


def test_thinning_leaves_a_short_curve_alone():
    x = np.arange(100.0)
    assert thin(x, x)[0] is x


def test_a_gap_stays_a_gap():
    y = np.ones(10_000)
    y[4000:6000] = np.nan
    _, kept = thin(np.arange(10_000.0), y)
    assert np.isnan(kept).any()
    svg, values = draw(chart(np.arange(10_000.0), y))
    assert re.search(r'class="line s1" d="([^"]*)"', svg)[1].count("M") == 2
    assert None in values["s"][0]["y"]


def test_nothing_to_draw_is_none_and_not_an_empty_frame():
    assert draw(chart([], [])) is None
    assert draw(chart([0, 1], [np.nan, np.inf])) is None
    assert draw(chart([0, 1], [-1, 0], log=True)) is None


@given(
    st.lists(st.floats(allow_nan=True), min_size=1, max_size=50),
    st.booleans(),
    st.sampled_from(["line", "bars"]),
    st.floats(allow_nan=True),
)
def test_whatever_the_values_the_svg_is_well_formed_and_finite(y, log, kind, level):
    drawn = draw(chart(range(len(y)), y, log=log, kind=kind, levels=[Level("<limit>", level)]))
    if drawn is None:
        return
    ElementTree.fromstring(drawn[0])
    assert not re.search(r"\b(nan|inf)\b", drawn[0])


def test_words_in_a_chart_are_escaped():
    nasty = '</svg><script>x()</script>"'
    svg, values = draw(chart([0, 1], [1, 2], levels=[Level(nasty, 1.5)], spans=[Span(nasty, 0, 1)]))
    assert "<script" not in svg
    assert [e.text for e in ElementTree.fromstring(svg) if (e.text or "").startswith("</svg>")] == [nasty]
    assert values["s"][0]["y"] == [1, 2]


def test_the_curve_fills_the_plot():
    svg, _ = draw(chart([0, 99], [0, 1]))
    path = re.search(r'class="line s1" d="M(\d+) (\d+)h0l(-?\d+) (-?\d+)"', svg)
    assert int(path[1]) == LEFT * 10
    assert int(path[1]) + int(path[3]) == (WIDTH - RIGHT) * 10


@pytest.mark.parametrize(("low", "high"), [(0, 99), (3950.2, 4120.9), (0.001, 0.0013), (-5, 5), (0, 1e6)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 12
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)


def test_log_ticks_are_powers_or_finer_where_the_range_is_narrow():
    assert log_ticks(0.005, 20) == pytest.approx([0.01, 0.1, 1, 10])
    assert len(log_ticks(2, 3)) >= 2


def test_what_can_only_be_whole_has_whole_ticks():
    assert ticks(-0.5, 0.5, 6, whole=True) == [0]
    assert ticks(0, 8, 4, whole=True) == [0, 2, 4, 6, 8]
    svg, _ = draw(chart([0], [3], kind="bars", zero=True))
    assert not [e.text for e in ElementTree.fromstring(svg) if e.text and "." in e.text]
