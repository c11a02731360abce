"""`python -m reports history import|export|pin|page|prune`: the nights, kept and compared."""

from __future__ import annotations

import argparse
import csv
import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

from acceptance.requirements import RequirementsError
from fixtures.evidence import EvidenceError
from reports import trend
from reports.history import prune, store
from reports.history.session import import_evidence
from reports.history.store import HistoryError

DEFAULT = Path("nightly.sqlite")
TABLES = {
    "nights": "SELECT * FROM nights ORDER BY started, id",
    "runs": "SELECT * FROM runs ORDER BY started, id",
    "verdicts": "SELECT * FROM verdicts ORDER BY night, case_name, criterion",
    "pins": "SELECT * FROM pins ORDER BY id",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own commands."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, does: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument(
            "--history", type=Path, default=DEFAULT, metavar="FILE", help=f"the history (default: {DEFAULT})"
        )
        command.set_defaults(action_main=does)
        return command

    add = action("import", _import, "fill the history from old evidence; what it holds already is left alone")
    add.add_argument("evidence", type=Path, nargs="+", help="folders that hold runs/")
    add.add_argument("--requirements", type=Path, metavar="FILE", help="the lab's numbers, to judge by")

    out = action("export", _export, "write nights, runs, verdicts and pins as CSV and as JSON lines")
    out.add_argument("--out", type=Path, default=Path("history"), metavar="DIR", help="where to (default: history/)")

    pin = action("pin", _pin, "name a night, to compare later ones with it and to accept its figures")
    pin.add_argument("name", help="for example release-2026.11")
    pin.add_argument("--night", type=int, metavar="N", help="number of the night (default: the last one)")
    pin.add_argument("--reason", help="why; needed to move a pin, and kept")

    page = action("page", _page, "write the trend page: one HTML file, worst case first")
    page.add_argument("--out", type=Path, default=Path("trend.html"), metavar="FILE", help="default: trend.html")
    page.add_argument(
        "--nights", type=int, default=trend.NIGHTS, metavar="N", help="how far back (default: %(default)s)"
    )

    old = action("prune", _prune, "delete the evidence of old nights; figures, reports, pinned and submitted runs stay")
    old.add_argument("--keep", type=int, required=True, metavar="N", help="nights whose evidence stays")
    old.add_argument("--submission", type=Path, action="append", default=[], metavar="ZIP|DIR",
                     help="a submission, or a folder of them, beside those that lie with the results")  # fmt: skip
    old.add_argument("--dry-run", action="store_true", help="only say what would go")


def main(arguments: argparse.Namespace) -> int:
    """Run the action; 1 with one line on stderr if it cannot be done."""
    try:
        status: int = arguments.action_main(arguments)
    except (HistoryError, EvidenceError, RequirementsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return status


def _import(arguments: argparse.Namespace) -> int:
    for line in import_evidence(arguments.history, arguments.evidence, arguments.requirements):
        print(line)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    with store.opened(arguments.history) as connection:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for table, query in TABLES.items():
            print(f"{arguments.out / table}.csv, .jsonl: {export(connection, query, arguments.out / table)} rows")
    return 0


def export(connection: sqlite3.Connection, query: str, path: Path) -> int:
    """Write the rows of a query to `path`.csv and `path`.jsonl; how many there are."""
    count = 0
    found = connection.execute(query)
    with (
        path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as table,
        path.with_suffix(".jsonl").open("w", encoding="utf-8", newline="\n") as lines,
    ):
        writer = csv.writer(table)
        writer.writerow([column[0] for column in found.description])
        for row in found:
            writer.writerow(tuple(row))
            lines.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
            count += 1
    return count


def _pin(arguments: argparse.Namespace) -> int:
    with store.opened(arguments.history) as connection:
        night = store.pin(connection, arguments.name, arguments.night, arguments.reason)
    print(f"{arguments.name}: night {night['id']} of {store.date(night['started'], night['utc_offset'])}")
    return 0


def _page(arguments: argparse.Namespace) -> int:
    with store.opened(arguments.history) as connection:
        print(trend.write(connection, arguments.out, arguments.nights))
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    with store.opened(arguments.history) as connection:
        plan = prune.plan(connection, arguments.keep, arguments.submission)
        for line in prune.carry_out(plan, dry_run=arguments.dry_run):
            print(line)
    return 0
