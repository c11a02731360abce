"""Packing: the same bytes twice, all evidence, no secrets, a signature, and another Python's same results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fixtures import archive, suite
from fixtures.evidence import read_json, write_json
from reports import __main__ as command
from reports.check import check
from reports.package import HIDDEN, PackError, pack, without_secrets
from tests.acceptance import evidence_7b as made
from tests.reports import tampering
from tests.reports.tampering import WHO, lab, results_folder
from tests.suite import ROOT


@pytest.fixture(autouse=True)
def one_suite(monkeypatch):
    """The commit that the evidence names; this checkout's own may have changes."""
    monkeypatch.setattr(suite, "identity", lambda: made.SUITE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "identity", lambda: made.SUITE)
        return results_folder(tmp_path_factory.mktemp("session"))


def members(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as zipped:
        return {name: zipped.read(name) for name in zipped.namelist()}


def test_packing_twice_gives_the_same_bytes(folder, tmp_path):
    pack(folder, tmp_path / "one.zip", WHO)
    later = shutil.copytree(folder, tmp_path / "copy")
    for path in later.rglob("*"):
        os.utime(path, (1e9, 1e9))
        if path.is_file():
            path.chmod(0o600)
    pack(later, tmp_path / "two.zip", WHO)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_all_evidence_is_there_and_nothing_else(folder, tmp_path):
    attempt = folder / "runs" / made.CASE.name / "speed" / "attempt-2"
    (attempt / "scratch").mkdir(exist_ok=True)
    (attempt / "scratch" / "core").write_text("x")
    (attempt / "supervisor.json").write_text("{}")
    pack(folder, tmp_path / "v.zip", WHO)
    packed = members(tmp_path / "v.zip")
    there = {p.relative_to(folder).as_posix() for p in (folder / "runs").rglob("*") if p.is_file()}
    assert {n for n in packed if n.startswith("runs/")} == {
        n for n in there if "scratch" not in n and "supervisor" not in n
    }
    assert f"runs/{made.CASE.name}/speed/attempt-1/end.json" in packed, "a failed attempt travels too"
    assert {n for n in packed if not n.startswith(("runs/", "ocp/"))} == set(archive.FILES) - {archive.SIGNATURE}
    assert json.loads(packed["submission.json"]) == {
        "schema": 1,
        **WHO,
        "language": "en",
        "conformant": True,
        "models": [{"model": "7B", "certifiable": True, "conformant": True, "via": made.CASE.name}],
    }
    for name, data in packed.items():
        if "/logs/" in name or name.endswith(("config.py", "end.json", "telemetry.jsonl")):
            assert data == (folder / name).read_bytes()


def test_secrets_do_not_travel():
    request = {
        "environment": {
            "NCCL_IB_HCA": "mlx5_0",
            "WANDB_API_KEY": "hunter2",
            "NCCL_AUTH_TOKEN": "hunter2",
            "GONE": None,
        },
        "settings": {"environment.WANDB_API_KEY": "hunter2", "environment.OMP_NUM_THREADS": "4", "data.micro_bsz": 4},
    }
    told = without_secrets(request)
    assert "hunter2" not in json.dumps(told)
    assert told["environment"] == {
        "NCCL_IB_HCA": "mlx5_0", "WANDB_API_KEY": HIDDEN, "NCCL_AUTH_TOKEN": HIDDEN, "GONE": None,
    }  # fmt: skip
    assert told["settings"] == {
        "environment.WANDB_API_KEY": HIDDEN, "environment.OMP_NUM_THREADS": "4", "data.micro_bsz": 4,
    }  # fmt: skip


def test_a_submission_with_a_hidden_value_is_sound_and_shows_it_nowhere(tmp_path):
    environment = made.RAN["environment"] | {"WANDB_API_KEY": "hunter2"}
    settings = {"environment.WANDB_API_KEY": "hunter2"}
    folder = results_folder(tmp_path, environment=environment, settings=settings)
    pack(folder, tmp_path / "v.zip", WHO)
    assert not [name for name, data in members(tmp_path / "v.zip").items() if b"hunter2" in data]
    checked = check(tmp_path / "v.zip", lab(tmp_path))
    assert (tampering.caught(checked), checked.status) == ([], 0)


def keys(folder, name):
    """A new Ed25519 pair in PEM, as openssl writes it."""
    key, public = folder / f"{name}.key", folder / f"{name}.pub"
    made_key = Ed25519PrivateKey.generate()
    key.write_bytes(made_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(made_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return key, public


def test_a_signature_names_who_packed_it(folder, tmp_path):
    key, public = keys(tmp_path, "vendor")
    _, other = keys(tmp_path, "other")
    arguments = ["pack", folder, "--org", "Acme", "--contact", "a", "-o", tmp_path / "v.zip", "--sign", key]
    assert command.main(list(map(str, arguments))) == 0
    assert check(tmp_path / "v.zip", lab(tmp_path, key=public)).status == 0
    assert tampering.caught(check(tmp_path / "v.zip", lab(tmp_path, key=other))) == ["signature"]
    (tmp_path / "out").mkdir()
    archive.unpack(tmp_path / "v.zip", tmp_path / "out")
    path = tmp_path / "out" / "submission.json"
    write_json(path, read_json(path) | {"organisation": "Somebody else"})
    tampering.hand_in(tmp_path / "out", "manifest", tmp_path / "w.zip")
    assert tampering.caught(check(tmp_path / "w.zip", lab(tmp_path, key=public))) == ["signature"]
    assert check(tmp_path / "w.zip", lab(tmp_path)).status == 0, "without a key nobody can tell who packed it"


@pytest.mark.parametrize(
    "kind", ["links", "no runs", "logs only", "no results", "no key", "no name", "a folder", "nowhere"]
)
def test_what_cannot_be_packed_is_one_line(folder, tmp_path, kind, capsys):
    copy = shutil.copytree(folder, tmp_path / "copy")
    log = copy / "runs" / made.CASE.name / "speed" / "attempt-2" / "logs" / "stderr.log"
    if kind == "links":
        log.unlink()
        log.symlink_to("/etc/passwd")
    elif kind == "no results":
        (copy / "results.json").unlink()
    elif kind in ("no runs", "logs only"):
        (copy / "runs").rename(copy / ("gone" if kind == "no runs" else made.CASE.name))
    sign = ["--sign", str(tmp_path / "none.key")] if kind == "no key" else []
    output = {"a folder": tmp_path, "nowhere": copy / "results.json" / "v.zip"}.get(kind, tmp_path / "v.zip")
    who = "  " if kind == "no name" else "A"
    given = ["pack", str(copy), "--org", who, "--contact", "a", "-o", str(output), *sign]
    assert command.main(given) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "v.zip").exists()


def test_a_file_name_that_no_other_system_takes_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "runs" / made.CASE.name / "speed" / "attempt-2" / "logs" / "a\\b.log").write_text("x")
    with pytest.raises(PackError, match="rename"):
        pack(copy, tmp_path / "v.zip", WHO)


PACK = """
import sys
from pathlib import Path
from fixtures import suite
suite.identity = lambda: {suite!r}
from reports.package import pack
pack(Path(sys.argv[1]), Path(sys.argv[2]), {who!r})
"""


def other_pythons() -> list[str]:
    """Interpreters of other versions that could judge: python3.10 to 3.13 on PATH, with what judging needs."""
    found = []
    for minor in range(10, 14):
        if f"3.{minor}." in sys.version or not (exe := shutil.which(f"python3.{minor}")):
            continue
        ask = [exe, "-c", "import numpy, jinja2, cryptography, psutil, filelock, pytest"]
        if subprocess.run(ask, capture_output=True, cwd="/").returncode == 0:
            found.append(exe)
    return found


def test_another_python_judges_to_the_same_bytes(folder, tmp_path):
    interpreters = other_pythons()
    if not interpreters:
        pytest.skip("no other Python from 3.10 to 3.13 with numpy, jinja2 and cryptography is on PATH")
    pack(folder, tmp_path / "own.zip", WHO)
    own = members(tmp_path / "own.zip")
    for number, exe in enumerate(interpreters):
        target = tmp_path / f"{number}.zip"
        code = PACK.format(suite=made.SUITE, who=WHO)
        subprocess.run([exe, "-c", code, folder, target], check=True, cwd=ROOT)
        assert members(target) == own, exe
