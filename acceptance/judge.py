"""The one judge: evidence and requirements in, results out. Live, nightly and at the lab it is this code path."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from acceptance import references
from acceptance.criteria import convergence, determinism, nodes, startup, throughput, whole
from acceptance.criteria.reference import CurveError, Reference
from acceptance.criteria.verdict import Finding, Verdict, Workload
from acceptance.requirements import Requirements
from fixtures import devices, evidence, rules, suite
from fixtures.cases import Case
from fixtures.devices import CPU
from fixtures.evidence import Attempt, EvidenceError
from fixtures.internlm import flops, seeds
from fixtures.internlm.log import LogError, Reading, read
from fixtures.internlm.models import is_tiny
from fixtures.recorded import Assumptions

SCHEMA = 1
RUNS_NEEDED = {
    "startup": ("speed",),
    "throughput": ("speed",),
    "determinism": ("repeat-1", "repeat-2"),
    "convergence": ("long",),
}
CRITERIA = tuple(RUNS_NEEDED)
SHORT_CRITERIA = CRITERIA[:3]
STEPS = 100  # the procedure's length of a short run
GIB = 2**30


@dataclass(frozen=True)
class Policy:
    """What the one who judges decides, beside the requirements."""

    determinism: Literal["bitwise", "tolerance"] = "bitwise"
    reference: Path | None = None


@dataclass
class Judge:
    """Judges the cases whose evidence lies under `results`, always from the latest attempt of each run."""

    results: Path
    requirements: Requirements
    policy: Policy = field(default_factory=Policy)
    assumptions: Assumptions | None = None  # of logs without a request; None: they are not judged
    _readings: MutableMapping[Path, Reading] = field(default_factory=dict)

    def verdict(self, case: str, criterion: str) -> Verdict:
        """The verdict of one criterion for one case; what cannot be read is a fail, with the file named."""
        try:
            attempts = [self._latest(case, run) for run in RUNS_NEEDED[criterion]]
            if None in attempts:
                return self._without_run(case, criterion, RUNS_NEEDED[criterion][attempts.index(None)])
            found = [attempt for attempt in attempts if attempt]
            for attempt in found:
                if stopped := self._stopped(attempt, criterion) or self._other_seed(attempt, criterion):
                    return stopped
            judge = getattr(self, f"_{criterion}")
            verdict: Verdict = judge(*found)
        except (EvidenceError, LogError, CurveError) as error:
            why = str(error).replace(f"{self.results}{os.sep}", "")  # the same sentence wherever it lies
            return Verdict("fail", f"{criterion}-unreadable", f"The evidence cannot be read: {why}")
        return verdict

    def sustained_tgs(self, case: str) -> float:
        """Sustained TGS of the speed run in tokens/GPU/s; 0.0 where there is none."""
        return figure(self.verdict(case, "throughput"), "tgs")

    def results_json(self, selected: Sequence[Case] = ()) -> dict[str, Any]:
        """results.json: every case with evidence, and those of `selected` that have none yet."""
        planned = {case.name: case.as_request() for case in selected}
        names = [*planned, *(name for name in evidence.cases(self.results) if name not in planned)]
        cases = [self._case(name, planned.get(name, {})) for name in sorted(names)]
        models = [model_result(model, cases) for model in dict.fromkeys(case["model"] for case in cases)]
        judged = [model for model in models if model["judged"]]
        return {
            "schema": SCHEMA,
            "suite": suite.identity(),
            "system": self._system([case["case"] for case in cases]),
            "policy": {
                "determinism": self.policy.determinism,
                "reference": self.policy.reference.name if self.policy.reference else None,
                "min_tgs": self.requirements.min_tgs,
                "max_loss": self.requirements.max_loss,
            },
            "conformant": any(m["certifiable"] for m in judged) and all(m["conformant"] for m in judged),
            "models": models,
            "cases": cases,
        }

    # ---- one criterion each: the evidence that it needs, in the order of RUNS_NEEDED ----

    def _startup(self, speed: Attempt) -> Verdict:
        request = self._request(speed)
        return startup.judge(
            self.reading(speed),
            speed.end,
            request["workload"]["steps"],
            workload_of(request),
            device_memory(speed, self.reading(speed)),
        )

    def _throughput(self, speed: Attempt) -> Verdict:
        request, reading = self._request(speed), self.reading(speed)
        workload = workload_of(request)
        if fault := whole.fault(reading.steps, request["workload"]["steps"], workload, reading.resumed):
            return fault.verdict("throughput")
        minimum = self.requirements.minimum_tgs(request, request["accelerator"])
        peak = peak_tflops(speed, request["accelerator"])
        verdict = throughput.judge(reading.steps, workload, minimum, peak_tflops=peak)
        if peak or request["accelerator"] == CPU or not figure(verdict, "tgs"):
            return verdict
        text = "No peak FLOPS is on record for this device (configs/devices, [peak_tflops]): MFU is not known."
        return replace(verdict, findings=(*verdict.findings, Finding("no-peak", text)))

    def _determinism(self, first: Attempt, second: Attempt) -> Verdict:
        request = self._request(first)
        if odd := different(request, self._request(second)):
            reason = f"The repeats are not of one request: they differ in {', '.join(odd)}."
            return Verdict("fail", "determinism-requests-differ", reason)
        length = min(STEPS, request["workload"]["steps"])
        readings = self.reading(first), self.reading(second)
        verdict = determinism.judge(
            readings[0].steps,
            readings[1].steps,
            self.policy.determinism,
            workload_of(request),
            length,
            self._reference(request),
            request["accelerator"],
        )
        return replace(verdict, findings=(*verdict.findings, *self._cost(first, readings[0])))

    def _cost(self, repeat: Attempt, reading: Reading) -> tuple[Finding, ...]:
        """What the deterministic mode costs a device; nothing where the two runs cannot be compared."""
        request, speed = self._request(repeat), self._latest(repeat.case, "speed")
        if request["accelerator"] == CPU or not request.get("deterministic") or speed is None:
            return ()
        if different(request, self._request(speed)) or not (speed_tgs := self.sustained_tgs(repeat.case)):
            return ()
        workload = workload_of(request)
        measured = throughput.judge(reading.steps, workload, None)
        return (determinism.cost(tgs, speed_tgs),) if (tgs := figure(measured, "tgs")) else ()

    def _convergence(self, long: Attempt) -> Verdict:
        request = self._request(long)
        workload = request["workload"]
        return convergence.judge(
            self.reading(long).steps,
            workload_of(request),
            self.requirements.maximum_loss(request),
            workload["steps"],
            workload.get("hours"),
        )

    def _reference(self, request: Mapping[str, Any]) -> Reference | None:
        return references.find(request, self.policy.reference)

    def _followed(self, repeat: Attempt | None) -> dict[str, Any] | None:
        """The curve that the repeats are compared with, for the report to draw; None where there is none to use."""
        try:
            request = self._request(repeat) if repeat else {}
            reference = self._reference(request) if request else None
        except (CurveError, EvidenceError):
            return None  # the verdict says why
        if reference is None:
            return None
        # every digit as recorded: a rounded curve would differ from one that is equal
        losses = reference.losses[: min(STEPS, request["workload"]["steps"])].tolist()
        return {"name": reference.source, "losses": losses}

    def _stopped(self, attempt: Attempt, criterion: str) -> Verdict | None:
        """The one line of a criterion whose run did not complete; startup tells the whole story."""
        end = attempt.end
        if attempt.request and not end:
            return Verdict("fail", f"{criterion}-unfinished", f"The run {attempt.name} has not ended, or died unseen.")
        if criterion == "startup":
            return None
        failure = end.get("failure") or {}
        if end and end.get("outcome") != "complete":
            what = failure.get("summary") or f"it was {end.get('outcome')}"
            return Verdict(
                "fail",
                f"{criterion}-run-failed",
                f"The run {attempt.name} that it needs failed: {what}",
                quoted=tuple(failure.get("quoted", ())) if criterion == "determinism" else (),
            )
        return None

    def _other_seed(self, attempt: Attempt, criterion: str) -> Verdict | None:
        """A run seeded otherwise than it was asked to be is another run; one that broke off says more by why."""
        request = self._request(attempt)
        if request.get("seed") is None or (attempt.end and attempt.end.get("outcome") != "complete"):
            return None
        odd = seeds.contradiction(self.reading(attempt).seeds, request["seed"], bool(request.get("challenge")))
        return Verdict("fail", f"{criterion}-seed-contradicted", f"In {attempt.name}, {odd}.") if odd else None

    def _without_run(self, case: str, criterion: str, run: str) -> Verdict:
        if criterion != "convergence":
            return Verdict("not run", f"{criterion}-not-run", f"not run: there is no {run} run of {case}")
        for short in SHORT_CRITERIA:
            verdict = self.verdict(case, short)
            if verdict.outcome == "not run":
                return Verdict("not run", "convergence-not-run", f"not run: {short} was not run")
            if verdict.outcome != "pass":
                reason = f"not run: no long run for a case whose {short} did not pass ({verdict.code})"
                return Verdict("not run", "convergence-short-runs-failed", reason)
        speed = self._latest(case, "speed")
        if speed and self.requirements.maximum_loss(self._request(speed)) is None:
            reason = "not run: no requirement on record (--max-loss or --requirements sets a maximum loss)"
            return Verdict("not run", "convergence-no-requirement", reason)
        model = model_of(case)
        for other in evidence.cases(self.results):
            if other != case and model_of(other) == model and self._latest(other, run):
                return Verdict("not run", "convergence-see-other-case", f"not run: see {other}")
        return Verdict("not run", "convergence-not-run", f"not run: there is no {run} run of {case}")

    # ---- evidence ----

    def _latest(self, case: str, run: str) -> Attempt | None:
        return evidence.latest(self.results, case, run)

    def _request(self, attempt: Attempt) -> dict[str, Any]:
        """What was asked for; of logs brought from elsewhere, what is assumed."""
        request = attempt.request
        if request:
            return request
        if self.assumptions is None:
            raise EvidenceError(f"{attempt.name}: there is no request.json; the evidence is damaged")
        return self.assumptions.request(attempt)

    def reading(self, attempt: Attempt) -> Reading:
        """What the logs say; kept once the attempt has ended, for then it cannot change."""
        if attempt.path not in self._readings:
            reading = read(attempt.logs)
            if not attempt.end:
                return reading
            self._readings[attempt.path] = reading
        return self._readings[attempt.path]

    def _case(self, name: str, planned: Mapping[str, Any]) -> dict[str, Any]:
        latest = {run: self._latest(name, run) for run in evidence.RUNS}
        requests = {run: readable(attempt, "request") for run, attempt in latest.items() if attempt}
        request = next(filter(None, requests.values()), planned)
        verdicts = {criterion: self.verdict(name, criterion) for criterion in CRITERIA}
        layout = request.get("layout", {})
        return {
            "case": name,
            "model": request.get("model", model_of(name)),
            "dataset": request.get("dataset"),
            "layout": {key: layout.get(key) for key in ("tp", "pp", "zero", "dp")},
            "gpus": request.get("world", 0),
            "runs": {run: str(attempt.path.relative_to(self.results)) for run, attempt in latest.items() if attempt},
            "attempts": {
                run: [attempt_json(a, self.results) for a in evidence.attempts(self.results, name, run)]
                for run in evidence.RUNS
                if latest[run]
            },
            "departures": departures(requests, self.requirements) + unlike(latest),
            "reference": self._followed(latest["repeat-1"]),
            "criteria": {criterion: verdict.as_json() for criterion, verdict in verdicts.items()},
        }

    def _system(self, cases: Sequence[str]) -> dict[str, Any]:
        """The machine, as its nodes say in the judged attempts; {} where none says anything."""
        found: dict[str, dict[str, Any]] = {}
        accelerators, versions = set(), set()
        for case in cases:
            for run in evidence.RUNS:
                attempt = self._latest(case, run)
                if attempt is None:
                    continue
                request = readable(attempt, "request")
                found |= {node["host"]: node for node in readable(attempt, "nodes") or [] if "host" in node}
                accelerators.add(request.get("accelerator"))
                versions.add(internlm_version(request))
        return {
            "accelerator": sorted(filter(None, accelerators)),
            "internlm": sorted(filter(None, versions)),
            "nodes": [found[host] for host in sorted(found)],
        }


# What two repeats must have in common to be repeats.
REPEATED = ("case", "layout", "world", "accelerator", "workload", "settings", "seed", "challenge", "internlm", "python")


def different(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    return [key for key in REPEATED if first.get(key) != second.get(key)]


def workload_of(request: Mapping[str, Any]) -> Workload:
    figures = flops.workload(request)
    return Workload(**asdict(figures))


def peak_tflops(attempt: Attempt, family: str) -> float | None:
    """Peak of the attempt's devices, dense bfloat16 TFLOPS; None where it is not on record for all, or they differ."""
    names = {device.get("name", "") for node in attempt.nodes for device in node.get("devices", [])}
    profile = _profile(family)
    peaks = {profile.peak(name) for name in names} if profile else set()
    return peaks.pop() if len(peaks) == 1 else None


@cache
def _profile(family: str) -> devices.Profile | None:
    return devices.profiles().get(family)


def device_memory(attempt: Attempt, reading: Reading) -> dict[int, float]:
    """GiB of the device behind each rank, where nodes/ and the log's own binding lines say so."""
    totals = {
        (node.get("host"), device["index"]): device["memory_bytes"] / GIB
        for node in attempt.nodes
        for device in node.get("devices", [])
        if device.get("memory_bytes")
    }
    return {rank: totals[place] for rank, place in reading.bindings.items() if place in totals}


def departures(requests: Mapping[str, Mapping[str, Any]], requirements: Requirements) -> list[dict[str, str]]:
    """What makes the case not certifiable, as {"code", "text"}; [] for a case by the rules."""
    found: dict[str, str] = {}
    for run, request in requests.items():
        if not request:
            found["logs-only"] = "logs without the suite's own request: what ran cannot be shown"
            continue
        steps = request["workload"]["steps"]
        if run != "long" and steps < STEPS:
            found["short-run"] = f"{run} has {steps} steps, the procedure asks for {STEPS}"
        if run == "long":
            required, hours, _ = requirements.long_run(request["model"])
            if (required and steps < required) or (request["workload"].get("hours") or 1e9) < (hours or 0):
                found["short-long-run"] = f"the long run was asked for {steps:,} steps, the model's own is {required:,}"
        if request.get("open"):
            broken = "; ".join(rules.departures(request.get("settings", {}))) or "no setting departs"
            found["open"] = f"open: not certifiable ({broken})"
        commit = request.get("suite", {}).get("commit")
        if commit is None:
            found["unknown-suite"] = "the suite was no git checkout: which one ran cannot be shown"
        elif commit.endswith("-dirty"):
            found["dirty-suite"] = f"the suite had uncommitted changes ({commit})"
    return [{"code": code, "text": text} for code, text in sorted(found.items())]


def unlike(latest: Mapping[str, Attempt | None]) -> list[dict[str, str]]:
    """Nodes of a run over several that are not alike, or left no record, as departures."""
    texts = {
        f"{run}: {text}"
        for run, attempt in latest.items()
        if attempt and (expected := (readable(attempt, "request") or {}).get("nodes", 1)) > 1
        for text in nodes.odd(readable(attempt, "nodes") or [], expected)
    }
    return [{"code": "unlike-nodes", "text": text} for text in sorted(texts)]


def model_result(model: str, cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether one of the model's cases passes all four criteria, and could be certified for it."""
    own = [case for case in cases if case["model"] == model]
    passed = [case for case in own if all(verdict["outcome"] == "pass" for verdict in case["criteria"].values())]
    clean = [case for case in passed if not case["departures"]]
    via = (clean or passed or [None])[0]
    certifiable = not is_tiny(model) and any(not case["departures"] for case in own)
    return {
        "model": model,
        "certifiable": certifiable,
        "judged": any(v["outcome"] != "not run" for case in own for v in case["criteria"].values()),
        "conformant": bool(clean) if certifiable else bool(passed),
        "via": via["case"] if via else None,
    }


def readable(attempt: Attempt, part: str) -> Any:
    """A part of the evidence, {} where it is damaged: the verdicts have said so, the rest is still worth showing."""
    try:
        return getattr(attempt, part)
    except EvidenceError:
        return {}


def attempt_json(attempt: Attempt, results: Path) -> dict[str, Any]:
    end, request = readable(attempt, "end"), readable(attempt, "request")
    return {
        "path": str(attempt.path.relative_to(results)),
        "number": attempt.number,
        "outcome": end.get("outcome"),
        "started": request.get("started"),
        "seconds": end.get("seconds"),
        "failure": (end.get("failure") or {}).get("class"),
    }


def figure(verdict: Verdict, name: str) -> float:
    return next((float(m.value) for m in verdict.measurements if m.name == name and m.value is not None), 0.0)


def internlm_version(request: Mapping[str, Any]) -> str | None:
    source = request.get("internlm", {})
    words = [
        source.get("version"),
        source.get("commit"),
        "(bundled trainer)" if source.get("kind") == "bundled" else "",
    ]
    return " ".join(filter(None, words)) or None


def model_of(case: str) -> str:
    """`7B` of `7B-tp1-pp1-zero8`, `7B-sft` of `7B-sft-tp1-pp1-zero8`: what shares one long run."""
    return case.partition("-tp")[0]
