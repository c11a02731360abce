"""A month of nights, walked through: real training, recorded evidence, planted changes, a killed night, the page."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import psutil
import pytest

from acceptance.criteria.regression import FIGURES
from fixtures.options import ROOT
from reports.__main__ import main
from tests.ci import nights
from tests.ci.nights import CASE

# nights before the last one, which is trained for real
SLOW, LOSSES, DRIVER, MISSED = 16, 9, 5, 12
ACCEPTANCE = [
    sys.executable, "-m", "pytest", "acceptance", "-p", "no:cacheprovider", "-k", f"{CASE} and not fsdp",
    "-m", "not long and not convergence", "--steps", "30",
]  # fmt: skip
pytestmark = pytest.mark.slow


class Month:
    """What the nights left: the history, the page, what the last session printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history = folder / "nightly.sqlite"
        self.page = folder / "trend.html"
        self.killed = self.kill_a_night()
        self.real = self.run("real")
        self.recorded()
        self.last = self.run("last", "--evidence", str(folder / "real"), "--fail-on-regression",
                             "--summary", str(folder / "summary.md"))  # fmt: skip
        assert main(["history", "page", "--history", str(self.history), "--out", str(self.page)]) == 0

    def command(self, name: str, *more: str) -> list[str]:
        return [*ACCEPTANCE, "--history", str(self.history), "--results", str(self.folder / name), *more]

    def run(self, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(name, *more), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def kill_a_night(self) -> bool:
        """Start a night, and kill pytest once its training runs: its supervisor ends the run by itself."""
        session = subprocess.Popen(
            self.command("killed"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        attempt = self.folder / "killed" / "runs" / CASE / "speed" / "attempt-1"
        while not (attempt / "supervisor.json").is_file():
            assert session.poll() is None, "the night ended before it could be killed"
            time.sleep(0.1)
        os.kill(session.pid, signal.SIGKILL)
        session.wait()
        while not (attempt / "end.json").is_file():
            time.sleep(0.1)
        return True

    def recorded(self) -> None:
        """The nights before, from the real night's own evidence: 5 % faster until SLOW nights before the last."""
        rng = np.random.default_rng(4)
        last = datetime.now(timezone.utc).astimezone().replace(microsecond=0)
        for before in range(30, 0, -1):
            if before == MISSED:
                continue
            nights.make(
                self.folder / "real",
                self.folder / f"night-{before:02d}",
                last - timedelta(days=before),
                speed=(1 / 0.95 if before > SLOW else 1.0) * math.exp(rng.normal(0, 0.01)),
                driver="550.54" if before > DRIVER else "560.28",
                loss_from=12 if before > LOSSES else None,
            )
        folders = sorted(self.folder.glob("night-*"), reverse=True)
        assert main(["history", "import", *map(str, folders), "--history", str(self.history)]) == 0

    def rows(self, query: str) -> list[tuple]:
        connection = sqlite3.connect(self.history)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def month(tmp_path_factory) -> Month:
    return Month(tmp_path_factory.mktemp("month"))


@pytest.fixture
def page(month, browser):
    """The trend page in the browser; it may neither complain nor ask for anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened, complaints = context.new_page(), []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: complaints.append(request.url) if request.url != month.page.as_uri() else None)
    opened.goto(month.page.as_uri())
    opened.add_style_tag(content=".case { content-visibility: visible !important }")
    yield opened
    assert complaints == []
    context.close()


def day(before: int) -> str:
    return f"{datetime.now(timezone.utc).astimezone() - timedelta(days=before):%Y-%m-%d}"


def test_the_real_night_was_trained_and_written(month):
    assert month.real.returncode == 0, month.real.stdout
    assert "baseline" in month.real.stdout
    rows = month.rows(
        "SELECT run, outcome, tgs, driver FROM runs r JOIN nights n ON n.id = r.night WHERE n.id = 2 ORDER BY r.id"
    )
    assert [row[:2] for row in rows] == [("speed", "complete"), ("repeat-1", "complete"), ("repeat-2", "complete")]
    assert rows[0][2] > 0
    assert month.rows("SELECT COUNT(*) FROM verdicts WHERE night = 2") == [(4,)]


def test_the_killed_night_left_word_and_no_process(month):
    assert month.rows("SELECT state FROM nights WHERE id = 1") == [("running",)]
    assert month.rows("SELECT COUNT(*) FROM runs WHERE night = 1") == [(0,)]
    mine = str(month.folder / "killed")
    assert [p.pid for p in psutil.process_iter() if mine in " ".join(_command(p))] == []


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_the_last_night_fails_by_its_regressions_and_says_since_when(month):
    assert month.last.returncode == 1, month.last.stdout
    failed = [line for line in month.last.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1
    assert "test_regression" in failed[0]
    assert "fail [regression-" in month.last.stdout
    for text in (f"since the night of {day(SLOW)}", f"since the night of {day(LOSSES)}", "first at step 12"):
        assert text in month.last.stdout
    properties = {
        p.get("name"): p.get("value") for p in ElementTree.parse(month.folder / "last" / "junit.xml").iter("property")
    }
    assert float(properties["tgs_change"]) == pytest.approx(-0.05, abs=0.01)
    assert float(properties["tgs_change_low95"]) < float(properties["tgs_change"]) < 0


def test_the_summary_is_a_table_in_markdown(month):
    lines = (month.folder / "summary.md").read_text().splitlines()
    assert lines[0] == "### InternLM acceptance, tonight: regressed"
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") - line.count("\\|") for line in table} == {7}
    assert any("TGS" in line and "regressed" in line for line in table)


def test_the_page_opens_with_the_regression(page):
    assert page.locator("h1").inner_text() == "Regressed"
    row = page.locator(".cases tbody tr").first.inner_text()
    for text in (CASE, "regressed", f"TGS since {day(SLOW)}", f"losses since {day(LOSSES)}"):
        assert text in row


def test_the_page_shows_every_planted_change(page):
    told = page.locator(".case .told").first.inner_text()
    assert f"since the night of {day(SLOW)}" in told
    assert f"since the night of {day(LOSSES)}" in told
    points = page.locator(".case .point").all_inner_texts()
    assert any(text.startswith(day(SLOW)) and "TGS -5" in text.replace("−", "-") for text in points)
    assert any(text.startswith(day(LOSSES)) and "losses changed: first at step 12" in text for text in points)
    events = page.locator("#events li").all_inner_texts()
    assert any(day(DRIVER) in text and "driver 550.54 to 560.28" in text for text in events)
    assert any("1 night did not run" in text and day(MISSED + 1) in text for text in events)
    assert any("has not finished yet" in text or "was killed" in text for text in events)
    for mark in ("regressed", "changed", "missed", "killed"):
        assert page.locator(f".plot .span.{mark}").count() > 0, mark


def test_every_curve_is_drawn_and_speaks(page):
    plots = page.locator(".plot")
    assert plots.count() >= len(FIGURES)
    for i in range(plots.count()):
        box = plots.nth(i).locator("path.line.s1").bounding_box()
        assert box["width"] > 100
        plots.nth(i).focus()
        page.keyboard.press("ArrowLeft")
        assert "days before the last night" in plots.nth(i).get_attribute("aria-valuetext")
    assert page.locator(".strip path.cell.pass").count() > 0


def test_reports_that_exist_are_linked_and_no_others(month, page):
    links = page.locator(".nights a").evaluate_all("all => all.map(a => a.href)")
    assert links == [(month.folder / "real" / "conformance.html").as_uri()]
    state = page.locator(".nights tbody tr", has_text="not finished")
    assert state.count() == 1


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_accessible(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_pin_with_its_reason_accepts_the_new_level(month, tmp_path):
    history = shutil.copy(month.history, tmp_path / "copy.sqlite")
    assert main(["history", "pin", "accepted", "--history", str(history), "--reason", "checks are on"]) == 0
    again = subprocess.run(
        [*ACCEPTANCE, "--history", str(history), "--results", str(tmp_path / "again"), "--fail-on-regression",
         "--evidence", str(month.folder / "real")], cwd=ROOT, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout
