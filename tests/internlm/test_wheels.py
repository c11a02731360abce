"""The real InternLM of other wheels, through the bundled trainer; the rest of the tests run on 0.4.9."""

import json
import subprocess
import sys
import zipfile

import pytest

from tests.internlm.test_checkout_runs import CASE, accept


def unpacked(version, folder):
    """A Python whose InternEvo is this version: the one that runs the tests, with the wheel's folder before its own."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, f"InternEvo=={version}"], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"InternEvo {version} cannot be downloaded here: {done.stderr.strip()[-200:]}")
    zipfile.ZipFile(wheels[0]).extractall(folder / "site")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder / "site"}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.0.1", "0.3.14"])
def test_the_suite_runs_other_wheels(version, tmp_path):
    python = unpacked(version, tmp_path)
    done, criteria = accept(None, tmp_path / "results", "--python", str(python), "-m", "startup or throughput")
    assert done.returncode == 0, done.stdout[-3000:]
    assert {name: criteria[name]["outcome"] for name in ("startup", "throughput")} == {
        "startup": "pass",
        "throughput": "pass",
    }
    request = json.loads((tmp_path / "results/runs" / CASE / "speed/attempt-1/request.json").read_text())
    assert (request["internlm"]["kind"], request["internlm"]["version"]) == ("bundled", version)
    assert str(tmp_path / "site") in request["internlm"]["path"]
