"""What a real accounting says of jobs that the controller has forgotten, and what is made of it; an accounting that is
silent or late. The last test is the whole path on a cluster of accelerators, with a stand-in for InternLM."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

from fixtures import slurm, supervisor
from fixtures.evidence import read_json
from tests.internlm.standins import build
from tests.slurm.jobs import ended, job_of, training, until
from tests.suite import ROOT, acceptance

HUNGRY = "import time; held = [bytearray(50 << 20) for _ in range(10)]; time.sleep(60)"
PROBE = f"srun --job-name={slurm.PROBE_STEP} false"  # its end is not the run's

# name: (options, script, the job's state, exit code and failed steps by the accounting, the kind of the end)
ENDS = {
    "completed": ([], f"{PROBE}; srun true", "COMPLETED", "0:0", [], "well"),
    "failed": ([], "srun sh -c 'exit 7'", "FAILED", "7:0", ["batch", "0"], "badly"),
    "hidden": ([], "srun sh -c 'exit 3'; true", "COMPLETED", "0:0", ["0"], "well"),
    "cancelled": ([], "srun sleep 90", "CANCELLED by 0", "0:0", ["batch", "0"], "badly"),
    "overtime": (["--nodelist={one}"], "srun sleep 90", "TIMEOUT", "0:0", ["batch", "0"], "badly"),
    "hungry": (["--mem=200"], f"exec python3 -c '{HUNGRY}'", "FAILED", "0:9", ["batch"], "badly"),
    "requeued": (["--requeue"], "srun sleep 2", "COMPLETED", "0:0", [], "badly"),
    "nodefail": (["--nodelist={two}"], "srun sleep 90", "NODE_FAIL", "0:0", ["batch", "0"], "badly"),
}  # fmt: skip


@pytest.fixture(scope="module")
def forgotten(running_accounting_cluster):
    """Numbers of jobs by name, each ended in its way, and unknown to the controller since."""
    cluster = running_accounting_cluster
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        jobs = {}
        for name, (options, script, *_) in ENDS.items():
            options = [option.format(one=cluster.nodes[0], two=cluster.nodes[1]) for option in options]
            command = ["sbatch", "--parsable", "--ntasks=1", "--mem=50", "--no-requeue", "--output=/dev/null", *options]
            jobs[name] = cluster.ask(*command, f"--job-name={name}", f"--wrap={script}").strip()

        def state(name):
            return cluster.ask("squeue", "--noheader", "--states=all", f"--jobs={jobs[name]}", "--format=%T").strip()

        def at_work(name):
            until(lambda: state(name) == "RUNNING")
            until(lambda: f"{jobs[name]}.0" in cluster.ask("squeue", "--noheader", "--steps", "--format=%i"))

        at_work("requeued")
        cluster.ask("scontrol", "requeue", jobs["requeued"])
        at_work("overtime")
        cluster.ask("scontrol", "update", f"JobId={jobs['overtime']}", "TimeLimit=0")
        at_work("cancelled")
        cluster.ask("scancel", jobs["cancelled"])
        until(lambda: state("requeued") == "PENDING")
        cluster.ask(
            "scontrol", "update", f"JobId={jobs['requeued']}", "StartTime=now+3"
        )  # slurmd refuses a start in the second of the last one
        at_work("nodefail")
        others = [name for name in jobs if name not in ("nodefail", "overtime")]
        until(lambda: not any(state(name) in ("PENDING", "RUNNING", "COMPLETING") for name in others))
        cluster.ask("scontrol", "update", f"NodeName={cluster.nodes[1]}", "State=DOWN", "Reason=test")
        until(lambda: not any(map(state, jobs)), limit=90)
        cluster.restore()
        return jobs


@pytest.fixture
def cluster(accounting_cluster):
    return accounting_cluster


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDS)
def test_the_accounting_alone_tells_how_a_job_ended(forgotten, cluster, name):
    _, _, state, code, steps, kind = ENDS[name]
    job = forgotten[name]
    assert cluster.ask("scontrol", "show", "job", job) == "", "the controller remembers"
    report = slurm.look(job)
    assert (report.id, report.state, report.exit_code, report.kind) == (job, state, code, kind)
    assert [step.partition(".")[2] for step, *_ in report.steps] == steps
    assert report.success is (name == "completed")
    assert report.nodes.startswith(cluster.tag)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDS)
def test_one_line_a_job_and_cut_names_mean_the_same(forgotten, cluster, name):
    job, state = forgotten[name], ENDS[name][2]
    line = cluster.ask("sacct", "-X", "--parsable2", "--noheader", f"--jobs={job}", slurm.SACCT_FIELDS)
    assert slurm.parse_sacct(line, job).state == state
    (cut,) = {
        line.strip()
        for line in cluster.ask("sacct", "-X", "--noheader", f"--jobs={job}", "--format=State").splitlines()
    }
    assert len(cut) <= 10
    assert slurm.meaning(cut) == slurm.meaning(state)


@pytest.mark.slow
def test_a_requeued_job_has_a_record_of_each_start(forgotten, cluster):
    report = slurm.look(forgotten["requeued"])
    assert (report.restarts, report.meaning.name) == (1, "REQUEUED")


@pytest.mark.slow
def test_a_forgotten_job_is_found_by_its_name_also_after_midnight(forgotten, cluster, monkeypatch):
    west = int(time.time()) % 86400 - 1  # seconds; there, the day is a second old
    monkeypatch.setenv("TZ", f"WEST{west // 3600:02}:{west // 60 % 60:02}:{west % 60:02}")
    assert slurm.find("completed") == forgotten["completed"]
    assert slurm.find("nobody") is None


def test_a_silent_accounting_is_never_an_answer_about_a_forgotten_job(cluster):
    follower = slurm.Follower("x", "999999")
    assert not follower.turn()  # not known, or not yet
    cluster.stop_accounting()
    try:
        assert not follower.turn()
        assert "refused" in follower.message
        assert not follower.over()
    finally:
        cluster.start_accounting()


def submitted(cluster, script):
    """Number of a job that has just ended by the controller's word."""
    job = cluster.ask(
        "sbatch", "--parsable", "--ntasks=1", "--mem=50", "--output=/dev/null", f"--wrap={script}"
    ).strip()
    until(lambda: "JobState=COMPLETED" in cluster.ask("scontrol", "show", "job", job))
    return job


def test_while_the_accounting_is_silent_the_controllers_word_counts(cluster, monkeypatch):
    monkeypatch.setattr(slurm, "ACCOUNTING_SECONDS", 1)
    cluster.stop_accounting()
    try:
        assert slurm.look(submitted(cluster, "srun true")).success
    finally:
        cluster.start_accounting()


def test_an_accounting_that_is_late_is_waited_for(cluster):
    cluster.stop_accounting()
    back = threading.Timer(1, cluster.start_accounting)
    try:
        job = submitted(cluster, "srun sh -c 'exit 3'; true")
    finally:
        back.start()
    report = slurm.look(job)
    back.join()
    assert (report.state, report.exit_code, report.steps) == ("COMPLETED", "0:0", ((f"{job}.0", "FAILED", "3:0"),))
    assert not report.success


def test_a_run_is_complete_with_no_failed_step(launch, cluster):
    end = ended(launch("steps(3)"))
    assert (end["outcome"], end["job"]["state"], end["job"]["steps"]) == ("complete", "COMPLETED", []), end


def test_a_run_whose_task_fails_has_its_failed_steps_on_record(launch, cluster):
    end = ended(launch("step(0)\nif rank == 3: sys.exit(7)\ntime.sleep(1000)"))
    assert (end["outcome"], end["job"]["state"]) == ("failed", "FAILED")
    ((_, state, _),) = end["job"]["steps"]
    assert state in ("FAILED", "CANCELLED")  # as the other tasks' ends come in
    assert "rank 3" in end["failure"]["summary"], end["failure"]


def test_a_run_beyond_its_memory_is_named(launch, cluster):
    code = "step(0)\nheld = [bytearray(50 << 20) for _ in range(10 * (rank == 2))]\ntime.sleep(1000)"
    end = ended(launch(code, site="--mem=300"))
    assert (end["outcome"], end["failure"]["class"]) == ("failed", "out of memory"), end
    assert "host memory" in end["failure"]["summary"]


def test_a_detached_run_is_judged_when_only_the_accounting_remembers(launch, cluster):
    handle = launch("steps(10, 0.2)", steps=10, detach=True)
    training(handle)
    job = job_of(handle)
    handle.process.kill()
    handle.process.wait()
    until(lambda: not cluster.ask("scontrol", "show", "job", job))
    end = ended(supervisor.attach(handle.attempt))
    assert (end["outcome"], end["steps_seen"], end["job"]["state"]) == ("complete", 10, "COMPLETED"), end


@pytest.mark.slow
def test_a_cluster_of_accelerators_from_pytest_to_the_verdict(cluster, tmp_path):
    """The login node has no device; each node has two, and its file lists both, though a task sees one."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ncat {ROOT / 'tests' / 'data' / 'tools' / 'nvidia.txt'}\n")
    tool.chmod(0o755)
    done = acceptance(
        *("-k", "tiny-tp1-pp1-zerodp and not fsdp", "-m", "startup", "--results", tmp_path),
        *("--launcher=slurm", "--nodes=2", "--gpus=2", "--accelerator=nvidia", "--exclusive"),
        *("--internlm", build.checkout("v0.3.3dev20240315", tmp_path / "checkout")),
        environment={"PATH": f"{tool.parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stdout[-3000:]
    (case,) = json.loads((tmp_path / "results.json").read_text())["cases"]
    attempt = tmp_path / case["runs"]["speed"]
    job = read_json(attempt / "end.json")["job"]
    assert (job["state"], job["steps"]) == ("COMPLETED", [])
    nodes = {path.stem: read_json(path) for path in (attempt / "nodes").iterdir()}
    assert sorted(nodes) == cluster.nodes
    assert [[device["index"] for device in node["devices"]] for node in nodes.values()] == [[0, 1], [0, 1]]
