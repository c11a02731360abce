"""Startup: training starts and keeps going without running out of memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from acceptance.criteria import whole
from acceptance.criteria.codes import FAILURE_CLASSES
from acceptance.criteria.convergence import UNIT
from acceptance.criteria.verdict import Finding, Measurement, Verdict, Workload
from fixtures.failures import Allocation, allocation, gib
from fixtures.release import left_behind

if TYPE_CHECKING:
    from fixtures.internlm.log import Reading


# Share of ignorant_loss. Random weights start at 0.91 (65B) to 1.01 (7B) of it; half of it, 5.8 nats per token for 7B,
# is the square root of the vocabulary in equally likely tokens, which no trained model leaves open on its own language.
LOADED = 0.5
FREE = "free, as the allocator says"


def judge(
    reading: Reading,
    end: Mapping[str, Any],
    expected_steps: int,
    workload: Workload | None = None,
    device_memory: Mapping[int, float] | None = None,
) -> Verdict:
    """Pass when the run made all its steps, whole, and nothing that is on record says that it failed.

    reading         what the logs say
    end             end.json; empty where logs were brought from elsewhere
    expected_steps  steps that the request asked for
    workload        to check tokens per step; None: not checked
    device_memory   GiB of each rank's device, where known: the limit of its peak

    The exit status is never believed: 0 with steps missing fails, and so does a failure on record with all steps.
    """
    totals = device_memory or {}
    asked, rank = _asked(end)
    memory = _memory(reading, totals)
    headroom = _headroom(reading, totals, asked, rank)
    measurements = (*_first_loss(reading, workload), *_seconds(end), *memory, *_wanted(asked, rank), *headroom)
    findings = _findings(reading, end, expected_steps)
    failed = _failure(reading, end, expected_steps)
    if failed is None:
        fault = (
            whole.fault(reading.steps, expected_steps, workload, reading.resumed)
            or _too_many(reading, expected_steps)
            or whole.not_finite(reading.steps)
            or _contradicted(memory)
            or _not_loaded(reading, workload)
        )
        failed = fault.verdict("startup") if fault else None
    steps = Measurement("steps", len(reading.steps), "steps", "==", expected_steps)
    if failed:
        return Verdict("fail", failed.code, failed.reason, (steps, *measurements), findings, failed.quoted)
    skipped = Measurement("skipped_updates", 0, "updates", "==", 0)
    reason = f"All {expected_steps:,} steps ran, none skipped" + _peak(reading, totals) + "."
    return Verdict("pass", "startup-passed", reason, (steps, skipped, *measurements), findings)


def _failure(reading: Reading, end: Mapping[str, Any], expected: int) -> Verdict | None:
    """What end.json has against the run, None if nothing; the steps are not looked at further."""
    outcome, failure = end.get("outcome"), end.get("failure")
    seen = f"{len(reading.steps):,} of {expected:,} steps"
    if failure:
        name = FAILURE_CLASSES.get(failure.get("class", "unknown"), "unknown-failure")
        rank = f" (rank {failure['rank']})" if failure.get("rank") is not None else ""
        advice = f" {failure['advice']}" if failure.get("advice") else ""
        reason = (
            f"After {seen}: {str(failure.get('summary') or name).rstrip('.')}{rank}.{_said(_asked(end)[0])}{advice}"
        )
        return Verdict("fail", f"startup-{name}", reason, quoted=tuple(failure.get("quoted") or ()))
    if outcome == "interrupted":
        return Verdict("fail", "startup-interrupted", f"The run was interrupted after {seen}.")
    if end and outcome != "complete":
        status = end.get("exit_status")
        reason = f"The run failed after {seen} with exit status {status}, and no line of the log says why."
        return Verdict("fail", "startup-unknown-failure", reason)
    return None


def _too_many(reading: Reading, expected: int) -> whole.Fault | None:
    n = len(reading.steps)
    if n <= expected:
        return None
    return whole.Fault("too-many-steps", f"{n:,} steps ran where {expected:,} were asked for.")


def _contradicted(measurements: tuple[Measurement, ...]) -> whole.Fault | None:
    for m in measurements:
        if m.limit is not None and m.value is not None and m.value > m.limit:
            reason = f"The log reports {m.name} = {m.value:g} GiB, but the device has {m.limit:g} GiB."
            return whole.Fault("memory-contradicted", reason)
    return None


def _first_loss(reading: Reading, workload: Workload | None) -> tuple[Measurement, ...]:
    """The loss before the first update, where the run starts from weights."""
    if workload is None or workload.ignorant_loss is None or not len(reading.steps):
        return ()
    limit = LOADED * workload.ignorant_loss
    return (Measurement("first_loss", float(reading.steps.loss[0]), UNIT, "<", limit, f"{LOADED:g} x ln(vocabulary)"),)


def _not_loaded(reading: Reading, workload: Workload | None) -> whole.Fault | None:
    if workload is None or workload.ignorant_loss is None:
        return None
    loss, limit = float(reading.steps.loss[0]), LOADED * workload.ignorant_loss
    if loss < limit:
        return None
    reason = (
        f"The first loss is {loss:.4g}; trained weights start below {limit:.4g}, random ones near "
        f"{workload.ignorant_loss:.4g}: the weights were not loaded, or do not go with the data's tokenizer."
    )
    return whole.Fault("weights-not-loaded", reason)


def _seconds(end: Mapping[str, Any]) -> tuple[Measurement, ...]:
    seconds = end.get("seconds_to_first_step")
    return () if seconds is None else (Measurement("seconds_to_first_step", float(seconds), "s"),)


def _memory(reading: Reading, totals: Mapping[int, float]) -> tuple[Measurement, ...]:
    return tuple(
        Measurement(f"peak_memory_rank_{rank}", memory.max_allocated, "GiB", "<=", totals[rank], "device memory")
        if rank in totals
        else Measurement(f"peak_memory_rank_{rank}", memory.max_allocated, "GiB")
        for rank, memory in reading.memory.items()
        if memory.max_allocated > 0 or rank in totals
    )


def _asked(end: Mapping[str, Any]) -> tuple[Allocation | None, int | None]:
    """(what was asked for, by the lines that are quoted; the rank) where a run ran out of memory."""
    failure = end.get("failure") or {}
    if failure.get("class") != "out of memory":
        return None, None
    return next(filter(None, map(allocation, failure.get("quoted") or ())), None), failure.get("rank")


def _said(asked: Allocation | None) -> str:
    if asked is None:
        return ""
    total = f" of {asked.total}" if asked.total else ""
    return f" It asked for {asked.asked}" + (f" where {asked.free}{total} was free." if asked.free else f"{total}.")


def _wanted(asked: Allocation | None, rank: int | None) -> tuple[Measurement, ...]:
    if asked is None:
        return ()
    name, size = "memory_asked" + ("" if rank is None else f"_rank_{rank}"), gib(asked.asked)
    if asked.free is None:
        return (Measurement(name, size, "GiB"),)
    return (Measurement(name, size, "GiB", "<=", gib(asked.free), FREE),)


def _headroom(
    reading: Reading, totals: Mapping[int, float], asked: Allocation | None, failed: int | None
) -> Iterator[Measurement]:
    """What is left of each rank's device beside its peak so far: from the first diagnosis lines on, a forecast.

    A rank that ran out of memory needed more than its lines tell: there it is what the allocator had left.
    """
    for rank, memory in reading.memory.items():
        total, free, source = totals.get(rank), None, FREE
        if rank == failed:
            free = gib(asked.free) if asked and asked.free else None
        elif total and memory.max_allocated > 0:
            free = total - memory.max_allocated
            source = f"device memory - peak memory, by its lines up to step {memory.step}"
        if total and free is not None:
            yield Measurement(f"headroom_rank_{rank}", free, "GiB", source=source)
            yield Measurement(f"headroom_percent_rank_{rank}", 100 * free / total, "%", source=source)


def _peak(reading: Reading, totals: Mapping[int, float]) -> str:
    """The peak of the rank that has the least headroom, where the devices' memory is known."""
    peaks = {rank: memory.max_allocated for rank, memory in reading.memory.items() if memory.max_allocated > 0}
    if not peaks:
        return ""
    if known := [rank for rank in peaks if rank in totals]:
        rank = min(known, key=lambda r: totals[r] - peaks[r])
        peak, total = peaks[rank], totals[rank]
        left = f"headroom {total - peak:,.1f} GiB ({1 - peak / total:.1%})"
        return f"; peak memory {peak:,.1f} of {total:,.1f} GiB on rank {rank}, {left}"
    return f"; peak memory {max(peaks.values()):,.1f} GiB"


def _findings(reading: Reading, end: Mapping[str, Any], expected: int) -> tuple[Finding, ...]:
    found = [
        Finding("odd-log", f"{odd.path.name}: {odd.text}" + (f" ({odd.count} times)" if odd.count > 1 else ""))
        for odd in reading.oddities
    ]
    if not end:
        found.append(Finding("end-not-recorded", "How the run ended is not on record (no end.json)."))
    elif end.get("exit_status") not in (0, None) and len(reading.steps) >= expected:
        found.append(Finding("exit-status", f"All steps are there, yet the exit status is {end['exit_status']}."))
    elif end.get("exit_status") == 0 and len(reading.steps) < expected:
        found.append(Finding("exit-status", "The exit status is 0 although steps are missing."))
    if left := left_behind(end):
        found.append(Finding("left-behind", f"Still in use after the run, and for the next one: {'; '.join(left)}."))
    if reason := end.get("devices_unseen"):
        found.append(Finding("release-not-seen", f"Nobody saw whether its devices' memory is free again: {reason}."))
    return tuple(found)
