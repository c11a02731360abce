"""The whole path with real training: what `make accept` promises, and that what is broken shows red."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

from acceptance.judge import CRITERIA, Judge
from acceptance.requirements import load
from fixtures.evidence import latest
from fixtures.internlm.log import read
from fixtures.options import collect
from fixtures.runs import Runs
from fixtures.setup import prepare
from tests.suite import ROOT, acceptance

pytestmark = pytest.mark.slow
CASE = "tiny-tp1-pp1-zerodp"
ONLY = ("-k", f"{CASE} and not fsdp")


@pytest.fixture(scope="session")
def accepted(tmp_path_factory) -> Path:
    """Results of `pytest acceptance -k tiny-tp1-pp1-zerodp`, run for real."""
    results = tmp_path_factory.mktemp("accepted")
    done = acceptance(*ONLY, "--results", results)
    (results / "terminal.txt").write_text(done.stdout)
    assert done.returncode == 0, done.stdout
    return results


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_tiny_passes_all_four_criteria_and_is_not_certified(accepted):
    results = results_of(accepted)
    case = results["cases"][0]
    assert {name: case["criteria"][name]["outcome"] for name in CRITERIA} == dict.fromkeys(CRITERIA, "pass")
    assert results["models"][0] | {"model": "tiny", "conformant": True, "via": CASE} == results["models"][0]
    assert results["models"][0]["certifiable"] is False
    assert results["conformant"] is False, "tiny proves the suite, not the machine"


def test_the_terminal_shows_plan_progress_verdicts_and_where_the_report_is(accepted):
    text = (accepted / "terminal.txt").read_text()
    assert text.index("plan") < text.index("complete, 100 steps") < text.index("verdicts")
    assert f"report: {accepted / 'conformance.html'}" in text
    assert "tiny is never certifiable" in text


def test_evidence_results_report_and_junit_lie_where_they_are_promised(accepted):
    for run in ("speed", "repeat-1", "repeat-2", "long"):
        attempt = accepted / "runs" / CASE / run / "attempt-1"
        for name in ("request.json", "config.py", "end.json", "telemetry.jsonl"):
            assert (attempt / name).is_file(), name
        assert list((attempt / "nodes").glob("*.json"))
        assert read(latest(accepted, CASE, run).logs).steps.step[-1] == (399 if run == "long" else 99)
    page = (accepted / "conformance.html").read_text()
    assert CASE in page
    assert "srcdoc" in page, "pytest-html's document is part of the page"
    assert not (accepted / ".tests.html").exists()
    cases = ElementTree.parse(accepted / "junit.xml").iter("testcase")
    assert {case.get("name") for case in cases} == {f"test_{name}[{CASE}]" for name in CRITERIA}


def test_a_second_session_reuses_the_runs_and_judges_alike(accepted, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(accepted, copy)
    before = results_of(copy)["cases"]
    done = acceptance(*ONLY, "--results", copy)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("reused, an equal run is complete") == 4
    assert results_of(copy)["cases"] == before
    assert not (copy / "runs" / CASE / "speed" / "attempt-2").exists()


def test_recorded_evidence_is_judged_to_the_same_results_elsewhere(accepted, tmp_path):
    done = acceptance("--evidence", accepted, "--results", tmp_path)
    assert done.returncode == 0, done.stdout
    assert results_of(tmp_path)["cases"] == results_of(accepted)["cases"]
    assert not (tmp_path / "runs").exists()


def test_runs_side_by_side_under_xdist_give_the_same_verdicts_and_losses(accepted, tmp_path):
    arguments = ("--gpus", "4", "--gpus-per-run", "2", "-n", "2", "-m", "not convergence", "--results", tmp_path)
    done = acceptance("-k", f"({CASE} or tiny-tp2) and not fsdp", *arguments)
    assert done.returncode == 0, done.stdout
    assert "verdicts" in done.stdout
    verdicts = [
        {
            name: (verdict["outcome"], verdict["code"])
            for name, verdict in case["criteria"].items()
            if name != "convergence"
        }
        for folder in (accepted, tmp_path)
        for case in results_of(folder)["cases"]
        if case["case"] == CASE
    ]
    assert len(verdicts) == 2
    assert verdicts[0] == verdicts[1]
    for run in ("speed", "repeat-1", "repeat-2"):
        alone, beside = (read(latest(folder, CASE, run).logs).steps for folder in (accepted, tmp_path))
        assert alone.loss.tolist() == beside.loss.tolist()
        norms = [{group: values.tolist() for group, values in steps.grad_norm.items()} for steps in (alone, beside)]
        assert norms[0] == norms[1]
        assert not (tmp_path / "runs" / CASE / run / "attempt-2").exists(), "launched twice"


def test_a_training_process_killed_by_hand_gives_a_red_startup_with_the_reason(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "acceptance", *ONLY, "-m", "startup or throughput", "--results", tmp_path],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    victim = rank_at_work(process.pid, tmp_path)
    os.kill(victim.pid, signal.SIGKILL)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 1, text
    case = results_of(tmp_path)["cases"][0]["criteria"]
    assert case["startup"]["code"] == "startup-killed"
    assert "SIGKILL" in case["startup"]["reason"] or "killed" in case["startup"]["reason"], case["startup"]
    assert case["throughput"]["code"] == "throughput-run-failed"
    assert "startup-killed" in text
    assert "Traceback" not in text
    assert (tmp_path / "conformance.html").is_file()


def rank_at_work(pytest_pid: int, results: Path) -> psutil.Process:
    """A training process of the run, once it has made a few steps."""
    for _ in range(1200):
        logs = list(results.glob("runs/*/speed/attempt-1/logs/**/stderr.log"))
        if any(b"step=5 " in log.read_bytes() for log in logs):
            for process in psutil.process_iter(["cmdline", "environ"]):
                words = process.info["cmdline"] or []
                if str(results) in " ".join(words) and "RANK" in (process.info["environ"] or {}):
                    return process
        time.sleep(0.1)
    raise AssertionError("no training process made five steps")


@pytest.mark.parametrize("fault", ["frozen-attention", "shuffled-labels", "zero-learning-rate"])
def test_training_that_does_not_learn_shows_convergence_red(fault, tmp_path, monkeypatch):
    given = {
        "acceptance_results": str(tmp_path / "results"),
        "acceptance_model": "tiny",
        "acceptance_layout": ["zero=dp"],
    }
    if fault == "zero-learning-rate":
        override = tmp_path / "override.toml"
        override.write_text("[adam]\nlr = 0.0\n[lr_scheduler]\neta_min = 0.0\n")
        given |= {"acceptance_override": str(override), "acceptance_open": True}
    else:
        checkout = tmp_path / "checkout"
        checkout.mkdir()
        shutil.copy(ROOT / "tests" / "internlm" / "broken.py", checkout / "train.py")
        monkeypatch.setenv("BROKEN", fault)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        given |= {"acceptance_internlm": str(checkout)}
    requirements = load()
    setup = prepare(collect(given.get, lambda _: None), True, requirements.long_run)
    runs = Runs(setup, "test", requirements.long_run, print)
    runs.need(setup.cases[0], "long")
    verdict = Judge(tmp_path / "results", requirements).verdict(CASE, "convergence")
    assert (verdict.outcome, verdict.code) == ("fail", "convergence-above-maximum"), verdict
