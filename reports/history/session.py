"""A pytest session and the history: word at its start, everything else in one transaction at its end."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from acceptance.criteria import regression
from acceptance.criteria.regression import Comparison, Night
from acceptance.criteria.verdict import Verdict
from acceptance.judge import CRITERIA, Judge
from acceptance.requirements import load as load_requirements
from fixtures import evidence, suite
from fixtures.evidence import Attempt
from fixtures.internlm import log
from fixtures.runs import SHORT
from reports.history import record, store
from reports.history.record import Read, Rows
from reports.history.store import Line


@dataclass(frozen=True)
class Compared:
    """One case of tonight against its baseline: a comparison a figure."""

    line: Line
    found: tuple[Comparison, ...]

    @property
    def worst(self) -> Comparison:
        return regression.overall(self.found)


@dataclass
class Session:
    """One session's dealings with the history file.

    compare   a pin's name; None: the automatic baseline
    host      where pytest runs
    """

    path: Path
    results: Path
    compare: str | None
    host: str
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc).astimezone())

    def begin(self, leave_word: bool = True) -> None:
        """Leave word that a night began. Raises HistoryError before hours of training: no history, no such pin."""
        with store.opened(self.path, create=True) as connection:
            if self.compare:
                store.pinned(connection, self.compare)
            if leave_word:
                store.begin(connection, self.key, self.host, self.results, suite.identity()["commit"])

    def verdict(self, case: str, judge: Judge) -> Verdict:
        """Tonight's regression verdict of one case, from its evidence and the nights on record."""
        attempts = [found for run in evidence.RUNS if (found := evidence.latest(self.results, case, run))]
        rows = record.collect({}, attempts, lambda name: _criteria(judge, name), _read)
        short = [row for row in rows.runs if row["run"] != "long"]
        if not short:
            return Verdict("not run", "regression-no-figure", f"not run: tonight left no run of {case}")
        line = line_of(short[-1])
        when = {"night_started": self.started.timestamp(), "utc_offset": store.offset_of(self.started)}
        tonight = store.night_of(
            0, {row["run"]: {**row, **when, "losses": rows.curves.get(row["curve"])} for row in rows.runs}
        )
        with store.opened(self.path, create=True) as connection:
            reused = store.found_as(connection, short[0]["digest"])  # an earlier night's, and on record
            nights, accepted = baseline(connection, line, self.compare, reused[0] if reused else None)
        if self.compare and accepted is None:
            return Verdict("not run", "regression-too-few-nights", f"not run: {_not_pinned(self.compare, case)}")
        return regression.judge(nights if reused else (*nights, tonight), accepted, cut=bool(self.compare))

    def finish(self, results: Mapping[str, Any], read: Read | None = None) -> list[Compared]:
        """Write what ended since the session began, and compare it. `results` is results.json."""
        by_name = {case["case"]: case for case in results["cases"]}
        attempts = [
            attempt
            for name, case in by_name.items()
            for run, path in case["runs"].items()
            if self._of_tonight(attempt := _attempt(self.results / path, name, run))
        ]
        rows = record.collect(self._night(results), attempts, lambda name: by_name[name]["criteria"], read or _read)
        with store.opened(self.path, create=True) as connection:
            new = store.known(connection, [run["digest"] for run in rows.runs])
            runs = [run for run in rows.runs if run["digest"] not in new]
            store.finish(connection, rows.night, runs, rows.verdicts, rows.curves)
            lines = dict.fromkeys(line_of(run) for run in runs if run["run"] != "long")
            return [compared(connection, line, self.compare) for line in lines]

    def recorded(self, requirements: Path | None) -> list[Compared]:
        """With --evidence nothing was launched: the nights of that evidence are written, and its last one compared."""
        list(import_evidence(self.path, [self.results], requirements))
        found = []
        with store.opened(self.path) as connection:
            for case in evidence.cases(self.results):
                attempts = [evidence.latest(self.results, case, run) for run in SHORT]
                digests = [record.digest_of(attempt) for attempt in attempts if attempt]
                night = next(filter(None, (store.found_as(connection, digest) for digest in digests)), None)
                if night:
                    found.append(compared(connection, night[1], self.compare, night[0]))
        return found

    def _night(self, results: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "key": self.key,
            "started": self.started.timestamp(),
            "utc_offset": store.offset_of(self.started),
            "ended": datetime.now(timezone.utc).timestamp(),
            "host": self.host,
            "results": str(self.results.resolve()),
            "suite": results["suite"]["commit"],
        }

    def _of_tonight(self, attempt: Attempt) -> bool:
        """Whether the attempt ended while this session was there: a reused one is an earlier night's."""
        try:
            return datetime.fromisoformat(attempt.end["ended"]) >= self.started
        except (KeyError, ValueError, TypeError, evidence.EvidenceError):
            return False


def compared(
    connection: sqlite3.Connection, line: Line, compare: str | None = None, until: int | None = None
) -> Compared:
    """The last night of a line, or the night `until`, against its baseline."""
    nights, accepted = baseline(connection, line, compare, until)
    if compare and accepted is None:
        text = f"{_not_pinned(compare, line.case)}."
        none = Comparison("tgs", "TGS", "tokens/GPU/s", "too few nights", "regression-too-few-nights", text=text)
        return Compared(line, (none,))
    return Compared(line, regression.compare(nights, accepted, cut=bool(compare)))


def baseline(
    connection: sqlite3.Connection, line: Line, compare: str | None, until: int | None = None
) -> tuple[list[Night], int | None]:
    """The nights to compare, oldest first, and the index of the one whose level is the baseline: that of the pin
    `compare`, else of the newest pin that has this line, else None."""
    names = [store.pinned(connection, compare)] if compare else [pin["night"] for pin in store.pins(connection)]
    pin = next((night for night in names if store.has(connection, night, line)), None)
    nights = store.nights_of(connection, line, store.WINDOW, *([pin] if pin is not None else []), until=until)
    return nights, next((i for i, night in enumerate(nights) if night.night == pin), None)


def line_of(run: Mapping[str, Any]) -> Line:
    """What a run is compared by."""
    return Line(run["case_name"], run["settings"], run["machine"], run["machine_name"])


def import_evidence(history: Path, folders: Sequence[Path], requirements: Path | None = None) -> Iterator[str]:
    """Write the nights of recorded evidence; a line for each folder."""
    needed = load_requirements(requirements)
    with store.opened(history, create=True) as connection:
        for folder in folders:
            nights = record.nights_in(folder, needed)
            written = sum(write(connection, rows) for rows in nights)
            yield f"{folder}: {len(nights)} nights, {written} new runs"


def write(connection: sqlite3.Connection, rows: Rows) -> int:
    """Write what is new in the rows of a night; how many runs that is. A night without new runs is not written."""
    old = store.known(connection, [run["digest"] for run in rows.runs])
    runs = [run for run in rows.runs if run["digest"] not in old]
    if not runs:
        return 0
    cases = {run["case_name"] for run in runs}
    verdicts = [verdict for verdict in rows.verdicts if verdict["case_name"] in cases]
    return store.finish(connection, rows.night, runs, verdicts, rows.curves)


def _not_pinned(pin: str, case: str) -> str:
    return f"the night pinned as {pin} has no run of {case} with these settings on this kind of machine"


def _attempt(path: Path, case: str, run: str) -> Attempt:
    number = path.name.removeprefix("attempt-")
    return Attempt(path, case, run, int(number) if number.isdigit() else 0)


def _criteria(judge: Judge, case: str) -> dict[str, Any]:
    return {criterion: judge.verdict(case, criterion).as_json() for criterion in CRITERIA}


def _read(attempt: Attempt) -> log.Reading:
    return log.read(attempt.logs)
