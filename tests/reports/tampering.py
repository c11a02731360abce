"""Edits of a valid submission, and what catches each: `python -m tests.reports.tampering` prints README's table.

An edit is made in the unpacked submission, which is then handed in three times:
  as it is       only the edit; the manifest is the vendor's old one
  manifest       with a manifest made anew, so that only content can give it away
  everything     packed anew from the edited evidence, as somebody would who has the suite's own tools
`manifest` and `everything` name the check that catches it, or the verdict's code where it costs the certificate;
None: nothing does, and `why` says what that means. "": packing anew undoes the edit; "*": it refuses to.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from unittest import mock

import numpy as np

from acceptance.requirements import load
from fixtures import archive, suite
from fixtures.cases import Case
from fixtures.evidence import read_json, write_json
from fixtures.internlm import config
from fixtures.setup import challenge_seed
from reports import derived, package
from reports.check import Checked, Lab, check
from tests.acceptance import evidence_7b as made
from tests.criteria import honest

WHO = {"organisation": "Acme", "contact": "acme@example.com"}
NAME = made.CASE.name
CODE = "the lab's code"
UNPACKED = {"": "packing undoes it", "*": "cannot be packed"}
WAYS = ("as it is", "manifest", "everything")
REPEATS = ("repeat-1", "repeat-2")


@dataclass(frozen=True)
class Edit:
    """`what` is README's words for it; `change` edits the unpacked submission."""

    what: str
    change: Callable[[Path], None]
    manifest: str | None
    everything: str | None = ""
    challenge: str | None = None  # the code that the lab issued
    why: str = "only a run of the lab's own can tell"


# ---- the valid submission -----------------------------------------------------------------------------------


def results_folder(root: Path, **changes) -> Path:
    """Results of a session: 7B in two layouts, one of them whole, with a failed attempt before the good speed run."""
    results = made.record(root / "results", **changes)
    made.record(results, made.OTHER, ("speed", *REPEATS), noise=7, late=1, **changes)
    _, steps = honest.evidence(1001)
    good = results / "runs" / NAME / "speed" / "attempt-1"
    request = read_json(good / "request.json")
    shutil.rmtree(good)
    failed = made.attempt_at(results, NAME, "speed", 1, request, steps["first"][:3], made.BEGAN - timedelta(hours=2))
    write_json(
        failed / "end.json", read_json(failed / "end.json") | {k: made.FAILED[k] for k in ("outcome", "failure")}
    )
    made.attempt_at(results, NAME, "speed", 2, request, steps["first"], made.BEGAN)
    judge = made.judge(results, root)
    write_json(results / "results.json", judge.results_json())
    derived.keep_rules(results, root / "lab.toml", None)
    return results


def lab(root: Path, **more) -> Lab:
    """The lab, by whose requirements the valid submission conforms."""
    return Lab(load(made.lab(root)), **more)


def valid(root: Path) -> Path:
    """The valid submission, unpacked."""
    package.pack(results_folder(root), root / "valid.zip", WHO)
    folder = root / "valid"
    folder.mkdir()
    archive.unpack(root / "valid.zip", folder)
    return folder


def hand_in(folder: Path, way: str, target: Path) -> Path:
    """The archive that comes of an edited folder."""
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    if way == "as it is":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, path in files.items():
                zipped.write(path, name)
    elif way == "manifest":
        suite_ = read_json(folder / archive.MANIFEST)["suite"]
        kept = {name: path for name, path in files.items() if name not in (archive.MANIFEST, archive.SIGNATURE)}
        archive.write(target, kept, {"suite": suite_})
    else:
        package.pack(folder, target, WHO)
    return target


def caught(checked: Checked) -> list[str]:
    """The names of the checks that do not hold; else the codes of the verdicts that are no pass."""
    failing = [line.name for line in checked.lines if line.faults]
    if failing or checked.conformant:
        return failing
    case = next(case for case in checked.results["cases"] if case["case"] == NAME)
    return [verdict["code"] for verdict in case["criteria"].values() if verdict["outcome"] != "pass"]


def try_edit(edit: Edit, way: str, valid_folder: Path, root: Path) -> Checked:
    """The edit, handed in this way, checked."""
    folder = root / "edited"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(valid_folder, folder)
    edit.change(folder)
    return check(hand_in(folder, way, root / "edited.zip"), lab(root, challenge=edit.challenge))


# ---- how edits are made -------------------------------------------------------------------------------------


def attempt(folder: Path, run: str, case: str = NAME) -> Path:
    """The judged attempt at a run."""
    return sorted((folder / "runs" / case / run).iterdir())[-1]


def attempts(folder: Path) -> Iterator[Path]:
    return (path.parent for path in sorted(folder.rglob("request.json")))


def logged(pattern: str, new: str | Callable[[re.Match], str], *runs: str, count: int = 0) -> Callable[[Path], None]:
    """Replace in the logs of runs."""

    def change(folder: Path) -> None:
        for run in runs:
            log = attempt(folder, run) / "logs" / "stderr.log"
            text, found = re.subn(pattern, new, log.read_text(), count=count)
            assert found, pattern
            log.write_text(text)

    return change


def scaled(key: str, factor: float, first: int = 0) -> Callable[[Path, str], None]:
    """Multiply a figure of the metric lines from a step on."""

    def change(folder: Path, run: str) -> None:
        log = attempt(folder, run) / "logs" / "stderr.log"
        pattern = re.compile(rf"(?<= {re.escape(key)}=)[\d.e-]+|(?<=-- {re.escape(key)}=)[\d.e-]+")
        rows = []
        for line in log.read_text().splitlines():
            step = re.search(r" step=(\d+) ", line)
            if step and int(step[1]) >= first:
                line = pattern.sub(lambda m: repr(float(m[0]) * factor), line, count=1)
            rows.append(line)
        log.write_text("\n".join(rows) + "\n")

    return change


def in_run(change: Callable[[Path, str], None], *runs: str) -> Callable[[Path], None]:
    return lambda folder: [change(folder, run) for run in runs] and None


def in_json(name: str, *runs: str, **values) -> Callable[[Path], None]:
    """Change keys of a JSON file: of the submission, or of the judged attempts at runs. A value may be a function."""

    def change(folder: Path) -> None:
        for path in [attempt(folder, run) / name for run in runs] or [folder / name]:
            old = read_json(path)
            write_json(path, old | {k: v(old[k]) if callable(v) else v for k, v in values.items()})

    return change


def everywhere(name: str, **values) -> Callable[[Path], None]:
    """As in_json, in every attempt."""

    def change(folder: Path) -> None:
        for path in (p for where in attempts(folder) for p in where.glob(name)):
            old = read_json(path)
            write_json(path, old | {k: v(old[k]) if callable(v) else v for k, v in values.items()})

    return change


def asked(case: Callable[[dict], None], *runs: str) -> Callable[[Path], None]:
    """Change a request, and make its config, its digest and its command fit again."""

    def change(folder: Path) -> None:
        for where in [attempt(folder, run) for run in runs] or list(attempts(folder)):
            request = read_json(where / "request.json")
            case(request)
            source = config.render(request)
            (where / "config.py").write_text(source)
            request["config_sha256"] = hashlib.sha256(source.encode()).hexdigest()
            request["command"] = [re.sub(r"--seed=\d+", f"--seed={request['seed']}", w) for w in request["command"]]
            write_json(where / "request.json", request)

    return change


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        text = path.read_text(encoding="utf-8")
        assert old in text, old
        path.write_text(text.replace(old, new), encoding="utf-8")

    return change


def all_of(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: [change(folder) for change in changes] and None


def set_(**values) -> Callable[[dict], None]:
    return lambda request: request.update(values)


def workload(**values) -> Callable[[dict], None]:
    return lambda request: request["workload"].update(values)


# ---- edits that take more than a line -------------------------------------------------------------------------


def failed_attempt_gone(folder: Path) -> None:
    shutil.rmtree(folder / "runs" / NAME / "speed" / "attempt-1")


def renumbered(folder: Path) -> None:
    failed_attempt_gone(folder)
    (folder / "runs" / NAME / "speed" / "attempt-2").rename(folder / "runs" / NAME / "speed" / "attempt-1")


def renumbered_everywhere(folder: Path) -> None:
    renumbered(folder)
    path = folder / "runs" / NAME / "speed" / "attempt-1" / "request.json"
    write_json(path, json.loads(path.read_text().replace("/speed/attempt-2", "/speed/attempt-1")) | {"attempt": 1})


def failure_called_complete(folder: Path) -> None:
    path = folder / "runs" / NAME / "speed" / "attempt-1" / "end.json"
    write_json(path, read_json(path) | {"outcome": "complete", "failure": None})


def log_of_another_run(folder: Path) -> None:
    shutil.copy(attempt(folder, "repeat-1") / "logs" / "stderr.log", attempt(folder, "speed") / "logs" / "stderr.log")


def placed(
    run: str, source: str, started: datetime, factor: float = 1.0, tgs: float | None = None
) -> Callable[[Path], None]:
    """Record a run again from the steps of another, at a time, its clock running `factor` times as long."""

    def change(folder: Path) -> None:
        from fixtures.internlm.log import read

        steps = read(sorted((attempt(folder, source) / "logs").iterdir())).steps
        time = steps.time[0] + (steps.time - steps.time[0]) * factor
        steps = replace(steps, time=time, tgs=np.round(steps.tgs / factor, 2), tflops=steps.tflops / factor)
        where = attempt(folder, run)
        request = read_json(where / "request.json")
        made.attempt_at(folder, NAME, run, request["attempt"], request, steps, started)

    return change


def slower_by_a_lower_minimum(folder: Path) -> None:
    placed("speed", "speed", made.BEGAN, factor=1.5)(folder)
    path = folder / derived.REQUIREMENTS
    path.write_text(
        '[[tgs]]\nmodel = "7B"\nlayout = "any"\nfamily = "nvidia"\ntgs = 1000\nunit = "tokens/GPU/s"\nsource = "us"\n\n'
        + path.read_text()
    )
    requirements = load(path)
    judged = derived.Judge(folder, requirements)
    write_json(folder / "results.json", judged.results_json())


def other_machine(node: dict) -> list[dict]:
    return [d | {"id": d["id"].replace("GPU", "GPU-9")} for d in node]


def case_gone(case: Case) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / "runs" / case.name)


def without_case(cases: list[dict]) -> list[dict]:
    return [case for case in cases if case["case"] != made.OTHER.name]


def better_figure(cases: list[dict]) -> list[dict]:
    for case in cases:
        case["criteria"]["throughput"]["measurements"][0]["value"] = 9999.0
    return cases


def challenged(request: dict) -> None:
    request.update(challenge=CODE, seed=challenge_seed(CODE))


def seed_lines(folder: Path) -> None:
    for log in folder.glob("runs/*/*/*/logs/*"):
        log.write_text(re.sub(r"(numpy|random|DATA): 1024", rf"\1: {challenge_seed(CODE)}", log.read_text()))


RANK_7 = r"(?m)^.*(process rank 7 |seed on rank 7,|Rank:7-).*\n"
FASTER = all_of(*(in_run(scaled(key, 1.1), "speed") for key in ("tgs (tokens/gpu/second)", "tflops")))

CATALOGUE = (
    Edit("a digit of one loss in one repeat", logged(r"( step=50 loss=\d\.\d)\d", r"\g<1>7", "repeat-1"),
         "verdicts", "determinism-diverged"),
    Edit("the same digit in both repeats", logged(r"( step=50 loss=\d\.\d\d)\d", r"\g<1>7", *REPEATS), "report", None),
    Edit("the last losses of the long run lowered", in_run(scaled("loss", 0.8, 1000), "long"), "verdicts", None),
    Edit("one step taken out of the log",
         logged(r"(?m)^.* step=50 loss=.*\n", "", "speed"), "verdicts", "length"),
    Edit("TGS raised by 10 %", in_run(scaled("tgs (tokens/gpu/second)", 1.1), "speed"), "verdicts",
         "throughput-tflops-contradicted"),
    Edit("TGS and TFLOPS raised by 10 %", FASTER, "verdicts", "throughput-clock-contradicted"),
    Edit("TGS, TFLOPS and all times 10 % faster", placed("speed", "speed", made.BEGAN, 1 / 1.1), "verdicts", None),
    Edit("a higher TGS in results.json", in_json("results.json", cases=better_figure), "verdicts"),
    Edit("a case that is not wanted left out of results.json", in_json("results.json", cases=without_case), "verdicts"),
    Edit("all evidence of a case that is not wanted", case_gone(made.OTHER), "verdicts", None,
         why="nothing to catch: the vendor chooses its layouts"),
    Edit("a figure in the report", replaced("conformance.html", "0.4.9", "0.5.0"), "report"),
    Edit("a figure in the OCP output", replaced(f"ocp/{NAME}.jsonl", '"PASS"', '"FAIL"'), "report"),
    Edit("the machine in system.json", replaced("system.json", "A100", "X1000"), "report"),
    Edit("a threshold in requirements.toml", replaced("requirements.toml", "maximum = 0.014", "maximum = 0.02"),
         "verdicts", None, why="nothing to catch: the lab judges by its own"),
    Edit("a slow run, claimed by a lower minimum", slower_by_a_lower_minimum, "report", "throughput-below-minimum"),
    Edit("a failed attempt taken out", failed_attempt_gone, "attempts", "attempts"),
    Edit("a failed attempt taken out, the next one renamed", renumbered, "names", "names"),
    Edit("a failed attempt taken out, the next one renamed wherever it is named", renumbered_everywhere,
         "verdicts", None, why="nobody can tell how often it was tried"),
    Edit("a failed attempt called complete", failure_called_complete, "length", "length"),
    Edit("the log of another run", log_of_another_run, "one log each", "one log each"),
    Edit("one repeat handed in twice, with other times",
         placed("repeat-2", "repeat-1", made.BEGAN + timedelta(hours=4)), "verdicts", "determinism-same-log"),
    Edit("a run made at the time of another", placed("repeat-2", "repeat-2", made.BEGAN + timedelta(hours=2.5)),
         "one at a time", "one at a time"),
    Edit("a run that ended before it started",
         in_json("request.json", "speed", started="2026-05-06T08:00:00.000+08:00"), "dates", "dates"),
    Edit("a run that took longer than there was time", in_json("end.json", "speed", seconds=9e5), "dates", "dates"),
    Edit("a run from the future",
         all_of(in_json("request.json", "long", started="2126-05-04T14:00:00.000+08:00"),
                in_json("end.json", "long", ended="2126-05-05T14:00:00.000+08:00")), "dates", "dates"),
    Edit("a config with another batch", lambda f: config_edit(f, "micro_num=", "micro_num=1"), "config", "config"),
    Edit("a config with another learning rate", lambda f: config_edit(f, "lr=", "lr=3"), "config", "config"),
    Edit("request and config with a larger batch", asked(workload(micro_num=64, global_batch=1024)),
         "workload", "workload"),
    Edit("request and config with a shorter sequence", asked(workload(seq_len=1024), "speed"), "workload", "workload"),
    Edit("request and config with a setting against the rules", asked(set_(settings={"adam.lr": 1.0})),
         "rules", "rules"),
    Edit("request and config with another setting in the speed run",
         asked(set_(settings={"model.checkpoint": True}), "speed"), "one request", "one request"),
    Edit("repeats without the deterministic mode", asked(set_(deterministic=False), *REPEATS), "rules", "rules"),
    Edit("another seed in request, config and command", asked(set_(seed=7)), "seed", "seed"),
    Edit("another seed in the log", logged(r"numpy: 1024", "numpy: 7", *REPEATS), "seed", "seed"),
    Edit("the lines of one rank taken out of the log", logged(RANK_7, "", "speed"), "ranks", "ranks"),
    Edit("a rank bound to another host", logged("host:node-17", "host:node-18", "speed"), "devices", "devices"),
    Edit("fewer devices than asked for", everywhere("nodes/*.json", devices=lambda d: d[:4]), "devices", "devices"),
    Edit("one device listed twice", everywhere("nodes/*.json", devices=lambda d: [*d[:7], d[0]]), "devices", "devices"),
    Edit("one run on another machine", in_json("nodes/node-17.json", "long", devices=other_machine),
         "one machine", "one machine"),
    Edit("one run with another driver", in_json("nodes/node-17.json", "speed", driver="560.1"),
         "one machine", "one machine"),
    Edit("another device name in every file",
         everywhere("nodes/*.json", devices=lambda d: [x | {"name": "X1000"} for x in d]), "verdicts", None),
    Edit("another InternLM in the requests", everywhere("request.json", internlm=lambda i: i | {"version": "0.4.8"}),
         "software", "software"),
    Edit("another InternLM for the speed run",
         in_json("request.json", "speed", internlm=lambda i: i | {"digest": "e" * 64}), "one request", "one request"),
    Edit("another commit of the suite", everywhere("request.json", suite=lambda s: s | {"commit": "1" * 40}),
         "suite of the runs", "suite of the runs"),
    Edit("runs by a changed suite", everywhere("request.json", suite=lambda s: s | {"commit": "0" * 40 + "-dirty"}),
         "suite of the runs", "suite of the runs"),
    Edit("telemetry of another day",
         lambda f: telemetry_edit(f, lambda row: row | {"time": row["time"] - 86400}), "telemetry", "telemetry"),
    Edit("telemetry of another device", lambda f: telemetry_edit(f, lambda row: row | {"device": "GPU-0"}),
         "telemetry", "telemetry"),
    Edit("no config", lambda f: (attempt(f, "speed") / "config.py").unlink(), "completeness", "completeness"),
    Edit("no node file", lambda f: (attempt(f, "speed") / "nodes" / "node-17.json").unlink(),
         "completeness", "completeness"),
    Edit("a request that is no object", lambda f: (attempt(f, "speed") / "request.json").write_text("[1]"),
         "claims", "*"),
    Edit("the challenge put into requests afterwards", asked(challenged), "seed", "seed", CODE),
    Edit("the challenge of another lab", asked(set_(challenge="old", seed=challenge_seed("old"))),
         "seed", "seed", CODE),
    Edit("the challenge put into requests and logs afterwards", all_of(asked(challenged), seed_lines),
         "report", None, CODE),
)  # fmt: skip


def config_edit(folder: Path, old: str, new: str) -> None:
    path = attempt(folder, "speed") / "config.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def telemetry_edit(folder: Path, change: Callable[[dict], dict]) -> None:
    path = attempt(folder, "speed") / "telemetry.jsonl"
    path.write_text("".join(json.dumps(change(json.loads(line))) + "\n" for line in path.read_text().splitlines()))


# ---- archives that are no submission --------------------------------------------------------------------------


def with_member(name: str, mode: int = stat.S_IFREG | 0o644, data: bytes = b"x") -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with zipfile.ZipFile(path, "a") as zipped:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            zipped.writestr(entry, data)

    return change


ARCHIVES: dict[str, Callable[[Path], None]] = {
    "a stray file": with_member("runs/malware.py"),
    "a path that climbs": with_member("runs/../../outside/request.json"),
    "an absolute path": with_member("/etc/cron.d/x"),
    "a Windows path": with_member("C:\\x"),
    "a symbolic link": with_member(f"runs/{NAME}/speed/attempt-9/logs/x.log", stat.S_IFLNK | 0o777, b"/etc/passwd"),
    "a file twice": with_member("submission.json", data=b"{}"),
    "a file twice, in other letters": with_member(f"runs/{NAME.lower()}/speed/attempt-2/end.json"),
    "a folder of a file's name": with_member(f"runs/{NAME}/speed/attempt-2/logs/stderr.log/x.log"),
    "a bomb": with_member(f"runs/{NAME}/speed/attempt-2/logs/bomb.log", data=b"\0" * (100 << 20)),
    "a huge request": with_member(f"runs/{NAME}/speed/attempt-9/request.json", data=b" " * (70 << 20)),
    "half an archive": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "no archive": lambda path: path.write_bytes(b"hello"),
    "a damaged file": lambda path: path.write_bytes(damaged(path.read_bytes())),
}


def damaged(data: bytes) -> bytes:
    at = data.index(b"conformance.html") + 200
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


# ---- README's table ---------------------------------------------------------------------------------------------


def main() -> int:
    """Print the table in Markdown, from what really happened; 1 if anything but what is promised did."""
    wrong = 0
    print("| edit | manifest made anew | everything made anew |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary, mock.patch.object(suite, "identity", return_value=made.SUITE):
        root = Path(temporary)
        folder = valid(root)
        for edit in CATALOGUE:
            cells = []
            for way, expected in (("manifest", edit.manifest), ("everything", edit.everything)):
                if expected in UNPACKED:
                    cells.append(UNPACKED[expected])
                    continue
                found = caught(try_edit(edit, way, folder, root))
                wrong += expected not in found if expected else bool(found)
                cells.append(", ".join(found) or f"**{edit.why}**")
            print(f"| {edit.what} | {' | '.join(cells)} |")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
