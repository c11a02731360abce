"""The history file: schema, transactions, concurrent and killed writers, import, export, pins, retention."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import zipfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from xml.etree import ElementTree

import pytest

from acceptance.judge import Judge
from acceptance.requirements import load as load_requirements
from fixtures.evidence import write_json
from fixtures.options import ROOT
from reports.__main__ import main
from reports.history import calendar, store
from reports.history.session import Session, compared
from reports.history.store import HistoryError
from tests.ci import nights
from tests.ci.nights import CASE, RECORDED

FIRST = datetime(2026, 11, 1, 2, tzinfo=timezone(timedelta(hours=8)))


@pytest.fixture
def history(tmp_path) -> Path:
    return tmp_path / "nightly.sqlite"


def days(folder, count, **planted):
    return [
        nights.make(RECORDED, folder / f"night-{i:02d}", FIRST + timedelta(days=i), **planted) for i in range(count)
    ]


def rows(history, query, *values):
    with store.opened(history) as connection:
        return [dict(row) for row in connection.execute(query, values)]


def reports(*arguments) -> int:
    return main(["history", *map(str, arguments)])


# ---- import and export -----------------------------------------------------------------------------------------


def test_import_fills_typed_columns_once(tmp_path, history):
    made = days(tmp_path, 2)
    assert reports("import", *made, "--history", history) == 0
    assert reports("import", *made, "--history", history) == 0
    assert len(rows(history, "SELECT * FROM nights")) == 2
    runs = rows(history, "SELECT * FROM runs ORDER BY started")
    assert [run["run"] for run in runs] == ["speed", "repeat-1", "repeat-2"] * 2
    speed = runs[0]
    assert (speed["case_name"], speed["model"], speed["tp"], speed["outcome"]) == (CASE, "tiny", 1, "complete")
    assert isinstance(speed["tgs"], float)
    assert speed["tgs_lower"] < speed["tgs"] < speed["tgs_upper"]
    assert speed["seconds_to_first_step"] > 0
    assert runs[1]["curve"] == runs[2]["curve"]
    verdicts = rows(history, "SELECT * FROM verdicts WHERE night = 1 AND criterion = 'throughput'")
    assert verdicts[0]["outcome"] == "pass"
    assert verdicts[0]["value"] >= verdicts[0]["requirement"]


def test_attempts_of_one_folder_are_nights_of_their_own(tmp_path, history):
    first, second = days(tmp_path, 2)
    for attempt in second.glob("runs/*/*/attempt-1"):
        attempt.rename(first / attempt.relative_to(second).with_name("attempt-2"))
    assert reports("import", first, "--history", history) == 0
    assert [night["started"] for night in rows(history, "SELECT * FROM nights ORDER BY id")] == [
        FIRST.timestamp(),
        (FIRST + timedelta(days=1)).timestamp(),
    ]


def test_a_run_that_has_not_ended_is_left_for_later(tmp_path, history):
    (night,) = days(tmp_path, 1)
    end = night / "runs" / CASE / "repeat-2" / "attempt-1" / "end.json"
    text = end.read_text()
    end.unlink()
    assert reports("import", night, "--history", history) == 0
    assert len(rows(history, "SELECT * FROM runs")) == 2
    end.write_text(text)
    assert reports("import", night, "--history", history) == 0
    assert len(rows(history, "SELECT * FROM runs")) == 3
    assert len(rows(history, "SELECT * FROM nights")) == 1


def test_export_writes_all_tables_twice(tmp_path, history):
    reports("import", *days(tmp_path, 2), "--history", history)
    assert reports("export", "--history", history, "--out", tmp_path / "out") == 0
    for table, count in (("nights", 2), ("runs", 6), ("verdicts", 8), ("pins", 0)):
        with (tmp_path / "out" / f"{table}.csv").open(newline="") as file:
            by_csv = list(csv.DictReader(file))
        by_json = [json.loads(line) for line in (tmp_path / "out" / f"{table}.jsonl").read_text().splitlines()]
        assert len(by_csv) == len(by_json) == count
        for a, b in zip(by_csv, by_json, strict=True):
            assert a == {key: "" if value is None else str(value) for key, value in b.items()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["page", "--history", "nothing.sqlite"], "there is no such history"),
        (["import", "empty"], "holds no run"),
        (["prune", "--keep", "0"], "at least one night"),
        (["pin", "x", "--night", "7"], "night 7 does not exist"),
        (["page", "--history", "text.sqlite"], "is it a history"),
        (["page", "--history", "other.sqlite"], "not a history"),
        (["page", "--history", "newer.sqlite"], "newer suite"),
        (["import", "empty", "--history", "no/folder/x.sqlite"], "folder does not exist"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text.sqlite").write_text("no database, " * 100)
    with store.opened(Path("nightly.sqlite"), create=True):
        pass
    for name, script in (("other", "CREATE TABLE x (y)"), ("newer", "PRAGMA user_version = 99")):
        connection = sqlite3.connect(f"{name}.sqlite")
        connection.executescript(script)
        connection.close()
    assert reports(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


# ---- schema ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(1, len(store.MIGRATIONS)))
def test_an_older_file_is_migrated_and_keeps_its_rows(version, history):
    connection = sqlite3.connect(history)
    for script in store.MIGRATIONS[:version]:
        connection.executescript(script)
    connection.execute("INSERT INTO nights (key, state, started, utc_offset) VALUES ('old', 'complete', 1.0, 0)")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.commit()
    connection.close()
    assert rows(history, "SELECT key FROM nights") == [{"key": "old"}]
    assert rows(history, "PRAGMA user_version") == [{"user_version": len(store.MIGRATIONS)}]
    assert rows(history, "SELECT * FROM pins") == []


def test_columns_refuse_what_is_no_outcome(history):
    with store.opened(history, create=True) as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute("INSERT INTO nights (key, state, started, utc_offset) VALUES ('x', 'good', 1, 0)")


# ---- several writers, killed writers ---------------------------------------------------------------------------


def start(history, *folders):
    command = [sys.executable, "-m", "reports", "history", "import", *map(str, folders), "--history", str(history)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_nights_that_end_at_once_lose_nothing(tmp_path, history):
    """Four processes, each with nights of its own and one that all bring."""
    made = days(tmp_path, 9)
    processes = [start(history, made[0], *made[1 + 2 * i : 3 + 2 * i]) for i in range(4)]
    output = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, output
    assert len(rows(history, "SELECT * FROM nights")) == 9
    assert len(rows(history, "SELECT * FROM runs")) == 27
    assert len(rows(history, "SELECT * FROM verdicts")) == 36
    assert rows(history, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    assert rows(history, "PRAGMA foreign_key_check") == []


@pytest.mark.slow
def test_two_nights_at_once_are_both_there(tmp_path, history):
    """Two pytest sessions, each with xdist workers of its own, on one history."""
    made = days(tmp_path, 2)
    command = [
        sys.executable, "-m", "pytest", "acceptance", "-p", "no:cacheprovider", "-n", "2", "-k", "tiny",
        "-m", "not convergence", "--history", str(history), "--fail-on-regression",
    ]  # fmt: skip
    sessions = [
        subprocess.Popen(
            [*command, "--results", str(tmp_path / f"results-{i}"), "--evidence", str(night)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i, night in enumerate(made)
    ]  # fmt: skip
    output = [session.communicate()[0] for session in sessions]
    assert [session.returncode for session in sessions] == [0, 0], output
    assert len(rows(history, "SELECT * FROM runs")) == 6
    assert {night["state"] for night in rows(history, "SELECT * FROM nights")} == {"complete"}
    assert rows(history, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    properties = {p.get("name") for p in ElementTree.parse(tmp_path / "results-0" / "junit.xml").iter("property")}
    assert {"tgs_lower95", "bit_equal_steps", "code"} <= properties


KILLED = """
import sys
from pathlib import Path
from reports.history import store
with store.opened(Path(sys.argv[1])) as connection, store.writing(connection):
    connection.execute("PRAGMA cache_size = 1")  # pages reach the file before the commit
    for i in range(2000):
        connection.execute("INSERT INTO nights (key, state, started, utc_offset, results) VALUES (?,'complete',1,0,?)",
                           (f"half-{i}", "x" * 1000))
    print("written", flush=True)
    sys.stdin.read()
"""


def test_a_writer_killed_in_its_transaction_leaves_nothing(tmp_path, history):
    (night, later) = days(tmp_path, 2)
    reports("import", night, "--history", history)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(history)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "written\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert reports("import", later, "--history", history) == 0
    assert len(rows(history, "SELECT * FROM nights")) == 2
    assert rows(history, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]


def test_a_session_that_never_ends_shows_as_killed(tmp_path, history):
    Session(history, tmp_path, None, "host").begin()
    Session(history, tmp_path, None, "host").begin()
    with store.opened(history) as connection:
        found = calendar.events(store.recent(connection, 10))
    assert [event.kind for event in found] == ["killed", "killed"]
    assert "was killed" in found[0].text
    assert "has not finished yet" in found[1].text


def test_an_unknown_pin_is_refused_before_anything_runs(history, tmp_path):
    with pytest.raises(HistoryError, match="no baseline is pinned as release"):
        Session(history, tmp_path, "release", "host").begin()


# ---- pins ------------------------------------------------------------------------------------------------------


def test_moving_a_pin_needs_a_reason_that_is_kept(tmp_path, history, capsys):
    reports("import", *days(tmp_path, 3), "--history", history)
    assert reports("pin", "release-2026.11", "--night", 1, "--history", history) == 0
    assert reports("pin", "release-2026.11", "--history", history) == 1
    assert "needs a --reason" in capsys.readouterr().err
    assert reports("pin", "release-2026.11", "--history", history, "--reason", "new driver, accepted") == 0
    moves = rows(history, "SELECT night, reason FROM pins ORDER BY id")
    assert moves == [{"night": 1, "reason": "first pinned"}, {"night": 3, "reason": "new driver, accepted"}]
    with store.opened(history) as connection:
        assert store.pinned(connection, "release-2026.11") == 3
        assert [pin["night"] for pin in store.pins(connection)] == [3]


def test_a_case_is_compared_with_the_night_of_the_pin(tmp_path, history):
    folder = tmp_path / "slow"
    made = days(tmp_path, 14)
    made += [nights.make(RECORDED, folder / str(i), FIRST + timedelta(days=14 + i), speed=0.9) for i in range(12)]
    reports("import", *made, "--history", history)
    reports("pin", "before", "--night", 10, "--history", history)
    with store.opened(history) as connection:
        (line,) = store.lines(connection, 1)
        tgs = compared(connection, line, "before").found[0]
        assert (tgs.outcome, tgs.since.label) == ("regressed", "2026-11-15 02:00")
        assert tgs.change == pytest.approx(-0.1, abs=0.002)
    reports("pin", "after", "--history", history)
    with store.opened(history) as connection:
        assert compared(connection, line).found[0].outcome == "unchanged"
        assert compared(connection, line, "before").found[0].outcome == "regressed"


def test_other_settings_and_other_machines_are_not_compared(tmp_path, history):
    made = days(tmp_path, 2)
    other = nights.make(
        RECORDED, tmp_path / "seed", FIRST + timedelta(days=2), change=lambda request: request.update(seed=7)
    )
    elsewhere = nights.make(RECORDED, tmp_path / "cpu", FIRST + timedelta(days=3))
    for path in elsewhere.glob("runs/*/*/*/nodes/*.json"):
        write_json(path, {**json.loads(path.read_text()), "cpu": "another x 64"})
    reports("import", *made, other, elsewhere, "--history", history)
    with store.opened(history) as connection:
        lines = store.lines(connection, 10)
        assert sorted(len(store.nights_of(connection, line)) for line in lines) == [1, 1, 2]


# ---- what the calendar tells -----------------------------------------------------------------------------------


def night(day, *, host="a", machine="m", state="complete", **values):
    started = FIRST.timestamp() + day * 86400
    blank = dict.fromkeys(calendar.WATCHED, "1")
    return {
        "host": host,
        "started": started,
        "utc_offset": 28800,
        "state": state,
        **blank,
        "machine_name": machine,
        **values,
    }


def test_missed_killed_and_changed_nights():
    row = [
        night(0),
        night(1),
        night(2),
        night(3),
        night(6),
        night(7, state="running", machine=None),
        night(8, driver="2"),
    ]
    found = calendar.events(row)
    assert [event.kind for event in found] == ["missed", "killed", "changed"]
    assert "2 nights did not run between 2026-11-04 02:00 and 2026-11-07 02:00" in found[0].text
    assert "driver 1 to 2" in found[2].text


def test_hosts_keep_calendars_of_their_own():
    row = [night(day, host=host, driver=host) for day in range(6) for host in "ab"]
    assert calendar.events(row) == []


# ---- retention -------------------------------------------------------------------------------------------------


def kept(made):
    return [any(folder.glob("runs/*/*/attempt-*/end.json")) for folder in made]


def test_prune_keeps_the_last_nights_pins_and_submissions(tmp_path, history, capsys):
    made = days(tmp_path / "nights", 6)
    reports("import", *made, "--history", history)
    reports("pin", "release", "--night", 1, "--history", history)
    request = made[1] / "runs" / CASE / "speed" / "attempt-1" / "request.json"
    digests = {f"evidence/{p.name}{i}": _sha256(p) for i, p in enumerate(made[1].rglob("request.json"))}
    assert request.is_file()
    with zipfile.ZipFile(tmp_path / "nights" / "vendor.zip", "w") as package:
        package.writestr("manifest.json", json.dumps({"files": digests}))
    assert reports("prune", "--keep", 2, "--history", history, "--dry-run") == 0
    assert kept(made) == [True] * 6
    assert reports("prune", "--keep", 2, "--history", history) == 0
    assert kept(made) == [True, True, False, False, True, True]
    output = capsys.readouterr().out
    assert "pinned as release" in output
    assert "vendor.zip" in output
    assert len(rows(history, "SELECT * FROM runs")) == 18  # figures stay


def test_prune_deletes_nothing_that_is_not_what_was_recorded(tmp_path, history, capsys):
    made = days(tmp_path, 3)
    reports("import", *made, "--history", history)
    end = made[0] / "runs" / CASE / "speed" / "attempt-1" / "end.json"
    end.write_text(end.read_text() + "\n")
    assert reports("prune", "--keep", 1, "--history", history) == 0
    assert end.is_file()
    assert "not what the history recorded" in capsys.readouterr().out
    assert kept(made) == [True, False, True]


def test_prune_stops_at_a_submission_that_it_cannot_read(tmp_path, history):
    made = days(tmp_path / "nights", 3)
    reports("import", *made, "--history", history)
    (tmp_path / "nights" / "broken.zip").write_bytes(b"PK broken")
    assert reports("prune", "--keep", 1, "--history", history) == 1
    assert reports("prune", "--keep", 1, "--history", history, "--submission", tmp_path / "none.zip") == 1
    assert kept(made) == [True] * 3


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_evidence_is_compared_as_of_its_own_night(tmp_path, history):
    """Judging the twentieth night again does not look at what came later."""
    made = days(tmp_path, 20)
    made += [nights.make(RECORDED, tmp_path / f"slow-{i}", FIRST + timedelta(days=20 + i), speed=0.9) for i in range(3)]
    reports("import", *made, "--history", history)
    for evidence, outcome in ((made[19], "unchanged"), (made[-1], "regressed")):
        session = Session(history, evidence, None, "host")
        assert [one.worst.outcome for one in session.recorded(None)] == [outcome]
        verdict = session.verdict(CASE, Judge(evidence, load_requirements()))
        assert verdict.code == {"unchanged": "regression-unchanged", "regressed": "regression-tgs"}[outcome]
