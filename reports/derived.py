"""Everything in a submission that follows from its evidence: made by the vendor's pack and by the lab's check alike.

Both make the same bytes, so that a claim is compared and never believed.
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from acceptance.judge import Judge, Policy
from acceptance.requirements import DEFAULTS, Requirements, load
from fixtures import evidence
from fixtures.cases import Case
from fixtures.evidence import EvidenceError
from fixtures.internlm.log import Reading
from fixtures.recorded import Assumptions
from fixtures.steps import COLUMNS, Steps
from reports import ocp, page

REQUIREMENTS, REFERENCE = "requirements.toml", "reference"
SUBMISSION = "submission.json"
FILES = ("results.json", "system.json", page.NAME, "REPRODUCE.md")


# not a slice of anything: that would keep the whole array
NO_STEPS = Steps(**{name: np.empty(0) for name in COLUMNS}, grad_norm={})


class Readings(MutableMapping[Path, Reading]):
    """Readings of many attempts at the memory of one: the arrays of long runs wait in a temporary folder."""

    LONG = 5_000  # steps

    def __init__(self, folder: Path | None = None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="steps-", dir=folder)
        self._kept: dict[Path, tuple[Reading, Path | None]] = {}

    def __setitem__(self, attempt: Path, reading: Reading) -> None:
        steps = reading.steps
        if len(steps) < self.LONG:
            self._kept[attempt] = reading, None
            return
        path = Path(self._temporary.name) / f"{len(self._kept)}.npz"
        norms = {f"norm {group}": values for group, values in steps.grad_norm.items()}
        np.savez(path, **{name: getattr(steps, name) for name in COLUMNS}, **norms)
        self._kept[attempt] = replace(reading, steps=NO_STEPS), path

    def __getitem__(self, attempt: Path) -> Reading:
        reading, path = self._kept[attempt]
        if path is None:
            return reading
        with np.load(path, allow_pickle=False) as arrays:
            norms = {name[5:]: arrays[name] for name in arrays.files if name.startswith("norm ")}
            return replace(reading, steps=Steps(**{name: arrays[name] for name in COLUMNS}, grad_norm=norms))

    def __contains__(self, attempt: object) -> bool:
        return attempt in self._kept

    def __delitem__(self, attempt: Path) -> None:
        del self._kept[attempt]

    def __iter__(self) -> Iterator[Path]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


@dataclass
class Folder:
    """A folder with runs/, and the rules that its results were claimed by.

    claimed   results.json as it was claimed
    language  of the report
    """

    root: Path
    claimed: Mapping[str, Any]
    language: str = "en"
    readings: Readings = field(default_factory=Readings)

    def requirements(self) -> Requirements:
        """Those that the results were claimed by. Raises RequirementsError."""
        policy = self.claimed["policy"]
        return load(self.root / REQUIREMENTS, policy["min_tgs"], policy["max_loss"])

    def policy(self) -> Policy:
        """That which the results were claimed by."""
        policy = self.claimed["policy"]
        name = policy["reference"]
        if policy["determinism"] not in ("bitwise", "tolerance") or (name and Path(name).name != name):
            raise EvidenceError(f"results.json: policy {dict(policy)!r} is none")
        return Policy(policy["determinism"], self.root / REFERENCE / name if name else None)

    def judge(self, requirements: Requirements, policy: Policy) -> Judge:
        """The judge of this folder; all judges of a folder share what was read."""
        return Judge(self.root, requirements, policy, _readings=self.readings)

    def results(self, judge: Judge) -> dict[str, Any]:
        """results.json by `judge`: with the cases that were claimed to be planned, and have no evidence."""
        return judge.results_json(self.planned())

    def planned(self) -> list[Case]:
        there = set(evidence.cases(self.root))
        return [
            Assumptions(case["gpus"], None, None, 1, lambda _: (None, None, "")).case(case["case"])
            for case in self.claimed["cases"]
            if case["case"] not in there
        ]

    def derive(self, out: Path, suite: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write FILES and ocp/ into `out`; the results.

        suite  stands in results.json for the suite that judges now
        """
        judge = self.judge(self.requirements(), self.policy())
        results = self.results(judge) | ({"suite": dict(suite)} if suite else {})
        evidence.write_json(out / "results.json", results)
        evidence.write_json(out / "system.json", results["system"])
        # when and by which session it was judged is nothing that a lab could make again
        text = page.render(out, judged_at=None, language=self.language, evidence=self.root, read=judge.reading)
        page.write_whole(out / page.NAME, text)
        page.write_whole(out / "REPRODUCE.md", reproduce(self.root, results))
        ocp.write(out, results, self.root, judge.reading)
        return results


def keep_rules(results: Path, requirements: Path | None, reference: Path | None) -> None:
    """Copies of the files that results were judged by, for whoever judges them again."""
    kept = [(requirements or DEFAULTS, results / REQUIREMENTS)]
    kept += [(reference, results / REFERENCE / reference.name)] if reference else []
    for source, target in kept:
        target.parent.mkdir(exist_ok=True)
        if source.resolve() != target.resolve():
            shutil.copyfile(source, target)


def submission(who: Mapping[str, str], results: Mapping[str, Any], language: str) -> dict[str, Any]:
    """submission.json: who hands in what."""
    models = [{key: m[key] for key in ("model", "certifiable", "conformant", "via")} for m in results["models"]]
    return {"schema": 1, **who, "language": language, "conformant": results["conformant"], "models": models}


def reproduce(root: Path, results: Mapping[str, Any]) -> str:
    """REPRODUCE.md: how to judge the evidence again, and how each judged run was launched."""
    commands = []
    for case in results["cases"]:
        for run, path in case["runs"].items():
            request = evidence.read_json(root / path / "request.json")
            command = shlex.join(map(str, request.get("command", ())))
            commands += [f"{case['case']}, {run} (config: {path}/config.py):", "", f"    {command}", ""]
    return "\n".join(
        [
            "# How to reproduce this submission",
            "",
            f"The suite's commit is {results['suite']['commit']}. From a clean checkout of it, no accelerator needed:",
            "",
            "    python -m reports check SUBMISSION.zip",
            "    pytest acceptance --evidence SUBMISSION.zip",
            "",
            "On the machine itself, `pytest acceptance` launches these runs again:",
            "",
            *commands,
        ]
    )


def same_json(one: Any, other: Any) -> bool:
    """Equal as JSON texts: 1 and 1.0 and true are three things."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def differences(claimed: Mapping[str, Any], found: Mapping[str, Any]) -> Sequence[str]:
    """Where claimed results differ from those that the evidence gives, most telling first."""
    told: list[str] = []
    cases = {case["case"]: case for case in found["cases"]}
    for case in claimed["cases"]:
        other = cases.pop(case["case"], None)
        if other is None:
            told.append(f"{case['case']}: claimed, but there is no evidence of it")
            continue
        for name, verdict in case["criteria"].items():
            truth = other["criteria"].get(name, {})
            if not same_json(verdict, truth):
                what = f"{verdict.get('outcome')} ({verdict.get('code')})"
                truly = f"{truth.get('outcome')} ({truth.get('code')})"
                figures = "" if what != truly else ", with other figures or words"
                told.append(f"{case['case']} {name}: claimed {what}, the evidence says {truly}{figures}")
        told += [f"{case['case']}: {key} differs" for key in other if not same_json(case.get(key), other[key])]
    told += [f"{case}: in the evidence, but not in the results" for case in cases]
    return told + [f"{key} differs" for key in found if not same_json(claimed.get(key), found[key])]
