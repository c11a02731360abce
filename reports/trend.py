"""The trend page: one HTML file of the nights, the worst case first.

A pure function of the history, but for which reports still exist, and the time by which a night counts as killed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from acceptance.criteria import regression
from acceptance.criteria.regression import ChangePoint, Comparison, Figure, Level, Night
from acceptance.judge import CRITERIA
from reports import page
from reports.charts import LEFT, RIGHT, WIDTH, Chart, Series, Span, draw
from reports.history import calendar, store
from reports.history.calendar import DAY, Event
from reports.history.session import compared
from reports.text import number, script_json

NIGHTS = 400  # shown; older ones stay in the history
LISTED = 60  # in the table of nights
MARK = 0.004  # width of a mark, as a share of the time shown
ORDER = ("regressed", "failing", "improved", "too few nights", "unchanged")
TONE = {"regressed": "fail", "failing": "fail", "improved": "pass", "unchanged": "pass", "too few nights": "not-run"}
STRIP = 11  # height of a row of outcomes
LOSS = Figure("final_loss", "final loss", "nats per token", 1, 0.001, "regression-loss-changed")


@dataclass(frozen=True)
class Plot:
    """A drawn chart with its words."""

    title: str
    unit: str
    svg: Markup
    values: Markup


@dataclass(frozen=True)
class Section:
    """One case on one kind of machine."""

    anchor: str
    case: str
    machine: str
    outcome: str
    tone: str
    failing: Sequence[str]
    found: Sequence[Comparison]
    points: Sequence[ChangePoint]
    plots: Sequence[Plot]
    strip: Markup
    nights: int

    @property
    def cells(self) -> tuple[str, str, str]:
        """TGS tonight, its change, and since when, for the table at the top."""
        tgs = self.found[0]
        change = "–" if tgs.change is None else f"{tgs.change:+.1%}"
        what = [f"{c.title} since {c.since.label}" for c in self.found if c.outcome == self.outcome and c.since]
        return number(tgs.tonight, 4), change, "; ".join([*what, *self.failing])


@dataclass(frozen=True)
class Row:
    """One night in the table of nights."""

    number: int
    date: str
    host: str
    state: str
    driver: str
    torch: str
    internlm: str
    suite: str
    report: str
    pins: str


def write(connection: sqlite3.Connection, out: Path, nights: int = NIGHTS) -> Path:
    """Write the page of the last `nights` nights to `out`, whole or not at all. Raises HistoryError for an empty
    history."""
    recent = store.recent(connection, nights)
    if not recent:
        raise store.HistoryError("the history holds no night yet")
    found = calendar.events(recent)
    span = Time(recent[0]["started"], recent[-1]["started"])
    parts = [_section(connection, line, nights, span, found) for line in store.lines(connection, nights)]
    parts.sort(key=lambda s: (ORDER.index(s.outcome), _size(s), s.case))
    template = page.environment().get_template("trend.html.j2")
    script = Markup(page.read_template("page.js"))
    text = template.render(
        sections=parts,
        events=found,
        rows=_rows(connection, recent[-LISTED:], out),
        counts=[(o, TONE[o], n) for o in ORDER if (n := sum(s.outcome == o for s in parts))],
        first=_date(recent[0]),
        last=_date(recent[-1]),
        shown=len(recent),
        total=connection.execute("SELECT COUNT(*) FROM nights").fetchone()[0],
        criteria=CRITERIA,
        tone=TONE,
        css=Markup(page.read_template("page.css")),
        js=script,
        csp=Markup(page.policy([str(script)])),
    )
    return page.write_whole(out, text)


@dataclass(frozen=True)
class Time:
    """The time shown: seconds since the epoch to days before the last night."""

    first: float
    last: float

    def days(self, moment: float) -> float:
        return (moment - self.last) / DAY

    @property
    def width(self) -> float:
        """Of a mark, in days."""
        return max((self.last - self.first) / DAY * MARK, 0.02)


def _section(
    connection: sqlite3.Connection, line: store.Line, nights: int, time: Time, events: Sequence[Event]
) -> Section:
    tonight = compared(connection, line)
    shown = [night for night in store.nights_of(connection, line, nights) if night.started >= time.first]
    verdicts = store.outcomes(connection, line.case, [night.night for night in shown])
    plots, points = [], []
    for figure in (*regression.FIGURES, LOSS):
        changes, levels = regression.change_points(figure, shown) if figure is not LOSS else ((), ())
        if figure is LOSS:
            changes = regression.loss_changes(shown)
        points += changes
        if plot := _plot(figure, shown, changes, levels, time, events):
            plots.append(plot)
    failing = [f"{c} {o}" for c, o in verdicts[shown[-1].night].items() if o in ("fail", "inconclusive")]
    outcome: str = tonight.worst.outcome
    if failing and outcome != "regressed":
        outcome = "failing"
    return Section(
        anchor=f"case-{line.settings}-{line.machine}",
        case=line.case,
        machine=line.machine_name,
        outcome=outcome,
        tone=TONE[outcome],
        failing=failing,
        found=tonight.found,
        points=sorted(points, key=lambda p: p.night.started, reverse=True),
        plots=plots,
        strip=_strip(shown, verdicts, time),
        nights=len(shown),
    )


def _size(section: Section) -> float:
    """The largest change, so that the worst of the regressed comes first."""
    return -max((abs(c.change or 0) for c in section.found if c.outcome == section.outcome), default=0.0)


def _plot(
    figure: Figure,
    nights: Sequence[Night],
    changes: Sequence[ChangePoint],
    levels: Sequence[Level],
    time: Time,
    events: Sequence[Event],
) -> Plot | None:
    own = [night for night in nights if night.figures.get(figure.name) is not None]
    if not own:
        return None
    x = np.array([time.days(night.started) for night in own])
    y = np.array([night.figures[figure.name] for night in own], float)
    series = [Series(figure.title, x, y, "s1")]
    if len(levels) > 1:
        level = np.concatenate([np.full(one.stop - one.start, np.exp(one.mean)) for one in levels])
        series.append(Series("level", x, level, "s2"))
    half = time.width / 2
    spans = [_mark(time.days(p.night.started), half, p.outcome) for p in changes]
    spans += [Span(e.kind, time.days(e.at) - half, time.days(e.until) + half, style=e.kind) for e in events]
    drawn = draw(
        Chart(figure.name, figure.title, "days before the last night", figure.unit, series, spans=spans, height=200)
    )
    if drawn is None:
        return None
    svg, values = drawn
    return Plot(figure.title, figure.unit, svg, script_json(values))


def _mark(at: float, half: float, outcome: str) -> Span:
    return Span(outcome, at - half, at + half, style=outcome)


def _strip(nights: Sequence[Night], verdicts: Mapping[int, Mapping[str, str]], time: Time) -> Markup:
    """The four outcomes of every night as coloured cells, in the charts' own scale; neighbours alike are one cell."""
    room = WIDTH - LEFT - RIGHT
    width = max(time.last - time.first, DAY)
    cell = max(room * DAY / width * 0.86, 1.2)
    paths: dict[str, list[str]] = {}
    for i, criterion in enumerate(CRITERIA):
        start, stop, word = 0.0, -1.0, ""
        cells = [
            (LEFT + room * (n.started - time.first) / width, verdicts[n.night].get(criterion, "not run"))
            for n in nights
        ]
        for at, outcome in [*cells, (1e9, "")]:
            if outcome == word and at <= stop + cell:
                stop = at + cell
                continue
            if word:
                paths.setdefault(word, []).append(f"M{start:.1f} {i * STRIP}H{stop:.1f}v{STRIP - 2}H{start:.1f}z")
            start, stop, word = at, at + cell, outcome
    marks = "".join(f'<path class="cell {word.replace(" ", "-")}" d="{"".join(d)}"/>' for word, d in paths.items())
    names = "".join(
        f'<text class="tick" x="{LEFT - 6}" y="{i * STRIP + STRIP - 3}" text-anchor="end">{name}</text>'
        for i, name in enumerate(CRITERIA)
    )
    height = STRIP * len(CRITERIA)
    # names and numbers are ours: nothing here comes from a machine
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height}" aria-hidden="true" focusable="false">{marks}{names}</svg>')


def _rows(connection: sqlite3.Connection, nights: Sequence[Mapping[str, Any]], out: Path) -> list[Row]:
    names: dict[int, list[str]] = {}
    for pin in store.pins(connection):
        names.setdefault(pin["night"], []).append(f"{pin['name']} ({pin['reason']})")
    latest = {night["results"]: night["id"] for night in nights}  # a later night writes over the report of its folder
    rows = []
    for night in reversed(nights):
        report = Path(night["results"] or "") / page.NAME
        there = night["results"] and latest[night["results"]] == night["id"] and report.is_file()
        rows.append(
            Row(
                number=night["id"],
                date=_date(night),
                host=str(night["run_host"] or night["host"] or ""),
                state=_state(night),
                driver=str(night["driver"] or ""),
                torch=str(night["torch"] or ""),
                internlm=str(night["internlm"] or ""),
                suite=str(night["suite"] or "")[:12],
                report=quote(os.path.relpath(report, out.resolve().parent)) if there else "",
                pins=", ".join(names.get(night["id"], [])),
            )
        )
    return rows


def _state(night: Mapping[str, Any]) -> str:
    if night["state"] == "running":
        return "not finished"
    return "complete" if night["machine_name"] else "no run"


def _date(night: Mapping[str, Any]) -> str:
    return store.date(night["started"], night["utc_offset"])
