"""The evidence behind a case: every attempt, and the reading of those that were judged."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fixtures import evidence
from fixtures.evidence import Attempt, EvidenceError
from fixtures.internlm import log
from reports.curves import GIB, Ran

Read = Callable[[Attempt], log.Reading]


@dataclass(frozen=True)
class Tried:
    """One attempt as its directory tells it; `damage` says what could not be read."""

    attempt: Attempt
    judged: bool
    request: Mapping[str, Any]
    end: Mapping[str, Any]
    nodes: tuple[Mapping[str, Any], ...]
    damage: str = ""


@dataclass(frozen=True)
class Evidence:
    """All attempts at a case in the order of the procedure, and by run what the judged one printed."""

    tried: tuple[Tried, ...] = ()
    ran: Mapping[str, Ran] = field(default_factory=dict)
    missing: tuple[str, ...] = ()  # judged attempts that results.json names and that are not there


def read_logs(attempt: Attempt) -> log.Reading:
    """The reading of an attempt's logs, as the judge reads them."""
    return log.read(attempt.logs)


def gather(root: Path, case: Mapping[str, Any], read: Read) -> Evidence:
    """The evidence of one case of results.json below `root`.

    Nothing that is damaged stops the report: the verdicts have been reached already, and the reader of the
    report is the one who has to learn what could not be read.
    """
    name = case["case"]
    if Path(name).name != name or "\0" in name:  # a name from a file never climbs out of the evidence
        return Evidence(missing=(name,))
    tried: list[Tried] = []
    ran: dict[str, Ran] = {}
    missing = []
    for run in [*evidence.RUNS, *sorted(set(case["runs"]) - set(evidence.RUNS))]:
        claimed = case["runs"].get(run)
        found = evidence.attempts(root, name, run) if run in evidence.RUNS else []
        judged = next((a for a in found if a.path.relative_to(root).as_posix() == claimed), None)
        if claimed is not None and judged is None:
            missing.append(f"{run}: {claimed}")
        for attempt in found:
            one, reading = _try(attempt, attempt is judged, read, f"{root}{os.sep}")
            tried.append(one)
            if reading is not None:
                ran[run] = Ran(
                    reading.steps,
                    one.request,
                    {rank: peak.max_allocated for rank, peak in reading.memory.items()},
                    _device_memory(one.nodes),
                    attempt.telemetry,
                    reading.bindings,
                )
    return Evidence(tuple(tried), ran, tuple(missing))


def _try(attempt: Attempt, judged: bool, read: Read, root: str) -> tuple[Tried, log.Reading | None]:
    damage = []
    parts: dict[str, Any] = {"request": {}, "end": {}, "nodes": []}
    for part in parts:
        try:
            parts[part] = getattr(attempt, part)
        except EvidenceError as error:
            damage.append(str(error))
    reading = None
    if judged:
        try:
            reading = read(attempt)
        except (log.LogError, OSError) as error:
            damage.append(str(error))
    tried = Tried(
        attempt, judged, parts["request"], parts["end"], tuple(parts["nodes"]), "; ".join(damage).replace(root, "")
    )
    return tried, reading


def _device_memory(nodes: tuple[Mapping[str, Any], ...]) -> float | None:
    """The smallest device's memory in GiB; None unless every device tells."""
    devices = [d for node in nodes for d in _list(node.get("devices")) if isinstance(d, dict)]
    sizes = [d.get("memory_bytes") for d in devices]
    return min(sizes) / GIB if sizes and all(isinstance(s, int) and s > 0 for s in sizes) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
