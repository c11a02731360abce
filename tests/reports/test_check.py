"""Checking: what an honest submission must show, what the lab brings, and that nothing in a submission can stop it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

from acceptance.judge import Judge
from acceptance.requirements import load
from fixtures import archive, suite
from fixtures.evidence import read_json, write_json
from fixtures.setup import challenge_seed
from reports import __main__ as command
from reports import check as checking
from reports.check import Lab, check, table
from reports.package import pack
from tests.acceptance import evidence_7b as made
from tests.reports import tampering
from tests.reports.tampering import CODE, WHO, caught, lab, results_folder
from tests.suite import ROOT, acceptance


@pytest.fixture(autouse=True)
def one_suite(monkeypatch):
    """The commit that the evidence names; this checkout's own may have changes."""
    monkeypatch.setattr(suite, "identity", lambda: made.SUITE)


@pytest.fixture(scope="module")
def submission(tmp_path_factory):
    """A valid submission, and the folder that it was packed from."""
    root = tmp_path_factory.mktemp("session")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "identity", lambda: made.SUITE)
        folder = results_folder(root)
        pack(folder, root / "v.zip", WHO)
    return root / "v.zip"


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = command.main(["check", *map(str, arguments)])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_everything_holds_and_it_conforms(submission, tmp_path, capsys):
    status, out, _ = run(capsys, submission, "--requirements", made.lab(tmp_path))
    assert status == 0
    assert "FAIL" not in out
    assert "CONFORMANT" in out.splitlines()
    assert out.splitlines()[-1] == "everything holds"
    assert "no --challenge given" in out


def test_by_harder_requirements_it_is_sound_and_does_not_conform(submission, tmp_path, capsys):
    hard = tmp_path / "hard.toml"
    hard.write_text(made.lab(tmp_path).read_text().replace("0.014", "0.001"))
    status, out, _ = run(capsys, submission, "--requirements", hard)
    assert status == 3
    assert "FAIL" not in out
    assert "it was claimed by other requirements than these" in out
    assert "not conformant" in out.splitlines()
    assert out.splitlines()[-1].endswith("it does not conform by these requirements")


def test_json_says_the_same(submission, tmp_path, capsys):
    status, out, _ = run(capsys, submission, "--requirements", made.lab(tmp_path), "--json")
    told = json.loads(out)
    assert (status, told["sound"], told["conformant"]) == (0, True, True)
    assert all(line["holds"] and not line["faults"] for line in told["checks"])
    assert told["results"]["cases"][0]["case"] == made.CASE.name


def test_a_checkout_of_another_commit_says_which_one_to_take(submission, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "identity", lambda: made.SUITE | {"commit": "a" * 40})
    checked = check(submission, lab(tmp_path))
    assert checked.status == 1
    assert set(caught(checked)) == {"suite", "suite of the runs"}
    assert f"packed by the suite's commit {'0' * 40}, this is {'a' * 40}: check that out" in table(checked)


@pytest.mark.parametrize("commit", [None, "0" * 40 + "-dirty"])
def test_an_unclean_checkout_checks_nothing(submission, tmp_path, monkeypatch, commit):
    monkeypatch.setattr(suite, "identity", lambda: made.SUITE | {"commit": commit})
    checked = check(submission, lab(tmp_path))
    assert checked.status == 1
    assert "this checkout cannot check anything" in table(checked)


@pytest.mark.parametrize("commit", [None, "0" * 40 + "-dirty"])
def test_a_submission_of_an_unclean_suite_is_packed_and_refused(tmp_path, monkeypatch, capsys, commit):
    unclean = made.SUITE | {"commit": commit}
    monkeypatch.setattr(suite, "identity", lambda: unclean)
    folder = results_folder(tmp_path, suite=unclean)
    given = ["pack", folder, "--org", "A", "--contact", "a", "-o", tmp_path / "v.zip"]
    assert command.main(list(map(str, given))) == 0
    assert "a lab will refuse it" in capsys.readouterr().err
    monkeypatch.setattr(suite, "identity", lambda: made.SUITE)
    checked = check(tmp_path / "v.zip", lab(tmp_path))
    assert checked.status == 1
    assert {"suite", "suite of the runs"} <= set(caught(checked))


def test_with_a_challenge_the_losses_belong_to_the_code(tmp_path, capsys):
    folder = results_folder(tmp_path, challenge=CODE, seed=challenge_seed(CODE))
    pack(folder, tmp_path / "v.zip", WHO)
    requirements = ["--requirements", tmp_path / "lab.toml"]
    status, out, _ = run(capsys, tmp_path / "v.zip", *requirements, "--challenge", CODE)
    assert (status, "no --challenge given" in out) == (0, False)
    status, out, _ = run(capsys, tmp_path / "v.zip", *requirements, "--challenge", "another code")
    assert status == 1
    assert "'another code' was issued" in out
    config = (folder / "runs" / made.CASE.name / "speed" / "attempt-2" / "config.py").read_text()
    assert f"seed={challenge_seed(CODE)}," in config, "the data's order follows from the challenge too"


def test_with_a_challenge_a_log_that_names_no_seed_is_no_evidence(tmp_path):
    results = made.record(tmp_path / "r", challenge=CODE, seed=challenge_seed(CODE))
    for log in results.rglob("*.log"):
        log.write_text("".join(line for line in log.open() if "initialized seed" not in line))
    for criterion in ("startup", "throughput", "determinism", "convergence"):
        verdict = made.judge(results, tmp_path).verdict(made.CASE.name, criterion)
        assert (verdict.outcome, verdict.code) == ("fail", f"{criterion}-seed-contradicted")


def test_a_submission_by_the_labs_tolerance_and_reference(tmp_path):
    folder = results_folder(tmp_path)
    reference = tmp_path / "curve.json"
    steps = checking.Folder(folder, {}).judge(load(), checking.Policy()).reading
    attempt = next(a for a in checking.evidence.attempts(folder, made.CASE.name, "repeat-1"))
    reference.write_text(json.dumps({f"step{i}": loss for i, loss in enumerate(steps(attempt).steps.loss.tolist())}))
    policy = checking.Policy("tolerance", reference)
    write_json(
        folder / "results.json", checking.Folder(folder, {}).judge(load(made.lab(tmp_path)), policy).results_json()
    )
    checking.derived.keep_rules(folder, made.lab(tmp_path), reference)
    packed = pack(folder, tmp_path / "v.zip", WHO)
    assert packed.results["policy"]["reference"] == "curve.json"
    followed = {"name": "curve.json", "losses": list(json.loads(reference.read_text()).values())}
    assert packed.results["cases"][0]["reference"] == followed
    with zipfile.ZipFile(tmp_path / "v.zip") as zipped:
        assert "reference (curve.json)" in zipped.read("conformance.html").decode(), "the curve is drawn"
    checked = check(tmp_path / "v.zip", Lab(load(made.lab(tmp_path)), policy))
    assert (caught(checked), checked.status) == ([], 0)


@pytest.mark.parametrize(("hours", "step", "refused"), [(1, 600, []), (-1, 600, []), (-1, 9, []), (2, 600, ["dates"])])
def test_an_hour_of_daylight_saving_is_no_contradiction(tmp_path, hours, step, refused):
    """Log times are local: the clock is put forward or back at a step of the long run, early or late."""
    folder = results_folder(tmp_path)
    log = tampering.attempt(folder, "long") / "logs" / "stderr.log"
    before, line, after = log.read_text().partition(next(s for s in log.open() if f" step={step} " in s))

    def moved(stamp: re.Match) -> str:
        return str(datetime.fromisoformat(stamp[0]) + timedelta(hours=hours))

    log.write_text(before + re.sub(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", moved, line + after))
    pack(folder, tmp_path / "v.zip", WHO)
    assert caught(check(tmp_path / "v.zip", lab(tmp_path))) == refused


@pytest.mark.parametrize(
    ("hosts", "complete", "refused"),
    [("ab", True, False), ("a", True, True), ("a", False, False), ("aa", False, True), ("abc", False, True)],
)
def test_a_run_that_lost_a_node_may_lack_its_record_but_a_complete_one_may_not(hosts, complete, refused):
    nodes = [
        {"host": h, "accelerator": "nvidia", "devices": [{"id": f"{n}-{h}", "name": "chip"}]}
        for n, h in enumerate(hosts)
    ]
    request = {"nodes": 2, "gpus": 1, "accelerator": "nvidia"}
    told = SimpleNamespace(request=request, nodes=nodes, complete=complete, log=None)
    assert any("2 nodes were asked for" in text for text in checking.devices(told, None)) is refused


def test_pytest_shows_the_same_judgement(submission, tmp_path):
    done = acceptance(
        "--evidence", submission, "--requirements", made.lab(tmp_path), "--results", tmp_path / "out", "-k", "zero8"
    )
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout
    assert read_json(tmp_path / "out" / "results.json")["conformant"] is True
    assert (tmp_path / "out" / "ocp" / f"{made.CASE.name}.jsonl").exists()


def test_pytest_refuses_an_archive_that_is_none(tmp_path):
    (tmp_path / "v.zip").write_bytes(b"hello")
    done = acceptance("--evidence", tmp_path / "v.zip")
    assert done.returncode == 4
    assert "v.zip: no zip, or cut short on its way" in done.stdout
    assert "Traceback" not in done.stdout


def test_neither_torch_nor_a_config_is_ever_imported(submission, tmp_path):
    code = (
        f"import sys; from fixtures import suite; suite.identity = lambda: {made.SUITE!r}\n"
        "from reports.__main__ import main\n"
        "status = main(['check', sys.argv[1], '--requirements', sys.argv[2]])\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'internlm', 'pickle5')]\n"
        "sys.exit(status or bool(bad) * 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, submission, made.lab(tmp_path)], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr


HOSTILE = [None, [], {}, "x" * 2000, -1, 1e308, True, "\x1b[31m\u202e<script>", {"a": [1]}, 10**30, float("nan")]


# What decides something in each file: another value of it must be noticed. (The rest says how, and is read by people.)
DECIDING = {
    "request.json": (
        "schema", "case", "model", "layout", "run", "attempt", "gpus", "nodes", "world", "accelerator", "workload",
        "settings", "seed", "challenge", "deterministic", "internlm", "python", "launcher", "command", "environment",
        "cwd", "config_sha256", "suite", "started",
    ),
    "end.json": ("outcome", "failure", "steps_seen", "seconds", "ended"),
    "nodes/node-17.json": (
        "host", "accelerator", "devices", "driver", "python", "torch", "internlm", "libraries", "collective", "kernel",
        "cpu", "utc_offset",
    ),
    "results.json": ("schema", "suite", "system", "policy", "conformant", "models", "cases"),
    "submission.json": ("schema", "language", "conformant", "models", "contact"),
    "system.json": ("nodes", "accelerator", "internlm"),
    "manifest.json": ("schema", "files", "suite"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in DECIDING.items() for key in keys])
def test_whatever_json_holds_the_check_ends_and_notices(submission, tmp_path, name, key):
    valid = tmp_path / "valid"
    valid.mkdir()
    archive.unpack(submission, valid)
    where = valid / name if (valid / name).exists() else tampering.attempt(valid, "speed") / name
    original = read_json(where)
    assert key in original
    for value in HOSTILE[DECIDING[name].index(key) % 3 :: 3]:  # a third of them for each key: all take minutes
        write_json(where, original | {key: value})
        way = "as it is" if name == "manifest.json" else "manifest"
        checked = check(tampering.hand_in(valid, way, tmp_path / "w.zip"), lab(tmp_path))
        assert "\x1b" not in table(checked)
        same = value == original[key] and type(value) is type(original[key])
        assert same or checked.status == 1 or (key == "contact" and isinstance(value, str)), value


@pytest.mark.parametrize(
    "line", ["[" * 60_000, "x" * 200_000, '{"time": 1e999}', '{"time": %s, "power_w": 1, "rank": 0}' % 10**400]
)
def test_telemetry_that_would_exhaust_a_reader_is_refused(submission, tmp_path, line):
    valid = tmp_path / "valid"
    valid.mkdir()
    archive.unpack(submission, valid)
    (tampering.attempt(valid, "speed") / "telemetry.jsonl").write_text(line)
    checked = check(tampering.hand_in(valid, "manifest", tmp_path / "w.zip"), lab(tmp_path))
    assert "telemetry" in caught(checked)


def test_telemetry_of_a_node_that_was_not_there_is_found(submission, tmp_path):
    valid = tmp_path / "valid"
    valid.mkdir()
    archive.unpack(submission, valid)
    folder = tampering.attempt(valid, "speed")
    (folder / "telemetry").mkdir()
    (folder / "telemetry.jsonl").rename(folder / "telemetry" / "nowhere.jsonl")
    checked = check(tampering.hand_in(valid, "manifest", tmp_path / "w.zip"), lab(tmp_path))
    faults = {line.name: line.faults for line in checked.lines}["telemetry"]
    assert any("telemetry is of nowhere, of which nodes/ tells nothing" in fault for fault in faults), faults


def test_usage_errors_are_one_line(tmp_path, capsys):
    status, _, error = run(capsys, tmp_path / "v.zip", "--requirements", tmp_path / "none.toml")
    assert status == 2
    assert error.startswith("error: ")
    status, _, error = run(capsys, tmp_path / "v.zip", "--key", tmp_path / "none.pub")
    assert (status, error.count("\n")) == (2, 1)
    (tmp_path / "v.zip").write_bytes(b"PK")
    status, _, error = run(capsys, tmp_path / "v.zip", "--reference", tmp_path / "none.json")
    assert (status, error.count("\n")) == (2, 1)
    for path, what in ((tmp_path / "none.zip", "not found"), (tmp_path, "a folder")):
        status, _, error = run(capsys, path)
        assert (status, error.count("\n")) == (2, 1)
        assert f"error: {path}: {what}; name a submission" in error


def test_an_archive_made_by_hand_says_what_makes_one(submission, tmp_path, capsys):
    (tmp_path / "cut.zip").write_bytes(submission.read_bytes()[:20_000])
    for name, member in (("stray", "notes.txt"), ("folder", "runs/")):
        shutil.copy(submission, tmp_path / f"{name}.zip")
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "a") as zipped:
            zipped.writestr(member, "")
    told = {name: run(capsys, tmp_path / f"{name}.zip")[:2] for name in ("cut", "stray", "folder")}
    assert {status for status, _ in told.values()} == {1}
    assert "no zip, or cut short on its way" in told["cut"][1]
    assert (
        "'notes.txt' belongs to no submission: zipped by hand? `python -m reports pack` makes one" in told["stray"][1]
    )
    assert "'runs/' is a folder's own entry: zipped by hand?" in told["folder"][1]


RECORDED = [p.parent for p in sorted((ROOT / "tests" / "data").glob("**/runs")) if any(p.rglob("request.json"))]


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.name)
def test_real_training_on_record_agrees_with_itself(recorded, tmp_path, monkeypatch):
    """Evidence of real runs, failed ones too, that the suite keeps: no check misunderstands what machines really say.
    Other commits made it, so its config may have been made otherwise."""
    folder = tmp_path / "r"
    shutil.copytree(recorded / "runs", folder / "runs")
    identity = read_json(next(folder.rglob("request.json")))["suite"]
    monkeypatch.setattr(suite, "identity", lambda: identity)
    write_json(folder / "results.json", Judge(folder, load()).results_json())
    pack(folder, tmp_path / "v.zip", WHO)
    checked = check(tmp_path / "v.zip", Lab(load()))
    failing = {line.name: line.faults for line in checked.lines if line.faults}
    assert checked.results is not None, failing
    assert set(failing) <= {"completeness", "config", "workload"}, failing
