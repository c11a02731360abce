"""What the row of nights itself tells: nights that did not run, were killed, or ran on something else."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from reports.history.store import date

DAY = 86400.0
WATCHED = ("run_host", "driver", "torch", "collective", "kernel", "internlm", "suite", "machine_name")
NAMES = {"run_host": "host", "machine_name": "machine"}


@dataclass(frozen=True)
class Event:
    """Something about the nights: `at` in seconds since the epoch, `until` for a stretch of time."""

    kind: Literal["missed", "killed", "changed"]
    at: float
    until: float
    text: str


def events(nights: Sequence[Mapping[str, Any]], now: float | None = None) -> list[Event]:
    """Events of `store.recent` nights (oldest first); nights of different hosts are looked at apart."""
    found = []
    for host in dict.fromkeys(night["host"] for night in nights):
        own = [night for night in nights if night["host"] == host]
        found += _missed(own) + _killed(own, now or time.time()) + _changed(own)
    return sorted(found, key=lambda event: event.at)


def _missed(nights: Sequence[Mapping[str, Any]]) -> list[Event]:
    """Gaps of more than one and a half usual distances between nights; the usual one is the median, at least a day."""
    starts = [night["started"] for night in nights]
    gaps = [b - a for a, b in pairwise(starts)]
    if len(gaps) < 3:
        return []
    usual = max(statistics.median(gaps), DAY)
    found = []
    for (before, after), gap in zip(pairwise(nights), gaps, strict=True):
        if gap > 1.5 * usual:
            count = round(gap / usual) - 1
            text = f"{count} night{'s' if count > 1 else ''} did not run between {_date(before)} and {_date(after)}"
            found.append(Event("missed", before["started"] + usual / 2, after["started"] - usual / 2, text))
    return found


def _killed(nights: Sequence[Mapping[str, Any]], now: float) -> list[Event]:
    """Nights that began and never finished; the last one may still be going on."""
    found = []
    for night in nights:
        if night["state"] == "running":
            going_on = night is nights[-1] and now - night["started"] < DAY
            text = f"the night of {_date(night)} " + ("has not finished yet" if going_on else "was killed")
            found.append(Event("killed", night["started"], night["started"], text))
    return found


def _changed(nights: Sequence[Mapping[str, Any]]) -> list[Event]:
    found = []
    ran = [night for night in nights if night["machine_name"] is not None]
    for before, after in pairwise(ran):
        what = [
            f"{NAMES.get(key, key)} {before[key] or 'unknown'} to {after[key] or 'unknown'}"
            for key in WATCHED
            if before[key] != after[key]
        ]
        if what:
            found.append(
                Event("changed", after["started"], after["started"], f"the night of {_date(after)}: {', '.join(what)}")
            )
    return found


def _date(night: Mapping[str, Any]) -> str:
    return date(night["started"], night["utc_offset"])
