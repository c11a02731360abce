"""A rank that prints without end: what a log of many gigabytes costs the suite, and whether it is judged rightly.

    python -m benchmarks.flood [--gigabytes N]

A run under the real supervisor writes N GB as fast as the disk takes them, lines of the kind that ranks repeat, with
its steps among them; then pytest judges the evidence as a lab does. Targets: the run is complete and its startup
passes, supervisor and judge stay under 200 MB of resident memory. Exit status 1 if one is missed. The log is deleted.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import faults
from benchmarks.supervision import TARGET_BYTES, WRITER
from fixtures import supervisor
from fixtures.evidence import Attempt, read_json, write_json

# After each step so much noise that the whole run fills the log; the lines are the writer's, with the case's tokens.
NOISE = """
noise = (
    "2026-11-24 05:12:19,134\\tWARNING comm.py:83 in barrier -- UserWarning: barrier(): using the device under "
    "current context. You can specify `device_id` in `init_process_group` to mute this warning.\\n"
).encode() * 5000
import os
target, steps, tokens = (int(word) for word in sys.argv[1:])
for step in range(steps):
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + ",%03d" % (now % 1 * 1000)
    sys.stdout.buffer.write((line % (stamp, step, (step + 1) * tokens)).encode() + b"\\n")
    sys.stdout.buffer.flush()
    written = os.fstat(1).st_size
    while written < target * (step + 1) // steps:
        written += os.write(1, noise)
"""


@dataclass(frozen=True)
class Cost:
    """What the log cost: seconds, and bytes resident at the peak; ended, judged: what was made of the run."""

    supervisor_seconds: float
    supervisor_bytes: int
    judge_seconds: float
    judge_bytes: int
    ended: str
    judged: str


def flood(folder: Path, size: int) -> Cost:
    """A run that prints `size` bytes, supervised and judged in `folder`."""
    attempt = faults.prepare(folder, faults.FAULTS[0], steps=100)
    workload = attempt.request["workload"]
    script = attempt.path / "writer.py"
    script.write_text(WRITER.partition("for step in")[0] + NOISE, encoding="utf-8")
    tokens = workload["seq_len"] * workload["global_batch"]
    words = [sys.executable, str(script), str(size), str(workload["steps"]), str(tokens)]
    write_json(attempt.path / "request.json", attempt.request | {"command": words})
    began, peak = time.monotonic(), 0
    handle = supervisor.start(attempt, detach=False)
    while handle.poll() is not None:
        peak = max(peak, high_water(handle.who["pid"]))
        time.sleep(0.1)
    supervised = time.monotonic() - began
    seconds, memory, code = judge(folder, attempt)
    return Cost(supervised, peak, seconds, memory, attempt.end["outcome"], code)


def judge(folder: Path, attempt: Attempt) -> tuple[float, int, str]:
    """(seconds, bytes resident at the peak, code of startup) of a session that judges what lies in `folder`."""
    words = [sys.executable, "-m", "pytest", "acceptance", "--evidence", str(folder), "--results", str(folder / "lab")]
    began, peak = time.monotonic(), 0
    session = subprocess.Popen(words, cwd=faults.ROOT, stdout=subprocess.DEVNULL)
    while session.poll() is None:  # not wait4's figure, which counts what the parent had when it forked
        peak = max(peak, high_water(session.pid))
        time.sleep(0.1)
    cases = read_json(folder / "lab" / "results.json").get("cases", [])
    codes = [case["criteria"]["startup"]["code"] for case in cases if case["case"] == attempt.case]
    return time.monotonic() - began, peak, codes[0] if codes else "not judged"


def high_water(pid: int) -> int:
    """Bytes that the process had resident at its peak; 0 once it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def main(arguments: list[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flood", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=10.0, help="size of the log (default: %(default)g)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        cost = flood(Path(folder), int(options.gigabytes * 1e9))
    for name, seconds, memory in (
        ("supervisor", cost.supervisor_seconds, cost.supervisor_bytes),
        ("judge", cost.judge_seconds, cost.judge_bytes),
    ):
        print(f"{name}: {seconds:.0f} s, {memory / 1e6:.0f} MB at the peak (at most {TARGET_BYTES / 1e6:.0f} MB)")
    print(f"a log of {options.gigabytes:g} GB: the run is {cost.ended}, {cost.judged}")
    right = (cost.ended, cost.judged) == ("complete", "startup-passed")
    return int(not right or not 0 < cost.supervisor_bytes < TARGET_BYTES or not cost.judge_bytes < TARGET_BYTES)


if __name__ == "__main__":
    sys.exit(main())
