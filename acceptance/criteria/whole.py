"""Whether the steps of a run are whole: what every criterion needs before it looks at a figure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from acceptance.criteria.verdict import Measurement, Verdict, Workload
from fixtures.steps import Steps


@dataclass(frozen=True)
class Fault:
    """Why steps are no evidence: the code without its criterion, one sentence, the figures."""

    code: str
    reason: str
    measurements: tuple[Measurement, ...] = ()

    def verdict(self, criterion: str) -> Verdict:
        return Verdict("fail", f"{criterion}-{self.code}", self.reason, self.measurements)


def fault(steps: Steps, expected: int | None, workload: Workload | None, resumed: bool = False) -> Fault | None:
    """The first thing that is wrong with `steps`; None when they are whole.

    Whole means: numbered 0..n-1 in this order, at least `expected` of them (None: any number but 0), no update
    skipped, not resumed, and as many tokens a step as the workload's global batch says (None: not checked).
    """
    n = len(steps)
    if n == 0:
        return Fault("no-steps", "The log holds no step.", (_count(0, expected or 1),))
    if resumed or steps.step[0] != 0:
        why = "the log says so" if resumed else f"its first step is {steps.step[0]}"
        first = Measurement("first_step", int(steps.step[0]), "", "==", 0)
        return Fault("resumed", f"The run continued from a checkpoint ({why}); start it afresh.", (first,))
    if wrong := _first(steps.step != np.arange(n)):
        i, count = wrong
        kind = "appears again or out of order" if steps.step[i] < i else f"comes where step {i} belongs"
        reason = f"The steps are not whole: step {steps.step[i]} {kind} ({count} steps out of place)."
        return Fault("steps-not-whole", reason, (Measurement("steps_out_of_place", count, "steps", "==", 0),))
    if steps.skipped[-1] != 0 or steps.skipped.any():
        most = int(steps.skipped.max())
        at = int(steps.step[np.argmax(steps.skipped != 0)])
        reason = f"InternLM skipped {most} parameter update{'s' * (most != 1)} (inf or NaN) by step {at}."
        return Fault("skipped-updates", reason, (Measurement("skipped_updates", most, "updates", "==", 0),))
    if expected is not None and n < expected:
        return Fault("too-few-steps", f"{n} of {expected} steps are there.", (_count(n, expected),))
    return _tokens(steps, workload) if workload else None


def _tokens(steps: Steps, workload: Workload) -> Fault | None:
    due = (np.arange(len(steps)) + 1) * workload.tokens_per_step
    wrong = _first(steps.consumed_tokens != due)
    if not wrong:
        return None
    i = wrong[0]
    batch = steps.consumed_tokens[i] / (i + 1) / workload.seq_len
    reason = (
        f"Step {i} has consumed {steps.consumed_tokens[i]:,} tokens, a global batch of {batch:,.6g} samples, "
        f"but the request fixes {workload.global_batch:,} samples of {workload.seq_len:,} tokens."
    )
    measurement = Measurement("global_batch", float(batch), "samples", "==", workload.global_batch)
    return Fault("tokens-per-step", reason, (measurement,))


def not_finite(steps: Steps, rows: int | None = None) -> Fault | None:
    """A loss or gradient norm of the first `rows` steps (None: all) that is NaN or infinite."""
    part = steps[: rows if rows is not None else len(steps)]
    for name, values in (("loss", part.loss), *((f"grad_norm {g}", v) for g, v in part.grad_norm.items())):
        if wrong := _first(~np.isfinite(values)):
            i, count = wrong
            reason = f"{name} is {values[i]} at step {part.step[i]} ({count} such steps)."
            return Fault("not-finite", reason, (Measurement("not_finite_steps", count, "steps", "==", 0),))
    return None


def implausible_loss(steps: Steps, rows: int | None = None) -> Fault | None:
    """Losses that no training prints: negative, zero, or the same digits again and again."""
    loss = steps.loss[: rows if rows is not None else len(steps)]
    if wrong := _first(loss <= 0):
        i, count = wrong
        reason = f"loss is {loss[i]:g} at step {i}; a cross-entropy is above 0."
        return Fault("implausible", reason, (Measurement("losses_not_positive", count, "steps", "==", 0),))
    # a loss carries seven digits, and every step sees other samples: some equal by chance, never half of them
    distinct = len(np.unique(loss))
    if len(loss) >= 10 and distinct <= len(loss) // 2:
        reason = f"{len(loss)} steps show only {distinct} different losses; every step sees other samples."
        limit = len(loss) // 2
        return Fault("implausible", reason, (Measurement("distinct_losses", distinct, "losses", ">", limit),))
    return None


def _count(n: int, expected: int) -> Measurement:
    return Measurement("steps", n, "steps", ">=", expected)


def _first(wrong: np.ndarray) -> tuple[int, int] | None:
    """(index of the first True, number of them), None if there is none."""
    count = int(np.count_nonzero(wrong))
    return (int(np.argmax(wrong)), count) if count else None
