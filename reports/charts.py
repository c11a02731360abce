"""Curves as inline SVG: drawn here, so that they print, need no script, and cannot carry one.

A chart is data (`Chart`, `Series`); `draw` is a pure function from it to markup plus the values that a reader
gets under the pointer. Long series are thinned to the least and the greatest value of each bucket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from markupsafe import Markup, escape

from fixtures.steps import Floats
from reports.text import clean, number

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 520, 56, 14, 12, 34  # user units; text is 12 of them high
BUCKETS = 240  # a curve keeps at most two points a bucket: about one a device pixel
EXTREME = 1e30  # no figure of a run is as large, nor as small as its inverse
TENTHS = 10  # paths are in tenths of a user unit, as integers


@dataclass(frozen=True)
class Series:
    """One curve: x ascending, y with NaN where there is no value; both of shape (n,)."""

    label: str
    x: Floats
    y: Floats
    style: str  # s1, s2, s3, reference: colour and dash, in page.css


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with: a requirement, a device's total."""

    label: str
    value: float
    style: str = "limit"


@dataclass(frozen=True)
class Span:
    """A shaded part: of the x axis (`x0`..`x1`), and of the y axis too if y0 and y1 are given."""

    label: str
    x0: float
    x1: float
    y0: float | None = None
    y1: float | None = None
    style: str = "warmup"


@dataclass(frozen=True)
class Chart:
    """What is drawn, and the words that go with it."""

    key: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    levels: Sequence[Level] = ()
    spans: Sequence[Span] = ()
    log: bool = False
    kind: Literal["line", "bars"] = "line"
    zero: bool = False  # the y axis starts at 0
    height: int = 230
    note: str = ""  # what the eye should take from it, in words
    clip: tuple[float, float] | None = None  # y range to show where outliers would flatten the rest


@dataclass(frozen=True)
class Scale:
    """Data to user units along one axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, values: Floats | float) -> Floats:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = np.log10(values) if self.log else np.asarray(values, dtype=float)
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def thin(x: Floats, y: Floats, buckets: int = BUCKETS) -> tuple[Floats, Floats]:
    """At most `2 * buckets + 2` of the points, in order: first, last, each bucket's least and greatest y.

    A bucket without any finite value keeps one NaN, so that a gap stays a gap.
    """
    n = len(x)
    if n <= 2 * buckets + 2:
        return x, y
    edges = np.linspace(0, n, buckets + 1).astype(int)
    finite = np.isfinite(y)
    low, high = np.where(finite, y, np.inf), np.where(finite, y, -np.inf)
    keep = {0, n - 1}
    for start, end in pairwise(edges):
        keep |= {start + int(low[start:end].argmin()), start + int(high[start:end].argmax())}
    rows = np.array(sorted(keep))
    return x[rows], y[rows]


def draw(chart: Chart) -> tuple[Markup, dict[str, Any]] | None:
    """The chart as `<svg>` and the values behind it for hovering; None where no finite value is left to draw."""
    thinned = [(s, *_thin_for(chart, s.x, drawable(s.y, chart.log))) for s in chart.series]
    xs = np.concatenate([x for _, x, _ in thinned]) if thinned else np.empty(0)
    ys = np.concatenate([y for _, _, y in thinned]) if thinned else np.empty(0)
    ys = ys[np.isfinite(ys)]
    if not len(ys):
        return None
    x_scale, y_scale = _scales(chart, xs, ys)
    parts = [
        *_spans(chart, x_scale, y_scale),
        *_axes(chart, x_scale, y_scale, _whole(xs), _whole(ys)),
        *(
            _bars(s, x, y, x_scale, y_scale) if chart.kind == "bars" else _path(s, x, y, x_scale, y_scale)
            for s, x, y in thinned
        ),
        *_levels(chart, y_scale),
    ]
    svg = f'<svg viewBox="0 0 {WIDTH} {chart.height}" aria-hidden="true" focusable="false">{"".join(parts)}</svg>'
    values = {
        "d": [x_scale.low, x_scale.high, y_scale.low, y_scale.high, int(chart.log)],
        "p": [LEFT, WIDTH - RIGHT, TOP, chart.height - BOTTOM, WIDTH, chart.height],
        "x": clean(chart.x_label, 80),
        "s": [
            {"n": clean(s.label, 80), "c": s.style, "x": [_short(v) for v in x], "y": [_short(v) for v in y]}
            for s, x, y in thinned
        ],
    }
    return Markup(svg), values


def drawable(y: Floats, log: bool = False) -> Floats:
    """`y` with NaN for what no axis can hold: infinite, absurdly large, on a log axis not positive.

    A log can claim any figure; arithmetic on 1e308 overflows, and no honest loss, TGS or wattage is near 1e30.
    """
    y = np.where(np.abs(y) < EXTREME, y, np.nan)
    tiny = np.abs(y) < 1 / EXTREME
    return np.where(tiny | (y < 0), np.nan, y) if log else np.where(tiny, 0.0, y)


def _thin_for(chart: Chart, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    return (x, y) if chart.kind == "bars" else thin(x, y)


def _fits(value: float | None, log: bool) -> bool:
    return value is not None and bool(np.isfinite(drawable(np.float64(value), log)))


def _short(value: float) -> float | int | None:
    """7 significant digits, integers as such, None for what is not finite."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.7g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _scales(chart: Chart, xs: Floats, ys: Floats) -> tuple[Scale, Scale]:
    x_low, x_high = float(xs.min()), float(xs.max())
    if chart.kind == "bars":
        width = _bar_width(np.unique(xs))
        pad = max(width, 5 * width - (x_high - x_low)) / 2  # few bars stay slim
        x_low, x_high = x_low - pad, x_high + pad
    if x_high == x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    y_low, y_high = chart.clip or (float(ys.min()), float(ys.max()))
    levels = [level.value for level in chart.levels] + [v for s in chart.spans for v in (s.y0, s.y1)]
    levels = [v for v in levels if _fits(v, chart.log)]
    y_low, y_high = min([y_low, *levels]), max([y_high, *levels])
    if chart.zero:
        y_low = min(0.0, y_low)
    if chart.log:
        y_low, y_high = y_low / 1.15, y_high * 1.15
    else:
        pad = (y_high - y_low) * 0.06 or abs(y_high) * 0.05 or 1.0
        room = 2.5 * pad if y_high in levels else pad  # a level's words stand above its line
        y_low, y_high = (y_low if chart.zero and y_low == 0 else y_low - pad), y_high + room
    return (
        Scale(x_low, x_high, LEFT, WIDTH - RIGHT),
        Scale(y_low, y_high, chart.height - BOTTOM, TOP, log=chart.log),
    )


def ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """Round values between `low` and `high`, about `count` of them; whole numbers where only those make sense."""
    raw = max((high - low) / count * 0.75, 1.0 if whole else 0.0)  # rather some more than only two
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in ((1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between `low` and `high`; with their doubles and fives where there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [10.0**e for e in exponents if low <= 10.0**e <= high]
    if len(powers) >= 3:
        return powers
    fine = [m * 10.0**e for e in exponents for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    return fine if len(fine) >= 2 else ticks(low, high, 4)


def _whole(values: Floats) -> bool:
    return bool((values == np.rint(values)).all())


def _axes(chart: Chart, x_scale: Scale, y_scale: Scale, whole_x: bool, whole_y: bool) -> list[str]:
    floor = chart.height - BOTTOM
    y_ticks = log_ticks(y_scale.low, y_scale.high) if chart.log else ticks(y_scale.low, y_scale.high, 4, whole_y)
    x_ticks = ticks(x_scale.low, x_scale.high, 6, whole_x)
    if chart.kind == "bars" and whole_x:  # a rank that does not exist has no tick
        x_ticks = [t for t in x_ticks if any((series.x == t).any() for series in chart.series)]
    grid = "".join(f"M{LEFT} {float(y_scale(t)):.1f}H{WIDTH - RIGHT}" for t in y_ticks)
    parts = [f'<path class="grid" d="{grid}"/>', f'<path class="axis" d="M{LEFT} {floor}H{WIDTH - RIGHT}"/>']
    parts += [
        f'<text class="tick" x="{LEFT - 6}" y="{float(y_scale(t)) + 4:.1f}" text-anchor="end">{_tick(t)}</text>'
        for t in y_ticks
    ]
    for t in x_ticks:
        at = float(x_scale(t))
        parts.append(f'<path class="axis" d="M{at:.1f} {floor}v4"/>')
        # a label under the corner would collide with the axis title; titles are in the caption instead
        anchor = "end" if at > WIDTH - RIGHT - 14 else "middle"
        parts.append(f'<text class="tick" x="{at:.1f}" y="{floor + 17}" text-anchor="{anchor}">{_tick(t)}</text>')
    label = escape(clean(chart.x_label, 60))
    parts.append(
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{chart.height - 3}" text-anchor="middle">'
        f"{label}</text>"
    )
    return parts


def _tick(value: float) -> str:
    if value and abs(value) >= 1e5:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:.0e}".replace("e-0", "e-") if value and abs(value) < 1e-3 else number(float(value), 4)


def _path(series: Series, x: Floats, y: Floats, x_scale: Scale, y_scale: Scale) -> str:
    """One `<path>` in tenths of a unit, relative and whole-numbered; a NaN lifts the pen."""
    px = np.rint(x_scale(x) * TENTHS)
    low, high = sorted((y_scale.start, y_scale.end))
    py = np.rint(np.clip(y_scale(y), low - 4, high + 4) * TENTHS)
    drawn = np.isfinite(py) & np.isfinite(px)
    pen: list[str] = []
    last: tuple[int, int] | None = None
    for at_x, at_y, ok in zip(px, py, drawn, strict=True):
        if not ok:
            last = None
            continue
        point = int(at_x), int(at_y)
        pen.append(f"M{point[0]} {point[1]}h0" if last is None else f"l{point[0] - last[0]} {point[1] - last[1]}")
        last = point
    return f'<g transform="scale(.1)"><path class="line {series.style}" d="{"".join(pen)}"/></g>'


def _bar_width(xs: Floats) -> float:
    return float(np.diff(xs).min()) if len(xs) > 1 else 1.0


def _bars(series: Series, x: Floats, y: Floats, x_scale: Scale, y_scale: Scale) -> str:
    width = _bar_width(np.unique(x))
    gap = 0.12 if len(x) <= 64 else 0.0
    left, right = x_scale(x - width * (0.5 - gap / 2)), x_scale(x + width * (0.5 - gap / 2))
    floor = float(y_scale.start)
    pen = "".join(
        f"M{a:.1f} {floor:.1f}V{top:.1f}H{b:.1f}V{floor:.1f}"
        for a, b, top in zip(left, right, y_scale(y), strict=True)
        if math.isfinite(top) and top < floor
    )
    return f'<path class="bars {series.style}" d="{pen}"/>'


def _spans(chart: Chart, x_scale: Scale, y_scale: Scale) -> list[str]:
    parts = []
    for span in chart.spans:
        x0, x1 = (float(np.clip(x_scale(v), LEFT, WIDTH - RIGHT)) for v in (span.x0, span.x1))
        y0 = float(y_scale(span.y0)) if _fits(span.y0, chart.log) else chart.height - BOTTOM
        y1 = float(y_scale(span.y1)) if _fits(span.y1, chart.log) else TOP
        if x1 > x0:
            parts.append(
                f'<rect class="span {span.style}" x="{x0:.1f}" y="{min(y0, y1):.1f}" '
                f'width="{x1 - x0:.1f}" height="{max(abs(y1 - y0), 1):.1f}"/>'
            )
    return parts


def _levels(chart: Chart, y_scale: Scale) -> list[str]:
    parts = []
    for level in chart.levels:
        if not _fits(level.value, chart.log):
            continue
        y = float(y_scale(level.value))
        above = y - 5 if y > TOP + 18 else y + 14
        parts.append(f'<path class="level {level.style}" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text class="level-label {level.style}" x="{WIDTH - RIGHT - 4}" y="{above:.1f}" text-anchor="end">'
            f"{escape(clean(level.label, 60))}</text>"
        )
    return parts
