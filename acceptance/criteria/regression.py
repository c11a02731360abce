"""Regression: has a case changed since the nights before, since which night, and by how much?

Method. Figures are compared as logarithms. A case's nights are cut into levels, one night after the other, as they
came: a change is reported where the means before and after some night differ by more than Student's t allows, with
the noise estimated from the nights themselves (pooled within levels, never given). Changes of the last nights are
looked for with a low threshold, older and smaller ones with a higher one; a change is dropped when later nights take
it back, and kept for good after CONFIRM nights. A short dip that is over does not count as noise afterwards.

False alarms. With independent normal noise less than 1 night in 200 of a quiet case is the first of a false alarm,
and a 3 % drop under 1 % noise after 20 quiet nights is found within 5 nights in more than 99 of 100 histories:
`python -m benchmarks.regression` measures both, and what correlated or heavy-tailed noise makes of them.

Pure: rows of the history in, comparisons and one verdict out.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np

from acceptance.criteria.verdict import Measurement, Outcome, Verdict
from fixtures.steps import Floats

Change = Literal["regressed", "improved", "unchanged", "too few nights"]

FEWEST = 12  # nights before the first that is compared: fewer do not tell the noise
FEWEST_OF_LEVEL = 5  # nights of a later level before it can change again; the noise is known by then
RECENT = 5  # nights over which a change for the worse is looked for with the low threshold
CONFIRM = 10  # nights after which a change is no longer taken back
# one-sided probabilities of Student's t, found by simulation (benchmarks/regression.py)
WORSE, BETTER, OLD, KEEP = 8e-4, 5e-5, 5e-6, 1e-4
AFTER = (1, 2, 3, 4, 5, 7, 10, 14, 20, 28, 40, 56, 80)  # lengths of a new level that are looked for


@dataclass(frozen=True)
class Figure:
    """A figure that is watched. `worse` is the sign of a change for the worse.

    floor   least noise assumed, a share of the figure: differences of a few floors are of no practical interest
    """

    name: str
    title: str
    unit: str
    worse: Literal[-1, 1]
    floor: float
    code: str


FIGURES = (
    Figure("tgs", "TGS", "tokens/GPU/s", -1, 0.001, "regression-tgs"),
    Figure("memory", "peak memory", "GiB", 1, 0.002, "regression-memory"),
    Figure("startup", "start-up", "s", 1, 0.01, "regression-startup"),
)


@dataclass(frozen=True)
class Night:
    """One night of one case, as the history holds it.

    night     the history's number of the night
    label     date for people
    started   seconds since the epoch
    figures   by name of FIGURES; None where the night left none
    curve     digest of loss and grad_norm of the deterministic run; None where there is none
    repeats   whether both deterministic runs of the night are bit-equal
    losses    of the deterministic run, nats per token, shape (n,)
    context   what may explain a change: driver, torch, internlm, suite, host, config, ...
    """

    night: int
    label: str
    started: float
    figures: Mapping[str, float | None]
    curve: str | None = None
    repeats: bool = False
    losses: Floats | None = None
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Level:
    """Nights `start` to `stop` - 1 whose figure varies around one mean; `mean` is a logarithm.

    nights   those that count: short dips are left out
    kept     no longer open to being taken back
    """

    start: int
    stop: int
    mean: float
    nights: int
    kept: bool


@dataclass(frozen=True)
class Levels:
    """Levels in order, and the noise within them: standard deviation (of logarithms) and degrees of freedom."""

    levels: tuple[Level, ...]
    noise: float
    freedom: int


@dataclass(frozen=True)
class Comparison:
    """One figure of one case against its baseline; `change` and its 95 % interval are shares (0.03 = 3 %).

    since     the first night of the change, None where nothing changed
    between   what else changed between the last night before and the first night of the change: (before, after)
    """

    figure: str
    title: str
    unit: str
    outcome: Change
    code: str
    tonight: float | None = None
    baseline: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    since: Night | None = None
    between: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    text: str = ""


def judge(nights: Sequence[Night], accepted: int | None = None, cut: bool = False) -> Verdict:
    """The verdict of tonight, the last of `nights` (oldest first), as a test reports it; see `compare`."""
    if not nights:
        return Verdict("not run", "regression-too-few-nights", "not run: the history has no night of this case.")
    found = compare(nights, accepted, cut)
    worst = overall(found)
    outcomes: dict[Change, Outcome] = {
        "regressed": "fail",
        "improved": "pass",
        "unchanged": "pass",
        "too few nights": "not run",
    }
    said = [c.text for c in found if c.outcome == worst.outcome]
    prefix = "not run: " if worst.outcome == "too few nights" else ""
    return Verdict(outcomes[worst.outcome], worst.code, prefix + " ".join(said), measurements(found))


def overall(found: Sequence[Comparison]) -> Comparison:
    """The comparison that speaks for the case: a regression, else an improvement, else that nothing changed."""
    order: tuple[Change, ...] = ("regressed", "improved", "unchanged", "too few nights")
    return min(found, key=lambda c: order.index(c.outcome))


def compare(nights: Sequence[Night], accepted: int | None = None, cut: bool = False) -> tuple[Comparison, ...]:
    """Tonight (the last of `nights`, oldest first) against the baseline: one comparison a figure, one for the losses.

    accepted   index of the night whose level is the baseline, as a pin says; None: the first level, and every
               later one that is better and has lasted CONFIRM nights
    cut        the baseline ends with that night (--compare), instead of going on with its level
    """
    return (*(_figure(figure, nights, accepted, cut) for figure in FIGURES), _losses(nights, accepted))


def measurements(found: Sequence[Comparison]) -> tuple[Measurement, ...]:
    """The figures behind a verdict: for JUnit properties and messages."""
    return tuple(
        Measurement(name, value, unit)
        for c in found
        for name, value, unit in (
            (c.figure, c.tonight, c.unit),
            (f"{c.figure}_baseline", c.baseline, c.unit),
            (f"{c.figure}_change", c.change, ""),
            (f"{c.figure}_change_low95", c.low, ""),
            (f"{c.figure}_change_high95", c.high, ""),
        )
        if value is not None
    )


# ---- figures -------------------------------------------------------------------------------------------------


def _figure(figure: Figure, nights: Sequence[Night], accepted: int | None, cut: bool) -> Comparison:
    rows = [i for i, night in enumerate(nights) if _usable(night.figures.get(figure.name))]
    tonight = nights[-1].figures.get(figure.name)
    blank = functools.partial(Comparison, figure.name, figure.title, figure.unit, tonight=tonight)
    if not rows:
        return blank("too few nights", "regression-too-few-nights", text=f"No night has a {figure.title} figure.")
    if rows[-1] != len(nights) - 1:
        before = nights[rows[-1]]
        text = f"Tonight left no {figure.title} figure; the last one is of {before.label}."
        return blank("regressed", "regression-no-figure", since=nights[rows[-1] + 1], text=text)
    values = np.array([nights[i].figures[figure.name] for i in rows], dtype=float)
    found = levels(values, figure.worse, figure.floor)
    pin = None if accepted is None else int(np.searchsorted(rows, accepted, side="right")) - 1
    base = baseline(found, figure.worse, pin, fixed=cut)
    current = found.levels[-1]
    if len(rows) <= FEWEST or (cut and pin is not None and pin < 0):
        what = (
            "nothing was pinned of it"
            if cut
            else f"{len(rows)} nights on record; {FEWEST} before tonight tell the noise"
        )
        return blank("too few nights", "regression-too-few-nights", text=f"{figure.title}: {what}.")
    if cut and pin is not None and base.stop > pin + 1:
        base = _part(base, pin + 1, values)
    outcome, change, low, high = standing(found, base, figure.worse, math.log(values[-1]))
    since = rows[current.start] if outcome in ("regressed", "improved") else None
    comparison = functools.partial(blank, baseline=math.exp(base.mean), change=change, low=low, high=high)
    words = f"{figure.title} {tonight:,.4g} {figure.unit}, {change:+.1%} ({low:+.1%} to {high:+.1%})"
    if since is None:
        text = f"{words} against {math.exp(base.mean):,.4g}: no change."
        return comparison("unchanged", "regression-unchanged", text=text)
    between = _changed(nights[rows[current.start - 1]].context, nights[since].context)
    code = figure.code if outcome == "regressed" else "regression-improved"
    text = f"{words} against {math.exp(base.mean):,.4g} since the night of {nights[since].label}{_explain(between)}."
    if outcome == "improved":
        text += f" It is the baseline after {CONFIRM} nights, or once it is pinned."
    return comparison(outcome, code, since=nights[since], between=between, text=text)


def _usable(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def baseline(found: Levels, worse: int, pin: int | None = None, fixed: bool = False) -> Level:
    """The level that tonight is compared with; `pin` indexes the nights that have the figure.

    fixed   the pin's own level, though a later and better one has lasted
    """
    base = found.levels[0]
    if pin is not None and pin >= 0:
        base = next(level for level in found.levels if level.start <= pin < level.stop)
    for level in () if fixed else found.levels:
        better = worse * (level.mean - base.mean) < 0
        if level.start > base.start and level.kept and better and not _alike(base, level, found):
            base = level
    return base


def standing(found: Levels, base: Level, worse: int, tonight: float) -> tuple[Change, float, float, float]:
    """Outcome of the newest level against `base`, its change and the change's 95 % interval, as shares.

    tonight   the logarithm of tonight's figure: where nothing changed, its own distance from the other nights is told
    """
    current = found.levels[-1]
    if current.start <= base.start:
        return "unchanged", *_tonight(tonight, base, found)
    change, low, high = _between_levels(base, current, found)
    if low <= 0 <= high:
        return "unchanged", change, low, high
    return "regressed" if change * worse > 0 else "improved", change, low, high


def _alike(base: Level, level: Level, found: Levels) -> bool:
    _, low, high = _between_levels(base, level, found)
    return low <= 0 <= high


def _between_levels(base: Level, level: Level, found: Levels) -> tuple[float, float, float]:
    return _interval(level.mean - base.mean, found, 1 / base.nights + 1 / level.nights)


def _tonight(tonight: float, base: Level, found: Levels) -> tuple[float, float, float]:
    """Tonight's own change against the other nights of its level; the interval is that of a single night."""
    others, mean = base.nights, base.mean
    if base.stop == found.levels[-1].stop and base.nights > 1:  # tonight is one of them
        others, mean = base.nights - 1, (base.mean * base.nights - tonight) / (base.nights - 1)
    return _interval(tonight - mean, found, 1 + 1 / others)


def _interval(difference: float, found: Levels, share: float) -> tuple[float, float, float]:
    half = student(0.975, found.freedom) * found.noise * math.sqrt(share)
    return math.expm1(difference), math.expm1(difference - half), math.expm1(difference + half)


def _part(level: Level, stop: int, values: Floats) -> Level:
    """The level as it was known at the night before `stop`."""
    logs = np.log(values[level.start : stop])
    return Level(level.start, stop, float(np.mean(logs)), len(logs), level.kept)


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return {key: (before.get(key) or "unknown", after.get(key) or "unknown") for key in keys}


def _explain(between: Mapping[str, tuple[str, str]]) -> str:
    if not between:
        return "; nothing that is on record changed with it"
    return "; with it changed " + ", ".join(f"{key} ({old} to {new})" for key, (old, new) in between.items())


@dataclass(frozen=True)
class ChangePoint:
    """Where a figure left its level: the first night after, by which share, and what else changed with it.

    `change` is None for losses: they are equal or not.
    """

    night: Night
    outcome: Change
    text: str
    change: float | None = None


def change_points(figure: Figure, nights: Sequence[Night]) -> tuple[tuple[ChangePoint, ...], tuple[Level, ...]]:
    """Every change of a figure over `nights` (oldest first), each against the level before it, and the levels, whose
    `start` and `stop` index those nights that have the figure."""
    own = [night for night in nights if _usable(night.figures.get(figure.name))]
    if not own:
        return (), ()
    found = levels([float(night.figures[figure.name] or 0) for night in own], figure.worse, figure.floor)
    points = []
    for before, after in itertools.pairwise(found.levels):
        change, low, high = _between_levels(before, after, found)
        night, between = own[after.start], _changed(own[after.start - 1].context, own[after.start].context)
        text = f"{figure.title} {change:+.1%} ({low:+.1%} to {high:+.1%}){_explain(between)}"
        points.append(ChangePoint(night, "regressed" if change * figure.worse > 0 else "improved", text, change))
    return tuple(points), found.levels


def loss_changes(nights: Sequence[Night]) -> tuple[ChangePoint, ...]:
    """Every night whose losses are not bit-equal to those of the night before, among those that repeat their own."""
    own = [night for night in nights if night.curve is not None and night.repeats]
    return tuple(
        ChangePoint(
            after,
            "regressed",
            f"losses changed: {_first_difference(before, after)}{_explain(_changed(before.context, after.context))}",
        )
        for before, after in itertools.pairwise(own)
        if before.curve != after.curve
    )


# ---- losses --------------------------------------------------------------------------------------------------


def _losses(nights: Sequence[Night], accepted: int | None) -> Comparison:
    """Bit-equal with the night before, or with the pinned night; the first night that changed is named.

    A change stays until a later night is pinned: nothing says by itself which of two curves is right.
    """
    tonight = nights[-1]
    blank = functools.partial(Comparison, "losses", "losses", "")
    if tonight.curve is None or not tonight.repeats:
        why = "has no deterministic runs" if tonight.curve is None else "does not repeat its own losses bit by bit"
        text = f"Losses: tonight {why}, so other nights cannot be compared."
        return blank("too few nights", "regression-too-few-nights", text=text)
    rows = [i for i, night in enumerate(nights) if night.curve is not None and night.repeats]
    pinned = [i for i in rows if accepted is None or i <= accepted]
    base = rows[0] if accepted is None else (pinned or rows)[-1]
    if len(rows) == 1 or base == rows[-1]:
        return blank("too few nights", "regression-too-few-nights", text="Losses: no earlier night to compare with.")
    if nights[base].curve == tonight.curve:
        text = f"Losses are bit-equal to those of {nights[base].label}."
        return blank("unchanged", "regression-unchanged", text=text)
    first = len(rows) - 1
    while rows[first - 1] > base and nights[rows[first - 1]].curve == tonight.curve:
        first -= 1
    before, since = nights[rows[first - 1]], nights[rows[first]]
    between = _changed(before.context, since.context)
    text = (
        f"Losses are not bit-equal to those of {before.label} since the night of {since.label}: "
        f"{_first_difference(before, since)}{_explain(between)}."
    )
    return blank("regressed", "regression-loss-changed", since=since, between=between, text=text)


def _first_difference(before: Night, after: Night) -> str:
    a, b = before.losses, after.losses
    if a is None or b is None:
        return "the curves are not on record"
    if len(a) != len(b):
        return f"{len(a)} and {len(b)} steps"
    differs = np.flatnonzero(~((a == b) | (np.isnan(a) & np.isnan(b))))
    if not len(differs):
        return "the losses are equal, grad_norm differs"
    step = int(differs[0])
    return f"first at step {step}, {float(a[step])!r} and {float(b[step])!r}"


# ---- change points -------------------------------------------------------------------------------------------


def levels(values: Sequence[float], worse: int, floor: float) -> Levels:
    """Cut `values` (figures of the nights, oldest first, each above 0, at least one) into levels.

    worse   sign of a change for the worse
    floor   least standard deviation of a night, as a share
    """
    tracker = Tracker(worse, floor)
    for value in values:
        tracker.add(value)
    return tracker.levels()


class Tracker:
    """Follows one figure night by night. What it holds after a night follows from that night and those before.

    The current level's nights are kept as cumulated sums, so that a night costs a handful of divisions.
    """

    def __init__(self, worse: int, floor: float) -> None:
        self.worse, self.floor = worse, floor
        self.count = 0
        self.closed: list[Level] = []
        self.squares, self.freedom = 0.0, 0  # within closed levels
        self.opened: int | None = None  # index into `rows` of the first night after a change not yet confirmed
        self._restart([], [])

    def _restart(self, rows: list[int], x: list[float]) -> None:
        """The current level begins anew: `rows` are its nights, `x` their logarithms."""
        self.rows, self.x = [], []
        self.sums, self.powers = [0.0], [0.0]
        for row, value in zip(rows, x, strict=True):
            self._append(row, value)

    def _append(self, row: int, value: float) -> None:
        self.rows.append(row)
        self.x.append(value)
        away = value - self.x[0]  # for the cumulated squares to keep their digits
        self.sums.append(self.sums[-1] + away)
        self.powers.append(self.powers[-1] + away * away)

    def add(self, value: float) -> None:
        """The next night."""
        self._append(self.count, math.log(value))
        self.count += 1
        if self.opened is not None and not self._follow():
            self.opened = None
        if self.opened is None:
            self.opened = self._scan()

    def levels(self) -> Levels:
        """The levels so far."""
        n, k = len(self.x), self.opened
        parts = [(0, n)] if k is None else [(0, k), (k, n)]
        edges = [self.closed[-1].stop if self.closed else 0, *([self.rows[k]] if k is not None else []), self.count]
        current = [Level(edges[i], edges[i + 1], self._mean(a, b), b - a, i == 0) for i, (a, b) in enumerate(parts)]
        squares = self.squares + sum(self._within(a, b) for a, b in parts)
        freedom = self.freedom + n - len(parts)
        noise = math.sqrt(squares / freedom) if freedom else 0.0
        return Levels((*self.closed, *current), max(noise, self.floor), freedom)

    def _mean(self, a: int, b: int) -> float:
        return self.x[0] + (self.sums[b] - self.sums[a]) / (b - a)

    def _within(self, a: int, b: int) -> float:
        """Sum of squares of nights a..b-1 of the current level around their mean."""
        return max(self.powers[b] - self.powers[a] - (self.sums[b] - self.sums[a]) ** 2 / (b - a), 0.0)

    def _statistic(self, a: int, k: int, b: int) -> tuple[float, int]:
        """Student's t of the means of nights k..b-1 and a..k-1, with the noise of all nights; its freedom."""
        squares = self.squares + self._within(a, k) + self._within(k, b)
        freedom = self.freedom + (b - a) - 2
        if a:
            squares, freedom = squares + self._within(0, a), freedom + a - 1
        noise = max(math.sqrt(squares / max(freedom, 1)), self.floor)
        return (self._mean(k, b) - self._mean(a, k)) / (noise * math.sqrt(1 / (k - a) + 1 / (b - k))), freedom

    def _scan(self) -> int | None:
        """Index of the first night after the clearest change of the current level; None where nothing is clear."""
        n = len(self.x)
        fewest = max(FEWEST_OF_LEVEL, FEWEST - self.freedom)
        for after in AFTER:
            if n - after < fewest:
                return None
            t, freedom = self._statistic(0, n - after, n)
            p = OLD if after > RECENT else WORSE if t * self.worse > 0 else BETTER
            if abs(t) > student(1 - p, freedom):
                return self._date(fewest, 1 if t > 0 else -1)
        return None

    def _date(self, fewest: int, sign: int) -> int:
        """Where the change of this sign is clearest."""
        n = len(self.x)
        return max(range(fewest, n), key=lambda k: sign * self._statistic(0, k, n)[0])

    def _follow(self) -> bool:
        """What tonight makes of the open change: whether it stays open. It may be gone, over, or confirmed."""
        k, n = self.opened, len(self.x)
        assert k is not None
        t, freedom = self._statistic(0, k, n)
        if abs(t) < student(1 - KEEP, freedom):
            return False
        sign = 1 if t > 0 else -1
        for j in range(n - 1, k, -1):
            back, freedom = self._statistic(k, j, n)
            if -back * sign > student(1 - WORSE, freedom):  # a dip that is over: its nights no longer count
                self._restart(self.rows[:k] + self.rows[j:], self.x[:k] + self.x[j:])
                return False
        if n - k >= CONFIRM:
            first = self.closed[-1].stop if self.closed else 0
            self.closed.append(Level(first, self.rows[k], self._mean(0, k), k, True))
            self.squares, self.freedom = self.squares + self._within(0, k), self.freedom + k - 1
            self._restart(self.rows[k:], self.x[k:])
            return False
        self.opened = self._date(max(FEWEST_OF_LEVEL, FEWEST - self.freedom), sign)
        return True


@functools.lru_cache(maxsize=4096)
def student(p: float, freedom: int) -> float:
    """Quantile `p` of Student's t, by the expansion in powers of 1/freedom (Abramowitz & Stegun 26.7.5).

    Four terms: within 1 % for 10 degrees of freedom and p = 1 - 1e-4, closer for more.
    """
    z = NormalDist().inv_cdf(p)
    f = max(freedom, 1)
    return (
        z
        + (z**3 + z) / (4 * f)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * f**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * f**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * f**4)
    )
