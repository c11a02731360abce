"""`<results>/ocp/<case>.jsonl`: the Open Compute Project's Test and Validation output, schema 2.0, one run a case.

A pure function of results and evidence: times are those of the runs, never of writing. The steps are the criteria,
diagnosis verdicts are our codes, and a run ends COMPLETE/PASS only where nothing failed, nothing was uncertain, and
nothing is missing but a long run that another case of the model has.
Specification: github.com/opencomputeproject/ocp-diag-core, json_spec.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from acceptance.judge import CRITERIA, RUNS_NEEDED, STEPS
from fixtures.internlm.log import LogError
from fixtures.steps import Floats
from reports.gather import Evidence, Read, Tried, gather
from reports.page import write_whole
from reports.text import RANK, moment

FOLDER = "ocp"
VERSION = {"major": 2, "minor": 0}
VALIDATORS = {
    ">=": "GREATER_THAN_OR_EQUAL",
    ">": "GREATER_THAN",
    "<=": "LESS_THAN_OR_EQUAL",
    "<": "LESS_THAN",
    "==": "EQUAL",
}
DIAGNOSES = {"pass": "PASS", "fail": "FAIL", "inconclusive": "UNKNOWN"}
# The evidence could not be judged at all: an error of the test, not a verdict on the device.
ERRORS = ("-unreadable", "-unfinished")
UNKNOWN_TIME = datetime(1970, 1, 1, tzinfo=timezone.utc)  # a time is required also where nothing ran
SERIES = {"throughput": (("speed", "tgs", "tokens/GPU/s"),), "determinism": (("repeat-1", "loss", "nats per token"),
          ("repeat-2", "loss", "nats per token"))}  # fmt: skip

Row = dict[str, Any]


def write(folder: Path, results: Mapping[str, Any], root: Path, read: Read) -> list[Path]:
    """Write `<folder>/ocp/<case>.jsonl` for every case of results.json; the files.

    root  the folder that holds the runs;  read  gives the reading of an attempt's logs
    """
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    return [
        write_whole(folder / FOLDER / f"{case['case']}.jsonl", text(results, case, root, read))
        for case in results["cases"]
    ]


def text(results: Mapping[str, Any], case: Mapping[str, Any], root: Path, read: Read) -> str:
    """The file of one case of results.json."""
    output = _Output(results, case, gather(root, case, read), root)
    return "".join(json.dumps(row, allow_nan=False, sort_keys=True) + "\n" for row in output.rows())


def outcome(criteria: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """testRunEnd of a case: status and result from its verdicts."""
    verdicts = list(criteria.values())
    failed = [v for v in verdicts if v["outcome"] in ("fail", "inconclusive")]
    if any(not v["code"].endswith(ERRORS) for v in failed):
        return {"status": "COMPLETE", "result": "FAIL"}
    if failed:
        return {"status": "ERROR", "result": "NOT_APPLICABLE"}
    if any(v["outcome"] == "not run" and v["code"] != "convergence-see-other-case" for v in verdicts):
        return {"status": "SKIP", "result": "NOT_APPLICABLE"}
    return {"status": "COMPLETE", "result": "PASS"}


@dataclass
class _Output:
    """The rows of one case; `clock` is the latest time written, since rows come in the order of time."""

    results: Mapping[str, Any]
    case: Mapping[str, Any]
    evidence: Evidence
    root: Path
    clock: datetime = UNKNOWN_TIME
    number: int = 0
    judged: dict[str, Tried] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.judged = {tried.attempt.run: tried for tried in self.evidence.tried if tried.judged}

    def rows(self) -> Iterator[Row]:
        self._pass(min(filter(None, (_started(t) for t in self.judged.values())), default=None))
        yield self._row("schemaVersion", VERSION)
        yield self._run("testRunStart", self._start())
        for position, criterion in enumerate(CRITERIA):
            for kind, content in self._step(criterion):
                yield self._row("testStepArtifact", {"testStepId": str(position), kind: content})
        yield self._run("testRunEnd", outcome(self.case["criteria"]))

    def _row(self, kind: str, content: Row) -> Row:
        row = {kind: content, "sequenceNumber": self.number, "timestamp": _iso(self.clock)}
        self.number += 1
        return row

    def _run(self, kind: str, content: Row) -> Row:
        return self._row("testRunArtifact", {kind: content})

    def _pass(self, moment_: datetime | None) -> None:
        self.clock = max(self.clock, moment_ or self.clock)

    # ---- the run's start -----------------------------------------------------------------------------------

    def _start(self) -> Row:
        request = next((dict(t.request) for t in self.judged.values() if t.request), {})
        command = request.get("command")
        return {
            "name": self.case["case"],
            "version": self.results["suite"]["version"],
            "commandLine": shlex.join(map(str, command)) if isinstance(command, list) else "",
            "parameters": {
                "model": self.case["model"],
                "layout": self.case["layout"],
                "gpus": self.case["gpus"],
                "suite_commit": self.results["suite"]["commit"],
                **{key: request[key] for key in ("workload", "seed", "challenge", "config_sha256") if key in request},
            },
            "dutInfo": self._device_under_test(),
        }

    def _device_under_test(self) -> Row:
        nodes = {str(n.get("host")): n for t in self.judged.values() for n in t.nodes}
        return {
            "dutInfoId": "machine",
            "name": ", ".join(sorted(nodes)) or "unknown",
            "platformInfos": [{"info": f"{h}: {n.get('cpu')}, {n.get('kernel')}"} for h, n in sorted(nodes.items())],
            "softwareInfos": list(_software(nodes)),
            "hardwareInfos": [
                {
                    "hardwareInfoId": _device(host, device.get("index")),
                    "name": str(device.get("name")),
                    "serialNumber": str(device.get("id")),
                    "location": f"{host}, device {device.get('index')}",
                }
                for host, node in sorted(nodes.items())
                for device in node.get("devices") or ()
            ],
        }

    # ---- one step a criterion ------------------------------------------------------------------------------

    def _step(self, criterion: str) -> Iterator[tuple[str, Row]]:
        verdict = self.case["criteria"][criterion]
        runs = [self.judged[run] for run in RUNS_NEEDED[criterion] if run in self.judged]
        skipped = verdict["outcome"] == "not run"
        if not skipped:
            self._pass(min(filter(None, map(_started, runs)), default=None))
        yield "testStepStart", {"name": criterion}
        if skipped:
            yield "log", {"severity": "INFO", "message": f"{verdict['code']}: {verdict['reason']}"}
            yield "testStepEnd", {"status": "SKIP"}
            return
        self._pass(max(filter(None, map(_ended, runs)), default=None))
        for measurement in verdict["measurements"]:
            if measurement["value"] is not None:
                yield "measurement", self._measurement(measurement)
        for run, figure, unit in SERIES.get(criterion, ()):
            yield from self._series(run, figure, unit)
        if criterion == "convergence":
            for tried in runs:
                yield from (("file", file) for file in self._files(tried))
        error = verdict["code"].endswith(ERRORS)
        if error:
            yield "error", {"symptom": verdict["code"], "message": verdict["reason"]}
        kind = "UNKNOWN" if error else DIAGNOSES[verdict["outcome"]]
        yield "diagnosis", {"verdict": verdict["code"], "type": kind, "message": verdict["reason"]}
        yield "testStepEnd", {"status": "ERROR" if error else "COMPLETE"}

    def _measurement(self, measurement: Mapping[str, Any]) -> Row:
        row: Row = {"name": measurement["name"], "value": measurement["value"]}
        if measurement["unit"]:
            row["unit"] = measurement["unit"]
        if measurement["comparator"]:
            validator = {"type": VALIDATORS[measurement["comparator"]], "value": measurement["limit"]}
            row["validators"] = [validator | ({"name": measurement["source"]} if measurement["source"] else {})]
        if (rank := RANK.fullmatch(measurement["name"])) and (device := self._bound(int(rank[2]))):
            row["hardwareInfoId"] = device
        return row

    def _bound(self, rank: int) -> str | None:
        """The device of a rank of the speed run, where log and nodes/ agree on it."""
        ran, tried = self.evidence.ran.get("speed"), self.judged.get("speed")
        if ran is None or tried is None or rank not in ran.bindings:
            return None
        host, index = ran.bindings[rank]
        known = {(n.get("host"), d.get("index")) for n in tried.nodes for d in n.get("devices") or ()}
        return _device(host, index) if (host, index) in known else None

    def _series(self, run: str, figure: str, unit: str) -> Iterator[tuple[str, Row]]:
        """The first 100 steps of a figure; the time of each is the log line's, in the run's own UTC offset."""
        ran = self.evidence.ran.get(run)
        if ran is None:
            return
        name = f"{figure}_{run.replace('-', '_')}"
        values: Floats = getattr(ran.steps, figure)[:STEPS]
        zone = (_started(self.judged[run]) or UNKNOWN_TIME).tzinfo
        yield "measurementSeriesStart", {"measurementSeriesId": name, "name": name, "unit": unit}
        for index, (value, seconds) in enumerate(zip(values.tolist(), ran.steps.time.tolist(), strict=False)):
            at = (UNKNOWN_TIME + timedelta(seconds=seconds)).replace(tzinfo=zone)
            shown = value if math.isfinite(value) else str(value)
            row = {"index": index, "value": shown, "timestamp": _iso(at), "measurementSeriesId": name}
            yield "measurementSeriesElement", row
        yield "measurementSeriesEnd", {"measurementSeriesId": name, "totalCount": len(values)}

    def _files(self, tried: Tried) -> Iterator[Row]:
        for path in tried.attempt.logs:
            name = path.relative_to(self.root).as_posix()
            try:
                with path.open("rb") as file:
                    sha256 = _sha256(file)
            except OSError as error:
                raise LogError(path, 0, f"cannot be read: {error.strerror}") from error
            metadata = {"sha256": sha256, "size": path.stat().st_size}
            yield {"displayName": name, "uri": f"../{name}", "isSnapshot": True, "metadata": metadata}


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _software(nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    """Driver, libraries and Python of the nodes, each version once."""
    versions: dict[tuple[str, str, str], None] = {}
    for node in nodes.values():
        libraries = node.get("libraries") if isinstance(node.get("libraries"), dict) else {}
        named = {"python": node.get("python"), "torch": node.get("torch"), "internlm": node.get("internlm"),
                 "collective": node.get("collective"), **libraries}  # fmt: skip
        versions |= {(n, str(v), "APPLICATION"): None for n, v in named.items() if v}
        if node.get("driver"):
            versions["driver", str(node["driver"]), "SYSTEM"] = None
    for position, (name, version, kind) in enumerate(sorted(versions)):
        yield {"softwareInfoId": f"software-{position}", "name": name, "version": version, "softwareType": kind}


def _device(host: Any, index: Any) -> str:
    return f"{host}:{index}"


def _started(tried: Tried) -> datetime | None:
    return moment(tried.request.get("started"))


def _ended(tried: Tried) -> datetime | None:
    return moment(tried.end.get("ended"))


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")
