"""`python -m benchmarks.submission`: what it costs to pack a large submission, and to check it.

40 cases of 7B, each with a long run of 100,000 steps: 3.2 GB of logs. Packing and checking run in processes of their
own; their seconds at work (others' load does not count) stand beside those that reading the same logs once takes in
the same run, with the peak memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import product
from pathlib import Path

import numpy as np

from fixtures.cases import Case, CaseError, Layout, fit
from fixtures.evidence import read_json, write_json
from fixtures.internlm.log import read
from reports import derived
from tests.acceptance import evidence_7b as made
from tests.criteria import honest
from tests.internlm.requests import request_of

CASES, STEPS = 40, 100_000
MOST_SECONDS, MOST_MEGABYTES = 60.0, 300.0
FAST = 400_000.0  # tokens/GPU/s, so that a long run fits into a day
IN_A_PROCESS = """
import json, sys, time
from pathlib import Path
from fixtures import suite
suite.identity = lambda: {suite!r}
from acceptance.requirements import load
from reports import check, package
begin, worked = time.perf_counter(), time.process_time()
if sys.argv[1] == "pack":
    package.pack(Path(sys.argv[2]), Path(sys.argv[3]), {{"organisation": "Acme", "contact": "acme@example.com"}})
    status = 0
elif sys.argv[1] == "check":
    checked = check.check(Path(sys.argv[3]), check.Lab(load(Path(sys.argv[4]))))
    status = checked.status
    if status:
        print(check.table(checked), file=sys.stderr)
else:
    status = 0
seconds, worked = time.perf_counter() - begin, time.process_time() - worked
status_file = Path("/proc/self/status").read_text()
peak = int(status_file.partition("VmHWM:")[2].split()[0]) * 1024  # ru_maxrss begins with the parent's
print(json.dumps({{"seconds": seconds, "worked": worked, "peak": peak, "status": status}}))
"""


def layouts() -> Iterator[Case]:
    """Cases of 7B on 8 devices, each in another layout."""
    for mode, fsdp, tp, pp, zero in product(("mtp", "msp", "fsp"), (False, True), (1, 2, 4), (1, 2, 4), (1, 2, 4, 8)):
        if mode != "mtp" and tp == 1:
            continue
        try:
            yield fit("7B", Layout(tp, pp, zero, fsdp=fsdp, mode=mode), 8)
        except CaseError:
            continue


def prepare(root: Path, count: int, steps: int) -> Path:
    """The results folder of a session over `count` cases."""
    results, rng = root / "results", np.random.default_rng(5)
    loss = honest.losses(rng, steps)
    long = honest.steps(rng, loss, honest.grad_norms(rng, loss), tgs=FAST)
    text = b""
    for day, case in zip(range(count), layouts(), strict=False):
        made.record(results, case, ("speed", "repeat-1", "repeat-2"), noise=day, late=day)
        started = made.BEGAN - timedelta(days=400 - day)
        for run in ("speed", "repeat-1", "repeat-2"):
            moved(results, case, run, day)
        request = request_of(case, "long", steps, accelerator="nvidia") | made.RAN
        started += timedelta(seconds=made.RUN_SECONDS["long"])
        if not text:
            folder = made.attempt_at(results, case.name, "long", 1, request, long, started)
            text, first = (folder / "logs" / "stderr.log").read_bytes(), started
            end = read_json(folder / "end.json")
        else:  # the same log on another day: rows of 100,000 steps take seconds to write
            folder = made.attempt_at(results, case.name, "long", 1, request, long[:100], started)
            days = (f"{first:%Y-%m-%d}".encode(), f"{started:%Y-%m-%d}".encode())
            (folder / "logs" / "stderr.log").write_bytes(text.replace(*days))
            ended = started + timedelta(seconds=end["seconds"])
            write_json(folder / "end.json", end | {"ended": ended.isoformat(timespec="milliseconds")})
    lab = made.lab(root, steps)
    lab.write_text(lab.read_text() + MINIMUM)
    derived.keep_rules(results, lab, None)
    placeholder = {"policy": {"determinism": "bitwise", "reference": None, "min_tgs": None, "max_loss": None}}
    write_json(results / "results.json", EMPTY | placeholder)
    return results


MINIMUM = '[[tgs]]\nmodel = "7B"\nlayout = "any"\ntgs = 3000\nunit = "tokens/GPU/s"\nsource = "the lab"\n'
EMPTY = {
    "schema": 1, "suite": made.SUITE, "system": {}, "conformant": False, "models": [], "cases": [],
}  # fmt: skip


def moved(results: Path, case: Case, run: str, day: int) -> None:
    """Record a short run again 400 days earlier: the days of 40 cases must be over."""
    folder = results / "runs" / case.name / run / "attempt-1"
    steps = read([folder / "logs" / "stderr.log"]).steps
    started = made.BEGAN - timedelta(days=400 - day) + timedelta(seconds=made.RUN_SECONDS[run])
    made.attempt_at(results, case.name, run, 1, read_json(folder / "request.json"), steps, started)


def in_process(*arguments: str | Path) -> dict[str, float]:
    code = IN_A_PROCESS.format(suite=made.SUITE)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def main() -> int:
    """Print the table; status 1 if a promised figure is missed or the submission is not sound."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.submission", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        results = prepare(root, options.cases, options.steps)
        logs = sorted(results.rglob("*.log"))
        size = sum(log.stat().st_size for log in logs)
        begin = time.process_time()
        for log in logs:
            read([log])
        reading = time.process_time() - begin
        found = {
            what: in_process(what, results, root / "v.zip", root / "lab.toml") for what in ("pack", "check", "idle")
        }
        packed, idle = (root / "v.zip").stat().st_size / 1e6, found["idle"]["peak"] / 1e6
        print(f"{options.cases} cases, long runs of {options.steps:,} steps: {size / 1e9:.2f} GB of logs")
        print(f"packed {packed:,.0f} MB; reading the logs once takes {reading:.1f} s of work")
        for what in ("pack", "check"):
            seconds, worked, peak = found[what]["seconds"], found[what]["worked"], found[what]["peak"] / 1e6
            print(
                f"{what:6} {worked:6.1f} s of work, {worked / reading:.2f} x reading ({seconds:.1f} s by the clock); "
                f"{peak:.0f} MB, of which imports {idle:.0f}"
            )
        check = found["check"]
        print(f"check: at most {MOST_SECONDS:g} s at work and {MOST_MEGABYTES:g} MB")
        sound = check["status"] in (0, 3)
        return int(not sound or check["worked"] > MOST_SECONDS or check["peak"] / 1e6 > MOST_MEGABYTES)


if __name__ == "__main__":
    sys.exit(main())
