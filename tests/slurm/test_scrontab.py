"""The scrontab template's night, as a job: Debian's Slurm has no scrontab, but its options are sbatch's."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from fixtures.options import ROOT
from tests.ci.nights import RECORDED


@pytest.mark.slow
def test_the_night_runs_as_a_job_with_the_templates_options(cluster, tmp_path):
    lines = (ROOT / "ci-templates" / "scrontab").read_text(encoding="utf-8").splitlines()
    options = [line.replace("#SCRON", "#SBATCH") for line in lines if line.startswith("#SCRON")]
    assert len(options) == 6
    command = next(line for line in lines if line and not line.startswith("#")).split(maxsplit=5)[5]
    command = command.replace("/opt/internlm-acceptance", str(ROOT)).replace("/opt/internlm/bin/python", sys.executable)
    shutil.copytree(RECORDED, tmp_path / "recorded")
    command = command.replace("-k 7B", f"-k tiny --evidence {tmp_path / 'recorded'}").replace("$HOME", str(tmp_path))
    script = tmp_path / "night.sh"
    script.write_text("\n".join(["#!/bin/sh", *options, command, ""]), encoding="utf-8")
    done = subprocess.run(["sbatch", "--wait", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    (log,) = tmp_path.glob("nightly-*.log")
    assert done.returncode == 0, done.stderr + log.read_text()
    assert (tmp_path / "nights" / "nightly.sqlite").is_file()
    assert (tmp_path / "nights" / "trend.html").is_file()
    assert "tiny-tp1-pp1-zerodp" in log.read_text()
