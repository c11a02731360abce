"""The history: one SQLite file that collects the nights of any number of machines and cases.

Everything a session has to say is written in one transaction at its end; at its start it only leaves word that it
began, so that a killed night shows. Writers wait for each other. The rollback journal (SQLite's default) is kept,
because write-ahead logging does not work on network file systems, where such a file likes to lie.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from acceptance.criteria.regression import Night

WAIT_SECONDS = 60.0  # for another session that is writing
WINDOW = 90  # nights of a case that the noise and the baseline are taken from
CONTEXT = ("host", "driver", "torch", "collective", "python", "kernel", "internlm", "suite", "config")

# One script a version; a file at version n gets all scripts from n on. Never change one that was released.
MIGRATIONS = (
    """
    CREATE TABLE nights (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,              -- the session's own id
        state TEXT NOT NULL CHECK (state IN ('running', 'complete')),
        started REAL NOT NULL,                 -- seconds since the epoch
        utc_offset INTEGER NOT NULL,           -- seconds
        ended REAL,
        host TEXT,                             -- where the session ran
        results TEXT,                          -- folder of evidence and report
        suite TEXT                             -- the commit
    );
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        night INTEGER NOT NULL REFERENCES nights (id),
        case_name TEXT NOT NULL,
        run TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        digest TEXT NOT NULL UNIQUE,           -- of request.json and end.json, or of the logs: one attempt, one row
        path TEXT NOT NULL,                    -- the attempt's folder
        started REAL NOT NULL,
        model TEXT NOT NULL, dataset TEXT, tp INTEGER, pp INTEGER, zero INTEGER, dp INTEGER,
        world INTEGER, nodes INTEGER, accelerator TEXT,
        settings TEXT NOT NULL,                -- digest of what was asked for: equal for comparable runs
        machine TEXT NOT NULL,                 -- digest of the kind of machine: equal for comparable machines
        machine_name TEXT NOT NULL,
        host TEXT, driver TEXT, torch TEXT, collective TEXT, python TEXT, kernel TEXT,
        internlm TEXT, suite TEXT, config TEXT,
        outcome TEXT, exit_status INTEGER, failure TEXT,
        steps_asked INTEGER, steps INTEGER NOT NULL,
        seconds REAL, seconds_to_first_step REAL,
        tgs REAL, tgs_lower REAL, tgs_upper REAL, tflops REAL,   -- sustained; the speed run's
        memory_gib REAL,                       -- peak of the rank that needs most
        final_loss REAL,                       -- median of the last 100 steps, or of the last tenth
        curve TEXT REFERENCES curves (digest),
        UNIQUE (night, case_name, run)
    );
    CREATE INDEX nights_in_order ON nights (started, id);
    CREATE TABLE curves (
        digest TEXT PRIMARY KEY,               -- of loss and grad_norm of the first 100 steps, every bit
        losses BLOB NOT NULL                   -- little-endian float64
    );
    CREATE TABLE verdicts (
        night INTEGER NOT NULL REFERENCES nights (id),
        case_name TEXT NOT NULL,
        criterion TEXT NOT NULL,
        outcome TEXT NOT NULL CHECK (outcome IN ('pass', 'fail', 'inconclusive', 'not run')),
        code TEXT NOT NULL,
        measurement TEXT, value REAL, unit TEXT, comparator TEXT, requirement REAL, source TEXT,  -- what decided
        PRIMARY KEY (night, case_name, criterion)
    );
    """,
    """
    CREATE TABLE pins (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        night INTEGER NOT NULL REFERENCES nights (id),
        moved REAL NOT NULL,                   -- seconds since the epoch; the newest row of a name holds
        reason TEXT NOT NULL
    );
    CREATE INDEX pins_of_a_name ON pins (name, moved);
    """,
)


class HistoryError(Exception):
    """A history that cannot be used: which file, what is wrong, what to do."""


@contextmanager
def opened(path: Path, *, create: bool = False) -> Iterator[sqlite3.Connection]:
    """The history, brought to the newest schema.

    create   make the file where there is none

    Raises HistoryError: no such file, not a history, written by a newer suite, locked for a minute, disk full.
    """
    if not create and not path.is_file():
        raise HistoryError(f"{path}: there is no such history; a session with --history {path} makes it")
    if not path.parent.is_dir():
        raise HistoryError(f"{path}: its folder does not exist")
    try:
        # isolation_level None: transactions are begun here, and only here
        connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")
            _migrate(connection, path)
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise HistoryError(f"{path}: {error}; is it a history, and can it be written?") from error


@contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; other writers wait."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    if _version(connection) == len(MIGRATIONS):
        return
    with writing(connection):
        version = _version(connection)  # another session may have been faster
        if version > len(MIGRATIONS):
            raise HistoryError(f"{path}: written by a newer suite (schema {version}); use that one")
        if version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise HistoryError(f"{path}: an SQLite file, but not a history")
        for script in MIGRATIONS[version:]:
            for statement in script.split(";\n"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


# ---- nights ----------------------------------------------------------------------------------------------------


def begin(connection: sqlite3.Connection, key: str, host: str, results: Path, suite: str | None) -> None:
    """Leave word that a night began."""
    moment = datetime.now(timezone.utc).astimezone()
    with writing(connection):
        connection.execute(
            "INSERT INTO nights (key, state, started, utc_offset, host, results, suite) VALUES (?,?,?,?,?,?,?)",
            (key, "running", moment.timestamp(), offset_of(moment), host, str(results.resolve()), suite),
        )


def offset_of(moment: datetime) -> int:
    return int((moment.utcoffset() or timedelta()).total_seconds())


def finish(
    connection: sqlite3.Connection,
    night: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    verdicts: Sequence[Mapping[str, Any]],
    curves: Mapping[str, bytes],
) -> int:
    """Write a night in one transaction: its row (`night`, updated where `begin` made it), its runs that are not on
    record yet, and the verdicts of their cases. How many runs were written."""
    with writing(connection):
        _insert(connection, "nights", {"state": "complete", **night}, "ON CONFLICT (key) DO UPDATE SET " + ", ".join(
            f"{column} = excluded.{column}" for column in ("state", "ended", "results", "suite")
        ))  # fmt: skip
        number = connection.execute("SELECT id FROM nights WHERE key = ?", (night["key"],)).fetchone()[0]
        for digest, losses in curves.items():
            _insert(connection, "curves", {"digest": digest, "losses": losses}, "ON CONFLICT DO NOTHING")
        written = sum(_insert(connection, "runs", {"night": number, **run}, "ON CONFLICT DO NOTHING") for run in runs)
        for verdict in verdicts:
            _insert(connection, "verdicts", {"night": number, **verdict}, "ON CONFLICT DO NOTHING")
    return written


def known(connection: sqlite3.Connection, digests: Sequence[str]) -> set[str]:
    """Which of these attempts are on record."""
    found = set()
    for digest in digests:
        found |= {row[0] for row in connection.execute("SELECT digest FROM runs WHERE digest = ?", (digest,))}
    return found


def _insert(connection: sqlite3.Connection, table: str, row: Mapping[str, Any], conflict: str) -> int:
    columns = ", ".join(row)
    marks = ", ".join("?" * len(row))
    statement = f"INSERT INTO {table} ({columns}) VALUES ({marks}) {conflict}"
    return connection.execute(statement, tuple(row.values())).rowcount


# ---- what is asked of it ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """What is compared from night to night: a case, asked for alike, on one kind of machine."""

    case: str
    settings: str
    machine: str
    machine_name: str = ""


def nights_of(
    connection: sqlite3.Connection, line: Line, window: int = WINDOW, *pins: int, until: int | None = None
) -> list[Night]:
    """The last `window` nights of a line up to the night `until` (None: the last one), oldest first; for every night
    of `pins`, the window that ends with it too."""
    key = {"case": line.case, "settings": line.settings, "machine": line.machine}
    order: dict[int, float] = {}
    for last in (until, *pins):
        # from the newest night back: SQLite stops at the limit, however long the history is
        order |= connection.execute(
            "SELECT n.id, n.started FROM nights n WHERE EXISTS (SELECT 1 FROM runs r WHERE r.night = n.id "
            "AND r.case_name = :case AND r.settings = :settings AND r.machine = :machine AND r.run != 'long') "
            "AND (:last IS NULL OR (n.started, n.id) <= (SELECT started, id FROM nights WHERE id = :last)) "
            "ORDER BY n.started DESC, n.id DESC LIMIT :window",
            {**key, "last": last, "window": window},
        ).fetchall()
    runs: dict[int, dict[str, sqlite3.Row]] = {}
    numbers = sorted(order, key=lambda number: (order[number], number))
    for number in numbers[: numbers.index(until) + 1] if until in order else numbers:
        rows = connection.execute(
            "SELECT r.*, n.started AS night_started, n.utc_offset, c.losses FROM runs r "
            "JOIN nights n ON n.id = r.night "
            "LEFT JOIN curves c ON c.digest = r.curve AND r.run = 'repeat-1' WHERE r.night = :night "
            "AND r.case_name = :case AND (r.run = 'long' OR r.settings = :settings AND r.machine = :machine)",
            {**key, "night": number},
        )
        runs[number] = {row["run"]: row for row in rows}
    return [night_of(number, found) for number, found in runs.items()]


def night_of(number: int, runs: Mapping[str, Mapping[str, Any]]) -> Night:
    """A night of one case, from the rows of its short runs."""
    speed = runs.get("speed")
    first = speed or next(iter(runs.values()))
    loss = next((runs[run]["final_loss"] for run in ("long", "repeat-1", "speed") if run in runs), None)
    whole = speed is not None and speed["outcome"] in ("complete", None)  # None: logs brought from elsewhere
    repeat, again = runs.get("repeat-1"), runs.get("repeat-2")
    curve = repeat["curve"] if repeat else None
    return Night(
        night=number,
        label=date(first["night_started"], first["utc_offset"]),
        started=first["night_started"],
        figures={
            "tgs": speed["tgs"] if speed and whole else None,
            "memory": speed["memory_gib"] if speed and whole else None,
            "startup": speed["seconds_to_first_step"] if speed and whole else None,
            "final_loss": loss,
        },
        curve=curve,
        repeats=bool(curve and again and again["curve"] == curve),
        losses=np.frombuffer(repeat["losses"], "<f8") if repeat and repeat["losses"] else None,
        context={key: str(first[key] or "") for key in CONTEXT},
    )


def date(started: float, utc_offset: int) -> str:
    """The night's date and time where it ran."""
    return f"{datetime.fromtimestamp(started, timezone(timedelta(seconds=utc_offset))):%Y-%m-%d %H:%M}"


# ---- pins ------------------------------------------------------------------------------------------------------


def pin(connection: sqlite3.Connection, name: str, night: int | None, reason: str | None) -> sqlite3.Row:
    """Pin a night (None: the last complete one) by name; the row of the night. A pin that exists moves only with a
    reason. Raises HistoryError."""
    with writing(connection):
        row = connection.execute(
            "SELECT n.* FROM nights n WHERE n.state = 'complete' "
            "AND EXISTS (SELECT 1 FROM runs r WHERE r.night = n.id) "
            "AND (:night IS NULL OR n.id = :night) ORDER BY n.started DESC, n.id DESC LIMIT 1",
            {"night": night},
        ).fetchone()
        if row is None:
            what = f"night {night} does not exist, was killed, or left no run" if night else "no night has left a run"
            raise HistoryError(f"{what}; `export` lists the nights")
        old = connection.execute("SELECT night FROM pins WHERE name = ? ORDER BY id DESC LIMIT 1", (name,)).fetchone()
        if old and not (reason or "").strip():
            raise HistoryError(f"{name} is pinned to night {old['night']}; moving it needs a --reason, which is kept")
        connection.execute(
            "INSERT INTO pins (name, night, moved, reason) VALUES (?,?,?,?)",
            (name, row["id"], time.time(), (reason or "").strip() or "first pinned"),
        )
    return row


def pinned(connection: sqlite3.Connection, name: str) -> int:
    """The night that a name holds now. Raises HistoryError where nothing has that name."""
    row = connection.execute("SELECT night FROM pins WHERE name = ? ORDER BY id DESC LIMIT 1", (name,)).fetchone()
    if row is None:
        names = [r[0] for r in connection.execute("SELECT DISTINCT name FROM pins ORDER BY name")]
        others = f"there are {', '.join(names)}" if names else "nothing is pinned yet"
        raise HistoryError(f"no baseline is pinned as {name}; {others} (python -m reports history pin)")
    return int(row["night"])


def pins(connection: sqlite3.Connection) -> list[sqlite3.Row]:
    """The newest row of every name, the last moved first."""
    return connection.execute(
        "SELECT p.* FROM pins p WHERE p.id = (SELECT MAX(id) FROM pins q WHERE q.name = p.name) ORDER BY p.id DESC"
    ).fetchall()


def found_as(connection: sqlite3.Connection, digest: str) -> tuple[int, Line] | None:
    """The night and the line of an attempt that is on record."""
    query = "SELECT night, case_name, settings, machine, machine_name FROM runs WHERE digest = ?"
    row = connection.execute(query, (digest,)).fetchone()
    return (row[0], Line(*tuple(row)[1:])) if row else None


def has(connection: sqlite3.Connection, night: int, line: Line) -> bool:
    """Whether a night left a short run of this line."""
    query = "SELECT 1 FROM runs WHERE night=? AND case_name=? AND settings=? AND machine=? AND run != 'long'"
    return connection.execute(query, (night, line.case, line.settings, line.machine)).fetchone() is not None


def lines(connection: sqlite3.Connection, window: int) -> list[Line]:
    """What ran in the last `window` nights."""
    rows = connection.execute(
        "SELECT DISTINCT r.case_name, r.settings, r.machine, r.machine_name FROM runs r "
        "WHERE r.run != 'long' AND r.night IN (SELECT id FROM nights ORDER BY started DESC, id DESC LIMIT ?) "
        "ORDER BY r.case_name",
        (window,),
    )
    return [Line(*row) for row in rows]


def recent(connection: sqlite3.Connection, window: int) -> list[dict[str, Any]]:
    """The last `window` nights, oldest first, with what one of their runs says of the machine (None without runs)."""
    rows = connection.execute(
        "SELECT n.*, r.host AS run_host, r.driver, r.torch, r.collective, r.kernel, r.internlm, r.machine_name "
        "FROM (SELECT * FROM nights ORDER BY started DESC, id DESC LIMIT ?) n "
        "LEFT JOIN runs r ON r.id = (SELECT MIN(id) FROM runs WHERE night = n.id) ORDER BY n.started, n.id",
        (window,),
    )
    return [dict(row) for row in rows]


def outcomes(connection: sqlite3.Connection, case: str, nights: Sequence[int]) -> dict[int, dict[str, str]]:
    """Night -> criterion -> outcome of a case."""
    found: dict[int, dict[str, str]] = {}
    for night in nights:
        rows = connection.execute(
            "SELECT criterion, outcome FROM verdicts WHERE night = ? AND case_name = ?", (night, case)
        )
        found[night] = dict(rows.fetchall())
    return found
