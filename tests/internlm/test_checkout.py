"""Where InternLM comes from: the installed one, a checkout of any generation, and what is said where there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.internlm import checkout
from fixtures.internlm.checkout import CheckoutError, find, generation
from tests.internlm.standins import build


@pytest.fixture
def git(tmp_path):
    def run(folder, *args):
        name = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", "-C", str(folder), *name, *args], check=True, capture_output=True)

    return run


def interpreter(folder, distribution=None, torch=True, package=True):
    """A Python that has exactly these packages: a script that starts this one with another path."""
    site = folder / "site"
    site.mkdir()
    for name, version in (("torch", "2.9.0" if torch else None), ("InternEvo", distribution)):
        if version:
            info = site / f"{name}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if package:
        launch = site / "internlm" / "initialize" / "launch.py"
        launch.parent.mkdir(parents=True)
        (site / "internlm" / "__init__.py").write_text("raise ImportError('never imported')\n")
        launch.write_text("")
        (site / "internlm" / "accelerator").mkdir()
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return str(python), site


def test_the_installed_internlm_is_found_without_importing_it():
    source = find(None, sys.executable)
    assert source.kind == "bundled"
    assert source.version == "0.4.9"
    assert source.generation == "v0.4"
    assert source.train_py == checkout.TRAINER
    assert source.environment() == {}
    assert source.commit is None
    assert "internlm" not in sys.modules
    assert "torch" not in sys.modules


@pytest.mark.parametrize("tag", build.TAGS)
def test_a_checkout_tells_its_generation(tag, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/opt/vendor")
    folder = build.checkout(tag, tmp_path / "checkout")
    source = find(folder, sys.executable)
    assert (source.kind, source.version) == ("checkout", tag)
    assert source.generation == build.asks(tag)["generation"]
    assert source.train_py == folder / "train.py"
    assert source.environment() == {"PYTHONPATH": f"{folder}{os.pathsep}/opt/vendor"}
    assert source.as_request()["path"] == str(folder)


def test_a_relative_checkout_becomes_absolute(tmp_path, monkeypatch):
    build.checkout("v0.2.0", tmp_path / "checkout")
    monkeypatch.chdir(tmp_path)
    assert find(Path("checkout"), sys.executable).train_py == tmp_path / "checkout" / "train.py"


def test_a_folder_called_internlm_where_pytest_started_is_not_taken_for_the_package(tmp_path, monkeypatch):
    build.checkout("v0.1.0", tmp_path / "internlm")
    monkeypatch.chdir(tmp_path)
    assert find(None, sys.executable).generation == "v0.4"


def test_commit_changes_and_digest_of_a_checkout(tmp_path, git):
    folder = build.checkout("v0.2.0", tmp_path / "checkout")
    no_git = find(folder, sys.executable)
    assert (no_git.commit, no_git.diff_sha256) == (None, None)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "x")
    clean = find(folder, sys.executable)
    assert len(clean.commit) == 40
    assert clean.diff_sha256 is None
    assert clean.digest == no_git.digest
    (folder / "internlm" / "extra.py").write_text("x = 1\n")
    untracked = find(folder, sys.executable)
    (folder / "train.py").write_text("# changed\n" + (folder / "train.py").read_text())
    changed = find(folder, sys.executable)
    assert clean.commit == untracked.commit == changed.commit
    assert len({clean.diff_sha256, untracked.diff_sha256, changed.diff_sha256}) == 3
    assert len({clean.digest, untracked.digest, changed.digest}) == 3


def test_a_checkout_that_is_ignored_inside_another_git_has_no_commit(tmp_path, git):
    (tmp_path / ".gitignore").write_text("checkout\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "-qm", "x")
    folder = build.checkout("v0.2.0", tmp_path / "checkout")
    assert find(folder, sys.executable).commit is None


def test_a_folder_without_train_py(tmp_path):
    with pytest.raises(CheckoutError, match=r"--internlm .*: no train\.py in it"):
        find(tmp_path, sys.executable)


def test_a_checkout_whose_package_is_installed_apart(tmp_path):
    folder = build.checkout("v0.2.0", tmp_path / "checkout")
    shutil.rmtree(folder / "internlm")
    assert find(folder, sys.executable).generation == "v0.4"


def test_sources_of_no_known_generation(tmp_path):
    folder = build.checkout("v0.2.0", tmp_path / "checkout")
    (folder / "internlm" / "initialize" / "launch.py").write_text("pass\n")
    with pytest.raises(CheckoutError, match="none of the InternLM generations"):
        find(folder, sys.executable)
    shutil.rmtree(folder / "internlm" / "initialize")
    with pytest.raises(CheckoutError, match="this is no InternLM package"):
        generation(folder / "internlm")


def test_no_internlm_in_the_interpreter(tmp_path):
    python, _ = interpreter(tmp_path, package=False)
    with pytest.raises(CheckoutError, match=r"InternLM is not installed for .*--internlm.*InternEvo==0\.4\.9"):
        find(None, python)


def test_no_torch_in_the_interpreter(tmp_path):
    python, _ = interpreter(tmp_path, torch=False)
    with pytest.raises(CheckoutError, match="has no torch"):
        find(None, python)


@pytest.mark.parametrize(
    ("version", "missing"),
    [("0.5.1", "core/parallel/comm"), ("0.5.2", "core/parallel/comm"), ("0.1.9", "moe"), ("0.2.2", "moe")],
)
def test_the_broken_wheels_are_named_unless_mended(tmp_path, version, missing):
    python, site = interpreter(tmp_path, version)
    with pytest.raises(CheckoutError, match=f"InternEvo {version} .* lacks internlm/{missing}.*0.4.9 is whole"):
        find(None, python)
    (site / "internlm" / missing).mkdir(parents=True)
    assert find(None, python).version == version


@pytest.mark.parametrize("version", ["0.0.1", "0.3.14", "0.4.2", "0.4.9", "0.5.0"])
def test_other_wheels_are_taken(tmp_path, version):
    python, _ = interpreter(tmp_path, version)
    source = find(None, python)
    assert (source.version, source.generation, source.torch_version) == (version, "v0.4", "2.9.0")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, "cannot be started"),
        ("#!/bin/sh\nexit 3\n", "not a Python.*exit status 3: no output"),
        ("#!/bin/sh\necho hello\n", "not a Python.*hello"),
        ("#!/bin/sh\necho 4\n", "not a Python"),
    ],
)
def test_an_interpreter_that_is_none(tmp_path, script, says):
    python = tmp_path / "python"
    if script:
        python.write_text(script)
        python.chmod(0o755)
    with pytest.raises(CheckoutError, match=f"--python .*{says}") as error:
        find(None, str(python))
    assert "\n" not in str(error.value)
