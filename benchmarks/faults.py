"""The fault matrix: real training with a fault in it, and what the supervisor makes of it.

    python -m benchmarks.faults [--short] [--times N] [--only NAME ...]

Every fault strikes a real run (InternLM, torchrun, the case tiny on two CPU processes). A row is right if each of its
runs ended, was named as expected, and left no process behind. Exit status 1 if any row is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fixtures import evidence, processes, supervisor
from fixtures.cases import select
from fixtures.evidence import Attempt
from fixtures.internlm import checkout, config
from fixtures.launchers import LAUNCHERS

ROOT = Path(__file__).resolve().parent.parent
STEPS = 12
STRUCK = 5  # the optimizer's call, from 1, in which a fault strikes
WORLD = 2
LONGEST = 240.0  # seconds that any of these runs may take before it counts as hanging

# An InternLM config is Python that every rank executes: that is how a fault gets into real training.
AT_STEP = """
def _arm(strike):
    from internlm.core.engine import Engine
    whole, calls = Engine.step, []
    def step(self):
        calls.append(1)
        if len(calls) == {at}:
            strike(self)
        return whole(self)
    Engine.step = step


def strike(engine):
    import ctypes, os, resource, signal, subprocess, sys, time
    import torch
{action}


import os as _os
if _os.environ["RANK"] == "{rank}":
    _arm(strike)
del _arm, strike
"""


def at_step(action: str, *, at: int = STRUCK, rank: int = 1) -> str:
    """Config text that has `rank` execute `action` in its step number `at`, from 1."""
    return AT_STEP.format(action="\n".join(f"    {line}" for line in action.splitlines()), at=at, rank=rank)


def start(attempt: Attempt) -> supervisor.Handle:
    """As pytest does."""
    return supervisor.start(attempt, detach=False)


@dataclass(frozen=True)
class Fault:
    """One row: what strikes, and what must be said of it.

    text      appended to the run's config
    limits    of the supervisor, seconds
    start     starts the attempt; None: it is over already
    meddle    does something from outside while it is going on
    place     a folder for the results, where the fault is in the file system
    """

    name: str
    outcome: str
    failure: str | None
    rank: int | None = None
    text: str = ""
    limits: dict[str, float] = field(default_factory=dict)
    start: Callable[[Attempt], supervisor.Handle | None] = start
    meddle: Callable[[Attempt, supervisor.Handle], None] | None = None
    place: Callable[[], contextlib.AbstractContextManager[Path]] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one run. left: processes of it that were still there."""

    end: dict[str, Any]
    seconds: float
    left: tuple[int, ...]
    hung: bool

    def named(self) -> str:
        failure = self.end.get("failure") or {}
        return failure.get("class") or self.end.get("outcome") or "nothing"

    def right(self, fault: Fault) -> bool:
        failure = self.end.get("failure") or {}
        return (
            not self.hung
            and not self.left
            and self.end.get("outcome") == fault.outcome
            and failure.get("class") == fault.failure
            and (fault.rank is None or failure.get("rank") == fault.rank)
        )


def prepare(results: Path, fault: Fault, steps: int = STEPS) -> Attempt:
    """A new attempt at the `speed` run of tiny under `results`, ready for the supervisor, with the fault in it."""
    source = checkout.find(None, sys.executable)
    case = select(["tiny"], False, [], WORLD, cpu=True)[0]
    request: dict[str, Any] = {
        "schema": evidence.SCHEMA,
        **case.as_request(),
        "run": "speed",
        "gpus": WORLD,
        "nodes": 1,
        "world": WORLD,
        "accelerator": "cpu",
        "settings": {},
        "seed": 1024,
        "deterministic": False,
        "internlm": source.as_request() | {"train_py": str(source.train_py)},
        "python": {"executable": sys.executable, "version": source.python_version},
        "launcher": "torchrun",
        "environment": {"OMP_NUM_THREADS": "1", **source.environment()},
        "limits": fault.limits,
    }
    request["workload"] |= {"steps": steps, "hours": None}
    attempt = evidence.new_attempt(results, case.name, "speed")
    request["command"] = LAUNCHERS["torchrun"](request, attempt.path)
    request["cwd"] = str(attempt.path)
    text = config.render(request) + fault.text
    attempt.config.write_text(text, encoding="utf-8")
    request["config_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    evidence.write_json(attempt.path / "request.json", request)
    return attempt


def play(fault: Fault, folder: Path) -> Outcome:
    """Run one fault in `folder` and wait for its end."""
    with fault.place() if fault.place else contextlib.nullcontext(folder) as place:
        attempt = prepare(place, fault)
        began = time.monotonic()
        handle = fault.start(attempt)
        mark, hung = evidence.read_json(attempt.path / "supervisor.json")["mark"], False
        if fault.meddle and handle:
            fault.meddle(attempt, handle)
        while handle is not None and handle.poll() is not None:
            time.sleep(0.1)
            if time.monotonic() - began > LONGEST:
                hung = True
                handle.stop("the fault matrix waited too long")
        left = tuple(p.pid for p in processes.marked(mark))
        return Outcome(attempt.end, time.monotonic() - began, left, hung)


def under_way(attempt: Attempt, handle: Any, steps: int = 3) -> None:
    """Wait until `steps` steps are there, or the run is over."""
    while (progress := handle.poll()) is not None and progress.steps_seen < steps:
        time.sleep(0.1)


# ---- faults from outside


def remove_folder(attempt: Attempt, handle: supervisor.Handle) -> None:
    under_way(attempt, handle)
    shutil.rmtree(attempt.path)


def fill_disk(attempt: Attempt, handle: supervisor.Handle) -> None:
    under_way(attempt, handle)
    with contextlib.suppress(OSError), (attempt.path / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    """A file system of 2 MiB. Raises CalledProcessError where this user may not mount one."""
    folder = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def mountable() -> bool:
    """Whether `small_disk` can be had."""
    try:
        with small_disk():
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


# Stands in for pytest: starts a prepared attempt, then only waits.
DRIVER = """
import sys, time
from pathlib import Path
from fixtures import supervisor
from fixtures.evidence import Attempt
path = Path(sys.argv[1])
attempt = Attempt(path, path.parent.parent.name, path.parent.name, 1)
handle = supervisor.start(attempt, detach=sys.argv[2] == "detach")
print("started", flush=True)
while handle.poll() is not None:
    time.sleep(0.1)
"""


def start_and_kill_starter(attempt: Attempt, *, detach: bool) -> Any:
    """Have another process start the run, end that one by SIGKILL, and do what the next session does."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(attempt.path), "detach" if detach else "attached"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert driver.stdout is not None
    with driver.stdout:
        driver.stdout.readline()
    handle = supervisor.attach(attempt)
    under_way(attempt, handle)
    driver.kill()
    driver.wait()
    handle = supervisor.attach(attempt)
    if handle is None:
        supervisor.bury(attempt)
    return handle


# Loaded by every Python process of the run and by its supervisor: the wall clock jumps back an hour.
CLOCK = """
import time
_real, _begun = time.time, time.monotonic()
def _set_back():
    return _real() - (3600 if time.monotonic() - _begun > 8 else 0)
time.time = _set_back
time.time_ns = lambda: int(_set_back() * 1e9)
"""


def start_with_jumping_clock(attempt: Attempt, clock: str = CLOCK) -> Any:
    """Start the run where the wall clock is set back an hour after a few seconds."""
    (attempt.path / "clock").mkdir()
    (attempt.path / "clock" / "sitecustomize.py").write_text(clock, encoding="utf-8")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(attempt.path / "clock")
    try:
        return start(attempt)
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def start_on_taken_port(attempt: Attempt) -> Any:
    """Start the run with a rendezvous on a port that this process listens on, as with torchrun --master_port."""
    request = attempt.request
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    HELD.append(listener)
    port = listener.getsockname()[1]
    words = [word for word in request["command"] if not word.startswith("--rdzv")]
    at = words.index("torch.distributed.run") + 1
    words[at:at] = ["--rdzv_backend=static", "--node_rank=0", "--master_addr=127.0.0.1", f"--master_port={port}"]
    evidence.write_json(attempt.path / "request.json", request | {"command": words})
    return start(attempt)


HELD: list[socket.socket] = []  # listeners of start_on_taken_port, held to the end

LEAVE_ORPHAN = """\
if os.fork() == 0:
    os.setsid()
    os.execvp("sleep", ["sleep", "1000"])
raise RuntimeError("a fault, with an orphan left in a group of its own")"""

EXHAUST = """\
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
hoard = [torch.ones(16 << 20) for _ in range(1000)]"""

NOT_A_NUMBER = """\
for parameter in engine.model.parameters():
    parameter.data.fill_(float("nan"))"""

WAIT_AFTER_COMPLAINT = """\
print("STRUCK", time.time(), flush=True)
print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB", flush=True)
time.sleep(1000)"""

AT_ONCE = """
import os as _os
if _os.environ["RANK"] == "1":
    _os.kill(_os.getpid(), 9)
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
FAULTS = (
    Fault("none", "complete", None),
    Fault("rank killed at start", "failed", "killed", 1, text=AT_ONCE),
    Fault("rank killed mid-run", "failed", "killed", 1, text=at_step(KILL)),
    Fault("rank killed in the last step", "failed", "killed", 1, text=at_step(KILL, at=STEPS)),
    Fault(
        "rank stopped",
        "failed",
        "hang",
        text=at_step("os.kill(os.getpid(), signal.SIGSTOP)"),
        limits={"step_seconds_min": 8},
    ),
    Fault("rank asleep", "failed", "hang", text=at_step("time.sleep(1000)"), limits={"step_seconds_min": 8}),
    Fault("memory exhausted", "failed", "out of memory", 1, text=at_step(EXHAUST)),
    Fault("out of memory, rank stays", "failed", "out of memory", 1, text=at_step(WAIT_AFTER_COMPLAINT)),
    Fault("exception, orphan left", "failed", "unknown", 1, text=at_step(LEAVE_ORPHAN)),
    Fault(
        "exit status 0 in mid-run", "failed", "unknown", text=at_step("os._exit(0)", rank=0) + at_step("os._exit(0)")
    ),
    Fault("parameters not a number", "failed", "numerical", text=at_step(NOT_A_NUMBER)),
    Fault("port taken", "failed", "set-up", start=start_on_taken_port),
    Fault("disk full", "failed", "set-up", place=small_disk, meddle=fill_disk),
    Fault("folder removed", "failed", "set-up", meddle=remove_folder),
    Fault("starter killed", "interrupted", None, start=partial(start_and_kill_starter, detach=False)),
    Fault("starter killed, detached", "complete", None, start=partial(start_and_kill_starter, detach=True)),
    Fault("clock set back", "complete", None, start=start_with_jumping_clock),
)


def main(arguments: list[str] | None = None) -> int:
    """Print the matrix, a row a fault."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="each fault once")
    parser.add_argument("--times", type=int, default=5, help="runs of each fault (default: %(default)s)")
    parser.add_argument("--only", nargs="*", default=None, metavar="NAME", help="rows whose name holds NAME")
    options = parser.parse_args(arguments)
    times = 1 if options.short else options.times
    chosen = [f for f in FAULTS if not options.only or any(word in f.name for word in options.only)]
    print("| fault | expected | named | right | processes left | slowest |\n|---|---|---|---|---|---|")
    wrong = 0
    for fault in chosen:
        if fault.place is small_disk and not mountable():
            print(f"| {fault.name} | | not run: this user may not mount a small file system | | | |")
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcomes = [play(fault, Path(folder)) for _ in range(times)]
        right = sum(o.right(fault) for o in outcomes)
        wrong += right < times
        named = ", ".join(sorted({o.named() for o in outcomes}))
        left, slowest = sum(len(o.left) for o in outcomes), max(o.seconds for o in outcomes)
        expected = fault.failure or fault.outcome
        print(f"| {fault.name} | {expected} | {named} | {right} of {times} | {left} | {slowest:.0f} s |", flush=True)
        for outcome in outcomes:
            if not outcome.right(fault):
                print(f"  wrong: {outcome}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
