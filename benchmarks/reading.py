"""How fast the reader reads, and in how much memory.

    python -m benchmarks.reading [--large]

Writes 100,000 metric lines in the 0.4.9 format (about 75 MB) to a temporary file and measures, each in a process of its
own, best of five: reading it against `for line in file` over the same file (at most 12 times that, and 0.5 s); memory
above an interpreter with numpy (60 MB); judging all criteria on top (0.2 s); the follower at ten lines a second (2 %
of a core). `--large` also reads a log of 1 GB, most of it other lines: memory must not grow with it beyond the arrays.
Exits 1 when a figure is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = 100_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="also read a log of 1 GB")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure[0]](Path(options.measure[1]))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        log = write(Path(folder) / "run.log", STEPS)
        found = {name: in_process(name, log) for name in ("baseline", "lines", "read", "judge", "follow")}
        plain, reading = found["lines"]["seconds"], found["read"]["seconds"]
        above = (found["read"]["peak"] - found["baseline"]["peak"]) / 1e6
        rows: list[tuple[str, float, float, str]] = [
            ("reading / for line in file", reading / plain, 12, "x"),
            ("reading", reading, 0.5, "s"),
            ("memory above the interpreter", above, 60, "MB"),
            ("judging all criteria", found["judge"]["seconds"], 0.2, "s"),
            ("follower at 10 lines/s", found["follow"]["seconds"] / STEPS * 10 * 100, 2, "% of a core"),
        ]
        if options.large:
            large = pad(log, Path(folder) / "large.log")
            grown = (in_process("read", large)["peak"] - found["read"]["peak"]) / 1e6
            rows.append((f"memory above that for {large.stat().st_size / 1e9:.2f} GB", grown, 8, "MB"))
        print(f"{STEPS:,} metric lines, {log.stat().st_size / 1e6:.1f} MB; CPU seconds, best of five")
        for name, value, limit, unit in rows:
            print(f"  {name:32} {value:9.3f} {unit:12} at most {limit:g}{'' if value <= limit else '   MISSED'}")
    return 0 if all(value <= limit for _, value, limit, _ in rows) else 1


def write(path: Path, n: int) -> Path:
    import numpy as np

    from tests.criteria import honest
    from tests.internlm.lines import lines

    rng = np.random.default_rng(0)
    loss = honest.losses(rng, n)
    run = honest.steps(rng, loss, honest.grad_norms(rng, loss))
    with path.open("w", encoding="utf-8") as file:
        for begin in range(0, n, 1000):
            file.writelines(line + "\n" for line in lines(run[begin : begin + 1000]))
    return path


def pad(log: Path, path: Path) -> Path:
    """The same metric lines with nine warnings after each."""
    warning = b"2024-03-01 12:00:00,123\tWARNING x.py:1 in f -- " + b"rank 3 waits for its neighbours " * 32 + b"\n"
    with log.open("rb") as lines, path.open("wb") as file:
        for line in lines:
            file.write(line + warning * 9)
    return path


def in_process(name: str, log: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.reading", "--measure", name, str(log)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(work: Callable[[], Any], repeats: int = 5) -> dict[str, Any]:
    """CPU seconds, best of `repeats` (other processes take no part in them), and the peak memory in bytes."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return {"seconds": best, "peak": peak()}


def peak() -> int:
    """Bytes of this process's largest resident set."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def baseline(log: Path) -> dict[str, Any]:
    import numpy  # noqa: F401 - the interpreter to compare with has it loaded

    return measure(lambda: None)


def plain_lines(log: Path) -> dict[str, Any]:
    def work() -> None:
        with log.open(encoding="utf-8") as file:
            for _ in file:
                pass

    return measure(work)


def reading(log: Path) -> dict[str, Any]:
    from fixtures.internlm.log import read

    return measure(lambda: read([log]))


def judging(log: Path) -> dict[str, Any]:
    from acceptance.criteria import convergence, determinism, startup, throughput
    from acceptance.criteria.verdict import Requirement
    from fixtures.internlm.log import read
    from tests.criteria.honest import WORKLOAD

    found = read([log])
    steps = found.steps
    minimum, maximum = Requirement(1000, "tokens/GPU/s", ""), Requirement(1, "nats per token", "")

    def work() -> None:
        startup.judge(found, {"outcome": "complete", "exit_status": 0, "failure": None}, len(steps), WORKLOAD)
        throughput.judge(steps, WORKLOAD, minimum)
        determinism.judge(steps, steps, "bitwise", WORKLOAD)
        convergence.judge(steps, WORKLOAD, maximum, len(steps), None)

    return measure(work)


def following(log: Path) -> dict[str, Any]:
    from fixtures.internlm.log import Follower

    chunks = log.read_bytes().splitlines(keepends=True)

    def work() -> None:
        follower = Follower()
        assert sum(len(follower.feed(chunk)) for chunk in chunks) == STEPS

    return measure(work, repeats=1)


MEASURES = {"baseline": baseline, "lines": plain_lines, "read": reading, "judge": judging, "follow": following}


if __name__ == "__main__":
    sys.exit(main())
