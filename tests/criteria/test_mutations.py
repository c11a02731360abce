"""Every mutation is noticed and no honest run rejected; `python -m benchmarks.judge_power` does it at scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acceptance.criteria import throughput
from acceptance.criteria.codes import CODES, FINDINGS
from acceptance.criteria.reference import Reference
from acceptance.criteria.verdict import Requirement, Verdict, Workload
from fixtures.internlm.log import read
from tests.criteria import honest, mutations
from tests.criteria.honest import Evidence
from tests.criteria.mutations import CATALOGUE, CHECKS

LOGS = Path(__file__).parents[1] / "data" / "logs"
NAMES = [m.name for m in CATALOGUE]


@pytest.fixture(scope="module")
def generated() -> Evidence:
    return honest.evidence(seed=11)[0]


@pytest.fixture(scope="module", params=["0.4.9", "0.3.14", "0.0.1"])
def real(request) -> Evidence:
    """Real logs of a wheel; where only one run of it was kept, its repeat is that run with other times."""
    return real_evidence(request.param)


def real_evidence(wheel: str) -> Evidence:
    first = (LOGS / f"{wheel}-dp2.log").read_text(encoding="utf-8").splitlines()
    repeat = LOGS / f"{wheel}-dp2-repeat.log"
    second = repeat.read_text(encoding="utf-8").splitlines() if repeat.exists() else other_times(first)
    steps = read([LOGS / f"{wheel}-dp2.log"]).steps
    workload = Workload(128, 32, 2, float(np.median(steps.tflops / steps.tgs)), entropy_floor=0.0405)
    sustained = throughput.sustained(throughput.step_seconds(steps, workload)[10:], workload)
    long = (LOGS / "0.4.9-dp2-long.log").read_text(encoding="utf-8").splitlines()
    return Evidence(
        first,
        second,
        long,
        workload=workload,
        minimum=Requirement(sustained.lower * 0.97, "tokens/GPU/s", "this log"),
        maximum=Requirement(1.5 * 0.0405, "nats per token", "1.5 x the entropy of the data"),
        long_steps=400,
        steps=len(steps),
        reference=Reference(steps.loss * 1.001, "reference.json", "another"),
        family="cpu",
    )


def other_times(lines: list[str]) -> list[str]:
    again = list(lines)
    rng = np.random.default_rng(3)
    factors = rng.uniform(0.9, 1.1, len(again))
    mutations.slower(again, lambda k: float(factors[k]))
    mutations.retime(again, lambda k, t: t + 3600)
    return again


def test_the_catalogue_is_large_and_names_are_unique():
    assert len(set(NAMES)) == len(NAMES) >= 40


@pytest.mark.parametrize("check", CHECKS)
def test_honest_generated_runs_pass(check, tmp_path):
    for seed in range(20):
        verdict = mutations.judge(honest.evidence(seed)[0], check, tmp_path)
        assert verdict.outcome == "pass", verdict.reason


@pytest.mark.parametrize("check", CHECKS)
def test_honest_real_runs_pass(real, check, tmp_path):
    verdict = mutations.judge(real, check, tmp_path)
    assert verdict.outcome == "pass", verdict.reason


@pytest.mark.parametrize("mutation", CATALOGUE, ids=NAMES)
def test_mutations_of_generated_runs_are_noticed(generated, mutation, tmp_path):
    notice(generated, mutation, tmp_path)


@pytest.mark.parametrize("mutation", CATALOGUE, ids=NAMES)
def test_mutations_of_real_logs_are_noticed(real, mutation, tmp_path):
    """Drift, stalls and two speeds drown in the noise of the shared machine these logs come from: quietened first."""
    notice(quiet(real) if mutation.needs_quiet else real, mutation, tmp_path)


def test_real_logs_quietened_pass_without_a_finding(real, tmp_path):
    assert not mutations.codes(mutations.judge(quiet(real), "throughput", tmp_path))


def quiet(evidence: Evidence) -> Evidence:
    """The same logs as of a machine whose steps all take the median time, but for 1 %."""
    made = evidence.copy()
    noise = np.random.default_rng(7).normal(1, 0.01, len(made.first))
    rates = [mutations.get(made.first[i], "tgs") for i in mutations.where(made.first)]
    mutations.slower(made.first, lambda k: rates[k] / np.median(rates) * noise[k])
    return made


def notice(evidence: Evidence, mutation: mutations.Mutation, folder: Path) -> None:
    mutated = evidence.copy()
    mutation.edit(mutated, np.random.default_rng(1))
    for check, expected in mutation.caught.items():
        verdict = mutations.judge(mutated, check, folder)
        assert mutations.noticed(verdict, expected), f"{check} says {verdict.code}: {verdict.reason}"
        check_form(verdict)


def check_form(verdict: Verdict) -> None:
    """What every verdict must be: listed codes, one sentence, and a pass with figures that a limit holds."""
    assert verdict.code in CODES
    assert all(finding.code in FINDINGS for finding in verdict.findings)
    assert "\n" not in verdict.reason
    assert verdict.reason
    if verdict.outcome == "pass":
        limited = [m for m in verdict.measurements if m.comparator]
        assert limited
        assert all(m.limit is not None and np.isfinite(m.limit) for m in limited)


def test_judging_twice_gives_the_same_bytes(generated, tmp_path):
    for check in CHECKS:
        first, second = (mutations.judge(generated, check, tmp_path).as_json() for _ in range(2))
        assert repr(first) == repr(second)
