"""How well concurrent runs share the devices of a node.

    python -m benchmarks.packing             mixes of 24 runs on 8 devices by 8 workers, and what waiting costs
    python -m benchmarks.packing --sessions 200    pytest sessions whose workers are killed at random

The first replays runs at speed (a run is its lease, held as long as the run took): total time over the lower bound,
which is the longest run or all device seconds over all devices, whichever is larger. The second counts what must
not happen: a run lost, a run done twice, a device leased twice, a session that never ends.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from fixtures.devices import Device
from fixtures.leases import Leases, once

ROOT = Path(__file__).resolve().parent.parent
DEVICES = 8
WORKERS = 8
RUNS = 24
# Hours of the runs that are replayed: what the plan says of 7B and 13B on 8 A100s and fewer, from short runs of a
# hundred steps up; drawn between these two.
HOURS = (0.3, 3.0)
SESSION_SECONDS = 300

Run = tuple[int, float]  # devices, seconds


def some_devices(count: int) -> list[Device]:
    return [Device(i, f"benchmark-{i}", "device", entry=str(i)) for i in range(count)]


# ---- packing ---------------------------------------------------------------------------------------------


def mix(seed: int, seconds: float) -> list[Run]:
    """24 runs whose lower bound is `seconds`, longest first, as pytest is given them."""
    draw = random.Random(seed)
    runs = [(draw.choice([1, 2, 4, 8]), draw.uniform(*HOURS)) for _ in range(RUNS)]
    speed = seconds / lower_bound(runs)
    return sorted(((count, hours * speed) for count, hours in runs), key=lambda run: -run[1])


def lower_bound(runs: Sequence[Run]) -> float:
    return max(sum(count * length for count, length in runs) / DEVICES, max(length for _, length in runs))


def replay(runs: Sequence[Run], folder: Path) -> float:
    """Seconds from the first run's start to the last one's end, eight processes taking the runs in their order."""
    context = multiprocessing.get_context("spawn")
    taken, ready = context.Value("i", 0), context.Barrier(WORKERS + 1)
    workers = [context.Process(target=work, args=(runs, taken, ready, folder)) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    ready.wait()
    start = time.monotonic()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise SystemExit(f"a worker ended with status {worker.exitcode}")
    return time.monotonic() - start


def work(runs: Sequence[Run], taken: Any, ready: Any, folder: Path) -> None:
    leases = Leases(some_devices(DEVICES), folder)
    ready.wait()
    while True:
        with taken.get_lock():
            number, taken.value = taken.value, taken.value + 1
        if number >= len(runs):
            return
        count, seconds = runs[number]
        with leases.acquire(count, expected=seconds):
            time.sleep(seconds)


def cost_of_waiting(folder: Path, seconds: float) -> float:
    """Share of one core that this process uses while it waits for devices that another holder has."""
    leases = Leases(some_devices(DEVICES), folder)
    context = multiprocessing.get_context("spawn")
    holding = context.Event()
    holder = context.Process(target=hold, args=(folder, seconds, holding))
    holder.start()
    holding.wait()
    wall, used = time.monotonic(), time.process_time()
    with leases.acquire(1):
        share = (time.process_time() - used) / (time.monotonic() - wall)
    holder.join()
    return share


def hold(folder: Path, seconds: float, holding: Any) -> None:
    with Leases(some_devices(DEVICES), folder).acquire(DEVICES, expected=seconds):
        holding.set()
        time.sleep(seconds)


# ---- sessions whose workers are killed -------------------------------------------------------------------

TESTS = """
import pytest
from benchmarks.packing import fake_run

@pytest.mark.parametrize("number", range({runs}))
def test_run(number):
    fake_run({root!r}, {leases!r}, number)
"""


def fake_run(root: str, leases: str, number: int) -> None:
    """What the suite does for a run, with a moment's sleep for the training, and with witnesses of its own."""
    folder = Path(root) / f"run-{number}"
    count = [1, 1, 2, 2, 4][number % 5]
    with contextlib.ExitStack() as stack:
        stack.enter_context(once(folder))
        if (folder / "evidence").exists():
            return
        stack.enter_context(witness(folder / "launched", folder / "twice-at-once"))
        lease = stack.enter_context(Leases(some_devices(4), Path(leases)).acquire(count, expected=1.0 + number % 3))
        for device in lease.devices:
            stack.enter_context(witness(Path(leases) / f"witness-{device.index}", folder / "leased-twice"))
        time.sleep(random.uniform(0.02, 0.3))
        (folder / "evidence").write_text("{}")
        with (folder / "done").open("a") as file:
            file.write("x")


@contextlib.contextmanager
def witness(path: Path, complaint: Path) -> Iterator[None]:
    """A lock of another kind than the one on trial, which the kernel frees with its holder as well."""
    with path.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            complaint.touch()
        yield


def sessions(total: int, seed: int, say: Any = print) -> dict[str, int]:
    """Runs pytest `total` times, two at once on the same devices; every fifth session of a results folder is left
    in peace and must complete what the killed ones left."""
    counts = {"sessions": 0, "workers killed": 0, "sessions killed": 0, "runs": 0, "lost runs": 0, "double runs": 0,
              "devices leased twice": 0, "sessions that never ended": 0}  # fmt: skip
    draw = random.Random(seed)
    while counts["sessions"] < total:
        with tempfile.TemporaryDirectory() as scratch:
            pair = [scenario(Path(scratch), name) for name in ("a", "b")]
            for night in range(5):
                running = [start(tests, ("load", "worksteal", "loadgroup")[night % 3]) for _, tests in pair]
                counts["sessions"] += len(running)
                attack(running, draw, counts, peaceful=night == 4)
            for results, _ in pair:
                judge(results, counts)
        say(json.dumps(counts))
    return counts


FAKE_RUNS = 8


def scenario(scratch: Path, name: str) -> tuple[Path, Path]:
    results, tests = scratch / name, scratch / f"test_{name}.py"
    results.mkdir()
    tests.write_text(TESTS.format(runs=FAKE_RUNS, root=str(results), leases=str(scratch / "leases")))
    return results, tests


def start(tests: Path, scheduler: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-n", "3", "--dist", scheduler, str(tests)]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, "-c", os.devnull, "--rootdir", str(tests.parent)],
        cwd=tests.parent, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def attack(running: list[subprocess.Popen[bytes]], draw: random.Random, counts: dict[str, int], peaceful: bool) -> None:
    """Kill workers, and now and then a whole session, until all sessions have ended."""
    end = time.monotonic() + SESSION_SECONDS
    while any(session.poll() is None for session in running):
        if time.monotonic() > end:
            counts["sessions that never ended"] += sum(session.poll() is None for session in running)
            for session in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(session.pid, signal.SIGKILL)
            return
        time.sleep(draw.uniform(0.05, 0.4))
        if peaceful:
            continue
        session = draw.choice(running)
        with contextlib.suppress(psutil.Error):
            workers = psutil.Process(session.pid).children()
            if draw.random() < 0.03:
                counts["sessions killed"] += 1
                session.kill()
            elif workers and draw.random() < 0.3:
                draw.choice(workers).kill()
                counts["workers killed"] += 1


def judge(results: Path, counts: dict[str, int]) -> None:
    for folder in (results / f"run-{number}" for number in range(FAKE_RUNS)):
        done = (folder / "done").read_text() if (folder / "done").exists() else ""
        counts["runs"] += 1
        counts["lost runs"] += not (folder / "evidence").exists()
        counts["double runs"] += len(done) > 1 or (folder / "twice-at-once").exists()
        counts["devices leased twice"] += (folder / "leased-twice").exists()


# ---- the command -----------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mixes", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="lower bound that a mix is replayed in")
    parser.add_argument("--sessions", type=int, default=0, help="sessions with killed workers instead of mixes")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.sessions:
        counts = sessions(options.sessions, options.seed)
        wrong = sum(v for k, v in counts.items() if k.startswith(("lost", "double", "devices", "sessions that")))
        print("\n".join(f"{value:6} {name}" for name, value in counts.items()))
        return int(wrong > 0)
    ratios = []
    for seed in range(options.seed, options.seed + options.mixes):
        runs = mix(seed, options.seconds)
        with tempfile.TemporaryDirectory() as folder:
            ratios.append(replay(runs, Path(folder)) / lower_bound(runs))
        widths = ", ".join(f"{sum(c == width for c, _ in runs)} x {width}" for width in (1, 2, 4, 8))
        print(f"mix {seed} ({widths} devices): {ratios[-1]:.3f} of the lower bound", flush=True)
    print(
        f"total time over lower bound: median {statistics.median(ratios):.3f}, worst {max(ratios):.3f} (at most 1.15)"
    )
    with tempfile.TemporaryDirectory() as folder:
        share = cost_of_waiting(Path(folder), options.seconds)
    print(f"waiting for a lease: {100 * share:.2f} % of one core (at most 1 %)")
    return int(max(ratios) > 1.15 or share > 0.01)


if __name__ == "__main__":
    sys.exit(main())
