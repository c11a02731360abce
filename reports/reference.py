"""`python -m reports reference CASE`: make a reference loss curve from evidence, with its provenance inside.

Losses of the first 100 steps of repeat-1, taken only if repeat-2 has the same to the last digit: a curve that its
own machine cannot repeat is no reference. The lab's own format (`step0`, `step1`, ...) needs no command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acceptance import references
from acceptance.criteria import determinism
from acceptance.criteria.reference import as_json, parse
from acceptance.judge import workload_of
from fixtures import evidence
from fixtures.evidence import Attempt, EvidenceError
from fixtures.internlm.log import LogError, read

LENGTH = 100


class NoReferenceError(Exception):
    """Evidence that no reference can be made from: what is missing, and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("case", metavar="CASE", help="a case with evidence, e.g. 7B-tp1-pp1-zero8")
    parser.add_argument("--results", type=Path, default=Path("reports/output"), help="where its evidence is")
    parser.add_argument("--output", type=Path, help="file to write (default: configs/references/<case>-<family>.json)")


def main(arguments: argparse.Namespace) -> int:
    """Write the reference and print where it is; 1 with one line on stderr if there is none to be had."""
    try:
        made = make(arguments.results, arguments.case)
        name = f"{arguments.case}-{made['provenance']['family']}.json"
        path = arguments.output or references.FOLDER / name
        parse(made, str(path))
        evidence.write_json(path, made)
    except (NoReferenceError, EvidenceError, LogError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


def make(results: Path, case: str) -> dict[str, Any]:
    """The reference of a case as JSON holds it. Raises NoReferenceError, EvidenceError, LogError."""
    first, second = (_attempt(results, case, run) for run in ("repeat-1", "repeat-2"))
    steps = [read(attempt.logs).steps for attempt in (first, second)]
    request = first.request
    verdict = determinism.judge(steps[0], steps[1], "bitwise", workload_of(request), LENGTH)
    if verdict.outcome != "pass":
        raise NoReferenceError(f"{case}: {verdict.reason} Only repeats that agree make a reference.")
    losses = [float(loss) for loss in steps[0].loss[:LENGTH]]
    return as_json(losses, references.key(request), provenance(request, first.nodes, first.name))


def provenance(request: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]], attempt: str) -> dict[str, Any]:
    """Where a curve comes from: device family and devices, versions, config digest, when and by which suite."""
    devices = sorted({device.get("name", "unknown") for node in nodes for device in node.get("devices", [])})
    return {
        "family": request["accelerator"],
        "devices": devices or sorted({str(node.get("cpu", "unknown")) for node in nodes}),
        "drivers": sorted({str(node["driver"]) for node in nodes if node.get("driver")}),
        "torch": sorted({str(node["torch"]) for node in nodes if node.get("torch")}),
        "internlm": {name: request["internlm"].get(name) for name in ("version", "commit", "digest")},
        "layout": request["layout"],
        "world": request["world"],
        "config_sha256": request["config_sha256"],
        "suite": request["suite"],
        "started": request["started"],
        "attempt": attempt,
    }


def _attempt(results: Path, case: str, run: str) -> Attempt:
    attempt = evidence.latest(results, case, run)
    if attempt is None:
        known = ", ".join(evidence.cases(results)) or "none"
        raise NoReferenceError(f"{case}: no {run} run under {results} (cases there: {known})")
    if not attempt.request:
        raise NoReferenceError(f"{attempt.name}: holds logs only; without request.json nothing says what ran")
    if attempt.end.get("outcome") != "complete":
        raise NoReferenceError(f"{attempt.name}: has not run to its end")
    return attempt
