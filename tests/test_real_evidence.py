"""Evidence of real runs on an H200 and an H100, judged where there is no GPU: the verdicts are those of that day."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures import devices

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "tests" / "data" / "evidence"
# Folder -> what was required that day
RUNS = {
    "7B-h200": ["--min-tgs=8400"],
    "1.6B-h100": ["--min-tgs=15000", "--max-loss=0.5"],
    "oom-h100": [],
    "another-process-h100": [],
    "sigkill-h100": [],
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """name -> (exit status, output, the one case of results.json), each judged as a lab does it."""
    return {name: judge(name, tmp_path_factory.mktemp(name)) for name in RUNS}


def judge(name, results):
    command = [sys.executable, "-m", "pytest", "acceptance", f"--evidence={EVIDENCE / name}", f"--results={results}"]
    done = subprocess.run(
        [*command, *RUNS[name]],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (results / "results.json").is_file(), done.stdout + done.stderr
    return done.returncode, done.stdout, case(results / "results.json")


def case(path):
    (only,) = json.loads(path.read_text())["cases"]
    return only


@pytest.mark.parametrize("name", RUNS)
def test_the_verdicts_are_those_of_the_machine_that_ran(name, judged):
    recorded, found = case(EVIDENCE / name / "recorded.json"), judged[name][2]
    for criterion, verdict in recorded["criteria"].items():
        again = found["criteria"][criterion]
        assert (again["outcome"], again["code"]) == (verdict["outcome"], verdict["code"]), criterion
        figures = {m["name"]: m for m in again["measurements"]}
        for measurement in verdict["measurements"]:
            assert figures[measurement["name"]] == measurement


def test_7b_on_one_h200_passes_its_short_criteria_at_over_40_percent_mfu(judged):
    status, _, found = judged["7B-h200"]
    outcomes = {name: verdict["outcome"] for name, verdict in found["criteria"].items()}
    assert status == 0
    assert outcomes == {"startup": "pass", "throughput": "pass", "determinism": "pass", "convergence": "not run"}
    assert figure(found, "throughput", "mfu") > 0.40
    assert figure(found, "throughput", "mfu") == pytest.approx(
        figure(found, "throughput", "tgs") * 0.047149744128 / 989  # 6 x 7.321e9 + 12 x 4096 x 2048 x 32 a token
    )
    assert figure(found, "determinism", "bit_equal_steps") == 100
    (cost,) = [f for f in found["criteria"]["determinism"]["findings"] if f["code"] == "deterministic-cost"]
    assert "92% of the speed run's" in cost["text"]


def test_the_long_run_of_120_steps_is_red_and_not_certifiable(judged):
    status, _, found = judged["1.6B-h100"]
    assert (status, found["criteria"]["convergence"]["code"]) == (1, "convergence-above-maximum")
    assert "short-long-run" in [departure["code"] for departure in found["departures"]]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("oom-h100", "startup-out-of-memory", "rank 0 ran out of device memory"),
        ("another-process-h100", "startup-out-of-memory", "Process 1192 has 60.51 GiB memory in use"),
        ("sigkill-h100", "startup-killed", "rank 0 was killed (SIGKILL)"),
    ],
)
def test_what_struck_the_gpu_is_red_and_named(name, code, said, judged):
    status, output, found = judged[name]
    assert (status, found["criteria"]["startup"]["code"]) == (1, code)
    assert said in output


def test_what_was_asked_for_and_what_was_free_is_in_the_verdict(judged):
    found = judged["oom-h100"][2]
    assert "It asked for 172.00 MiB where 106.19 MiB of 79.18 GiB was free." in found["criteria"]["startup"]["reason"]
    asked = next(m for m in found["criteria"]["startup"]["measurements"] if m["name"] == "memory_asked_rank_0")
    assert asked["value"] > asked["limit"] == pytest.approx(106.19 / 1024)
    assert figure(found, "startup", "headroom_rank_0") == asked["limit"]


def test_headroom_beside_the_peak_of_7b_on_one_h200(judged):
    found = judged["7B-h200"][2]
    assert "peak memory 136.5 of 140.4 GiB on rank 0, headroom 3.9 GiB (2.8%)" in found["criteria"]["startup"]["reason"]
    assert figure(found, "startup", "headroom_percent_rank_0") == pytest.approx(2.795, abs=0.01)


def test_the_train_py_that_ran_out_of_memory_exited_with_0():
    """Whoever trusts exit statuses would have called it a success; the supervisor ended its launcher."""
    (end,) = (EVIDENCE / "oom-h100").rglob("end.json")
    assert json.loads(end.read_text())["outcome"] == "failed"
    (log,) = (EVIDENCE / "oom-h100").rglob("stderr.log")
    assert "Raise exception from vm with rank id: 0" in log.read_text()


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H200", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA GeForce", None)],
)
def test_the_peak_of_a_device_is_known_by_its_name_or_not_at_all(name, tflops):
    assert devices.profiles()["nvidia"].peak(name) == tflops


def figure(found, criterion, name):
    return next(m["value"] for m in found["criteria"][criterion]["measurements"] if m["name"] == name)
