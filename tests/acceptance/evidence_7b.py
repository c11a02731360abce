"""Evidence of a 7B case as a session leaves it, made from honest steps: what the judge is handed."""

from __future__ import annotations

import shutil
from pathlib import Path

from acceptance.judge import Judge, Policy
from acceptance.requirements import load
from fixtures.cases import Layout, fit
from fixtures.evidence import write_json
from tests.criteria.honest import evidence
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


def record(results: Path, case=CASE, runs=tuple(RUNS), seed: int = 1, **changes) -> Path:
    """Write the evidence of `runs`; `changes` go into every request.json."""
    made, _ = evidence(seed, LONG_STEPS)
    # The speed run is a run of its own: the same job in another hour.
    speed, _ = evidence(seed + 1000, LONG_STEPS)
    for run in runs:
        lines = speed.first if run == "speed" else getattr(made, RUNS[run])
        request = request_of(case, run, LONG_STEPS if run == "long" else 100, accelerator="nvidia")
        request |= {"open": False, "seed": 1024, "suite": SUITE, "attempt": 1} | changes
        write_attempt(results, case.name, run, 1, request, "\n".join(lines) + "\n", COMPLETE)
    return results


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
