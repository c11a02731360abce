"""Which curves a case gets, from the evidence of its judged attempts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fixtures.steps import Floats, Steps
from reports.charts import Chart, Level, Series, Span
from reports.language import Words
from reports.text import moment, number

GIB = 2**30
HISTOGRAM_BINS = 28
LINE = 1 << 16  # characters of one line of telemetry


@dataclass(frozen=True)
class Ran:
    """What the curves need of one judged attempt."""

    steps: Steps
    request: Mapping[str, Any]
    memory: Mapping[int, float]  # rank -> peak GiB that torch allocated
    device_memory: float | None  # GiB of one device, None where it is not known
    telemetry: Sequence[Path]  # a file a node
    bindings: Mapping[int, tuple[str, int]] = field(default_factory=dict)  # rank -> (host, device ordinal)


def charts(words: Words, case: Mapping[str, Any], ran: Mapping[str, Ran], warmup: int) -> list[Chart]:
    """All charts of a case that its evidence can fill, in the order of the page."""
    measured = {m["name"]: m for c in case["criteria"].values() for m in c["measurements"]}
    found: list[Chart | None] = [*_losses(words, ran, case.get("reference"))]
    if "speed" in ran:
        speed = ran["speed"]
        found += [
            _tgs(words, speed.steps, measured, warmup),
            _step_times(words, speed, warmup),
            _memory(words, speed),
            _power(words, speed, warmup),
        ]
    if "long" in ran:
        found += [_long_loss(words, ran["long"].steps, measured), _long_tgs(words, ran["long"].steps)]
    return [chart for chart in found if chart is not None]


def _losses(words: Words, ran: Mapping[str, Ran], reference: Any) -> Iterable[Chart | None]:
    """Both repeats and the reference, and how far each is from the first repeat."""
    first, second = (ran[r].steps if r in ran else None for r in ("repeat-1", "repeat-2"))
    lines = [
        Series(words("curve.repeat", n=n), steps.step.astype(float), steps.loss, f"s{n}")
        for n, steps in ((1, first), (2, second))
        if steps is not None
    ]
    if not lines:
        return
    curve = _reference(reference)
    if curve is not None:
        name = str(reference.get("name") or reference.get("source") or "")
        label = words("curve.reference") + (f" ({name})" if name else "")
        lines.append(Series(label, np.arange(len(curve), dtype=float), curve, "reference"))
    yield Chart(
        "loss",
        words("chart.loss"),
        words("axis.step"),
        words("axis.loss"),
        lines,
        note=_loss_note(words, first, second),
    )
    if first is not None:
        yield _differences(words, first, second, curve)


def _reference(reference: Any) -> Floats | None:
    losses = reference.get("losses") if isinstance(reference, dict) else None
    if not isinstance(losses, list) or not all(isinstance(v, (int, float)) for v in losses) or not losses:
        return None
    return np.asarray(losses, dtype=float)


def _loss_note(words: Words, first: Steps | None, second: Steps | None) -> str:
    if first is None or second is None:
        return ""
    n = min(len(first), len(second))
    differing = np.flatnonzero(first.loss[:n] != second.loss[:n])
    if len(differing):
        step = int(first.step[differing[0]])
        return words("note.differ", count=len(differing), steps=n, first=step)
    return words("note.equal", steps=n)


def _differences(words: Words, first: Steps, second: Steps | None, reference: Floats | None) -> Chart | None:
    others = []
    if second is not None:
        others.append((words("curve.minus_first", n=2), second.loss, "s2"))
    if reference is not None:
        others.append((words("curve.reference_minus_first"), reference, "reference"))
    lines = []
    for label, loss, style in others:
        n = min(len(first), len(loss))
        lines.append(Series(label, first.step[:n].astype(float), loss[:n] - first.loss[:n], style))
    if not any(line.y.any() for line in lines):  # equal repeats are said in words under the losses
        return None
    return Chart("difference", words("chart.difference"), words("axis.step"), words("axis.loss"), lines)


def _tgs(words: Words, steps: Steps, measured: Mapping[str, Any], warmup: int) -> Chart:
    x, y = steps.step.astype(float), steps.tgs
    steady = y[warmup:] if len(y) > warmup + 1 else y
    lower, upper = (measured.get(name, {}).get("value") for name in ("tgs_lower95", "tgs_upper95"))
    minimum = measured.get("tgs_lower95", {}).get("limit")
    spans = [Span(words("curve.warmup"), float(x[0]), float(min(warmup, len(x) - 1)))] if len(x) else []
    if lower is not None and upper is not None and len(x):
        spans.append(Span(words("curve.bounds"), float(warmup), float(x[-1]), lower, upper, "bounds"))
    levels = [Level(words("curve.minimum", value=number(minimum)), minimum)] if minimum is not None else []
    return Chart(
        "tgs",
        words("chart.tgs"),
        words("axis.step"),
        words("axis.tgs"),
        [Series("TGS", x, y, "s1")],
        levels,
        spans,
        clip=_range(steady),
    )


def _range(values: Floats) -> tuple[float, float] | None:
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if len(values) else None


def step_seconds(ran: Ran) -> Floats | None:
    """Seconds of each step, shape (n,): its tokens over world x TGS; None without a world size."""
    world = ran.request.get("world")
    if not isinstance(world, int) or world < 1 or not len(ran.steps):
        return None
    tokens = np.diff(ran.steps.consumed_tokens, prepend=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return tokens / (world * ran.steps.tgs)


def _step_times(words: Words, ran: Ran, warmup: int) -> Chart | None:
    seconds = step_seconds(ran)
    if seconds is None or len(seconds) <= warmup + 2:
        return None
    seconds = seconds[warmup:]
    seconds = seconds[np.isfinite(seconds)]
    if not len(seconds):
        return None
    # a single stall must not squeeze all other steps into one bar: it is said in words instead
    top = float(np.quantile(seconds, 0.98)) * 1.02 if len(seconds) >= 20 else float(seconds.max())
    shown = seconds[seconds <= top]
    counts, edges = np.histogram(shown, bins=min(HISTOGRAM_BINS, max(5, len(shown) // 3)))
    middle, fifth, ninety_fifth = np.quantile(seconds, (0.5, 0.05, 0.95))
    note = words("note.step_time", median=f"{middle:.4g}", low=f"{fifth:.4g}", high=f"{ninety_fifth:.4g}")
    if len(shown) < len(seconds):
        note += " " + words("note.slower", count=len(seconds) - len(shown), slowest=f"{seconds.max():.4g}")
    bars = Series(words("curve.steps"), (edges[:-1] + edges[1:]) / 2, counts.astype(float), "s1")
    return Chart(
        "step-time",
        words("chart.step_time"),
        words("axis.seconds"),
        words("axis.count"),
        [bars],
        kind="bars",
        zero=True,
        note=note,
    )


def _memory(words: Words, ran: Ran) -> Chart | None:
    if not ran.memory:
        return None
    ranks = np.array(sorted(ran.memory), dtype=float)
    peaks = np.array([ran.memory[int(rank)] for rank in ranks])
    total = ran.device_memory
    levels = [Level(words("curve.device_total", value=number(total)), total)] if total else []
    return Chart(
        "memory",
        words("chart.memory"),
        words("axis.rank"),
        "GiB",
        [Series(words("curve.peak"), ranks, peaks, "s1")],
        levels,
        kind="bars",
        zero=True,
        note=words("note.memory", peak=number(float(peaks.max()), 4)),
    )


def _long_loss(words: Words, steps: Steps, measured: Mapping[str, Any]) -> Chart:
    median = measured.get("median_loss", {})
    limit, value = median.get("limit"), median.get("value")
    levels = [Level(words("curve.maximum", value=number(limit)), limit)] if limit is not None else []
    return Chart(
        "long-loss",
        words("chart.long_loss"),
        words("axis.step"),
        words("axis.loss"),
        [Series(words("curve.loss"), steps.step.astype(float), steps.loss, "s1")],
        levels,
        log=True,
        note=words("note.median", value=number(value)) if value is not None else "",
    )


def _long_tgs(words: Words, steps: Steps) -> Chart:
    return Chart(
        "long-tgs",
        words("chart.long_tgs"),
        words("axis.step"),
        words("axis.tgs"),
        [Series("TGS", steps.step.astype(float), steps.tgs, "s1")],
        clip=_range(steps.tgs[10:]) if len(steps) > 20 else None,
    )


@dataclass(frozen=True)
class Power:
    """Watts by device over time; time in epoch seconds, ascending, shape (n,) each."""

    devices: Mapping[str, tuple[Floats, Floats]]


def read_power(paths: Iterable[Path]) -> Power:
    """Every usable power reading of the telemetry files; lines that are not usable are left out.

    Leaving out is safe here: power decides nothing, and a device without readings has no curve.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for path in paths:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in iter(lambda: file.readline(LINE), ""):  # a longer one comes in pieces that are no JSON
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if not isinstance(row, dict):
                    continue
                device, time, watts = row.get("rank", row.get("device")), row.get("time"), row.get("power_w")
                if device is not None and all(isinstance(v, (int, float)) and abs(v) < 1e300 for v in (time, watts)):
                    found.setdefault(str(device), []).append((time, watts))
    return Power({k: tuple(np.array(sorted(v), dtype=float).T) for k, v in sorted(found.items()) if len(v) > 1})


def _power(words: Words, ran: Ran, warmup: int) -> Chart | None:
    power = read_power(ran.telemetry)
    if not power.devices:
        return None
    start = max(times[0] for times, _ in power.devices.values())
    end = min(times[-1] for times, _ in power.devices.values())
    if end <= start:
        return None
    grid = np.linspace(start, end, 400)
    total = sum(np.interp(grid, times, watts) for times, watts in power.devices.values())
    return Chart(
        "power",
        words("chart.power"),
        words("axis.elapsed"),
        words("curve.power", devices=len(power.devices)),
        [Series(words("chart.power"), grid - start, np.asarray(total), "s1")],
        zero=True,
        note=_tokens_per_joule(words, ran, power, warmup),
    )


def _tokens_per_joule(words: Words, ran: Ran, power: Power, warmup: int) -> str:
    """Tokens after the warm-up over the energy that the watched devices drew meanwhile."""
    window = _window(ran, warmup)
    if window is None:
        return ""
    start, end, tokens = window
    unwatched = len(power.devices) < ran.request.get("world", 0)  # a node of several may have told nothing
    if unwatched or any(times[0] > start or times[-1] < end for times, _ in power.devices.values()):
        return words("note.power_partial")
    joules = sum(_energy(times, watts, start, end) for times, watts in power.devices.values())
    if joules <= 0:
        return ""
    return words("note.power", ratio=number(tokens / joules, 4), watts=number(joules / (end - start), 4))


def _window(ran: Ran, warmup: int) -> tuple[float, float, int] | None:
    """Epoch seconds of the first and last step after the warm-up, and the tokens between; None where unknown."""
    steps = ran.steps
    started = moment(ran.request.get("started"))
    offset = started.utcoffset() if started else None
    if offset is None or len(steps) < warmup + 3:
        return None
    start, end = (float(steps.time[i]) - offset.total_seconds() for i in (warmup, -1))
    return (start, end, int(steps.consumed_tokens[-1] - steps.consumed_tokens[warmup])) if end > start else None


def _energy(times: Floats, watts: Floats, start: float, end: float) -> float:
    inner = times[(times > start) & (times < end)]
    grid = np.concatenate([[start], inner, [end]])
    values = np.interp(grid, times, watts)
    return float(((values[1:] + values[:-1]) / 2 * np.diff(grid)).sum())
