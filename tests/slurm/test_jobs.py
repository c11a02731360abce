"""Runs as Slurm jobs, on a real cluster. Cheap tasks print what ranks print; the last test trains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from fixtures import slurm, supervisor
from fixtures.evidence import read_json
from tests.slurm.jobs import ended, job_of, queue, training, until
from tests.suite import ROOT, acceptance


def test_all_steps_and_completed_are_complete_and_each_node_has_spoken(launch, cluster):
    handle = launch("steps(3)")
    end = ended(handle)
    assert (end["outcome"], end["failure"], end["steps_seen"], end["exit_status"]) == ("complete", None, 3, 0)
    assert (end["job"]["state"], end["job"]["exit_code"], end["left"]) == ("COMPLETED", "0:0", [])
    assert end["job"]["id"] == job_of(handle)
    assert sorted(p.stem for p in (handle.attempt.path / "nodes").iterdir()) == cluster.nodes


@pytest.mark.parametrize("detach", [False, True], ids=["srun", "sbatch"])
def test_each_node_watches_its_own_ranks(launch, cluster, detach):
    end = ended(handle := launch("steps(40, 0.2)", steps=40, detach=detach, accelerator="cpu"))
    assert (end["outcome"], end["job"]["state"], end["left"]) == ("complete", "COMPLETED", []), end
    assert "telemetry_problems" not in end
    watched = {path.stem: {json.loads(line)["rank"] for line in path.open()} for path in handle.attempt.telemetry}
    assert watched == dict(zip(cluster.nodes, ({0, 1}, {2, 3}), strict=True))


def test_each_task_has_its_place_its_port_and_no_leak_of_an_outer_allocation(launch, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_NTASKS", "SBATCH_PARTITION", "SLURM_PARTITION", "MASTER_ADDR"):
        monkeypatch.setenv(name, "99")
    handle = launch(
        'print(sys.argv[-1], *[os.environ.get(n) for n in ("SLURM_NODEID", "SLURM_LOCALID", "GIVEN", "MASTER_ADDR")])\n'
        "steps(3)"
    )
    assert (end := ended(handle))["outcome"] == "complete", end
    said = [(handle.attempt.path / "logs" / f"rank-{n}.out").read_text().split() for n in range(4)]
    assert [words[1:] for words in said] == [[*place, "1", "None"] for place in ("00", "01", "10", "11")]
    assert len({words[0] for words in said}) == 1
    assert said[0][0].startswith("--port=")


def test_a_job_that_exits_0_without_its_steps_has_failed(launch):
    end = ended(launch("steps(2)"))
    assert (end["outcome"], end["job"]["state"], end["steps_seen"]) == ("failed", "COMPLETED", 2)
    assert "2 of 3 steps" in end["failure"]["summary"]


def test_a_failing_task_ends_the_others(launch, cluster):
    handle = launch("step(0)\nif rank == 3: sys.exit(7)\ntime.sleep(1000)")
    end = ended(handle)
    assert (end["outcome"], end["job"]["state"]) == ("failed", "FAILED")
    assert end["exit_status"]
    assert "rank 3" in end["failure"]["summary"], end["failure"]
    assert cluster.ask("squeue", "--noheader") == ""


def test_a_batch_script_that_hides_a_failed_task_has_failed(launch):
    # As if the script had ended with `true`: COMPLETED by Slurm's word.
    handle = launch("step(0)\nsys.exit(rank)", detach=True)
    end = ended(handle)
    assert (end["outcome"], end["job"]["state"]) == ("failed", "FAILED")


def test_pending_is_shown_with_slurms_reason_and_has_its_limit(launch, cluster):
    for node in cluster.nodes:
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    handle = launch("steps(3)", pending_seconds=6)
    message = until(lambda: (p := handle.poll()) and p.message)
    assert "PENDING (" in message
    end = ended(handle)
    assert (end["outcome"], end["failure"]["class"]) == ("failed", "set-up")
    assert "PENDING (" in end["failure"]["summary"]
    assert cluster.ask("squeue", "--noheader") == ""


def test_waiting_in_the_queue_is_no_hang(launch, cluster):
    for node in cluster.nodes:
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    handle = launch("steps(3)", startup_seconds=30)
    until(lambda: (p := handle.poll()) and "PENDING" in p.message)
    time.sleep(4)
    for node in cluster.nodes:
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert (end := ended(handle))["outcome"] == "complete", end


def test_an_unknown_partition_is_said_in_slurms_words(launch):
    end = ended(launch("steps(3)", site="--partition=nowhere"))
    assert (end["outcome"], end["failure"]["class"], end["job"]["id"]) == ("failed", "set-up", None)
    assert any("partition" in line for line in end["failure"]["quoted"]), end["failure"]


def test_a_cancelled_job_is_named(launch, cluster):
    handle = launch("steps(1000, 0.1)", steps=1000)
    training(handle)
    cluster.ask("scancel", job_of(handle))
    end = ended(handle)
    assert (end["outcome"], end["failure"]["class"]) == ("failed", "killed")
    assert "cancel" in end["failure"]["summary"].lower()


def test_a_node_drained_in_the_middle_lets_the_run_end_well(launch, cluster):
    handle = launch("steps(30, 0.1)", steps=30)
    training(handle)
    cluster.ask("scontrol", "update", f"NodeName={cluster.nodes[1]}", "State=DRAIN", "Reason=test")
    assert (end := ended(handle))["outcome"] == "complete", end


def test_a_node_that_fails_in_the_middle_is_named(launch, cluster):
    handle = launch("steps(1000, 0.1)", steps=1000)
    training(handle)
    cluster.ask("scontrol", "update", f"NodeName={cluster.nodes[1]}", "State=DOWN", "Reason=test")
    end = ended(handle)
    assert (end["outcome"], end["failure"]["class"]) == ("failed", "killed")
    assert "node" in end["failure"]["summary"].lower()


def test_a_silent_controller_is_shown_and_never_judged(launch, cluster):
    code = "steps(2)\nwhile not os.path.exists('go'): time.sleep(0.1)\nstep(2)"
    handle = launch(code, step_seconds_min=10)
    training(handle)
    cluster.stop_controller()
    try:
        until(lambda: (p := handle.poll()) and "asked 2 times" in p.message)
        time.sleep(10)  # longer than a step may take
        assert handle.poll() is not None
        assert not handle.attempt.end
    finally:
        cluster.start_controller()
        (handle.attempt.path / "go").touch()
    assert (end := ended(handle))["outcome"] == "complete", end


def test_stopping_leaves_no_job_and_no_task_whatever_the_callers_habits(launch, cluster, monkeypatch):
    for name in ("SQUEUE_PARTITION", "SCANCEL_PARTITION", "USER", "LOGNAME"):
        monkeypatch.setenv(name, "nobody")
    handle = launch("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsteps(1000, 0.1)", steps=1000)
    training(handle)
    job = job_of(handle)
    handle.stop("interrupted")
    assert handle.attempt.end["outcome"] == "interrupted"
    assert handle.attempt.end["left"] == []
    monkeypatch.delenv("SQUEUE_PARTITION")
    assert f"{job} CANCELLED" in queue(cluster)


def test_stopping_a_job_that_waits_takes_it_out_of_the_queue(launch, cluster):
    for node in cluster.nodes:
        cluster.ask("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    handle = launch("steps(3)")
    job = job_of(handle)
    handle.stop("interrupted")
    assert f"{job} CANCELLED" in queue(cluster)


def test_a_detached_job_survives_its_login_shell_and_is_found_again(launch, cluster):
    handle = launch("steps(60, 0.2)", steps=60, detach=True)
    training(handle)
    os.kill(handle.who["pid"], 9)  # the login node is gone
    handle.process.wait()
    assert not handle.attempt.end
    again = supervisor.attach(handle.attempt)
    assert again is not None
    end = ended(again)
    assert (end["outcome"], end["steps_seen"], end["job"]["state"]) == ("complete", 60, "COMPLETED")
    assert sorted(p.stem for p in (handle.attempt.path / "nodes").iterdir()) == cluster.nodes


ELSEWHERE = """
import socket, sys, time
from pathlib import Path
from fixtures import supervisor
from fixtures.evidence import Attempt
socket.sethostname("login2")
handle = supervisor.attach(Attempt(Path(sys.argv[1]), "tiny", "speed", 1))
print(handle.who["host"])
while handle.poll() is not None:
    time.sleep(0.1)
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="a second host name needs root and unshare"
)
@pytest.mark.parametrize("first", ["alive", "gone"])
def test_a_detached_job_is_followed_from_another_login_node(launch, cluster, first):
    handle = launch("steps(60, 0.2)", steps=60, detach=True)
    training(handle)
    if first == "gone":
        os.kill(handle.who["pid"], 9)
        handle.process.wait()
    command = ["unshare", "--uts", sys.executable, "-c", ELSEWHERE, str(handle.attempt.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [handle.who["host"] if first == "alive" else "login2"], "who supervises"
    end = handle.attempt.end
    assert (end["outcome"], end["steps_seen"], end["job"]["state"]) == ("complete", 60, "COMPLETED")


def test_a_detached_job_that_ended_unwatched_is_judged_by_what_it_left(launch):
    handle = launch("steps(10, 0.2)", steps=10, detach=True)
    job_of(handle)
    os.kill(handle.who["pid"], 9)
    handle.process.wait()
    until(lambda: any("step=9" in log.read_text() for log in handle.attempt.logs))
    time.sleep(2)
    assert ended(supervisor.attach(handle.attempt))["outcome"] == "complete"


def test_a_detached_job_that_slurm_has_forgotten_is_no_pass_and_not_waited_for(launch, cluster):
    handle = launch("steps(10, 0.2)", steps=10, detach=True)
    job_of(handle)
    os.kill(handle.who["pid"], 9)
    handle.process.wait()
    until(lambda: "COMPLETED" in queue(cluster))
    cluster.forget()
    end = ended(supervisor.attach(handle.attempt))
    assert (end["outcome"], end["failure"]["class"], end["job"]["state"]) == ("failed", "unknown", "FORGOTTEN"), end
    assert "MinJobAge" in end["failure"]["advice"]


@pytest.mark.slow
def test_the_time_limit_is_named(launch, cluster):
    handle = launch("steps(10000, 0.1)", steps=10000, site="--time=5")
    training(handle)
    cluster.ask("scontrol", "update", f"JobId={job_of(handle)}", "TimeLimit=0")  # Slurm looks every half minute
    end = ended(handle)
    assert (end["outcome"], end["failure"]["class"]) == ("failed", "killed")
    assert "time limit" in end["failure"]["summary"].lower()


@pytest.mark.slow
def test_tiny_trains_on_two_nodes_and_repeats_to_the_last_bit(accounting_cluster, tmp_path):
    """The whole path: pytest, srun, real InternLM on 4 ranks of 2 nodes, sacct, evidence, verdicts."""
    chosen = ["-k", "tiny-tp1-pp1-zerodp and not fsdp", "-m", "startup or determinism"]
    options = ["--launcher=slurm", "--nodes=2", "--gpus=2", "--accelerator=cpu", "--steps=12", f"--results={tmp_path}"]
    done = acceptance(*chosen, *options, seconds=900)
    assert done.returncode == 0, done.stdout[-3000:]
    (case,) = json.loads((tmp_path / "results.json").read_text())["cases"]
    assert {name: case["criteria"][name]["outcome"] for name in ("startup", "determinism")} == dict.fromkeys(
        ("startup", "determinism"), "pass"
    )
    for run in ("speed", "repeat-1", "repeat-2"):
        attempt = tmp_path / case["runs"][run]
        job = read_json(attempt / "end.json")["job"]
        assert (job["state"], job["steps"]) == ("COMPLETED", [])
        remembered = slurm.parse_sacct(slurm.ask(*slurm._sacct(job["id"])), job["id"])
        assert remembered.success
        assert remembered.settled
        assert sorted(p.stem for p in (attempt / "nodes").iterdir()) == accounting_cluster.nodes
