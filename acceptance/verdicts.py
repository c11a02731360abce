"""From a test's question to pytest's answer: the runs that a criterion needs, then its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from acceptance.criteria.verdict import Verdict, rounded
from acceptance.judge import RUNS_NEEDED, SHORT_CRITERIA, Judge
from fixtures.cases import Case
from fixtures.devices import DeviceError
from fixtures.evidence import EvidenceError
from fixtures.leases import LeaseError
from fixtures.runs import RunError, Runs
from fixtures.slurm import SlurmError

CANNOT_RUN = (RunError, LeaseError, EvidenceError, DeviceError, SlurmError)  # each is one sentence for the user


@dataclass
class Verdicts:
    """The verdicts of one session; `selected` are the cases that -k and -m left."""

    runs: Runs
    judge: Judge
    selected: Sequence[Case]
    last: Verdict | None = None  # what the running test came to: its figures become properties in JUnit's file

    def require(self, case: Case, criterion: str) -> None:
        """Pass, fail or skip the calling test by the verdict of one criterion."""
        try:
            if criterion != "convergence" or self._deserves_long_run(case):
                for run in RUNS_NEEDED[criterion]:
                    self.runs.need(case, run)
        except CANNOT_RUN as error:
            pytest.fail(str(error), pytrace=False)
        self.show(self.judge.verdict(case.name, criterion))

    def show(self, verdict: Verdict) -> None:
        """A verdict as the calling test's outcome."""
        self.last = verdict
        show(verdict)

    def _deserves_long_run(self, case: Case) -> bool:
        """Short runs come first, of all cases of the model: one long run a model, for the fastest that passed."""
        if not self._can_converge(case) or not self._short_runs_pass(case):
            return False
        if self.runs.setup.options.long_all:
            return True
        rivals = [c for c in self.selected if (c.model, c.dataset) == (case.model, case.dataset)]
        passed = [c for c in rivals if self._short_runs_pass(c)]
        return case == max(passed, key=lambda c: self.judge.sustained_tgs(c.name))

    def _can_converge(self, case: Case) -> bool:
        """A long run without a length or a maximum loss on record would burn days for no verdict."""
        if self.runs.setup.options.evidence:
            return True
        request = self.runs.request(case, "long")
        return bool(request["workload"]["steps"]) and self.judge.requirements.maximum_loss(request) is not None

    def _short_runs_pass(self, case: Case) -> bool:
        for criterion in SHORT_CRITERIA:
            for run in RUNS_NEEDED[criterion]:
                self.runs.need(case, run)
            if self.judge.verdict(case.name, criterion).outcome != "pass":
                return False
        return True


def show(verdict: Verdict) -> None:
    """A verdict as pytest's outcome: pass; fail or inconclusive fails; not run skips. The message is the whole story:
    no traceback of the suite's own code."""
    if verdict.outcome == "pass":
        return
    message = message_of(verdict)
    if verdict.outcome == "not run":
        pytest.skip(message)
    pytest.fail(message, pytrace=False)


def properties(verdict: Verdict) -> list[tuple[str, str]]:
    """What JUnit's file says beside the outcome: the code, and every figure with what was required."""
    figures = [(m.name, m) for m in verdict.measurements if m.value is not None]
    required = [(f"{name}_required", f"{m.comparator} {rounded(m.limit)}") for name, m in figures if m.comparator]
    return [("code", verdict.code), *((name, str(rounded(m.value))) for name, m in figures), *required]


def message_of(verdict: Verdict) -> str:
    """What the failure section of the terminal shows: outcome, code, reason, figures, decisive log lines, findings."""
    if verdict.outcome == "not run":
        return verdict.reason
    figures = [f"  {m}" for m in verdict.measurements if m.comparator]
    quoted = [f"  | {line}" for line in verdict.quoted]
    findings = [f"  note: {finding.text}" for finding in verdict.findings]
    return "\n".join([f"{verdict.outcome} [{verdict.code}]: {verdict.reason}", *figures, *quoted, *findings])
