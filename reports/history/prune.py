"""Retention: the evidence of old nights goes, what a pin or a submission refers to stays."""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fixtures.evidence import Attempt
from reports.history.record import digest_of
from reports.history.store import HistoryError, pins

_SHA256 = re.compile(rb"\b[0-9a-f]{64}\b")
MANIFEST_LIMIT = 64 << 20


@dataclass(frozen=True)
class Plan:
    """Attempt folders to delete, and those that stay although they are old: (folder, why)."""

    delete: Sequence[Path]
    stay: Sequence[tuple[Path, str]]


def plan(connection: sqlite3.Connection, keep: int, submissions: Iterable[Path] = ()) -> Plan:
    """What goes when the last `keep` nights of each host stay.

    Submissions are looked for beside the results too. A folder goes only if it still holds the attempt that the
    history recorded there. Raises HistoryError: `keep` below 1, a submission that cannot be read.
    """
    if keep < 1:
        raise HistoryError(f"--keep {keep}: at least one night has to stay")
    nights = connection.execute("SELECT id, host, results FROM nights ORDER BY started DESC, id DESC").fetchall()
    seen: dict[str, int] = {}
    old = set()
    for night in nights:
        seen[night["host"]] = seen.get(night["host"], 0) + 1
        if seen[night["host"]] > keep:
            old.add(night["id"])
    pinned = {pin["night"]: pin["name"] for pin in pins(connection)}
    submitted = _submitted({Path(night["results"]) for night in nights if night["results"]}, submissions)
    delete, stay = [], []
    for row in connection.execute("SELECT * FROM runs ORDER BY started, id").fetchall():
        path = Path(row["path"])
        if row["night"] not in old or not path.is_dir():
            continue
        if row["night"] in pinned:
            stay.append((path, f"pinned as {pinned[row['night']]}"))
        elif digest_of(Attempt(path, row["case_name"], row["run"], row["attempt"])) != row["digest"]:
            stay.append((path, "it is not what the history recorded"))
        elif archive := _refers(path, submitted):
            stay.append((path, f"part of {archive}"))
        else:
            delete.append(path)
    return Plan(delete, stay)


def carry_out(plan: Plan, *, dry_run: bool = False) -> Iterator[str]:
    """Delete; a line for each folder that stays although it is old, and one that sums up."""
    for path, why in plan.stay:
        yield f"stays, {why}: {path}"
    size = 0
    for path in plan.delete:
        size += sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
        if not dry_run:
            shutil.rmtree(path)
    word = "would be deleted" if dry_run else "deleted"
    yield f"{len(plan.delete)} attempts of old nights {word}, {size / 1e6:,.1f} MB"


def _submitted(results: Iterable[Path], named: Iterable[Path]) -> dict[str, Path]:
    """sha256 of every file that a submission holds, by its manifest -> the submission."""
    archives = [archive for folder in results for where in (folder, folder.parent) for archive in where.glob("*.zip")]
    for path in named:
        if not path.exists():
            raise HistoryError(f"--submission {path}: there is no such file or folder")
        archives += path.rglob("*.zip") if path.is_dir() else [path]
    found = {}
    for archive in dict.fromkeys(archives):
        try:
            with zipfile.ZipFile(archive) as package:
                if "manifest.json" not in package.namelist():
                    continue
                with package.open("manifest.json") as manifest:
                    text = manifest.read(MANIFEST_LIMIT)
        except (OSError, zipfile.BadZipFile) as error:
            raise HistoryError(f"{archive}: cannot be read, so what it refers to is not known ({error})") from error
        found |= {digest.decode(): archive for digest in _SHA256.findall(text)}
    return found


def _refers(attempt: Path, submitted: dict[str, Path]) -> Path | None:
    """The submission that holds this attempt: its request where it has one, else any of its logs."""
    request = attempt / "request.json"
    files = [request] if request.is_file() else [path for path in attempt.rglob("*") if path.is_file()]
    digests = (hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    return next((submitted[digest] for digest in digests if digest in submitted), None)
