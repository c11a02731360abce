"""Throughput: sustained TGS after the warm-up reaches the minimum, with bounds that allow for noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acceptance.criteria import whole
from acceptance.criteria.verdict import Finding, Measurement, Requirement, Verdict, Workload
from fixtures.steps import Steps

Floats = npt.NDArray[np.float64]
UNIT = "tokens/GPU/s"

# Batch means: the steps are cut into a few long batches, whose means are close to independent although
# neighbouring steps are not; Student's t then gives the bound. Six batches of 15 steps pass a machine exactly
# at the minimum 5.2 % of the time with independent noise, 5.0 % with AR(1) 0.3 and 6.3 % with AR(1) 0.7
# (python -m benchmarks.judge_power); more batches win power and lose that.
BATCHES = 6
T_95 = 2.015048  # one-sided 95 % quantile of Student's t with BATCHES - 1 degrees of freedom
TOO_NOISY = 0.01  # bounds further away than this: the run is too noisy for its length
FEWEST = 3 * BATCHES  # measured steps; fewer say nothing about noise

# TGS and log times come from one clock; the log also sees what the timer leaves out (formatting, diagnosis)
CLOCK_RELATIVE, CLOCK_ABSOLUTE = 0.01, 0.010  # share of a step, seconds a step
CLOCK_TRIM = 0.05  # rare pauses (garbage collection, a checkpoint) are no contradiction
HOUR = 3600.0  # s by which daylight saving changes local clocks
CHANGE = 60.0  # s that a step may take beside it
TFLOPS_RELATIVE = 1e-3
TGS_ROUNDING = 0.0051  # InternLM rounds TGS to two decimals


@dataclass(frozen=True)
class Sustained:
    """TGS over all measured steps, its one-sided 95 % bounds, and how step times vary (std / mean)."""

    tgs: float
    lower: float
    upper: float
    variation: float
    steps: int


def judge(
    steps: Steps,
    workload: Workload,
    minimum: Requirement | None,
    warmup: int = 10,
    peak_tflops: float | None = None,
) -> Verdict:
    """Pass when the lower bound of sustained TGS reaches the minimum, fail when the upper bound is below it.

    Tokens over time of the steps after the first `warmup`. Between the two: inconclusive, with the number of
    steps that would settle it. Self-reported figures that contradict each other fail, whatever the minimum.
    `peak_tflops` of a device gives MFU beside InternLM's TFLOPS; it decides nothing.
    """
    fault = (
        whole.fault(steps, None, workload)
        or implausible(steps)
        or contradicted_tflops(steps, workload)
        or contradicted_clock(steps, workload)
    )
    if fault:
        return fault.verdict("throughput")
    seconds = step_seconds(steps, workload)
    measured = seconds[warmup:]
    if len(measured) < FEWEST:
        reason = (
            f"{len(steps)} steps leave {len(measured)} after a warm-up of {warmup}; "
            f"bounds need {FEWEST} ({FEWEST + warmup} steps in all)."
        )
        needed = Measurement("steps_measured", len(measured), "steps", ">=", FEWEST)
        return Verdict("inconclusive", "throughput-too-few-steps", reason, (needed,))
    result = sustained(measured, workload)
    found = findings(seconds, steps, warmup)
    figures = (
        Measurement("tgs", result.tgs, UNIT),
        Measurement("tgs_upper95", result.upper, UNIT),
        Measurement("tflops", result.tgs * workload.tflops_per_tgs, "TFLOPS"),
        *utilization(result.tgs, workload, peak_tflops),
        Measurement("step_seconds", float(np.mean(measured)), "s"),
        Measurement("step_time_variation", result.variation, ""),
        Measurement("steps_measured", len(measured), "steps"),
    )
    text = f"TGS {result.tgs:,.0f} (95 % one-sided bounds {result.lower:,.0f} to {result.upper:,.0f})"
    if minimum is None or not math.isfinite(minimum.value):
        reason = f"{text}, but no minimum is on record to compare it with."
        lower = Measurement("tgs_lower95", result.lower, UNIT)
        return Verdict("not run", "throughput-no-requirement", reason, (lower, *figures), found)
    limit = minimum.value
    lower = Measurement("tgs_lower95", result.lower, UNIT, ">=", limit, minimum.source)
    rest = (lower, *figures)
    if result.lower >= limit:
        return Verdict("pass", "throughput-passed", f"{text} reaches the minimum {limit:,.0f} {UNIT}.", rest, found)
    if result.upper < limit:
        why = "".join(f" {finding.text}" for finding in found)
        reason = f"{text} is below the minimum {limit:,.0f} {UNIT}.{why}"
        return Verdict("fail", "throughput-below-minimum", reason, rest, found)
    needed = steps_needed(result, limit)
    settle = "no run length" if needed is None else f"about {needed + warmup:,} steps"
    settle += " would settle it"
    if 1 - result.lower / result.tgs > TOO_NOISY:
        noise = f"tep times vary by {result.variation:.1%}, too much for a run of {len(steps)} steps"
        found = (*found, Finding("too-noisy", f"S{noise}."))
        settle = f"s{noise}; {settle}"
    reason = f"{text} is too close to the minimum {limit:,.0f} {UNIT} to tell: {settle}."
    return Verdict("inconclusive", "throughput-uncertain", reason, rest, found)


def utilization(tgs: float, workload: Workload, peak_tflops: float | None) -> tuple[Measurement, ...]:
    """TFLOPS of the model alone (6 a parameter and token, and attention; nothing computed twice), and MFU."""
    if not workload.model_tflops_per_tgs:
        return ()
    tflops = tgs * workload.model_tflops_per_tgs
    model = Measurement("model_tflops", tflops, "TFLOPS")
    return (model, Measurement("mfu", tflops / peak_tflops, "")) if peak_tflops else (model,)


def step_seconds(steps: Steps, workload: Workload) -> Floats:
    """Seconds of each step, shape (n,), from self-reported TGS: data loading to optimizer."""
    return workload.tokens_per_step / workload.world / steps.tgs


def sustained(seconds: Floats, workload: Workload) -> Sustained:
    """Sustained TGS of steps that took `seconds`, shape (n >= FEWEST,)."""
    mean = float(np.mean(seconds))
    means = np.array([np.mean(batch) for batch in np.array_split(seconds, BATCHES)])
    half = T_95 * float(np.std(means, ddof=1)) / math.sqrt(BATCHES)
    tokens = workload.tokens_per_step / workload.world
    return Sustained(
        tgs=tokens / mean,
        lower=tokens / (mean + half),
        upper=tokens / (mean - half) if half < mean else math.inf,
        variation=float(np.std(seconds)) / mean,
        steps=len(seconds),
    )


def steps_needed(result: Sustained, limit: float) -> int | None:
    """Measured steps after which the bound would no longer straddle `limit`; None: at the limit, never."""
    gap = abs(1 / result.tgs - 1 / limit)
    half = 1 / result.lower - 1 / result.tgs
    if gap * 1000 < half:
        return None
    return math.ceil(result.steps * max(half / gap, 1.0) ** 2)


def implausible(steps: Steps) -> whole.Fault | None:
    """TGS figures that no clock gives: not above 0, not finite, or the same in every step."""
    bad = ~np.isfinite(steps.tgs) | (steps.tgs <= 0) | ~np.isfinite(steps.tflops)
    if bad.any():
        i = int(np.argmax(bad))
        reason = f"TGS is {steps.tgs[i]:g} and TFLOPS {steps.tflops[i]:g} at step {steps.step[i]}."
        measurement = Measurement("implausible_steps", int(bad.sum()), "steps", "==", 0)
        return whole.Fault("implausible", reason, (measurement,))
    if len(steps) >= 10 and len(np.unique(steps.tgs)) == 1:
        reason = f"All {len(steps)} steps report exactly {steps.tgs[0]:g} TGS; measured times vary."
        return whole.Fault("implausible", reason, (Measurement("distinct_tgs", 1, "", ">", 1),))
    return None


def contradicted_tflops(steps: Steps, workload: Workload) -> whole.Fault | None:
    """TFLOPS over TGS is a constant of the model; another ratio means one of the two is not InternLM's."""
    tolerance = TFLOPS_RELATIVE + TGS_ROUNDING / steps.tgs
    off = np.abs(steps.tflops / steps.tgs / workload.tflops_per_tgs - 1) > tolerance
    if not off.any():
        return None
    i = int(np.argmax(off))
    reason = (
        f"Step {steps.step[i]} reports {steps.tflops[i]:g} TFLOPS at {steps.tgs[i]:g} TGS, but this model does "
        f"{workload.tflops_per_tgs * steps.tgs[i]:.6g} TFLOPS at that TGS ({off.sum()} of {len(steps)} steps)."
    )
    measurement = Measurement("tflops_off_steps", int(off.sum()), "steps", "==", 0)
    return whole.Fault("tflops-contradicted", reason, (measurement,))


def contradicted_clock(steps: Steps, workload: Workload) -> whole.Fault | None:
    """Times between log lines against self-reported step times, the rare extremes left out."""
    if len(steps) < 3:
        return None
    seconds = step_seconds(steps, workload)[1:]
    between = np.diff(steps.time)
    order = np.argsort(between - seconds, kind="stable")
    trim = int(len(order) * CLOCK_TRIM)
    kept = order[trim : len(order) - trim]
    told, seen = float(np.mean(seconds[kept])), float(np.mean(between[kept]))
    allowed = CLOCK_RELATIVE * told + CLOCK_ABSOLUTE
    if abs(seen - told) <= allowed:
        return None
    tokens = workload.tokens_per_step / workload.world
    by_clock = f"{tokens / seen:,.6g}" if seen > 0 else "no possible"
    reason = (
        f"Self-reported TGS is {tokens / told:,.6g}, but the times of the log lines give {by_clock} TGS "
        f"({seen:.4g} s between lines, {told:.4g} s a step)."
    )
    measurement = Measurement("clock_difference", abs(seen - told), "s", "<=", allowed)
    return whole.Fault("clock-contradicted", reason, (measurement,))


def put_forward(steps: Steps, workload: Workload) -> float:
    """Seconds by which the log's clock was put forward (back: below 0) between the first and the last metric line.

    Log times are local: where daylight saving begins or ends, an hour is skipped or repeated that did not pass. Once
    each way at most, or it is no daylight saving.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.diff(steps.time) - step_seconds(steps, workload)[1:]
    ways = np.sign(off[np.abs(np.abs(off) - HOUR) < CHANGE])
    return HOUR * float(np.sum(ways)) if max(np.sum(ways > 0), np.sum(ways < 0)) <= 1 else 0.0


def findings(seconds: Floats, steps: Steps, warmup: int) -> tuple[Finding, ...]:
    """What a mean hides; decides nothing. `seconds` of all steps, shape (n,)."""
    measured = seconds[warmup:]
    looks: tuple[Callable[[], Finding | None], ...] = (
        lambda: _drift(measured),
        lambda: _stalls(measured),
        lambda: _bimodal(measured),
        lambda: _slow_start(seconds[:warmup], measured),
        lambda: _pauses(seconds, steps),
    )
    return tuple(finding for look in looks if (finding := look()) is not None)


def _drift(seconds: Floats) -> Finding | None:
    """First against last third: medians, so that single stalls are no drift."""
    first, *_, last = np.array_split(seconds, 3)
    change = float(np.median(last) / np.median(first) - 1)
    # long-run noise of a median, from how much the medians of ten pieces differ within each third
    pieces = [np.median(p) for third in (first, last) for p in np.array_split(third - np.median(third), 5)]
    noise = 2 * float(np.std(pieces)) / math.sqrt(5) / float(np.median(first))
    if abs(change) <= max(0.02, 3 * noise):
        return None
    word = "slower" if change > 0 else "faster"
    text = f"Steps at the end are {abs(change):.1%} {word} than at the beginning (throttling?)."
    return Finding("drift", text, (Measurement("drift", change, ""),))


def _stalls(seconds: Floats) -> Finding | None:
    """Steps that take half as long again as the median one and stand out of the noise."""
    median = float(np.median(seconds))
    spread = float(np.median(np.abs(seconds - median))) * 1.4826
    slow = np.flatnonzero(seconds > median + max(0.5 * median, 8 * spread))
    if not 1 <= len(slow) <= len(seconds) // 4:
        return None
    lost = float(np.sum(seconds[slow] - median) / np.sum(seconds))
    gaps = np.diff(slow)
    figures = (Measurement("stalled_steps", len(slow), "steps"), Measurement("time_in_stalls", lost, ""))
    if len(gaps) >= 3:
        usual = float(np.median(gaps))
        # a chance stall in between splits one gap; most of the others still agree
        if np.mean(np.abs(gaps - usual) <= max(1.0, 0.1 * usual)) >= 0.7:
            text = f"Every {usual:.0f} steps one stalls; {lost:.1%} of the time goes there."
            return Finding("periodic-stalls", text, figures)
    text = f"{len(slow)} step(s) take far longer than the rest; {lost:.1%} of the time goes there."
    return Finding("rare-stalls", text, figures)


def _bimodal(seconds: Floats) -> Finding | None:
    """Two groups of step times, each a tenth of the steps or more, far apart for their width."""
    ordered = np.sort(seconds)
    n = len(ordered)
    sums, squares = np.cumsum(ordered), np.cumsum(ordered**2)
    k = np.arange(max(n // 10, 2), n - max(n // 10, 2))  # size of the lower group
    low, high = sums[k - 1] / k, (sums[-1] - sums[k - 1]) / (n - k)
    within = np.maximum(squares[-1] - k * low**2 - (n - k) * high**2, 0) / n
    best = int(np.argmin(within))
    apart = float(high[best] - low[best])
    if apart < 0.05 * low[best] or apart < 6 * math.sqrt(float(within[best])):
        return None
    share = 1 - int(k[best]) / n
    text = f"Step times fall into two groups: {low[best]:.4g} s and, in {share:.0%} of the steps, {high[best]:.4g} s."
    return Finding("bimodal", text, (Measurement("slow_share", share, ""),))


def _slow_start(first: Floats, measured: Floats) -> Finding | None:
    extra = float(np.sum(first) - len(first) * np.median(measured))
    # compiling takes its time once; more than half of the measured time is worth a word
    if extra < 0.5 * float(np.sum(measured)):
        return None
    text = f"The first {len(first)} steps take {extra:.3g} s longer than the same number later."
    return Finding("slow-start", text, (Measurement("slow_start", extra, "s"),))


def _pauses(seconds: Floats, steps: Steps) -> Finding | None:
    outside = float(steps.time[-1] - steps.time[0] - np.sum(seconds[1:]))
    share = outside / float(np.sum(seconds[1:]))
    if share < 0.05 or outside < 1:
        return None
    text = f"{outside:,.3g} s ({share:.1%}) pass between steps, outside what TGS counts."
    return Finding("pauses", text, (Measurement("pauses", outside, "s"),))
