"""Convergence: after the long run the loss is below its maximum."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from acceptance.criteria import throughput, whole
from acceptance.criteria.verdict import Finding, Measurement, Requirement, Verdict, Workload
from fixtures.steps import Steps

Floats = npt.NDArray[np.float64]
UNIT = "nats per token"
LAST = 100  # steps that the final loss is the median of; a tenth of a run shorter than ten times that


def judge(
    steps: Steps,
    workload: Workload,
    maximum: Requirement | None,
    required_steps: int,
    required_hours: float | None,
) -> Verdict:
    """Pass when the median loss at the end is below the maximum, and the run has reached its length.

    The length is `required_steps`, or `required_hours` from the first to the last metric line where that comes
    first. A final loss below the entropy floor of the data fails: no model can know what is random.
    """
    fault = (
        whole.fault(steps, None, workload)
        or whole.not_finite(steps)
        or whole.implausible_loss(steps)
        or _length(steps, workload, required_steps, required_hours)
    )
    if fault:
        return fault.verdict("convergence")
    final = final_loss(steps.loss)
    window = _window(len(steps))
    text = f"The median loss of the last {window} of {len(steps):,} steps is {final:.4g}"
    found = findings(steps.loss)
    length = _reached(steps, workload, required_steps, required_hours)
    floor = Measurement("median_loss", final, UNIT, ">=", workload.entropy_floor, "entropy of the data")
    if final < workload.entropy_floor:
        reason = f"{text}, below the entropy of the data, {workload.entropy_floor:.4g}: no honest run gets there."
        return Verdict("fail", "convergence-below-floor", reason, (floor, *length), found)
    if maximum is None or not math.isfinite(maximum.value):
        loss = Measurement("median_loss", final, UNIT)
        reason = f"{text}, but no maximum is on record to compare it with."
        return Verdict("not run", "convergence-no-requirement", reason, (loss, *length), found)
    loss = Measurement("median_loss", final, UNIT, "<", maximum.value, maximum.source)
    lowest = Measurement("loss_floor", final, UNIT, ">=", workload.entropy_floor, "entropy of the data")
    if final < maximum.value:
        reason = f"{text}, below the maximum {maximum.value:.4g}."
        return Verdict("pass", "convergence-passed", reason, (loss, lowest, *length), found)
    why = "".join(f" {finding.text}" for finding in found)
    reason = f"{text}, not below the maximum {maximum.value:.4g}.{why}"
    return Verdict("fail", "convergence-above-maximum", reason, (loss, *length), found)


def final_loss(loss: Floats) -> float:
    """Median of the last 100 losses, or of the last tenth of a run shorter than 1,000 steps; shape (n >= 1,)."""
    return float(np.median(loss[-_window(len(loss)) :]))


def _window(n: int) -> int:
    return min(LAST, max(n // 10, 1))


def _reached(steps: Steps, workload: Workload, required: int, hours: float | None) -> tuple[Measurement, ...]:
    """The length that was due, and what the run reached of it."""
    n = len(steps)
    if n >= required or hours is None:
        return (Measurement("steps", n, "steps", ">=", required),)
    return Measurement("steps", n, "steps"), Measurement("hours", _hours(steps, workload), "h", ">=", hours)


def _length(steps: Steps, workload: Workload, required: int, hours: float | None) -> whole.Fault | None:
    if len(steps) >= required:
        return None
    if hours is not None and (fault := throughput.implausible(steps)):
        return fault
    due = _reached(steps, workload, required, hours)
    ran = f", and {due[-1].value:.3g} of {hours:g} hours" if hours is not None else ""
    if hours is None or due[-1].value < hours:
        missing = Measurement("steps", len(steps), "steps", ">=", required)
        reason = f"{len(steps):,} of {required:,} steps ran{ran}."
        return whole.Fault("too-few-steps", reason, (missing, *due[1:]))
    # hours are only as good as the clock that the log shows
    return throughput.contradicted_clock(steps, workload)


def _hours(steps: Steps, workload: Workload) -> float:
    """Hours from the first to the last metric line."""
    return (float(steps.time[-1] - steps.time[0]) - throughput.put_forward(steps, workload)) / throughput.HOUR


def findings(loss: Floats) -> tuple[Finding, ...]:
    """The health of the trajectory, shape (n,); decides nothing."""
    if len(loss) < 50:
        return ()
    width = max(5, len(loss) // 200 * 2 + 1)
    smooth = _running_median(loss, width)
    looks = (_spikes(loss, np.maximum(smooth, np.roll(smooth, width))), _plateau(smooth), _rising(smooth))
    return tuple(finding for finding in looks if finding is not None)


def _running_median(loss: Floats, width: int) -> Floats:
    """Medians of consecutive blocks of `width`, repeated to shape (n,): cheap, and enough to see a trend."""
    blocks = len(loss) // width
    medians = np.median(loss[: blocks * width].reshape(blocks, width), axis=1)
    return np.concatenate([np.repeat(medians, width), np.full(len(loss) - blocks * width, medians[-1])])


def _spikes(loss: Floats, smooth: Floats) -> Finding | None:
    """`smooth` is the higher of this block's median and the one's before: a steep fall is no spike."""
    high = np.flatnonzero(loss > 1.5 * smooth + 0.1)
    high = high[high >= 10]  # the loss falls fast at first
    if not len(high):
        return None
    worst = int(high[np.argmax(loss[high] / smooth[high])])
    text = f"{len(high)} loss spike(s), the worst {loss[worst]:.4g} at step {worst}."
    return Finding("spikes", text, (Measurement("spikes", len(high), "steps"),))


def _plateau(smooth: Floats) -> Finding | None:
    """How long the loss stays within 5 % of where it began."""
    left = np.flatnonzero(np.abs(smooth / smooth[0] - 1) > 0.05)
    stayed = int(left[0]) if len(left) else len(smooth)
    if stayed < max(len(smooth) // 5, 20):
        return None
    text = f"The loss stays at {smooth[0]:.4g} for {stayed:,} steps."
    return Finding("plateau", text, (Measurement("plateau", stayed, "steps"),))


def _rising(smooth: Floats) -> Finding | None:
    """The end against the lowest point before it."""
    lowest = int(np.argmin(smooth))
    rise = float(np.median(smooth[-max(len(smooth) // 20, 1) :]) / smooth[lowest] - 1)
    if rise < 0.5:
        return None
    text = f"The loss rose by {rise:.0%} after its minimum {smooth[lowest]:.4g} near step {lowest:,}."
    return Finding("rising", text, (Measurement("rise_after_minimum", rise, ""),))
