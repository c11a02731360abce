"""A tiny of each model family trains for real on a CPU and passes all four criteria."""

import json
import subprocess
import sys

import pytest

from tests.internlm.test_checkout_runs import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny-internlm2", "tiny-llama2", "tiny-moe"])
def test_a_tiny_of_each_family_passes_all_four_criteria(model, tmp_path):
    command = [sys.executable, "-m", "pytest", "acceptance", "-k", "tp1-pp1-zerodp", "-p", "no:cacheprovider"]
    command += ["--model", model, "--accelerator", "cpu", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    criteria = json.loads((tmp_path / "results.json").read_text())["cases"][0]["criteria"]
    assert {criterion["outcome"] for criterion in criteria.values()} == {"pass"}
    assert len(criteria) == 4
