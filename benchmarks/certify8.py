"""The procedure's own run on eight devices of one host, in parts that fit into ten minutes each.

    python -m benchmarks.certify8                 print the parts and their commands
    python -m benchmarks.certify8 PART [--cpu]    run one part (its number, or `all`)

--devices N: the parts that exist on a host of four or two. --cpu rehearses them with tiny on so many CPU processes.
benchmarks/certify8.toml holds the parts. What a part leaves lies under --results, a folder a command. Exit status 1 if
a command failed, or its part's own check.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fixtures import evidence, processes, supervisor
from fixtures.evidence import Attempt
from fixtures.internlm.log import read
from fixtures.release import left_behind
from fixtures.toml import load_toml

ROOT = Path(__file__).resolve().parent.parent
PARTS = Path(__file__).with_suffix(".toml")
RESULTS = ROOT / "reports" / "output" / "certify8"
DEVICES = 8
UNDER_WAY = 5  # steps that must be there before a signal strikes
AT_ONCE_SECONDS = 2.0  # from the death of a rank to the end on record
HANG_SECONDS = 60.0  # the supervisor's least patience with a step; --hang-factor times the slowest where that is more
HANG_FACTOR = 10.0
REST_SECONDS = 10.0  # to write stacks down and end the processes of a run that hangs


@dataclass(frozen=True)
class Part:
    """A row of the table, on so many devices. commands: arguments of pytest; shows, signal: as in certify8.toml."""

    title: str
    minutes: int
    devices: int
    commands: tuple[tuple[str, ...], ...]
    shows: str | None = None
    signal: str | None = None


def parts(cpu: bool, devices: int = DEVICES) -> list[Part]:
    """The parts for a host of so many accelerators (a power of two), or for the rehearsal."""
    table = load_toml(PARTS)
    words = {**table["cpu" if cpu else "devices"], **_counts(devices)}
    words["batch"] = words["each"] * devices
    return [_part(row, words) for row in table["part"] if devices >= row.get("least", 2)]


def _counts(devices: int) -> dict[str, int]:
    run = max(1, min(2, devices // 2))
    return {"all": devices, "half": devices // 2, "quarter": devices // 4, "run": run, "side": devices // run}


def _part(row: Mapping[str, Any], words: Mapping[str, Any]) -> Part:
    commands = []
    for n in (n for n in row.get("devices", [words["all"]]) if n <= words["all"]):
        text = row["command"].format(n=n, n_share=n * words["share"], **words)
        commands.append((*words["common"], *shlex.split(text)))
    title = row["title"].format(**words)
    return Part(title, row["minutes"], words["all"], tuple(commands), row.get("shows"), row.get("signal"))


def places_of(part: Part, results: Path) -> list[Path]:
    """Where each command of a part leaves its results: a folder named after its case and number of devices."""
    cases = (command[command.index("-k") + 1].split()[0] for command in part.commands)
    counts = (command[command.index("--gpus") + 1] for command in part.commands)
    suffix = f"-{part.signal or part.shows}" if part.signal or part.shows else ""
    return [results / f"{case}-on-{count}{suffix}" for case, count in zip(cases, counts, strict=True)]


def show(table: Sequence[Part], results: Path) -> None:
    for number, part in enumerate(table, 1):
        print(f"{number}. {part.title} (about {part.minutes} min)")
        for arguments, folder in zip(part.commands, places_of(part, results), strict=True):
            print(f"   pytest acceptance {shlex.join(arguments)} --results {os.path.relpath(folder, ROOT)}")
        if part.signal:
            print(f"   and {part.signal} to rank {part.devices - 1} after {UNDER_WAY} steps")
    print(
        "\nmake certify-8 PART=n runs part n; CPU=1 rehearses it with tiny on CPU processes; DEVICES=4 or 2: on fewer"
    )


def run(part: Part, results: Path) -> bool:
    """Run the commands of a part, each afresh, and look at what it shows; True if all is as it should be."""
    good, places = True, places_of(part, results)
    for arguments, folder in zip(part.commands, places, strict=True):
        words = [sys.executable, "-m", "pytest", "acceptance", *arguments, "--results", str(folder), "--rerun"]
        print(shlex.join(words), flush=True)
        if part.signal:
            good &= strike(words, folder, signal.Signals[part.signal], part.devices - 1)
        else:
            good &= subprocess.run(words, cwd=ROOT, check=False).returncode == 0
    if part.shows == "scaling":
        good &= show_scaling(places)
    if part.shows == "devices":
        good &= show_devices(places[0], part.devices)
    return good


# ---- TGS from one device to eight


def show_scaling(places: Sequence[Path]) -> bool:
    """A line a number of devices: sustained TGS, and its ratio to the first."""
    first = None
    for folder in places:
        for case in evidence.read_json(folder / "results.json")["cases"]:
            figures = {m["name"]: m["value"] for m in case["criteria"]["throughput"]["measurements"]}
            if "tgs" not in figures:
                print(f"{case['case']} on {case['gpus']}: no TGS ({case['criteria']['throughput']['reason']})")
                return False
            first = first or figures["tgs"]
            print(f"{case['case']} on {case['gpus']}: {figures['tgs']:,.0f} tokens/GPU/s, {figures['tgs'] / first:.3f}")
    return first is not None


# ---- runs side by side


def show_devices(results: Path, devices_there: int) -> bool:
    """Whether no two runs had a device at one time, and there were never more ranks than devices."""
    attempts = [attempt for attempt in all_attempts(results) if attempt.end]
    used = [(span(attempt), devices(attempt), attempt) for attempt in attempts]
    clashes = [
        f"{a.name} and {b.name} were both on {', '.join(sorted(mine & theirs))}"
        for i, (when, mine, a) in enumerate(used)
        for then, theirs, b in used[:i]
        if mine & theirs and when[0] < then[1] and then[0] < when[1]
    ]
    starts = sorted(when[0] for when, _, _ in used)
    most = max((sum(when[0] <= t < when[1] for when, _, _ in used) for t in starts), default=0)
    each = attempts[0].request["gpus"] if attempts else 0
    named = {device for _, mine, _ in used for device in mine}
    print(f"{len(attempts)} runs, at most {most} at a time on {each} devices each; devices in telemetry: {len(named)}")
    print(
        "\n".join(clashes) or "no two runs on one device at a time" if named else "a CPU has no device ids to compare"
    )
    return bool(attempts) and not clashes and 1 < most <= devices_there // each


def all_attempts(results: Path) -> Iterator[Attempt]:
    for case in evidence.cases(results):
        for run_ in evidence.RUNS:
            yield from evidence.attempts(results, case, run_)


def span(attempt: Attempt) -> tuple[float, float]:
    """Seconds since the epoch between which telemetry saw the run."""
    times = [row["time"] for row in rows_of(attempt.path / "telemetry.jsonl")]
    return (min(times), max(times)) if times else (0.0, 0.0)


def devices(attempt: Attempt) -> set[str]:
    return {row["device"] for row in rows_of(attempt.path / "telemetry.jsonl") if "device" in row}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a telemetry file; [] where there is none."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


# ---- a rank that is struck


def strike(words: Sequence[str], results: Path, number: signal.Signals, rank: int) -> bool:
    """Run pytest, send the signal to that rank in mid-run; True if it was named in time and nothing was left."""
    before = set(all_attempts(results)) if results.is_dir() else set()
    session = subprocess.Popen(words, cwd=ROOT)
    try:
        attempt, handle = under_way(session, results, before)
        if handle is None:
            print("the run was over before a rank could be struck")
            return False
        mark = evidence.read_json(attempt.path / "supervisor.json")["mark"]
        victim = processes.ranks(processes.marked(mark))[rank]
        victim.send_signal(number)
        struck = time.time()
        while handle.poll() is not None:
            time.sleep(0.05)
        seconds = time.time() - struck
        left = processes.marked(mark)
    finally:
        session.wait()
    failure = attempt.end.get("failure") or {}
    expected, limit = ("hang", patience(attempt)) if number == signal.SIGSTOP else ("killed", AT_ONCE_SECONDS)
    held = left_behind(attempt.end)
    print(
        f"{number.name} to rank {rank}: {failure.get('class')} (rank {failure.get('rank')}), {seconds:.1f} s later "
        f"(limit {limit:.0f} s), processes left: {len(left)}, "
        f"still in use: {'; '.join(held) or attempt.end.get('devices_unseen', 'nothing')}"
    )
    released = not held and "devices_unseen" not in attempt.end
    right_rank = number == signal.SIGSTOP or failure.get("rank") == rank
    return failure.get("class") == expected and right_rank and seconds <= limit and not left and released


def under_way(
    session: subprocess.Popen[bytes], results: Path, before: set[Attempt]
) -> tuple[Attempt | None, supervisor.Handle | None]:
    """The new attempt and its handle once it has made steps; (None, None) where pytest ended before."""
    while session.poll() is None:
        for attempt in (a for a in all_attempts(results) if a not in before):
            handle = supervisor.attach(attempt)
            progress = handle.poll() if handle else None
            if handle and progress and progress.steps_seen >= UNDER_WAY:
                return attempt, handle
        time.sleep(0.1)
    return None, None


def patience(attempt: Attempt) -> float:
    """Seconds in which a hang must be on record: the supervisor's rule, and time to clear up."""
    steps = read(attempt.logs).steps
    slowest = max((b - a for a, b in zip(steps.time[:-1], steps.time[1:], strict=True)), default=0.0)
    return max(HANG_SECONDS, HANG_FACTOR * slowest) + REST_SECONDS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.certify8", description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", help="number of the part to run, or all; without it, the parts are printed")
    parser.add_argument("--devices", type=int, default=DEVICES, choices=(8, 4, 2), help="default: %(default)s")
    parser.add_argument("--cpu", action="store_true", help="rehearse with tiny on as many CPU processes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args()
    table = parts(options.cpu, options.devices)
    if not options.part:
        show(table, options.results)
        return 0
    chosen = table if options.part == "all" else [p for i, p in enumerate(table, 1) if str(i) == options.part]
    if not chosen:
        parser.error(f"there is no part {options.part}; the parts are 1 to {len(table)}")
    wrong = [part.title for part in chosen if not run(part, options.results)]
    print("\n".join(f"NOT AS IT SHOULD BE: {title}" for title in wrong) or "as it should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
