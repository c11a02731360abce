"""What a criterion says of a case: an outcome, a code from a closed list, figures, and one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["pass", "fail", "inconclusive", "not run"]
Comparator = Literal[">=", ">", "<=", "<", "=="]


@dataclass(frozen=True)
class Requirement:
    """A threshold with its unit and where the number comes from, e.g. (3670.2, "tokens/GPU/s", "0.9 x ...")."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Measurement:
    """One figure; it decides a verdict only if it has a comparator and a finite limit.

    `str()` is the formula that a reader checks: `tgs_lower95 4,021 >= 3,670 tokens/GPU/s`.
    """

    name: str
    value: float | int | None
    unit: str
    comparator: Comparator | None = None
    limit: float | int | None = None
    source: str = ""

    def __str__(self) -> str:
        limit = f" {self.comparator} {_shown(self.limit)}" if self.comparator else ""
        return f"{self.name} {_shown(self.value)}{limit} {self.unit}".rstrip()

    def as_json(self) -> dict[str, Any]:
        """The measurement as results.json holds it; floats to 9 significant digits, NaN and infinity as null."""
        return {
            "name": self.name,
            "value": rounded(self.value),
            "unit": self.unit,
            "comparator": self.comparator,
            "limit": rounded(self.limit),
            "source": self.source,
        }


def _shown(value: float | int | None) -> str:
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


@dataclass(frozen=True)
class Finding:
    """Something worth knowing that decides nothing: a code and the figures that show it."""

    code: str
    text: str
    measurements: tuple[Measurement, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "text": self.text,
            "measurements": [m.as_json() for m in self.measurements],
        }


@dataclass(frozen=True)
class Verdict:
    """Outcome of one criterion for one case. `code` is one of CODES; `reason` is one sentence for a person."""

    outcome: Outcome
    code: str
    reason: str
    measurements: tuple[Measurement, ...] = ()
    findings: tuple[Finding, ...] = ()
    quoted: tuple[str, ...] = field(default=())  # decisive log lines, for the failure message and the report

    def as_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "code": self.code,
            "reason": self.reason,
            "measurements": [m.as_json() for m in self.measurements],
            "findings": [f.as_json() for f in self.findings],
            "quoted": list(self.quoted),
        }


def rounded(value: float | int | None) -> float | int | None:
    """9 significant digits: the same bytes on every machine, and JSON has no NaN."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.9g}") if math.isfinite(value) else None


@dataclass(frozen=True)
class Workload:
    """What the request fixed for every step of a run; the steps must agree with it.

    seq_len              tokens per sample
    global_batch         samples per step over all ranks (micro_bsz x micro_num x dp)
    world                number of ranks
    tflops_per_tgs       TFLOPS per (token/GPU/s) as InternLM computes it (DESIGN section 6)
    entropy_floor        nats per token: no honest loss on this data is lower; 0.0 where it is not known
    ignorant_loss        nats per token, ln(vocabulary): what a model starts at that knows nothing; None where it may
    model_tflops_per_tgs TFLOPS per (token/GPU/s) that the model itself takes, for MFU; 0.0 where it is not known
    """

    seq_len: int
    global_batch: int
    world: int
    tflops_per_tgs: float
    entropy_floor: float = 0.0
    ignorant_loss: float | None = None
    model_tflops_per_tgs: float = 0.0

    @property
    def tokens_per_step(self) -> int:
        return self.seq_len * self.global_batch
