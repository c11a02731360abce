"""Evidence of real runs on H200s and H100s, judged where there is no GPU: the verdicts are those of that day."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from acceptance import references
from acceptance.criteria import determinism
from acceptance.judge import workload_of
from benchmarks import certify8
from fixtures import devices
from fixtures.internlm.log import read

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "tests" / "data" / "evidence"
# Folder -> what was required that day; what had no minimum or reference yet is not in its recorded.json
RUNS = {
    "7B-h200": ["--min-tgs=8400"],
    "1.6B-h100": ["--min-tgs=15000", "--max-loss=0.5"],
    "oom-h100": [],
    "another-process-h100": [],
    "sigkill-h100": [],
    "1.6B-h200": [],
    "7B-tp2-2xh100": [],
    "layouts-2xh100": [],
    "scaling-1xh100": [],
    "scaling-2xh100": [],
    "side-by-side-2xh100": [],
    "sigkill-2xh100": [],
    "sigstop-2xh100": [],
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """name -> (exit status, output, cases of results.json by name), each judged as a lab does it."""
    return {name: judge(name, tmp_path_factory.mktemp(name), required) for name, required in RUNS.items()}


def judge(name, results, required):
    command = [sys.executable, "-m", "pytest", "acceptance", f"--evidence={EVIDENCE / name}", f"--results={results}"]
    done = subprocess.run(
        [*command, *required],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (results / "results.json").is_file(), done.stdout + done.stderr
    return done.returncode, done.stdout, cases(results / "results.json")


def cases(path):
    return {case["case"]: case for case in json.loads(path.read_text())["cases"]}


def only(judged, name):
    """(exit status, output, case) where the evidence holds one."""
    status, output, found = judged[name]
    (case,) = found.values()
    return status, output, case


@pytest.mark.parametrize("name", RUNS)
def test_the_verdicts_are_those_of_the_machine_that_ran(name, judged):
    recorded, found = cases(EVIDENCE / name / "recorded.json"), judged[name][2]
    assert recorded.keys() == found.keys()
    verdicts = [(case, *item) for case in recorded for item in recorded[case]["criteria"].items()]
    for case, criterion, verdict in verdicts:
        again = found[case]["criteria"][criterion]
        assert (again["outcome"], again["code"]) == (verdict["outcome"], verdict["code"]), (case, criterion)
        figures = {m["name"]: m for m in again["measurements"]}
        for measurement in verdict["measurements"]:
            assert figures[measurement["name"]] == measurement


def test_7b_on_one_h200_passes_its_short_criteria_at_over_40_percent_mfu(judged):
    status, _, found = only(judged, "7B-h200")
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
    status, _, found = only(judged, "1.6B-h100")
    assert (status, found["criteria"]["convergence"]["code"]) == (1, "convergence-above-maximum")
    assert "short-long-run" in [departure["code"] for departure in found["departures"]]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("oom-h100", "startup-out-of-memory", "rank 0 ran out of device memory"),
        ("another-process-h100", "startup-out-of-memory", "Process 1192 has 60.51 GiB memory in use"),
        ("sigkill-h100", "startup-killed", "rank 0 was killed (SIGKILL)"),
        ("sigkill-2xh100", "startup-killed", "rank 1 was killed (SIGKILL)"),
        (
            "sigstop-2xh100",
            "startup-hang",
            "nothing new for 60 s after step 4 (limit 60 s); rank 1 is stopped (SIGSTOP)",
        ),
    ],
)
def test_what_struck_the_gpu_is_red_and_named(name, code, said, judged):
    status, output, found = only(judged, name)
    assert (status, found["criteria"]["startup"]["code"]) == (1, code)
    assert said in output


def test_what_was_asked_for_and_what_was_free_is_in_the_verdict(judged):
    _, _, found = only(judged, "oom-h100")
    assert "It asked for 172.00 MiB where 106.19 MiB of 79.18 GiB was free." in found["criteria"]["startup"]["reason"]
    asked = next(m for m in found["criteria"]["startup"]["measurements"] if m["name"] == "memory_asked_rank_0")
    assert asked["value"] > asked["limit"] == pytest.approx(106.19 / 1024)
    assert figure(found, "startup", "headroom_rank_0") == asked["limit"]


def test_headroom_beside_the_peak_of_7b_on_one_h200(judged):
    _, _, found = only(judged, "7B-h200")
    assert "peak memory 136.5 of 140.4 GiB on rank 0, headroom 3.9 GiB (2.8%)" in found["criteria"]["startup"]["reason"]
    assert figure(found, "startup", "headroom_percent_rank_0") == pytest.approx(2.795, abs=0.01)


def test_the_train_py_that_ran_out_of_memory_exited_with_0():
    """Whoever trusts exit statuses would have called it a success; the supervisor ended its launcher."""
    (end,) = (EVIDENCE / "oom-h100").rglob("end.json")
    assert json.loads(end.read_text())["outcome"] == "failed"
    (log,) = (EVIDENCE / "oom-h100").rglob("stderr.log")
    assert "Raise exception from vm with rank id: 0" in log.read_text()


def test_7b_split_over_two_h100s_repeats_to_the_last_digit(judged):
    status, _, found = only(judged, "7B-tp2-2xh100")
    assert (status, found["criteria"]["determinism"]["code"]) == (0, "determinism-passed")
    assert figure(found, "determinism", "bit_equal_steps") == 100
    assert figure(found, "throughput", "tgs") > 8000
    # not what was recorded without tensor parallelism: that has other random weights
    assert "They follow the reference 7B-tp2-pp1-zero1-nvidia.json" in found["criteria"]["determinism"]["reason"]


@pytest.mark.parametrize("name", ["1.6B-h200", "side-by-side-2xh100"])
def test_a_curve_of_one_h100_is_followed_bit_by_bit_by_others_and_by_an_h200(name, judged):
    found = judged[name][2]["1.6B-tp1-pp1-zerodp"]
    assert "They follow the reference 1.6B-tp1-pp1-zerodp-nvidia.json" in found["criteria"]["determinism"]["reason"]
    assert figure(found, "determinism", "reference_mean_relative_error") == 0


@pytest.mark.parametrize("name", ["1.6B-h100", "side-by-side-2xh100", "7B-h200", "7B-tp2-2xh100"])
@pytest.mark.parametrize("family", ["nvidia", "ascend"])
def test_another_order_of_additions_is_within_the_tolerance_and_the_band(name, family):
    """Not bit-equal, and honest: the speed run against a repeat in deterministic mode, and against the reference."""
    case = next((EVIDENCE / name / "runs").glob("*B-*"))
    speed, repeat = ([*(case / run / "attempt-1").rglob("*.log")] for run in ("speed", "repeat-1"))
    a, b = read(speed).steps, read(repeat).steps
    assert np.sum(a.loss != b.loss) > 50
    request = json.loads((case / "speed" / "attempt-1" / "request.json").read_text())
    verdict = determinism.judge(a, b, "tolerance", workload_of(request), 100, references.find(request), family)
    assert verdict.outcome == "pass", verdict.reason
    assert "follow the reference" in verdict.reason


def test_runs_side_by_side_were_never_on_one_device(capsys):
    assert certify8.show_devices(EVIDENCE / "side-by-side-2xh100", devices_there=2)
    assert "6 runs, at most 2 at a time on 1 devices each; devices in telemetry: 2" in capsys.readouterr().out


def test_pytest_that_was_killed_leaves_a_long_run_that_is_no_pass(tmp_path):
    """7B on an H200, ended with its machine after 112 of 2,000 steps: no end is on record."""
    status, _, found = judge("cut-short-h200", tmp_path, ["--max-loss=2"])
    (case,) = found.values()
    assert (status, case["criteria"]["convergence"]["outcome"]) == (1, "fail")
    assert case["criteria"]["determinism"]["outcome"] == "pass"


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H200", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA GeForce", None)],
)
def test_the_peak_of_a_device_is_known_by_its_name_or_not_at_all(name, tflops):
    assert devices.profiles()["nvidia"].peak(name) == tflops


def figure(found, criterion, name):
    return next(m["value"] for m in found["criteria"][criterion]["measurements"] if m["name"] == name)
