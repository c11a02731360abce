"""Evidence of a 7B case as a session leaves it, made from honest steps: what the judge is handed."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from acceptance.judge import Judge, Policy
from acceptance.requirements import load
from fixtures.cases import Layout, fit
from fixtures.evidence import write_json
from fixtures.internlm import config
from fixtures.steps import Steps
from tests.criteria.honest import evidence
from tests.internlm.lines import lines
from tests.internlm.requests import request_of

CASE = fit("7B", Layout(1, 1, 8), 8)
OTHER = fit("7B", Layout(2, 1, 4), 8)
LONG_STEPS = 1200
RUNS = {"speed": "speed", "repeat-1": "first", "repeat-2": "second", "long": "long"}
COMPLETE = {"schema": 1, "outcome": "complete", "exit_status": 0, "failure": None, "steps_seen": 100, "seconds": 3200.0}
FAILED = COMPLETE | {
    "outcome": "failed",
    "steps_seen": 3,
    "failure": {
        "class": "out of memory",
        "summary": "a device ran out of memory",
        "advice": "Try a layout with larger tp or zero.",
        "rank": 5,
        "file": "logs/5/stderr.log",
        "line": 77,
        "time": None,
        "quoted": ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB"],
    },
}
SUITE = {"version": "0.1.0", "commit": "0" * 40, "diff_sha256": None}


HOST = "node-17"
DEVICE_BYTES = 80 * 2**30
ZONE = timezone(timedelta(hours=8))
BEGAN = datetime(2026, 5, 4, 8, 0, tzinfo=ZONE)
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "internlm": "0.4.9"}
NODE = {
    "schema": 1,
    "host": HOST,
    "accelerator": "nvidia",
    "devices": [
        {"index": i, "id": f"GPU-1b2c3d4e-{i}", "name": "NVIDIA A100-SXM4-80GB", "memory_bytes": DEVICE_BYTES}
        for i in range(8)
    ],
    "driver": "550.54.15",
    **VERSIONS,
    "libraries": {"InternEvo": "0.4.9", "torch": "2.13.0"},
    "collective": "nccl 2.27.3",
    "vendor_tool": {"command": "nvidia-smi", "output": "| NVIDIA-SMI 550.54.15 |"},
    "kernel": "Linux-5.15",
    "cpu": "AMD EPYC 7742 x 128",
    "memory_bytes": 1 << 40,
    "clock": BEGAN.timestamp() - 30,
    "utc_offset": 28800,
    "problems": [],
}
RAN = {
    "schema": 1,
    "gpus": 8,
    "nodes": 1,
    "open": False,
    "seed": 1024,
    "challenge": None,
    "internlm": {
        "kind": "bundled", "version": "0.4.9", "generation": "v0.4", "path": "/venv/internlm", "commit": None,
        "diff_sha256": None, "digest": "d" * 64, "train_py": "/suite/train.py",
    },
    "python": {"executable": "/venv/bin/python", "version": VERSIONS["python"], "torch": VERSIONS["torch"]},
    "launcher": "torchrun",
    "hosts": [],
    "environment": {"PYTHONUNBUFFERED": "1", "PYTORCH_CUDA_ALLOC_CONF": None},
    "detach": False,
    "session": "s",
    "suite": SUITE,
}  # fmt: skip
RUN_SECONDS = {"speed": 0, "repeat-1": 2 * 3600, "repeat-2": 4 * 3600, "long": 6 * 3600}  # after BEGAN


def record(results: Path, case=CASE, runs=tuple(RUNS), noise: int = 1, late: int = 0, **changes) -> Path:
    """Write the evidence of `runs` as a session leaves it, `late` days after BEGAN; `changes` go into every request."""
    _, made = evidence(noise, LONG_STEPS)
    # The speed run is a run of its own: the same job in another hour.
    _, speed = evidence(noise + 1000, LONG_STEPS)
    for run in runs:
        steps = speed["first"] if run == "speed" else made[RUNS[run]]
        request = request_of(case, run, len(steps), accelerator="nvidia") | RAN | changes
        started = BEGAN + timedelta(days=late, seconds=RUN_SECONDS[run])
        attempt_at(results, case.name, run, 1, request, steps, started)
    return results


def attempt_at(results: Path, case: str, run: str, number: int, request: dict, steps: Steps, started: datetime) -> Path:
    """Write one complete attempt that started at a time, with everything that a session leaves."""
    local = (started.replace(tzinfo=timezone.utc)).timestamp()
    placed = replace(steps, time=np.round(steps.time - steps.time[0] + local + 60, 3))
    seconds = float(placed.time[-1]) - local + 4
    folder = results / "runs" / case / run / f"attempt-{number}"
    launch = f"/lab/runs/{case}/{run}/attempt-{number}"
    request = request | {
        "attempt": number,
        "cwd": f"{launch}/scratch",
        "command": ["/venv/bin/python", "-m", "torch.distributed.run", "--nproc_per_node=8", "/suite/train.py",
                    f"--config={launch}/config.py", "--launcher=torch", f"--seed={request['seed']}"],
        "started": started.isoformat(timespec="milliseconds"),
    }  # fmt: skip
    source = config.render(request)
    request["config_sha256"] = hashlib.sha256(source.encode()).hexdigest()
    ended = started + timedelta(seconds=seconds)
    end = COMPLETE | {
        "steps_seen": len(steps),
        "seconds": round(seconds, 3),
        "seconds_to_first_step": 60.0,
        "ended": ended.isoformat(timespec="milliseconds"),
    }
    log = [*head(request["world"], request["seed"], local + 20), *lines(placed)]
    write_attempt(results, case, run, number, request, "\n".join(log) + "\n", end)
    (folder / "config.py").write_text(source)
    write_json(folder / "nodes" / f"{HOST}.json", NODE)
    rows = [
        {"time": started.timestamp() + at, "rank": rank, "device": device["id"], "memory_used": 70 * 2**30}
        for at in (30, seconds / 2)
        for rank, device in enumerate(NODE["devices"])
    ]
    (folder / "telemetry.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def head(world: int, seed: int, seconds: float) -> list[str]:
    """What InternLM's ranks print before the first step: devices, seeds, memory."""
    stamp = str(np.datetime64(round(seconds * 1000), "ms")).replace("T", " ").replace(".", ",")
    ranks = range(world)
    return [
        *(f"{stamp}\tINFO parallel_context.py:613 in set_device -- process rank {r} is bound to host:{HOST} device: {r}"
          for r in ranks),
        *(f"{stamp}\tINFO parallel_context.py:660 in set_seed -- initialized seed on rank {r}, numpy: {seed}, python "
          f"random: {seed}, ParallelMode.DATA: {seed},the default parallel seed is ParallelMode.DATA." for r in ranks),
        *(f"{stamp}\tINFO gputest.py:147 in cuda_memory_analyze -- Rank:{r}-tp0-pp0-dp{r}: Step 0: Allocated 60.0 GB, "
          "Max_Allocated 70.5 GB, Reserved 72.0 GB, Max_Reserved 72.0 GB " for r in ranks),
    ]  # fmt: skip


def write_attempt(results: Path, case: str, run: str, number: int, request: dict, log: str, end: dict | None) -> Path:
    folder = results / "runs" / case / run / f"attempt-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "stderr.log").write_text(log)
    write_json(folder / "request.json", request)
    if end:
        write_json(folder / "end.json", end)
    return folder


def lab(tmp_path: Path, long_steps: int = LONG_STEPS) -> Path:
    """The lab's own requirements: a maximum loss, and a long run as short as the recorded one."""
    path = tmp_path / "lab.toml"
    path.write_text(
        f'[[loss]]\nmodel = "7B"\nmaximum = 0.014\nunit = "nats per token"\nsource = "the lab"\n'
        f'[[long]]\nmodel = "7B"\nsteps = {long_steps}\nsource = "the lab"\n'
    )
    return path


def judge(results: Path, tmp_path: Path, **policy) -> Judge:
    return Judge(results, load(lab(tmp_path)), Policy(**policy))
