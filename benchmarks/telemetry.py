"""What telemetry costs, in percent of one core.

    python -m benchmarks.telemetry [--seconds S]

A watcher samples once a second, as in the supervisor, and its process's CPU time is divided by the time that passed:
for ranks on a CPU (real processes, searched for in the same way), and with NVML where this machine has NVIDIA GPUs.
Target: at most 0.5 %. Exit status 1 if it is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from fixtures import devices, processes, telemetry

TARGET_PERCENT = 0.5


def share(watcher: telemetry.Watcher, seconds: float) -> float:
    """Percent of one core while the watcher samples for `seconds`; its first sample, which opens things, included."""
    wall, used = time.monotonic(), time.process_time()
    while time.monotonic() - wall < seconds:
        watcher.sample()
        time.sleep(telemetry.PERIOD_SECONDS)
    percent = 100 * (time.process_time() - used) / (time.monotonic() - wall)
    watcher.close()
    for problem in watcher.problems:
        print(f"  {problem}")
    return percent


@contextlib.contextmanager
def ranks(count: int) -> Iterator[str]:
    """That many processes that look like the ranks of a run; yields the run's mark."""
    mark = uuid.uuid4().hex
    running = [
        subprocess.Popen(["sleep", "1000"], env={processes.MARK: mark, "RANK": str(rank)}) for rank in range(count)
    ]
    try:
        yield mark
    finally:
        for process in running:
            process.kill()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    measured = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in (2, 8):
            with ranks(count) as mark:
                watcher = telemetry.watch(
                    {"accelerator": "cpu", "gpus": count},
                    lambda mark=mark: {n: p.pid for n, p in processes.ranks(processes.marked(mark)).items()},
                    Path(scratch) / "cpu.jsonl",
                )
                measured.append(share(watcher, options.seconds))
            print(f"{count} ranks on a CPU: {measured[-1]:.3f} % of one core (at most {TARGET_PERCENT} %)", flush=True)
            assert len(telemetry.peaks(Path(scratch) / "cpu.jsonl")) == count, "not every rank was watched"
        try:
            gpus = devices.detect("nvidia").devices
        except devices.DeviceError as error:
            print(f"NVML: not measured, {error}")
        else:
            watcher = telemetry.watch({"accelerator": "nvidia", "gpus": len(gpus)}, dict, Path(scratch) / "nvml.jsonl")
            measured.append(share(watcher, options.seconds))
            print(
                f"{len(gpus)} x {gpus[0].name} by NVML: {measured[-1]:.3f} % of one core (at most {TARGET_PERCENT} %)"
            )
            print((Path(scratch) / "nvml.jsonl").read_text().splitlines()[-1])
    return int(max(measured) > TARGET_PERCENT)


if __name__ == "__main__":
    sys.exit(main())
