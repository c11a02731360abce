"""TGS of a run under the suite against the same command started by hand: `python -m benchmarks.overhead [--pairs N]`.

Promised: at least 0.99 at the median of 15 pairs. The order within a pair alternates, so that a machine that warms up
or slows down favours neither.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acceptance.criteria.throughput import step_seconds, sustained
from acceptance.judge import workload_of
from acceptance.requirements import load
from fixtures.internlm.log import read
from fixtures.options import collect
from fixtures.runs import Runs
from fixtures.setup import prepare

LIMIT = 0.99
WARMUP = 10


def main() -> int:
    """Print each pair and the median ratio; the exit status is 1 where the promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    ratios = []
    for number in range(parser.parse_args().pairs):
        with tempfile.TemporaryDirectory() as folder:
            suite, request = under_the_suite(Path(folder))
            hand = by_hand(Path(folder) / "hand", request)
            if number % 2:
                suite, _ = under_the_suite(Path(folder) / "again")
        ratios.append(suite / hand)
        print(f"pair {number + 1:2}  suite {suite:8.0f}  by hand {hand:8.0f} TGS  ratio {suite / hand:.4f}", flush=True)
    median = statistics.median(ratios)
    print(f"TGS under the suite / by hand, median of {len(ratios)} pairs: {median:.4f} (at least {LIMIT})")
    return int(median < LIMIT)


def under_the_suite(folder: Path) -> tuple[float, dict[str, Any]]:
    """(sustained TGS, request) of tiny's speed run, launched and watched as in a session."""
    requirements = load()
    given = {"acceptance_results": str(folder), "acceptance_model": "tiny", "acceptance_layout": ["zero=dp"]}
    setup = prepare(collect(given.get, lambda _: None), True, requirements.long_run)
    attempt = Runs(setup, "benchmark", requirements.long_run, print).need(setup.cases[0], "speed")
    assert attempt is not None
    return tgs(attempt.logs, attempt.request), attempt.request


def by_hand(folder: Path, request: Mapping[str, Any]) -> float:
    """Sustained TGS of the very same command, with logs of its own."""
    (folder / "scratch").mkdir(parents=True)
    changed = {f"--log_dir={Path(request['cwd']).parent / 'logs'}": f"--log_dir={folder / 'logs'}"}
    environment = {**os.environ, **{k: v for k, v in request["environment"].items() if v is not None}}
    for name in [name for name, value in request["environment"].items() if value is None]:
        environment.pop(name, None)
    subprocess.run(
        [changed.get(word, word) for word in request["command"]],
        cwd=folder / "scratch",
        env=environment,
        check=True,
        capture_output=True,
    )
    return tgs(sorted(p for p in (folder / "logs").rglob("*") if p.is_file()), request)


def tgs(logs: list[Path], request: Mapping[str, Any]) -> float:
    workload = workload_of(request)
    return sustained(step_seconds(read(logs).steps, workload)[WARMUP:], workload).tgs


if __name__ == "__main__":
    sys.exit(main())
