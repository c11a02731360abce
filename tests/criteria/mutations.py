"""The catalogue of what goes wrong or is forged, each as an edit of the text of honest logs.

A mutation names the criteria that must notice it, each with the codes it may show there: the code of a verdict
that is no pass, or that of a finding (for what decides nothing unless the minimum is missed).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np

from acceptance.criteria import convergence, determinism, startup, throughput
from acceptance.criteria.reference import Reference
from acceptance.criteria.verdict import Verdict
from fixtures.internlm.log import LogError, Reading, read
from tests.criteria.honest import Evidence

Edit = Callable[[Evidence, np.random.Generator], None]
RUNS = {"startup": ("first",), "throughput": ("first",), "determinism": ("first", "second"), "convergence": ("long",)}
CHECKS = ("startup", "throughput", "bitwise", "tolerance", "convergence")


@dataclass(frozen=True)
class Mutation:
    name: str
    edit: Edit
    caught: dict[str, tuple[str, ...]]  # check -> codes, without the criterion's name
    needs_quiet: bool = False  # a finding that a very noisy run hides


CATALOGUE: list[Mutation] = []


def mutation(name: str, needs_quiet: bool = False, **caught: str) -> Callable[[Edit], Edit]:
    """Register an edit; keywords are checks, values the codes, separated by spaces."""

    def register(edit: Edit) -> Edit:
        codes = {check: tuple(text.split()) for check, text in caught.items()}
        CATALOGUE.append(Mutation(name, edit, codes, needs_quiet))
        return edit

    return register


# --- reading and editing lines -------------------------------------------------------------------------------


def get(line: str, key: str) -> float:
    return float(_pattern(key).search(line)[2])


def put(line: str, key: str, value: object) -> str:
    found = _pattern(key).search(line)
    assert found, f"{key} is not in {line!r}"
    return line[: found.start(2)] + str(value) + line[found.end(2) :]


def _pattern(key: str) -> re.Pattern[str]:
    key = {"tgs": "tgs (tokens/gpu/second)", "tokens": "num_consumed_tokens", "skipped": "inf_nan_skip_batches"}.get(
        key, key
    )
    return re.compile(rf"(?<![\w/])({re.escape(key)}=)(\{{[^}}]*\}}|\[[^\]]*\]|[^ ,]+)")


def where(lines: list[str]) -> list[int]:
    """Indices of the metric lines; logs from real runs hold other lines as well."""
    return [i for i, line in enumerate(lines) if "metrics -- tflops=" in line]


EVERY = slice(None)


def change(lines: list[str], key: str, new: Callable[[int, float], object], only: slice = EVERY) -> None:
    """Replace a figure by new(index of the step, old value)."""
    for k, i in list(enumerate(where(lines)))[only]:
        lines[i] = put(lines[i], key, new(k, get(lines[i], key)))


def retime(lines: list[str], new: Callable[[int, float], float]) -> None:
    """Replace the times of the metric lines by new(index, seconds since the first)."""
    at = where(lines)
    times = [datetime.fromisoformat(lines[i][:23].replace(",", ".")) for i in at]
    for k, i in enumerate(at):
        stamp = times[0] + timedelta(seconds=new(k, (times[k] - times[0]).total_seconds()))
        lines[i] = stamp.isoformat(" ", "milliseconds").replace(".", ",") + lines[i][23:]


def slower(lines: list[str], factor: Callable[[int], float]) -> None:
    """A machine that takes factor(i) times as long for step i, and says so everywhere."""
    at = where(lines)
    times = [datetime.fromisoformat(lines[i][:23].replace(",", ".")) for i in at]
    gaps = [0.0, *((b - a).total_seconds() for a, b in pairwise(times))]
    sums = np.cumsum([gap * factor(k) for k, gap in enumerate(gaps)])
    for key in ("tgs", "tflops"):
        change(lines, key, lambda k, value: value / factor(k))
    retime(lines, lambda k, _: float(sums[k]))


def float32(value: float) -> float:
    return float(np.float32(value))


def drop(lines: list[str], k: int) -> None:
    del lines[where(lines)[k]]


# --- steps that are not whole: every criterion that uses the run must say so -----------------------------------

NOT_WHOLE = dict.fromkeys(CHECKS, "steps-not-whole too-few-steps")


def each(evidence: Evidence) -> tuple[list[str], ...]:
    return evidence.first, evidence.second, evidence.long


@mutation("a line lost in the middle", **NOT_WHOLE)
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        drop(lines, int(rng.integers(2, 90)))


@mutation("the second line lost", **NOT_WHOLE)
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        drop(lines, 1)


@mutation("a step twice, the second time later", **NOT_WHOLE)
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        i = where(lines)[int(rng.integers(2, 90))]
        lines.insert(i + 1, put(lines[i], "loss", 0.5 * get(lines[i], "loss")))


@mutation("two lines swapped", **NOT_WHOLE)
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        at = where(lines)
        i, j = at[40], at[41]
        lines[i], lines[j] = lines[j], lines[i]


@mutation("the numbers jump ahead by one", **NOT_WHOLE)
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        change(lines, "step", lambda k, step: int(step) + (k >= 60))


@mutation("restarted after a crash, in one log", **NOT_WHOLE)
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        again = [put(line, "loss", get(line, "loss") * 1.001) if "metrics --" in line else line for line in lines]
        lines[:] = lines[: where(lines)[30]] + again


@mutation(
    "the last line missing: 99 steps", startup="too-few-steps", bitwise="too-few-steps", tolerance="too-few-steps"
)
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in (e.first, e.second):
        del lines[where(lines)[99] :]


@mutation(
    "the last line cut in the middle", startup="too-few-steps", bitwise="too-few-steps", convergence="too-few-steps"
)
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in (e.first[: where(e.first)[e.steps - 1] + 1], e.long[: where(e.long)[-1] + 1]):
        lines[-1] = lines[-1][: int(rng.integers(100, 330))]
        (e.first if len(where(lines)) <= e.steps else e.long)[:] = lines


@mutation(
    "half of the steps",
    startup="too-few-steps",
    bitwise="too-few-steps",
    tolerance="too-few-steps",
    convergence="too-few-steps",
)
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        del lines[where(lines)[len(where(lines)) // 2] :]


@mutation("an empty log", **dict.fromkeys(CHECKS, "no-steps"))
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        lines.clear()


@mutation("the first step is 1", **dict.fromkeys(CHECKS, "resumed"))
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        drop(lines, 0)


@mutation("numbered from 1", **dict.fromkeys(CHECKS, "resumed"))
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        change(lines, "step", lambda k, step: int(step) + 1)


@mutation("resumed from a checkpoint, numbered from 0", startup="resumed")
def _(e: Evidence, rng: np.random.Generator) -> None:
    text = "===========Resume training from `local:ckpt/100` 03-01-12.00.00 on host:node==========="
    for lines in each(e):
        lines.insert(0, f"2024-03-01 12:00:00,000\tINFO checkpoint_manager.py:561 in try_resume_training -- {text}")


@mutation(
    "one update skipped: no line for it", **dict.fromkeys(CHECKS, "steps-not-whole skipped-updates too-few-steps")
)
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        drop(lines, 50)
        change(lines, "skipped", lambda k, _: 1, slice(50, None))


@mutation("one update skipped, the count alone tells", **dict.fromkeys(CHECKS, "skipped-updates"))
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        change(lines, "skipped", lambda k, _: 1, slice(50, None))


@mutation("tokens per step doubled: a larger global batch", **dict.fromkeys(CHECKS, "tokens-per-step"))
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        change(lines, "tokens", lambda k, tokens: int(tokens) * 2)


@mutation("the global batch grows after step 50", **dict.fromkeys(CHECKS, "tokens-per-step"))
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        change(lines, "tokens", lambda k, tokens: int(tokens) + 2048 * max(0, k - 50))


@mutation("a figure that is none", **dict.fromkeys(CHECKS, "unreadable"))
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        i = where(lines)[20]
        lines[i] = put(lines[i], "loss", "5.x1")


@mutation("two lines run into each other", **dict.fromkeys(CHECKS, "unreadable"))
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        i = where(lines)[20]
        j = where(lines)[21]
        lines[i] = lines[i][:200] + lines[j]
        del lines[j]


@mutation(
    "NaN at the last step", startup="not-finite", bitwise="not-finite", tolerance="not-finite", convergence="not-finite"
)
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        change(lines, "loss", lambda k, _: "nan", slice(-1, None))


@mutation(
    "an infinite loss", startup="not-finite", bitwise="not-finite", tolerance="not-finite", convergence="not-finite"
)
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        change(lines, "loss", lambda k, _: "inf", slice(30, 31))


@mutation("a flat line", bitwise="implausible", tolerance="implausible", convergence="implausible")
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        change(lines, "loss", lambda k, _: 0.0123456789)


@mutation("zero loss", bitwise="implausible", tolerance="implausible", convergence="implausible")
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        change(lines, "loss", lambda k, _: 0.0, slice(-60, None))


@mutation("a negative loss", bitwise="implausible", tolerance="implausible", convergence="implausible")
def _(e: Evidence, rng: np.random.Generator) -> None:
    for lines in each(e):
        change(lines, "loss", lambda k, loss: -loss, slice(70, 71))


# --- startup -------------------------------------------------------------------------------------------------


@mutation("out of memory, exit status 0", startup="out-of-memory")
def _(e: Evidence, rng: np.random.Generator) -> None:
    del e.first[where(e.first)[3] :]
    quoted = ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB"]
    failure = {"class": "out of memory", "summary": "rank 3 ran out of memory", "advice": "", "quoted": quoted}
    e.end = {"outcome": "failed", "exit_status": 0, "failure": failure}


@mutation("steps missing, exit status 0, outcome complete", startup="too-few-steps")
def _(e: Evidence, rng: np.random.Generator) -> None:
    del e.first[where(e.first)[60] :]


@mutation("a failure on record although all steps are there", startup="collective")
def _(e: Evidence, rng: np.random.Generator) -> None:
    e.end["failure"] = {"class": "collective", "summary": "NCCL error", "advice": "", "rank": 2, "quoted": []}


@mutation("interrupted by hand", startup="interrupted")
def _(e: Evidence, rng: np.random.Generator) -> None:
    del e.first[where(e.first)[60] :]
    e.end = {"outcome": "interrupted", "exit_status": -2, "failure": None}


@mutation("failed, and no rule knows why", startup="unknown-failure")
def _(e: Evidence, rng: np.random.Generator) -> None:
    e.end = {"outcome": "failed", "exit_status": 1, "failure": None}


# --- throughput ----------------------------------------------------------------------------------------------


@mutation("TGS scaled by 1.05", throughput="tflops-contradicted")
def _(e: Evidence, rng: np.random.Generator) -> None:
    change(e.first, "tgs", lambda k, tgs: round(tgs * 1.05, 2))


@mutation("TGS and TFLOPS scaled by 1.05", throughput="clock-contradicted")
def _(e: Evidence, rng: np.random.Generator) -> None:
    for key in ("tgs", "tflops"):
        change(e.first, key, lambda k, value: value * 1.05)


@mutation("TFLOPS scaled by 1.05", throughput="tflops-contradicted")
def _(e: Evidence, rng: np.random.Generator) -> None:
    change(e.first, "tflops", lambda k, value: value * 1.05)


@mutation("TFLOPS of one step inconsistent", throughput="tflops-contradicted")
def _(e: Evidence, rng: np.random.Generator) -> None:
    change(e.first, "tflops", lambda k, value: value * 1.01, slice(57, 58))


@mutation("times stretched by 1.1", throughput="clock-contradicted")
def _(e: Evidence, rng: np.random.Generator) -> None:
    retime(e.first, lambda k, t: t * 1.1)


@mutation("all times equal", throughput="clock-contradicted")
def _(e: Evidence, rng: np.random.Generator) -> None:
    retime(e.first, lambda k, t: 0.0)


@mutation("times run backwards", throughput="clock-contradicted")
def _(e: Evidence, rng: np.random.Generator) -> None:
    retime(e.first, lambda k, t: -t)


@mutation("every other step half outside the timer", throughput="clock-contradicted")
def _(e: Evidence, rng: np.random.Generator) -> None:
    for key in ("tgs", "tflops"):
        change(e.first, key, lambda k, value: value * (2 if k % 2 else 1))


@mutation("TGS the same in every step", throughput="implausible tflops-contradicted")
def _(e: Evidence, rng: np.random.Generator) -> None:
    ratio = get(e.first[where(e.first)[0]], "tflops") / get(e.first[where(e.first)[0]], "tgs")
    change(e.first, "tgs", lambda k, _: 9999.0)
    change(e.first, "tflops", lambda k, _: 9999.0 * ratio)


@mutation("TGS zero at one step", throughput="implausible")
def _(e: Evidence, rng: np.random.Generator) -> None:
    change(e.first, "tgs", lambda k, _: 0.0, slice(40, 41))


@mutation("TGS infinite at one step", throughput="implausible")
def _(e: Evidence, rng: np.random.Generator) -> None:
    change(e.first, "tgs", lambda k, _: "inf", slice(40, 41))


@mutation("a machine at half the minimum", throughput="below-minimum")
def _(e: Evidence, rng: np.random.Generator) -> None:
    slower(e.first, lambda k: 4.0)


@mutation("throttling after step 50", needs_quiet=True, throughput="drift below-minimum")
def _(e: Evidence, rng: np.random.Generator) -> None:
    slower(e.first, lambda k: 1.0 + 0.08 * (k >= 50))


@mutation("a slow start hidden in the warm-up", throughput="slow-start")
def _(e: Evidence, rng: np.random.Generator) -> None:
    slower(e.first, lambda k: 40.0 if k < 10 else 1.0)


@mutation("every tenth step stalls", needs_quiet=True, throughput="periodic-stalls")
def _(e: Evidence, rng: np.random.Generator) -> None:
    slower(e.first, lambda k: 3.0 if k % 10 == 5 else 1.0)


@mutation("two speeds", needs_quiet=True, throughput="bimodal below-minimum uncertain")
def _(e: Evidence, rng: np.random.Generator) -> None:
    slower(e.first, lambda k: 1.0 if k * 7919 % 10 < 6 else 1.3)


@mutation("20 steps", throughput="too-few-steps")
def _(e: Evidence, rng: np.random.Generator) -> None:
    del e.first[where(e.first)[20] :]


@mutation("no minimum on record", throughput="no-requirement")
def _(e: Evidence, rng: np.random.Generator) -> None:
    e.minimum = None


# --- determinism ---------------------------------------------------------------------------------------------


@mutation("one loss differs in one digit", bitwise="diverged")
def _(e: Evidence, rng: np.random.Generator) -> None:
    def next_float32(k: int, loss: float) -> float:
        return float(np.nextafter(np.float32(loss), np.float32(np.inf)))

    k = int(rng.integers(0, 100))
    change(e.second, "loss", next_float32, slice(k, k + 1))


@mutation("losses copied from the other run except one digit", bitwise="diverged")
def _(e: Evidence, rng: np.random.Generator) -> None:
    for i, j in zip(where(e.first), where(e.second), strict=False):
        text = _pattern("loss").search(e.first[i])[2]
        e.second[j] = put(e.second[j], "loss", text)
    i = where(e.second)[63]
    text = _pattern("loss").search(e.second[i])[2]
    digit = text[6]
    e.second[i] = put(e.second[i], "loss", text[:6] + ("1" if digit != "1" else "2") + text[7:])


@mutation("one gradient norm differs", bitwise="diverged")
def _(e: Evidence, rng: np.random.Generator) -> None:
    i = where(e.second)[70]
    norm = _pattern("grad_norm").search(e.second[i])[2]
    e.second[i] = put(
        e.second[i], "grad_norm", re.sub(r"(\d+\.\d+)", lambda m: repr(float(m[1]) * 1.001), norm, count=1)
    )


@mutation("a gradient norm's group missing", bitwise="groups-differ")
def _(e: Evidence, rng: np.random.Generator) -> None:
    for i in where(e.second):
        norm = _pattern("grad_norm").search(e.second[i])[2]
        e.second[i] = put(e.second[i], "grad_norm", re.sub(r", '1_fp32': [^}]*", "", norm))


def _offset(percent: float) -> Edit:
    def edit(e: Evidence, rng: np.random.Generator) -> None:
        change(e.second, "loss", lambda k, loss: float32(loss * (1 + percent / 100)))

    return edit


mutation("constant offset of 0.1 %", bitwise="diverged")(_offset(0.1))
mutation("constant offset of 1 %", bitwise="diverged")(_offset(1))
mutation("constant offset of 5 %", bitwise="diverged", tolerance="outside-tolerance")(_offset(5))


@mutation("noise of 4 % on every loss", bitwise="diverged", tolerance="outside-tolerance")
def _(e: Evidence, rng: np.random.Generator) -> None:
    change(e.second, "loss", lambda k, loss: float32(loss * (1 + 0.04 * (-1) ** k)))


@mutation("ten losses of the first half 3 % too high", bitwise="diverged", tolerance="outside-tolerance")
def _(e: Evidence, rng: np.random.Generator) -> None:
    k = int(rng.integers(0, 50))
    change(e.second, "loss", lambda k, loss: float32(loss * 1.03), slice(k, k + 10))


@mutation("ten losses 6 % too high", bitwise="diverged", tolerance="outside-tolerance")
def _(e: Evidence, rng: np.random.Generator) -> None:
    k = int(rng.integers(0, 90))
    change(e.second, "loss", lambda k, loss: float32(loss * 1.06), slice(k, k + 10))


@mutation("a single spike", bitwise="diverged", tolerance="outside-tolerance")
def _(e: Evidence, rng: np.random.Generator) -> None:
    k = int(rng.integers(2, 98))
    change(e.second, "loss", lambda k, loss: float32(loss * 2), slice(k, k + 1))


@mutation("shifted by one step", bitwise="diverged", tolerance="outside-tolerance")
def _(e: Evidence, rng: np.random.Generator) -> None:
    old = [get(e.second[i], "loss") for i in where(e.second)]
    change(e.second, "loss", lambda k, loss: old[min(k + 1, len(old) - 1)])


@mutation("apart from step 50 on, more and more", bitwise="diverged", tolerance="outside-tolerance")
def _(e: Evidence, rng: np.random.Generator) -> None:
    change(e.second, "loss", lambda k, loss: float32(loss * (1 + 0.004 * max(0, k - 50))))


@mutation("the same file twice", bitwise="same-log", tolerance="same-log")
def _(e: Evidence, rng: np.random.Generator) -> None:
    e.second = list(e.first)


@mutation("the same file twice, an hour later", bitwise="same-log", tolerance="same-log")
def _(e: Evidence, rng: np.random.Generator) -> None:
    e.second = list(e.first)
    retime(e.second, lambda k, t: t + 3600)


@mutation("the same file twice, an hour later, TGS touched", bitwise="same-log", tolerance="same-log")
def _(e: Evidence, rng: np.random.Generator) -> None:
    e.second = list(e.first)
    retime(e.second, lambda k, t: t + 3600)
    change(e.second, "tgs", lambda k, tgs: round(tgs + 0.01 * int(rng.integers(1, 9)), 2))


@mutation("the second repeat longer", bitwise="lengths-differ", tolerance="lengths-differ")
def _(e: Evidence, rng: np.random.Generator) -> None:
    last = e.second[where(e.second)[-1]]
    last = put(last, "step", int(get(last, "step")) + 1)
    e.second.append(put(last, "tokens", int(get(last, "tokens") / len(where(e.second)) * (len(where(e.second)) + 1))))


@mutation("a reference of 99 losses", bitwise="reference-length", tolerance="reference-length")
def _(e: Evidence, rng: np.random.Generator) -> None:
    e.reference = Reference(e.reference.losses[:99], "short.json")


def _reference(name: str, new: Callable[[np.ndarray], np.ndarray]) -> None:
    @mutation(name, bitwise="reference-missed", tolerance="reference-missed")
    def _(e: Evidence, rng: np.random.Generator) -> None:
        e.reference = Reference(new(np.array(e.reference.losses)), "reference.json", "another")


_reference("a reference 6 % off throughout", lambda losses: losses * 1.06)
_reference("a reference of another model", lambda losses: losses * 0.9 + 0.5)
_reference(
    "a reference that falls later",
    lambda losses: np.interp(np.arange(len(losses)) * 0.8, np.arange(len(losses)), losses),
)
_reference("a reference that is flat", lambda losses: np.full(len(losses), np.mean(losses)))


@mutation(
    "1 % off a reference of the same family, from step 0, growing to 10 %",
    bitwise="reference-missed",
    tolerance="reference-missed",
)
def _(e: Evidence, rng: np.random.Generator) -> None:
    losses = np.array([get(e.first[i], "loss") for i in where(e.first)][: e.steps])
    e.reference = Reference(losses * np.linspace(1.01, 1.1, len(losses)), "reference.json", e.family or "this")
    e.family = e.family or "this"


# --- convergence ---------------------------------------------------------------------------------------------


@mutation("nothing learned: the loss stays where it began", convergence="above-maximum")
def _(e: Evidence, rng: np.random.Generator) -> None:
    change(e.long, "loss", lambda k, loss: float32(11.6 + 0.05 * rng.standard_normal()))


@mutation("the loss rises after its minimum", convergence="above-maximum")
def _(e: Evidence, rng: np.random.Generator) -> None:
    n = len(where(e.long))
    change(e.long, "loss", lambda k, loss: float32(loss * (1 + 30 * max(0.0, k / n - 0.8))))


@mutation("only the last loss is low", convergence="above-maximum")
def _(e: Evidence, rng: np.random.Generator) -> None:
    n = len(where(e.long))
    change(e.long, "loss", lambda k, loss: float32(loss + 0.5 * (k < n - 1)))


@mutation("a loss below the entropy of the data", convergence="below-floor")
def _(e: Evidence, rng: np.random.Generator) -> None:
    change(
        e.long,
        "loss",
        lambda k, loss: float32(e.workload.entropy_floor * (0.9 - 0.01 * rng.random())),
        slice(-150, None),
    )


@mutation("stopped at 99 % of the steps", convergence="too-few-steps")
def _(e: Evidence, rng: np.random.Generator) -> None:
    del e.long[where(e.long)[int(len(where(e.long)) * 0.99)] :]


@mutation("stopped before its hours", convergence="too-few-steps")
def _(e: Evidence, rng: np.random.Generator) -> None:
    del e.long[where(e.long)[-100] :]
    e.long_hours = 72.0


@mutation("hours forged: times stretched", convergence="clock-contradicted")
def _(e: Evidence, rng: np.random.Generator) -> None:
    del e.long[where(e.long)[-100] :]
    e.long_hours = 72.0
    retime(e.long, lambda k, t: t * 20_000)


@mutation("no maximum on record", convergence="no-requirement")
def _(e: Evidence, rng: np.random.Generator) -> None:
    e.maximum = None


# --- judging -------------------------------------------------------------------------------------------------


def judge(evidence: Evidence, check: str, folder: Path) -> Verdict:
    """One check (a criterion; determinism in either mode) of log text, by way of files under `folder`."""
    criterion = "determinism" if check in ("bitwise", "tolerance") else check
    try:
        readings = [_read(getattr(evidence, name), folder / f"{name}.log") for name in RUNS[criterion]]
    except LogError as error:
        return Verdict("fail", f"{criterion}-unreadable", str(error))
    return decide(evidence, check, readings)


def decide(evidence: Evidence, check: str, readings: list[Reading]) -> Verdict:
    steps = readings[0].steps
    if check == "startup":
        return startup.judge(readings[0], evidence.end, evidence.steps, evidence.workload)
    if check == "throughput":
        return throughput.judge(steps, evidence.workload, evidence.minimum)
    if check == "convergence":
        hours = evidence.long_hours
        return convergence.judge(steps, evidence.workload, evidence.maximum, evidence.long_steps, hours)
    return determinism.judge(
        steps, readings[1].steps, check, evidence.workload, evidence.steps, evidence.reference, evidence.family
    )


def codes(verdict: Verdict) -> set[str]:
    """What a verdict shows: its code, without the criterion, unless it passed, and the codes of its findings."""
    shown = {finding.code for finding in verdict.findings}
    return shown if verdict.outcome == "pass" else shown | {verdict.code.split("-", 1)[1]}


def noticed(verdict: Verdict, expected: tuple[str, ...]) -> bool:
    return bool(codes(verdict) & set(expected))


def _read(lines: list[str], path: Path) -> Reading:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return read([path])
