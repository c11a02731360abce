"""`python -m benchmarks.report`: what a large conformance report costs to build, to send and to open.

40 cases, each with a long run of 100,000 steps: the report's size, the time to build it from readings that the
judge already has, and the time until a headless Chromium has loaded it and answers the pointer. Times depend on the
machine, so each is printed beside a measure of the same run: reading one such log, and opening an empty page.
Building and reading are one process at work, so their CPU time is taken: other load does not count.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from fixtures.evidence import Attempt, write_json
from fixtures.internlm.log import Reading, read
from reports.page import write
from tests.reports import samples

CASES, LONG, SHORT = 40, 100_000, 100
MOST_MEGABYTES, MOST_BUILD_SECONDS, MOST_OPEN_SECONDS = 3.0, 5.0, 1.5
CHROMIUM = "/usr/bin/chromium"


def prepare(results: Path, cases: int, steps: int) -> Callable[[Attempt], Reading]:
    """Evidence of `cases` cases without logs, and the readings that their judge would have."""
    readings = {run: samples.reading(samples.steps(SHORT, seed)) for seed, run in enumerate(("repeat-1", "speed"), 1)}
    readings |= {"repeat-2": readings["repeat-1"], "long": samples.reading(samples.steps(steps, 3))}
    entries = []
    for position in range(cases):
        name = f"7B-tp{position + 1}-pp1-zero8"
        runs = {run: samples.attempt(results, name, run, 1, None, samples.complete(SHORT)) for run in readings}
        samples.telemetry(results / runs["speed"])
        entries.append(samples.case_entry(name, runs, samples.verdicts()))
    write_json(results / "results.json", samples.results_json(entries))
    return lambda attempt: readings[attempt.run]


def timed(action: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds by `clock` that `action` takes."""
    start = clock()
    action()
    return clock() - start


def opening(pages: list[Path], repeats: int) -> list[tuple[float, float]]:
    """By page, the median seconds from navigation until the pointer is answered (its tip is on screen), and how many
    of them the page's own thread worked."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        found: list[list[tuple[float, float]]] = [[] for _ in pages]
        for _ in range(repeats):
            for page_path, seconds in zip(pages, found, strict=True):
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                session = page.context.new_cdp_session(page)
                session.send("Performance.enable", {"timeDomain": "threadTicks"})
                wall = timed(lambda p=page, path=page_path: _open(p, path))
                metrics = session.send("Performance.getMetrics")["metrics"]
                seconds.append((wall, next(m["value"] for m in metrics if m["name"] == "TaskDuration")))
                page.close()
        browser.close()
    return [(median(wall for wall, _ in seconds), median(work for _, work in seconds)) for seconds in found]


def _open(page: Any, path: Path) -> None:
    page.goto(path.as_uri(), wait_until="load")
    plot = page.query_selector(".plot")
    if plot is not None:
        plot.dispatch_event("pointermove", {"clientX": 300})
        page.wait_for_selector(".tip:not([hidden])", state="attached")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def main() -> int:
    """Print the table; status 1 if a promised figure is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--steps", type=int, default=LONG)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        log = results / "long.log"
        log.write_text(samples.log_text(samples.steps(options.steps, 3)), encoding="utf-8")
        known = prepare(results, options.cases, options.steps)
        reading, build = (
            min(timed(action, time.process_time) for _ in range(options.repeats))
            for action in (lambda: read([log]), lambda: write(results, judged_at=samples.JUDGED_AT, read=known))
        )
        page = results / "conformance.html"
        size = page.stat().st_size / 1e6
        print(f"{options.cases} cases, long runs of {options.steps:,} steps")
        print(f"size    {size:8.2f} MB   at most {MOST_MEGABYTES:g}")
        print(f"build   {build:8.2f} s    at most {MOST_BUILD_SECONDS:g}; {build / reading:.2f} x reading one long log")
        missed = size > MOST_MEGABYTES or build > MOST_BUILD_SECONDS
        if not shutil.which(CHROMIUM):
            print(f"open    not measured: {CHROMIUM} is not installed")
            return 1
        empty = results / "empty.html"
        empty.write_text("<!doctype html><title>empty</title>", encoding="utf-8")
        (opened, work), (bare, _) = opening([page, empty], options.repeats)
        against = f"{opened / bare:.1f} x an empty page; {work:.2f} s of it are the page's own work"
        print(f"open    {opened:8.2f} s    at most {MOST_OPEN_SECONDS:g}; {against}")
        return int(missed or opened > MOST_OPEN_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
