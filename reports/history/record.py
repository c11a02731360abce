"""From evidence to rows of the history: for a session that ends, and for old evidence (`history import`)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from acceptance.judge import CRITERIA, GIB, Judge, Policy, internlm_version, model_of
from acceptance.requirements import Requirements
from fixtures import evidence
from fixtures.evidence import Attempt, EvidenceError
from fixtures.internlm import log
from fixtures.steps import Steps
from reports.history.store import offset_of

CURVE_STEPS = 100
LAST_STEPS = 100

# What was asked for; everything else that may explain a change is in the row's own columns.
ASKED = ("case", "workload", "settings", "open", "seed", "challenge", "nodes", "world", "accelerator", "launcher")

Read = Callable[[Attempt], log.Reading]


@dataclass
class Rows:
    """What one night has to say: rows for `store.finish`."""

    night: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, bytes] = field(default_factory=dict)


def collect(
    night: Mapping[str, Any], attempts: Iterable[Attempt], criteria: Callable[[str], Mapping[str, Any]], read: Read
) -> Rows:
    """The rows of a night: one a run, and one a verdict for every case that has a run.

    attempts   at most one of each run of a case
    criteria   case -> its criteria as results.json holds them
    read       the reading of an attempt's logs
    """
    rows = Rows(dict(night))
    judged: dict[str, Mapping[str, Any]] = {}
    for attempt in attempts:
        if attempt.case not in judged:
            judged[attempt.case] = criteria(attempt.case)
            rows.verdicts += verdict_rows(attempt.case, judged[attempt.case])
        try:
            reading = read(attempt)
        except log.LogError:
            reading = None  # the verdict says so: <criterion>-unreadable
        row, curve = run_row(attempt, reading, judged[attempt.case])
        rows.runs.append(row)
        if curve is not None:
            rows.curves[row["curve"]] = curve
    return rows


def verdict_rows(case: str, criteria: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a criterion, with the first figure that decides it and what was required."""
    rows = []
    for criterion in CRITERIA:
        verdict = criteria[criterion]
        decisive = next((m for m in verdict["measurements"] if m["comparator"] and m["value"] is not None), {})
        rows.append(
            {
                "case_name": case,
                "criterion": criterion,
                "outcome": verdict["outcome"],
                "code": verdict["code"],
                "measurement": decisive.get("name"),
                "value": decisive.get("value"),
                "unit": decisive.get("unit"),
                "comparator": decisive.get("comparator"),
                "requirement": decisive.get("limit"),
                "source": decisive.get("source"),
            }
        )
    return rows


def run_row(
    attempt: Attempt, reading: log.Reading | None, criteria: Mapping[str, Any]
) -> tuple[dict[str, Any], bytes | None]:
    """The row of one attempt, and its losses as bytes where they can be compared with other nights'."""
    request, end, nodes = attempt.request, attempt.end, attempt.nodes
    layout, workload = request.get("layout", {}), request.get("workload", {})
    steps = reading.steps if reading else None
    whole = steps is not None and len(steps) >= min(CURVE_STEPS, workload.get("steps") or CURVE_STEPS)
    curve, losses = curve_of(steps) if steps is not None and whole else (None, None)
    throughput = _measured(criteria["throughput"]) if attempt.run == "speed" else {}
    machine, name = machine_of(request, nodes)
    row = {
        "case_name": attempt.case,
        "run": attempt.run,
        "attempt": attempt.number,
        "digest": digest_of(attempt),
        "path": str(attempt.path.resolve()),
        "started": started_of(attempt, reading).timestamp(),
        "model": request.get("model", model_of(attempt.case)),
        "dataset": request.get("dataset"),
        **{key: layout.get(key) for key in ("tp", "pp", "zero", "dp")},
        **{key: request.get(key) for key in ("world", "nodes", "accelerator")},
        "settings": _digest({key: request.get(key) for key in ASKED} | {"case": attempt.case}),
        "machine": machine,
        "machine_name": name,
        "host": _each(nodes, "host"),
        **{key: _each(nodes, key) for key in ("driver", "torch", "collective", "python", "kernel")},
        "internlm": internlm_of(request),
        "suite": (request.get("suite") or {}).get("commit"),
        "config": (request.get("config_sha256") or "")[:12] or None,
        "outcome": end.get("outcome"),
        "exit_status": end.get("exit_status"),
        "failure": (end.get("failure") or {}).get("class"),
        "steps_asked": workload.get("steps"),
        "steps": 0 if steps is None else len(steps),
        "seconds": end.get("seconds"),
        "seconds_to_first_step": end.get("seconds_to_first_step"),
        "tgs": throughput.get("tgs"),
        "tgs_lower": throughput.get("tgs_lower95"),
        "tgs_upper": throughput.get("tgs_upper95"),
        "tflops": throughput.get("tflops"),
        "memory_gib": memory_of(attempt, reading),
        "final_loss": final_loss(steps),
        "curve": curve,
    }
    return row, losses


def curve_of(steps: Steps) -> tuple[str, bytes]:
    """Digest of loss and grad_norm of the first 100 steps, and the losses; equal digests are equal to the last bit."""
    first = steps[:CURVE_STEPS]
    losses = np.ascontiguousarray(first.loss, "<f8").tobytes()
    digest = hashlib.sha256(losses)
    for group in sorted(first.grad_norm):
        digest.update(group.encode() + b"\0" + np.ascontiguousarray(first.grad_norm[group], "<f8").tobytes())
    return digest.hexdigest(), losses


def final_loss(steps: Steps | None) -> float | None:
    """Median loss of the last 100 steps, or of the last tenth of a shorter run; None without a finite one."""
    if steps is None or not len(steps):
        return None
    last = steps.loss[-max(1, min(LAST_STEPS, len(steps) // 10)) :]
    median = float(np.median(last))
    return median if np.isfinite(median) else None


def memory_of(attempt: Attempt, reading: log.Reading | None) -> float | None:
    """Peak GiB of the rank that needs most: what torch allocated, else what was seen from outside."""
    allocated = max((m.max_allocated for m in reading.memory.values()), default=0.0) if reading else 0.0
    if allocated > 0:
        return allocated
    peak = 0
    try:
        for path in attempt.telemetry:
            with path.open(encoding="utf-8") as file:
                peak = max([peak, *(_memory_used(line) for line in file if '"memory_used"' in line)])
    except OSError:
        return None
    return peak / GIB or None


def _memory_used(line: str) -> int:
    try:
        return int(json.loads(line)["memory_used"])
    except (ValueError, TypeError, KeyError):
        return 0  # the last line of a killed run is cut


def machine_of(request: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Digest and name of the kind of machine: devices, CPU and their numbers. Neither the host's name nor any
    software is part of it, so that a change of those is compared, and named."""
    kinds = Counter((_devices(node), str(node.get("cpu") or "")) for node in nodes)
    parts = [
        f"{count} x ({devices or 'no accelerator'}; {cpu})" if count > 1 else f"{devices or 'no accelerator'}; {cpu}"
        for (devices, cpu), count in sorted(kinds.items())
    ]
    name = " + ".join(parts) or "unknown machine"
    return _digest([request.get("accelerator"), name]), name


def _devices(node: Mapping[str, Any]) -> str:
    names = Counter(
        f"{d.get('name')} {round((d.get('memory_bytes') or 0) / GIB)} GiB" for d in node.get("devices") or []
    )
    return ", ".join(f"{count} x {name}" for name, count in sorted(names.items()))


def internlm_of(request: Mapping[str, Any]) -> str | None:
    """Version, commit and digest: what tells one InternLM from another."""
    version = internlm_version(request)
    return f"{version} {(request['internlm'].get('digest') or '')[:12]}".strip() if version else None


def digest_of(attempt: Attempt) -> str:
    """The identity of an attempt, wherever its folder lies."""
    found = hashlib.sha256(f"{attempt.case}/{attempt.run}".encode())
    records = [path for name in ("request.json", "end.json") if (path := attempt.path / name).is_file()]
    for path in records or attempt.logs:
        found.update(path.read_bytes())
    return found.hexdigest()


def started_of(attempt: Attempt, reading: log.Reading | None) -> datetime:
    """When the attempt began, by its record, else by its log (naive time, taken as UTC), else by its files."""
    text = attempt.request.get("started")
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        moment = None
    if moment is not None and moment.tzinfo is not None:
        return moment
    if reading is not None and reading.first_time is not None:
        return datetime.fromtimestamp(reading.first_time, timezone.utc)
    return datetime.fromtimestamp(attempt.path.stat().st_mtime, timezone.utc)


def _measured(verdict: Mapping[str, Any]) -> dict[str, float]:
    return {m["name"]: m["value"] for m in verdict["measurements"]}


def _each(nodes: Sequence[Mapping[str, Any]], key: str) -> str | None:
    return ", ".join(sorted({str(node[key]) for node in nodes if node.get(key)})) or None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


# ---- old evidence ----------------------------------------------------------------------------------------------


class Recorded(Judge):
    """The judge, for chosen attempts instead of the latest ones."""

    def __init__(self, results: Path, requirements: Requirements, policy: Policy, chosen: Sequence[Attempt]) -> None:
        super().__init__(results, requirements, policy)
        self._chosen = {(attempt.case, attempt.run): attempt for attempt in chosen}

    def _latest(self, case: str, run: str) -> Attempt | None:
        return self._chosen.get((case, run))


def nights_in(results: Path, requirements: Requirements, policy: Policy | None = None) -> list[Rows]:
    """The nights that left evidence in a folder, oldest first: attempts of one session are one night, of which the
    latest attempt of each run counts; logs without a request are a night of their own.

    Raises EvidenceError: no evidence there, or a request that cannot be read.
    """
    sessions: dict[str, dict[tuple[str, str], Attempt]] = {}
    for case in evidence.cases(results):
        for run in evidence.RUNS:
            for attempt in evidence.attempts(results, case, run):
                if attempt.request and not attempt.end:
                    continue  # still going on, or it died with its machine: there is nothing to say of it yet
                key = attempt.request.get("session") or f"logs of {results.resolve()}"
                sessions.setdefault(key, {})[case, run] = attempt
    if not sessions:
        raise EvidenceError(f"{results}: holds no run that has ended; name the folder that holds runs/")
    nights = []
    for key, attempts in sessions.items():
        chosen = list(attempts.values())
        judge = Recorded(results, requirements, policy or Policy(), chosen)
        rows = collect(
            {"key": key},
            chosen,
            lambda case, judge=judge: {c: judge.verdict(case, c).as_json() for c in CRITERIA},
            lambda attempt: log.read(attempt.logs),
        )
        nights.append(_dated(rows, chosen, results))
    return sorted(nights, key=lambda rows: rows.night["started"])


def _dated(rows: Rows, attempts: Sequence[Attempt], results: Path) -> Rows:
    """When and where the night was, by its runs."""
    starts = [started_of(attempt, None) for attempt in attempts if attempt.request]
    first = min(starts, default=None) or datetime.fromtimestamp(min(r["started"] for r in rows.runs), timezone.utc)
    rows.night |= {
        "started": first.timestamp(),
        "utc_offset": offset_of(first),
        "ended": max(r["started"] + (r["seconds"] or 0) for r in rows.runs),
        "host": next((r["host"] for r in rows.runs if r["host"]), None),
        "results": str(results.resolve()),
        "suite": next((r["suite"] for r in rows.runs if r["suite"]), None),
    }
    return rows
