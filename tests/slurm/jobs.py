"""Runs as Slurm jobs whose tasks print what ranks print, and waiting for what must come."""

from __future__ import annotations

import sys
import textwrap
import time
import uuid
from pathlib import Path

from fixtures import supervisor
from fixtures.evidence import Attempt, read_json, write_json
from fixtures.launchers import LAUNCHERS

TASK = r"""
import os, signal, subprocess, sys, time
rank = int(os.environ["SLURM_PROCID"])


def step(n, loss=5.0):
    if rank == 0:
        now = time.time()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + f",{int(now % 1 * 1000):03d}"
        print(f"{stamp}\tINFO train.py:317 in record_current_batch_training_metrics -- tflops=1.5 step={n} loss={loss} "
            f"tgs (tokens/gpu/second)=100.0 lr=0.1 loss_scale=1.0 grad_norm={{'0_default': 2.0}} micro_num=1 "
            f"num_consumed_tokens={(n + 1) * 8} inf_nan_skip_batches=0 num_samples_in_batch=8 loss/cn=nan",
            file=sys.stderr, flush=True)


def steps(count, pause=0.05):
    for n in range(count):
        step(n)
        time.sleep(pause)
"""


def prepared(root: Path, code: str, *, steps: int, site: str, detach: bool, accelerator: str, limits) -> Attempt:
    path = root / "runs" / "tiny" / "speed" / "attempt-1"
    (path / "logs").mkdir(parents=True)
    script = path / "task.py"
    script.write_text(TASK + textwrap.dedent(code), encoding="utf-8")
    request = {
        **{"case": "tiny", "run": "speed", "attempt": 1, "session": uuid.uuid4().hex, "seed": 1024},
        **{"gpus": 2, "nodes": 2, "world": 4, "accelerator": accelerator, "launcher": "slurm", "slurm_args": site},
        **{"internlm": {"train_py": str(script)}, "python": {"executable": sys._base_executable}, "detach": detach},
        "workload": {"steps": steps, "hours": None},
        "limits": {"lag_seconds": 1, **limits},
        "environment": {"GIVEN": "1"},
    }
    launcher = LAUNCHERS["slurm"]
    request["command"] = launcher(request, path)
    for file, text in launcher.files(request, path).items():
        file.write_text(text, encoding="utf-8")
    write_json(path / "request.json", request)
    return Attempt(path, "tiny", "speed", 1)


def ended(handle: supervisor.Handle, limit: float = 120) -> dict:
    deadline = time.monotonic() + limit
    while handle.poll() is not None:
        assert time.monotonic() < deadline, f"the run does not end: {handle.poll()}"
        time.sleep(0.05)
    return handle.attempt.end


def until(condition, limit: float = 60, handle=None):
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"it does not come about: {handle and handle.poll()}"
        time.sleep(0.05)
    return value


def training(handle):
    """Waits for the first step."""
    return until(lambda: (p := handle.poll()) and p.steps_seen, handle=handle)


def job_of(handle) -> str:
    return until(lambda: read_json(handle.attempt.path / "job.json").get("id"))


def queue(cluster) -> str:
    return cluster.ask("squeue", "--noheader", "--states=all", "--format=%i %T")
