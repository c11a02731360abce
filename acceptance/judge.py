"""The one judge: evidence and requirements in, results out. Live, nightly and at the lab it is this code path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from acceptance.criteria import convergence, determinism, startup, throughput
from acceptance.criteria.verdict import Verdict, Workload
from acceptance.requirements import Requirements
from fixtures import evidence, suite
from fixtures.evidence import Attempt, EvidenceError
from fixtures.internlm import flops
from fixtures.internlm.log import LogError, Reading, read

SCHEMA = 1
CRITERIA = ("startup", "throughput", "determinism", "convergence")
RUNS_NEEDED = {
    "startup": ("speed",),
    "throughput": ("speed",),
    "determinism": ("repeat-1", "repeat-2"),
    "convergence": ("long",),
}
SHORT_CRITERIA = CRITERIA[:3]
STEPS_OF_THE_PROCEDURE = 100


@dataclass(frozen=True)
class Policy:
    """What the one who judges decides, beside the requirements."""

    determinism: Literal["bitwise", "tolerance"] = "bitwise"
    reference: Path | None = None


@dataclass
class Judge:
    """Judges the cases whose evidence lies under `results`. Readings of ended attempts are kept: they cannot change."""

    results: Path
    requirements: Requirements
    policy: Policy = field(default_factory=Policy)
    _readings: dict[Path, Reading | LogError] = field(default_factory=dict)

    def verdict(self, case: str, criterion: str) -> Verdict:
        """The verdict of one criterion for one case, from the latest attempt of each run that it needs."""
        attempts = [evidence.latest(self.results, case, run) for run in RUNS_NEEDED[criterion]]
        if None in attempts:
            return self._without_run(case, criterion, RUNS_NEEDED[criterion][attempts.index(None)])
        try:
            return getattr(self, f"_{criterion}")(*attempts)
        except (EvidenceError, LogError) as error:
            return Verdict("fail", f"{criterion}-unreadable", f"the evidence cannot be read: {error}")
