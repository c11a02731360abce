"""The judge over whole evidence directories: what a verdict rests on, and that nothing missing becomes a pass."""

from __future__ import annotations

import json
import shutil

import pytest

from acceptance.criteria.codes import CODES
from acceptance.judge import CRITERIA, RUNS_NEEDED, Judge
from acceptance.requirements import load
from fixtures.evidence import SCHEMA, read_json, write_json
from fixtures.recorded import Assumptions
from tests.acceptance.evidence_7b import (
    CASE,
    COMPLETE,
    FAILED,
    LONG_STEPS,
    OTHER,
    RAN,
    judge,
    lab,
    record,
    write_attempt,
)
from tests.criteria.honest import evidence
from tests.internlm.requests import request_of


def outcomes(results: dict, case=CASE) -> dict[str, str]:
    found = next(c for c in results["cases"] if c["case"] == case.name)
    return {name: found["criteria"][name]["code"] for name in CRITERIA}


def test_honest_evidence_conforms(tmp_path):
    results = judge(record(tmp_path / "r"), tmp_path).results_json()
    assert outcomes(results) == {name: f"{name}-passed" for name in CRITERIA}
    assert results["conformant"] is True
    assert results["models"] == [
        {"model": "7B", "certifiable": True, "judged": True, "conformant": True, "via": CASE.name}
    ]
    assert results["cases"][0]["layout"] == {"tp": 1, "pp": 1, "zero": 8, "dp": 8}
    assert results["cases"][0]["runs"]["speed"] == f"runs/{CASE.name}/speed/attempt-1"


def test_every_deciding_measurement_has_a_comparator_and_a_finite_limit(tmp_path):
    results = judge(record(tmp_path / "r"), tmp_path).results_json()
    for verdict in results["cases"][0]["criteria"].values():
        assert verdict["code"] in CODES
        deciding = [m for m in verdict["measurements"] if m["comparator"]]
        assert deciding
        assert all(isinstance(m["limit"], (int, float)) and m["value"] is not None for m in deciding)


def test_judging_twice_gives_the_same_bytes(tmp_path):
    record(tmp_path / "r")
    once, twice = (json.dumps(judge(tmp_path / "r", tmp_path).results_json()) for _ in range(2))
    assert once == twice


@pytest.mark.parametrize("run", RUNS_NEEDED["determinism"] + RUNS_NEEDED["startup"] + RUNS_NEEDED["convergence"])
def test_a_missing_run_is_never_a_pass(tmp_path, run):
    record(tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "runs" / CASE.name / run)
    results = judge(tmp_path / "r", tmp_path).results_json()
    assert results["conformant"] is False
    for criterion, needed in RUNS_NEEDED.items():
        if run in needed:
            assert outcomes(results)[criterion] == f"{criterion}-not-run"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("devices", [1]),
        ("devices", [{"device": "GPU-1"}]),
        ("devices", [{"device": "GPU-1", "memory_before": 0, "memory_after": "9"}]),
        ("devices_unseen", 5),
        ("left", 5),
        ("ports_left", [{}]),
        ("telemetry_problems", [1]),
        ("failure", "x"),
        ("failure", {"class": "out of memory", "quoted": [1]}),
        ("seconds_to_first_step", "soon"),
        ("seconds", float("nan")),
        ("job", []),
    ],
)
def test_an_end_that_no_supervisor_writes_is_damaged_evidence_and_no_traceback(tmp_path, name, value):
    record(tmp_path / "r")
    path = tmp_path / "r" / "runs" / CASE.name / "speed" / "attempt-1" / "end.json"
    write_json(path, read_json(path) | {name: value})
    results = judge(tmp_path / "r", tmp_path).results_json()
    assert outcomes(results)["startup"] == "startup-unreadable"
    assert f"end.json: {name} holds" in results["cases"][0]["criteria"]["startup"]["reason"]


@pytest.mark.parametrize("run", ["speed", "repeat-1", "repeat-2", "long"])
@pytest.mark.parametrize("damage", ["truncated", "empty logs", "no logs", "no end", "end is a list", "no request"])
def test_damaged_evidence_is_never_a_pass(tmp_path, run, damage):
    folder = record(tmp_path / "r") / "runs" / CASE.name / run / "attempt-1"
    log = folder / "logs" / "stderr.log"
    if damage == "truncated":
        log.write_text("\n".join(log.read_text().splitlines()[:60]))
    elif damage == "empty logs":
        log.write_text("")
    elif damage == "no logs":
        shutil.rmtree(folder / "logs")
    elif damage == "no end":
        (folder / "end.json").unlink()
    elif damage == "end is a list":
        (folder / "end.json").write_text("[]")
    else:
        (folder / "request.json").unlink()
    found = judge(tmp_path / "r", tmp_path)
    for criterion, needed in RUNS_NEEDED.items():
        if run in needed:
            verdict = found.verdict(CASE.name, criterion)
            assert verdict.outcome in ("fail", "inconclusive"), verdict
            assert verdict.reason
    assert found.results_json()["conformant"] is False


def test_a_run_that_failed_is_told_once_in_full_and_in_one_line_where_it_was_needed(tmp_path):
    record(tmp_path / "r")
    folder = tmp_path / "r" / "runs" / CASE.name / "speed" / "attempt-1"
    write_json(folder / "end.json", FAILED)
    found = judge(tmp_path / "r", tmp_path)
    startup, throughput = found.verdict(CASE.name, "startup"), found.verdict(CASE.name, "throughput")
    assert startup.code == "startup-out-of-memory"
    assert "172.00 MiB" in startup.quoted[0]
    assert "rank 5" in startup.reason
    assert "larger tp" in startup.reason
    assert throughput.code == "throughput-run-failed"
    assert "out of memory" in throughput.reason
    assert "\n" not in throughput.reason
    assert found.verdict(CASE.name, "convergence").outcome == "pass", "its long run is on record"


def test_the_latest_attempt_is_judged_and_all_are_listed(tmp_path):
    record(tmp_path / "r")
    request = read_json(tmp_path / "r" / "runs" / CASE.name / "speed" / "attempt-1" / "request.json")
    write_attempt(tmp_path / "r", CASE.name, "speed", 10, request, "no steps here\n", FAILED)
    results = judge(tmp_path / "r", tmp_path).results_json()
    assert outcomes(results)["startup"] == "startup-out-of-memory"
    listed = results["cases"][0]["attempts"]["speed"]
    assert [(a["number"], a["outcome"]) for a in listed] == [(1, "complete"), (10, "failed")]


def test_one_long_run_a_model(tmp_path):
    record(tmp_path / "r")
    record(tmp_path / "r", OTHER, ("speed", "repeat-1", "repeat-2"), noise=7)
    results = judge(tmp_path / "r", tmp_path).results_json()
    assert outcomes(results, OTHER)["convergence"] == "convergence-see-other-case"
    assert results["conformant"] is True
    assert results["models"][0]["via"] == CASE.name


def test_a_case_that_failed_has_no_long_run_and_says_so(tmp_path):
    record(tmp_path / "r", runs=("speed", "repeat-1"))
    made, _ = evidence(99)
    request = request_of(CASE, "repeat-2", accelerator="nvidia") | RAN
    write_attempt(tmp_path / "r", CASE.name, "repeat-2", 1, request, "\n".join(made.second), COMPLETE)
    found = judge(tmp_path / "r", tmp_path)
    assert found.verdict(CASE.name, "determinism").code == "determinism-diverged"
    verdict = found.verdict(CASE.name, "convergence")
    assert (verdict.outcome, verdict.code) == ("not run", "convergence-short-runs-failed")


def test_without_a_requirement_nothing_passes(tmp_path):
    record(tmp_path / "r", fit_without_minimum())
    found = Judge(tmp_path / "r", load())
    name = fit_without_minimum().name
    assert found.verdict(name, "throughput").outcome == "not run"
    assert found.verdict(name, "throughput").code == "throughput-no-requirement"
    assert found.results_json()["conformant"] is False


def fit_without_minimum():
    from fixtures.cases import Layout, fit

    return fit("7B", Layout(8, 1, 1), 8)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"open": True, "settings": {"adam.lr": 1.0}}, "open"),
        ({"suite": {"version": "0.1.0", "commit": None, "diff_sha256": None}}, "unknown-suite"),
        ({"suite": {"version": "0.1.0", "commit": "0" * 40 + "-dirty", "diff_sha256": "1"}}, "dirty-suite"),
    ],
)
def test_departures_make_the_model_not_certifiable(tmp_path, changes, code):
    record(tmp_path / "r", **changes)
    results = judge(tmp_path / "r", tmp_path).results_json()
    assert [d["code"] for d in results["cases"][0]["departures"]] == [code]
    assert results["models"][0]["certifiable"] is False
    assert results["conformant"] is False


def test_a_long_run_under_the_models_own_length_is_a_departure(tmp_path):
    record(tmp_path / "r")
    found = Judge(tmp_path / "r", load(lab(tmp_path, LONG_STEPS + 1)))
    assert [d["code"] for d in found.results_json()["cases"][0]["departures"]] == ["short-long-run"]


def test_nothing_conforms_where_nothing_was_run(tmp_path):
    results = judge(tmp_path / "r", tmp_path).results_json([CASE])
    assert results["conformant"] is False
    assert set(outcomes(results).values()) == {f"{name}-not-run" for name in CRITERIA}
    assert results["schema"] == SCHEMA


def test_logs_brought_from_elsewhere_are_judged_and_never_certified(tmp_path):
    made, _ = evidence(5)
    for run, name in (("speed", "first"), ("repeat-1", "first"), ("repeat-2", "second")):
        folder = tmp_path / "logs" / CASE.name / run
        folder.mkdir(parents=True)
        (folder / "train.log").write_text("\n".join(getattr(made, name)))
    requirements = load(lab(tmp_path))
    assumptions = Assumptions(None, None, "nvidia", 100, requirements.long_run)
    results = Judge(tmp_path / "logs", requirements, assumptions=assumptions).results_json()
    assert outcomes(results)["throughput"] == "throughput-passed"
    assert outcomes(results)["determinism"] == "determinism-passed"
    assert [d["code"] for d in results["cases"][0]["departures"]] == ["logs-only"]
    assert results["conformant"] is False
