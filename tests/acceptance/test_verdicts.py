"""From a criterion's question to pytest's answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from acceptance.criteria.verdict import Measurement, Verdict
from acceptance.verdicts import CANNOT_RUN, Verdicts, message_of, show
from tests.acceptance.evidence_7b import CASE, OTHER, judge, record


class NoRuns:
    """Runs that launch nothing: everything is on record, or `error` is in the way."""

    def __init__(self, error=None, long_all=False):
        self.error, self.asked = error, []
        self.setup = SimpleNamespace(options=SimpleNamespace(evidence="recorded", long_all=long_all))

    def need(self, case, run):
        self.asked.append((case.name, run))
        if self.error:
            raise self.error


@pytest.mark.parametrize("kind", CANNOT_RUN)
def test_what_keeps_a_run_from_being_launched_is_one_sentence_without_traceback(tmp_path, kind):
    verdicts = Verdicts(NoRuns(kind("the devices are taken; end the other session")), judge(tmp_path, tmp_path), [CASE])
    with pytest.raises(pytest.fail.Exception, match=r"^the devices are taken; end the other session$") as caught:
        verdicts.require(CASE, "startup")
    assert caught.value.pytrace is False


def test_the_long_run_goes_to_the_fastest_case_that_passed_and_to_it_alone(tmp_path):
    record(tmp_path / "r", CASE, ("speed", "repeat-1", "repeat-2"), seed=1)
    record(tmp_path / "r", OTHER, ("speed", "repeat-1", "repeat-2"), seed=7)
    runs = NoRuns()
    verdicts = Verdicts(runs, judge(tmp_path / "r", tmp_path), [CASE, OTHER])
    fastest = max((CASE, OTHER), key=lambda case: verdicts.judge.sustained_tgs(case.name))
    for case in (CASE, OTHER):
        with pytest.raises(pytest.skip.Exception):
            verdicts.require(case, "convergence")
    assert [case for case, run in runs.asked if run == "long"] == [fastest.name]


def test_a_case_whose_short_runs_did_not_pass_gets_no_long_run(tmp_path):
    record(tmp_path / "r", CASE, ("speed", "repeat-1"))
    runs = NoRuns(long_all=True)
    with pytest.raises(pytest.skip.Exception, match="determinism was not run"):
        Verdicts(runs, judge(tmp_path / "r", tmp_path), [CASE]).require(CASE, "convergence")
    assert "long" not in {run for _, run in runs.asked}


@pytest.mark.parametrize("outcome", ["fail", "inconclusive"])
def test_the_message_holds_code_reason_figures_and_decisive_lines(outcome):
    tgs = Measurement("tgs_lower95", 3941.0, "tokens/GPU/s", ">=", 4078)
    verdict = Verdict(outcome, "throughput-below-minimum", "TGS is below.", (tgs,), quoted=("a line of the log",))
    assert message_of(verdict).splitlines() == [
        f"{outcome} [throughput-below-minimum]: TGS is below.",
        "  tgs_lower95 3,941 >= 4,078 tokens/GPU/s",
        "  | a line of the log",
    ]
    with pytest.raises(pytest.fail.Exception):
        show(verdict)
