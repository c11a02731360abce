"""`python -m reports check vendor.zip`: what a lab believes of a submission, without an accelerator, torch or network.

Nothing in the archive is executed or believed. It is unpacked with suspicion, its configs are made again and compared
byte for byte, its verdicts and report are made again from the raw logs, and what logs, configs, requests and machine
say of each other must agree. Exit status: 0 everything holds and the submission conforms by the lab's requirements;
1 something does not hold; 3 everything holds, but it does not conform; 2 the command was misused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any

from acceptance import references
from acceptance.criteria.reference import CurveError
from acceptance.criteria.throughput import put_forward
from acceptance.judge import REPEATED, Policy, workload_of
from acceptance.requirements import DEFAULTS, Requirements, RequirementsError
from acceptance.requirements import load as load_requirements
from fixtures import archive, evidence, probe, rules, suite
from fixtures.archive import ArchiveError, Digest
from fixtures.cases import CaseError, Layout, fit
from fixtures.devices import CPU
from fixtures.evidence import Attempt, EvidenceError
from fixtures.internlm import config, seeds
from fixtures.internlm.log import LogError, Reading
from fixtures.runs import DETERMINISTIC, ENVIRONMENT
from fixtures.setup import DEFAULT_SEED, challenge_seed
from reports import derived, signing
from reports.console import statement
from reports.curves import LINE
from reports.derived import Folder
from reports.language import LANGUAGES
from reports.package import not_checkable
from reports.results import ReportError, load
from reports.text import clean, moment

SHOWN = 20  # faults of one check
CLOCK = 120.0  # seconds that clocks of one site may differ
LATER = 86400.0  # seconds that the vendor's calendar may be ahead of the lab's
UNREADABLE = (
    EvidenceError, LogError, ReportError, RequirementsError, CaseError, rules.RuleError, OSError, KeyError, TypeError,
    ValueError, AttributeError, IndexError, ArithmeticError, RecursionError,
)  # fmt: skip
"""What reading a file of the vendor's can end in, whatever it holds; it never passes."""


# ---- what the checks look at -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """One attempt: what its files say. `log` is None where the logs of an attempt that failed cannot be read."""

    attempt: Attempt
    judged: bool
    request: Mapping[str, Any]
    end: Mapping[str, Any]
    nodes: tuple[Mapping[str, Any], ...]
    log: Reading | None  # its steps are left out
    steps: int
    put_forward: float  # seconds by which the log's clock was put forward meanwhile; below 0: back

    @property
    def complete(self) -> bool:
        return self.end.get("outcome") == "complete"

    @property
    def spread(self) -> bool:
        """Whether the run was placed on nodes that pytest did not run on, from run to run perhaps others."""
        return self.request["launcher"] == "slurm" or bool(self.request.get("hosts"))

    @property
    def ended(self) -> bool:
        """Whether its end is on record; where it is not, `completeness` says so, and times cannot be compared."""
        return bool(self.end)

    def span(self) -> tuple[datetime, datetime]:
        """When it started and ended. Raises ValueError."""
        started, ended = moment(self.request.get("started")), moment(self.end.get("ended"))
        if started is None or ended is None:
            raise ValueError(f"{self.attempt.name}: start or end is not on record with its UTC offset")
        return started, ended


@dataclass(frozen=True)
class Package:
    """The submission, unpacked."""

    root: Path
    files: Mapping[str, Digest]
    manifest: Mapping[str, Any]
    submission: Mapping[str, Any]
    claimed: Mapping[str, Any]
    attempts: tuple[Told, ...]
    suite: Mapping[str, Any]  # which suite checks
    challenge: str | None  # the code that the lab issued, if it said
    now: datetime

    def by_run(self) -> Mapping[tuple[str, str], list[Told]]:
        found = defaultdict(list)
        for told in self.attempts:
            found[told.attempt.case, told.attempt.run].append(told)
        return found

    def judged(self) -> list[Told]:
        return [told for told in self.attempts if told.judged]


# ---- one attempt: pure functions from what it says to what is wrong with that ---------------------------


def names(told: Told, package: Package) -> Iterator[str]:
    """The request is of the case, run and attempt whose folder it lies in."""
    request, attempt = told.request, told.attempt
    for key, place in (("case", attempt.case), ("run", attempt.run), ("attempt", attempt.number), ("schema", 1)):
        if request[key] != place or type(request[key]) is not type(place):
            yield f"request.json says {key} {request[key]!r}, but lies in {attempt.name}"
    tail = f"/runs/{attempt.case}/{attempt.run}/attempt-{attempt.number}"
    if not str(request["cwd"]).endswith(f"{tail}/scratch"):
        yield f"it ran in {request['cwd']!r}, which is not {attempt.name}"
    if not any(tail in str(word) for word in request["command"]):
        yield f"its command names no file of {attempt.name}"


def workload(told: Told, package: Package) -> Iterator[str]:
    """Case, batch and settings are what the suite makes of this model and layout on so many devices."""
    request = told.request
    kept = {key: request["layout"][key] for key in ("tp", "pp", "zero", "fsdp", "mode", "wp")}
    made = fit(
        request["model"], Layout(**kept), request["world"], request["dataset"], request["workload"]["global_batch"],
        request["settings"], request["internlm"]["generation"],
    ).as_request()  # fmt: skip
    for key in ("case", "layout", "settings"):
        if not derived.same_json(request[key], made[key]):
            yield f"{key} is {request[key]!r}, but the suite makes {made[key]!r} of it"
    for key, value in made["workload"].items():
        if not derived.same_json(request["workload"][key], value):
            yield f"{key} is {request['workload'][key]!r}, but the suite makes it {value}"


def world(told: Told, package: Package) -> Iterator[str]:
    """As many ranks as devices, and each of them in the log."""
    request = told.request
    if request["world"] != request["gpus"] * request["nodes"]:
        yield f"{request['world']} ranks on {request['nodes']} x {request['gpus']} devices"
    if told.log is None:
        return
    ranks = {*told.log.bindings, *told.log.seeds, *told.log.memory}
    if odd := sorted(rank for rank in ranks if rank >= request["world"]):
        yield f"the log tells of rank {odd[0]} where there are {request['world']} ranks"
    missing = request["world"] - len(ranks)  # never a list: the number may be any
    if told.complete and missing > 0:
        first = next(rank for rank in count() if rank not in ranks)
        yield f"the log tells nothing of rank {first} ({missing} of {request['world']} missing)"


def by_the_rules(told: Told, package: Package) -> Iterator[str]:
    """Only settings that are the vendor's, and the deterministic mode where the procedure has it."""
    request = told.request
    if not request["open"]:
        yield from (f"against the rules: {text}" for text in rules.departures(request["settings"]))
    if request["deterministic"] is not (told.attempt.run in DETERMINISTIC):
        yield f"deterministic is {request['deterministic']} in a {told.attempt.run} run"
    for key, value in request["settings"].items():
        name = key.removeprefix(ENVIRONMENT)
        if name != key and request["environment"].get(name) != value:
            yield f"the setting {key} is not in the run's environment"


def seed(told: Told, package: Package) -> Iterator[str]:
    """The seed is InternLM's own or follows from the challenge, and the log names it."""
    request = told.request
    challenge = request["challenge"]
    if package.challenge is not None and challenge != package.challenge:
        yield f"its challenge is {challenge!r}, but {package.challenge!r} was issued"
    due = challenge_seed(challenge) if challenge else DEFAULT_SEED
    if request["seed"] != due:
        yield f"the seed is {request['seed']!r}, but {due} follows from the challenge {challenge!r}"
    said = [str(word) for word in request["command"] if str(word).startswith("--seed")]
    if any(word != f"--seed={due}" for word in said):
        yield f"its command says {said[0]}, but the seed is {due}"
    if told.log and (odd := seeds.contradiction(told.log.seeds, due, needed=told.complete)):
        yield odd


def made_config(told: Told, package: Package) -> Iterator[str]:
    """config.py is what the suite makes of the request, byte for byte."""
    made = config.render(told.request).encode()
    if told.attempt.config.read_bytes() != made:
        yield "config.py is not what the suite makes of request.json"
    if told.request["config_sha256"] != hashlib.sha256(made).hexdigest():
        yield "config_sha256 in request.json is not that of the config"


def one_suite(told: Told, package: Package) -> Iterator[str]:
    """The run was launched by the suite that checks it: the same commit, without changes."""
    if reason := not_checkable(told.request["suite"]):
        yield reason
    elif told.request["suite"] != package.suite:
        yield f"launched by the suite's commit {told.request['suite']['commit']}; check with a checkout of that"


def software(told: Told, package: Package) -> Iterator[str]:
    """InternLM, torch and Python are on each node those that the request names."""
    request = told.request
    due = {"python": request["python"]["version"], "torch": request["python"].get("torch")}
    if request["internlm"]["kind"] == "bundled":
        due["internlm"] = request["internlm"]["version"]
    for node in told.nodes:
        for name, version in due.items():
            if node[name] != version and version is not None:
                yield f"{node['host']} has {name} {node[name]}, the request says {version}"


def dates(told: Told, package: Package) -> Iterator[str]:
    """Start, log, end in this order, and as far apart as is said; log times are local to the nodes."""
    if not told.ended:
        return
    started, ended = told.span()
    if ended < started:
        yield f"it ended ({ended.isoformat()}) before it started ({started.isoformat()})"
    if (ended - package.now).total_seconds() > LATER:
        yield f"it ended at {ended.isoformat()}, which is yet to come"
    if told.end["seconds"] > (ended - started).total_seconds() + CLOCK:
        yield f"it took {told.end['seconds']:,.0f} s between {started.isoformat()} and {ended.isoformat()}"
    if told.log is None or told.log.first_time is None or told.log.last_time is None:
        return
    # `nodes` know the clock as it was at the start; an hour put back may come first among all times of the log
    offset = told.nodes[0]["utc_offset"] if told.nodes else 0
    first = told.log.first_time - offset - min(told.put_forward, 0)
    last = told.log.last_time - offset - max(told.put_forward, 0)
    for what, before, after in (("start", started.timestamp(), first), ("last line", last, ended.timestamp())):
        if before > after + CLOCK:
            yield (
                f"the log is not of this run: its {'first line' if what == 'start' else what} is "
                f"{before - after:,.0f} s {'before the start' if what == 'start' else 'after the end'}"
            )
    if told.complete and last - first > told.end["seconds"] + CLOCK:
        yield f"the log spans {last - first:,.0f} s, but the run took {told.end['seconds']:,.0f} s"


def length(told: Told, package: Package) -> Iterator[str]:
    """A complete run has all its steps in its log, as many as were counted while it ran."""
    if told.complete and told.end["steps_seen"] != told.steps:
        yield f"{told.end['steps_seen']} steps were seen while it ran, the log holds {told.steps}"
    due = told.request["workload"]
    if told.complete and told.steps < due["steps"] and not due["hours"]:
        yield f"it is called complete, but has {told.steps} of {due['steps']} steps"
    if told.complete and told.end["failure"] is not None:
        yield "end.json tells of a failure and of completion"


def devices(told: Told, package: Package) -> Iterator[str]:
    """As many nodes as were asked for, each with devices enough, of one kind, each with an id of its own; ranks are
    bound to them."""
    request = told.request
    hosts = {node["host"]: node for node in told.nodes}
    if not told.nodes and not told.complete:
        return  # it failed before its nodes could be asked
    least = request["nodes"] if told.complete else 1  # a node may be why it failed
    if not least <= len(hosts) == len(told.nodes) <= request["nodes"]:
        yield f"{request['nodes']} nodes were asked for, nodes/ tells of {len(hosts)}"
    every = [device for node in told.nodes for device in node["devices"]]
    for node in told.nodes:
        if node["accelerator"] != request["accelerator"]:
            yield f"{node['host']} has {node['accelerator']}, the request says {request['accelerator']}"
        if request["accelerator"] != CPU and len(node["devices"]) < request["gpus"]:
            yield f"{node['host']} has {len(node['devices'])} devices, {request['gpus']} were asked for"
    ids = [device["id"] for device in every]
    if len(set(ids)) < len(ids) or not all(ids):
        yield "two devices have one id, or one has none"
    if len({device["name"] for device in every}) > 1:
        yield f"devices of different kinds: {', '.join(sorted({str(d['name']) for d in every}))}"
    for rank, (host, index) in (told.log.bindings if told.log else {}).items():
        if host not in hosts:
            yield f"rank {rank} was bound to host {host}, of which nodes/ tells nothing"
        elif request["accelerator"] != CPU and index >= request["gpus"]:
            yield f"rank {rank} was bound to device {index} of {request['gpus']}"


def telemetry(told: Told, package: Package) -> Iterator[str]:
    """What was watched are these devices, during this run, with no more memory than they have."""
    for path in told.attempt.strangers:
        yield f"telemetry is of {path.stem}, of which nodes/ tells nothing"
    for path in told.attempt.telemetry if told.ended else ():
        yield from _watched(told, path)


def _watched(told: Told, path: Path) -> Iterator[str]:
    known = {d["id"]: d["memory_bytes"] for node in told.nodes for d in node["devices"]}
    started, ended = (at.timestamp() for at in told.span())
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE), ""), 1):
            if len(line) == LINE:
                yield f"line {number} of {path.name} is longer than {LINE:,} characters"
                return
            row = json.loads(line)
            device = row.get("device")
            if device is not None and device not in known:
                yield f"telemetry is of a device {device!r} that no node has"
                return
            if not started - CLOCK <= row["time"] <= ended + CLOCK:
                yield "telemetry is of another time than the run"
                return
            if device is not None and known[device] and row.get("memory_used", 0) > known[device]:
                yield f"telemetry shows {row['memory_used']:,} bytes in use on a device of {known[device]:,}"
                return


# ---- the whole submission ---------------------------------------------------------------------------------


def numbered(package: Package) -> Iterator[str]:
    """Attempts at a run are numbered from 1 without a gap, and were made in this order."""
    for (case, run), told in package.by_run().items():
        found = [t.attempt.number for t in told]
        if found != list(range(1, len(found) + 1)):
            yield f"{case}/{run}: attempts {', '.join(map(str, found))} are there; one was taken out"
        for one, other in pairwise(t for t in told if t.ended):
            if other.span()[0] < one.span()[0]:
                yield f"{other.attempt.name} started before {one.attempt.path.name}"


def apart(package: Package) -> Iterator[str]:
    """Two runs that each take all devices of a machine cannot run at one time."""
    spans = []
    for told in package.attempts:
        full = {n["host"] for n in told.nodes if n["devices"] and len(n["devices"]) == told.request["gpus"]}
        if told.ended and not told.spread:
            spans += [(*told.span(), host, told.attempt.name) for host in full]
    busy: dict[str, tuple[datetime, str]] = {}
    for start, end, host, name in sorted(spans):
        until, other = busy.get(host, (start, name))
        if (until - start).total_seconds() > CLOCK:
            yield f"{other} and {name} took all devices of {host} at the same time"
        busy[host] = max((until, other), (end, name))


def one_machine(package: Package) -> Iterator[str]:
    """All judged runs come from one unchanged machine; under Slurm or ssh, from nodes of one kind."""
    known: dict[Any, tuple[str, str]] = {}
    for told in package.judged():
        for node in told.nodes:
            place, mark = ("", probe.kind(node)) if told.spread else (node["host"], probe.fingerprint(node))
            before, name = known.setdefault(place, (mark, told.attempt.name))
            if before != mark:
                yield f"{told.attempt.name} ran on another machine, or with other software, than {name}"
    hosts = {node["host"] for told in package.judged() if not told.spread for node in told.nodes}
    if len(hosts) > 1:
        yield f"runs come from different machines: {', '.join(sorted(map(str, hosts)))}"


def one_request(package: Package) -> Iterator[str]:
    """The judged runs of a case differ in nothing but their length and the deterministic mode."""
    first: dict[str, Told] = {}
    for told in package.judged():
        other = first.setdefault(told.attempt.case, told)
        for key in (*REPEATED, "open", "launcher", "environment of settings"):
            one, two = (_compared(t.request, key) for t in (other, told))
            if not derived.same_json(one, two):
                yield f"{told.attempt.name} and {other.attempt.run} differ in {key}"


def _compared(request: Mapping[str, Any], key: str) -> Any:
    if key == "workload":
        return {k: v for k, v in request[key].items() if k not in ("steps", "hours")}
    if key == "environment of settings":
        return sorted(name for name in request["settings"] if name.startswith(ENVIRONMENT))
    return request.get(key)


def one_log_each(package: Package) -> Iterator[str]:
    """No log file is there twice."""
    seen: dict[str, str] = {}
    for name, digest in sorted(package.files.items()):
        if "/logs/" in name and digest.size >= 4096 and seen.setdefault(digest.sha256, name) != name:
            yield f"{name} and {seen[digest.sha256]} are one file"


def whole_attempts(package: Package) -> Iterator[str]:
    """Each attempt has its request and end, each that is judged also its config, nodes and logs."""
    for told in package.attempts:
        parts = {"request.json": told.request, "end.json": told.end}
        if told.complete or told.judged:
            parts |= {"nodes/": told.nodes, "logs/": told.attempt.logs, "config.py": told.attempt.config.exists()}
        if missing := [name for name, part in parts.items() if not part]:
            yield f"{told.attempt.name} lacks {', '.join(missing)}"


def packed_by(package: Package) -> Iterator[str]:
    """The submission was packed by the suite that checks it, a clean commit."""
    own = not_checkable(package.suite)
    if own:
        yield f"this checkout cannot check anything: {own}; use a clean clone"
    for what, claimed in (("packed", package.manifest.get("suite")), ("judged", package.claimed.get("suite"))):
        if not isinstance(claimed, dict):
            yield f"it does not say which suite {what} it"
        elif reason := not_checkable(claimed):
            yield f"{what} by an unclean suite: {reason}"
        elif claimed != package.suite and not own:
            yield f"{what} by the suite's commit {claimed['commit']}, this is {package.suite['commit']}: check that out"


ATTEMPT: tuple[tuple[str, Callable[[Told, Package], Iterator[str]]], ...] = (
    ("names", names),
    ("workload", workload),
    ("ranks", world),
    ("rules", by_the_rules),
    ("seed", seed),
    ("config", made_config),
    ("suite of the runs", one_suite),
    ("software", software),
    ("dates", dates),
    ("length", length),
    ("devices", devices),
    ("telemetry", telemetry),
)
WHOLE: tuple[tuple[str, Callable[[Package], Iterator[str]]], ...] = (
    ("suite", packed_by),
    ("completeness", whole_attempts),
    ("attempts", numbered),
    ("one at a time", apart),
    ("one machine", one_machine),
    ("one request", one_request),
    ("one log each", one_log_each),
)


# ---- the check ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lab:
    """What the lab brings: its requirements and policy, the vendor's public key, the challenge that it issued."""

    requirements: Requirements
    policy: Policy = field(default_factory=Policy)
    key: Path | None = None
    challenge: str | None = None
    file_sha256: str = ""  # of the requirements file


@dataclass(frozen=True)
class Line:
    """One check: `what` it holds up to is a sentence; no faults: it holds."""

    name: str
    what: str
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checked:
    """The outcome. `results` are those of the lab's requirements, None where nothing could be judged."""

    lines: tuple[Line, ...]
    results: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        return self.results is not None and not any(line.faults for line in self.lines)

    @property
    def conformant(self) -> bool:
        return self.results is not None and self.results["conformant"] is True

    @property
    def status(self) -> int:
        return (0 if self.conformant else 3) if self.sound else 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("archive", type=Path, metavar="ZIP", help="the submission")
    parser.add_argument("--requirements", type=Path, metavar="FILE", help="the lab's own numbers (TOML)")
    parser.add_argument("--determinism", choices=("bitwise", "tolerance"), default="bitwise")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="loss curve to follow")
    parser.add_argument(
        "--key", type=Path, metavar="PUB", help="the vendor's public key (PEM): the signature must be its"
    )
    parser.add_argument("--challenge", metavar="CODE", help="the code that was issued: every run must follow from it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def main(arguments: argparse.Namespace) -> int:
    """Print the table; the exit status is that of the module's description."""
    try:
        if not arguments.archive.is_file():
            what = "a folder" if arguments.archive.is_dir() else "not found"
            raise ArchiveError(f"{arguments.archive}: {what}; name a submission, as `python -m reports pack` writes it")
        if arguments.key:
            signing.verifier(arguments.key)
        if arguments.reference:
            references.load(arguments.reference)
        lab = Lab(
            load_requirements(arguments.requirements),
            Policy(arguments.determinism, arguments.reference),
            arguments.key,
            arguments.challenge,
            hashlib.sha256((arguments.requirements or DEFAULTS).read_bytes()).hexdigest(),
        )
    except (ArchiveError, RequirementsError, CurveError, signing.SigningError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    checked = check(arguments.archive, lab)
    print(json.dumps(as_json(checked), indent=1) if arguments.json else table(checked))
    return checked.status


def check(path: Path, lab: Lab) -> Checked:
    """Check the submission `path`. Raises nothing for what is wrong with it."""
    with tempfile.TemporaryDirectory(prefix="check-") as temporary:
        root, out = Path(temporary, "submission"), Path(temporary, "derived")
        root.mkdir()
        out.mkdir()
        what = "A zip of regular files in their places, none twice, none that a submission has no place for"
        try:
            files = archive.unpack(path, root)
        except ArchiveError as error:
            return Checked((Line("archive", what, (_readable(str(error), root),)),), None)
        lines = [
            Line("archive", what),
            _line(
                "manifest",
                "Every file is the one that the manifest lists",
                lambda: archive.manifest_faults(root, files),
            ),
        ]
        if lab.key:
            lines.append(_line("signature", "The vendor signed the manifest", lambda: _signature(root, lab.key)))
        content, results = _content(root, out, files, lab)
        claimed = evidence.read_json(root / "results.json") if results else None  # readable, where there are results
        notes = tuple(_notes(root, lab, claimed))
    cleaned = tuple(
        Line(line.name, line.what, tuple(_readable(f, root) for f in line.faults)) for line in (*lines, *content)
    )
    return Checked(cleaned, results, notes)


def _content(
    root: Path, out: Path, files: Mapping[str, Digest], lab: Lab
) -> tuple[list[Line], Mapping[str, Any] | None]:
    what = "The claims can be read, and the evidence can be judged by them"
    lines: list[Line] = []
    try:
        for name in files:
            if name.endswith(".json"):
                json.loads((root / name).read_bytes(), parse_constant=_no_number)
        claimed, _ = load(root / "results.json")
        submission = evidence.read_json(root / derived.SUBMISSION)
        if submission.get("language") not in LANGUAGES:
            raise EvidenceError(f"{derived.SUBMISSION}: language {submission.get('language')!r} is none")
        folder = Folder(root, claimed, submission["language"])
        found = folder.derive(out, claimed["suite"])
        package = Package(
            root,
            files,
            evidence.read_json(root / archive.MANIFEST),
            submission,
            claimed,
            tuple(_attempts(folder, found)),
            suite.identity(),
            lab.challenge,
            datetime.now(timezone.utc),
        )
        results = folder.results(folder.judge(lab.requirements, lab.policy))
    except UNREADABLE as error:
        return [Line("claims", what, (_why(error),))], None
    lines.append(Line("claims", what))
    lines += [_line(name, _sentence(function), lambda f=function: f(package)) for name, function in WHOLE]
    lines += [_line(name, _sentence(f), lambda f=f: _each(f, package)) for name, f in ATTEMPT]
    what = "Verdicts and figures are what the raw logs say"
    lines.append(_line("verdicts", what, lambda: derived.differences(claimed, found)))
    what = "Report, machine and OCP output are what follows from the evidence"
    lines.append(_line("report", what, lambda: _same_files(root, out, package)))
    return lines, results


def _no_number(text: str) -> float:
    """NaN compares as equal to nothing and greater than nothing: no limit would hold it."""
    raise EvidenceError(f"{text} stands where a number belongs")


def _attempts(folder: Folder, found: Mapping[str, Any]) -> Iterator[Told]:
    judge = folder.judge(folder.requirements(), folder.policy())
    judged = {path for case in found["cases"] for path in case["runs"].values()}
    for case in evidence.cases(folder.root):
        for run in evidence.RUNS:
            for attempt in evidence.attempts(folder.root, case, run):
                end = attempt.end
                try:
                    log = judge.reading(attempt)
                except LogError:
                    if end.get("outcome") == "complete":
                        raise
                    log = None
                yield Told(
                    attempt,
                    attempt.path.relative_to(folder.root).as_posix() in judged,
                    attempt.request,
                    end,
                    tuple(attempt.nodes),
                    log and replace(log, steps=derived.NO_STEPS),
                    len(log.steps) if log else 0,
                    put_forward(log.steps, workload_of(attempt.request)) if log else 0.0,
                )


def _each(function: Callable[[Told, Package], Iterator[str]], package: Package) -> Iterator[str]:
    for told in package.attempts:
        try:
            yield from (f"{told.attempt.name}: {fault}" for fault in function(told, package))
        except UNREADABLE as error:
            yield f"{told.attempt.name}: {_why(error)}"


def _same_files(root: Path, out: Path, package: Package) -> Iterator[str]:
    who = {key: package.submission[key] for key in ("organisation", "contact")}
    if not all(isinstance(text, str) and text.strip() for text in who.values()):
        yield f"{derived.SUBMISSION} does not say who submits, or whom to answer"
    results = evidence.read_json(out / "results.json")
    evidence.write_json(out / derived.SUBMISSION, derived.submission(who, results, package.submission["language"]))
    made = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    for name in sorted(made - {"results.json"}):
        claimed = root / name
        if not claimed.is_file():
            yield f"{name} is missing"
        elif claimed.read_bytes() != (out / name).read_bytes():
            yield f"{name} is not what follows from the evidence"
    for name in sorted(package.files):
        if name.startswith("ocp/") and name not in made:
            yield f"{name} is of no case"


def _signature(root: Path, key: Path) -> Iterator[str]:
    path = root / archive.SIGNATURE
    if not path.exists():
        yield "the submission is not signed"
    elif not signing.verifier(key)((root / archive.MANIFEST).read_bytes(), path.read_bytes()):
        yield f"the signature is not by {key}"


def _notes(root: Path, lab: Lab, claimed: Mapping[str, Any] | None) -> Iterator[str]:
    """What was not looked at, and why."""
    if lab.key is None:
        signed = (root / archive.SIGNATURE).exists()
        yield "signature not looked at: " + ("give the vendor's public key with --key" if signed else "there is none")
    if lab.challenge is None:
        yield "no --challenge given: the losses may have been recorded long ago"
    if claimed is None:
        return
    options = [claimed["policy"][name] for name in ("min_tgs", "max_loss")]
    if any(options) or lab.file_sha256 != hashlib.sha256((root / derived.REQUIREMENTS).read_bytes()).hexdigest():
        yield "it was claimed by other requirements than these; the verdicts below are by these"


def _line(name: str, what: str, faults: Callable[[], Iterable[str]]) -> Line:
    try:
        return Line(name, what, tuple(islice(faults(), SHOWN)))
    except UNREADABLE as error:
        return Line(name, what, (_why(error),))


def _why(error: BaseException) -> str:
    known = isinstance(error, (EvidenceError, LogError, ReportError, RequirementsError, CaseError, OSError))
    return str(error) if known else f"cannot be made sense of ({type(error).__name__}: {error})"


def _sentence(function: Callable[..., Any]) -> str:
    return " ".join((function.__doc__ or "").split()).rstrip(".")


def _readable(text: str, root: Path) -> str:
    return clean(text.replace(f"{root}/", "").replace("\n", " "), 400)


# ---- telling -------------------------------------------------------------------------------------------------


def as_json(checked: Checked) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "schema": 1,
        "sound": checked.sound,
        "conformant": checked.sound and checked.conformant,
        "checks": [
            {"name": line.name, "holds": not line.faults, "what": line.what, "faults": list(line.faults)}
            for line in checked.lines
        ],
        "notes": list(checked.notes),
        "results": checked.results,
    }


def table(checked: Checked) -> str:
    """A line a check, its faults below it, then what the evidence comes to by the lab's requirements."""
    width = max(len(line.name) for line in checked.lines)
    told = []
    for line in checked.lines:
        told.append(f"{'FAIL' if line.faults else 'ok':4}  {line.name:{width}}  {line.what}")
        told += [f"      {'':{width}}  - {fault}" for fault in line.faults]
    told += [f"note: {note}" for note in checked.notes]
    told.append("")
    if checked.results is not None:
        told += statement(checked.results)
    verdict = "everything holds" if checked.sound else "REFUSED: something does not hold"
    if checked.sound and not checked.conformant:
        verdict += ", but it does not conform by these requirements"
    return "\n".join([*told, verdict])
