"""What supervision costs, and how fast it is.

    python -m benchmarks.supervision [--times N] [--lines N] [--seconds S]

1. From the decisive line in a log to the end of the run as a test sees it, all processes gone: real training of tiny,
   where one rank of two complains and stays, and the other waits for it in a collective. Target: median at most 2 s.
2. CPU of the supervisor while it follows a log that has 100,000 steps and grows by ten lines a second, in percent of
   one core. Target: at most 2 %; its memory at most 200 MB.

Exit status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks import faults
from fixtures import processes, supervisor
from fixtures.evidence import Attempt, write_json

GLOO_TIMEOUT = 1800.0  # seconds that torch's process group waits by default before it gives up
TARGET_SECONDS, TARGET_PERCENT, TARGET_BYTES = 2.0, 2.0, 200e6

WRITER = """
import sys, time
line = (
    "%s\\tINFO train.py:317 in record_current_batch_training_metrics -- tflops=1.5 step=%d loss=5.25 tgs (tokens/gpu/"
    "second)=100.0 tgs/last_tgs_1=100.0 tgs/tgs_all=100.0 tgs/tgs_avg=100.0 tgs/tgs_SMA=100.0 tgs/last_tgs_10=100.0 "
    "tgs/last_tgs_50=100.0 lr=0.0003 loss_scale=1.0 grad_norm={'0_default': 2.25} micro_num=2 num_consumed_tokens=%d "
    "inf_nan_skip_batches=0 num_samples_in_batch=8 largest_length=128 largest_batch=8 smallest_batch=8 adam_beta2=0.95 "
    "fwd_bwd_time=0.1 acc=0.1 perplexity=190.0 acc/en=0.1 acc/cn=nan loss_from_metric=5.2500 loss/en=5.25 loss/cn=nan"
)
for step in range(10**9):
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + ",%03d" % (now % 1 * 1000)
    print(line % (stamp, step, (step + 1) * 1024), flush=step >= int(sys.argv[1]))
    if step >= int(sys.argv[1]):
        time.sleep(0.1)
"""


def verdict_seconds(folder: Path) -> float:
    """Seconds from a rank's own time of the decisive line to poll() saying that the run has ended."""
    fault = next(f for f in faults.FAULTS if f.name == "out of memory, rank stays")
    attempt = faults.prepare(folder, fault)
    handle = supervisor.start(attempt, detach=False)
    while handle.poll() is not None:
        time.sleep(0.02)
    ended = time.time()
    if processes.marked(handle.who["mark"]) or attempt.end["failure"]["class"] != fault.failure:
        raise SystemExit(f"the run did not end as it should: {attempt.end}")
    said = next(line for path in attempt.logs for line in path.read_text().splitlines() if line.startswith("STRUCK "))
    return ended - float(said.split()[1])


def following(folder: Path, lines: int, seconds: float) -> tuple[float, float]:
    """(percent of one core, bytes resident) of a supervisor whose log has `lines` steps and grows by ten a second."""
    path = folder / "runs" / "tiny" / "long" / "attempt-1"
    (path / "logs").mkdir(parents=True)
    (path / "writer.py").write_text(WRITER, encoding="utf-8")
    request = {"command": [sys.executable, str(path / "writer.py"), str(lines)], "workload": {"steps": 10**9}}
    write_json(path / "request.json", request | {"accelerator": "cpu", "gpus": 2})
    handle = supervisor.start(Attempt(path, "tiny", "long", 1), detach=False)
    while (progress := handle.poll()) is not None and progress.steps_seen < lines:
        time.sleep(0.1)
    process = psutil.Process(handle.who["pid"])
    before, began = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after, passed = process.cpu_times(), time.monotonic() - began
    memory = process.memory_info().rss
    handle.stop("measured")
    used = after.user + after.system - before.user - before.system
    return 100 * used / passed, float(memory)


def main(arguments: list[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.supervision")
    parser.add_argument("--times", type=int, default=15, help="runs for the first figure (default: %(default)s)")
    parser.add_argument("--lines", type=int, default=100_000, help="steps in the log (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of following (default: %(default)s)")
    options = parser.parse_args(arguments)
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        percent, memory = following(Path(folder), options.lines, options.seconds)
    missed += percent > TARGET_PERCENT or memory > TARGET_BYTES
    print(f"following a log of {options.lines} steps at 10 lines/s: {percent:.2f} % of one core", end=" ")
    print(f"(at most {TARGET_PERCENT:g} %), {memory / 1e6:.0f} MB (at most {TARGET_BYTES / 1e6:.0f} MB)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        times = sorted(verdict_seconds(Path(folder)) for _ in range(options.times))
    if times:
        median = statistics.median(times)
        missed += median > TARGET_SECONDS
        print(
            f"decisive line to failure, processes gone: median {median:.2f} s (at most {TARGET_SECONDS:g} s), "
            f"{times[0]:.2f} to {times[-1]:.2f} s in {len(times)} runs; {median / GLOO_TIMEOUT:.4f} of the "
            f"{GLOO_TIMEOUT:.0f} s that plain torchrun waits for the collective"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
