"""The whole suite against a checkout of each generation: its train.py, its config, its metric lines, its verdicts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.internlm.standins import build

ROOT = Path(__file__).parents[2]
CASE = "tiny-tp1-pp1-zerodp"


def accept(checkout, results, *more):
    command = [sys.executable, "-m", "pytest", "acceptance", "-k", f"{CASE} and not fsdp", "-p", "no:cacheprovider"]
    command += ["--accelerator", "cpu", "--results", str(results), *more]
    command += ["--internlm", str(checkout)] if checkout else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    return done, json.loads((results / "results.json").read_text())["cases"][0]["criteria"]


@pytest.mark.slow
@pytest.mark.parametrize("tag", build.TAGS)
def test_the_whole_suite_runs_a_checkout_of_each_generation(tag, tmp_path):
    checkout = build.checkout(tag, tmp_path / "checkout")
    done, criteria = accept(checkout, tmp_path / "results")
    assert done.returncode == 0, done.stdout[-3000:]
    assert {name: criterion["outcome"] for name, criterion in criteria.items()} == dict.fromkeys(
        ("startup", "throughput", "determinism", "convergence"), "pass"
    )
    request = json.loads((tmp_path / "results/runs" / CASE / "speed/attempt-1/request.json").read_text())
    assert request["internlm"]["generation"] == build.asks(tag)["generation"]
    assert request["internlm"]["version"] == tag
    assert str(checkout / "train.py") in request["command"]
    assert request["environment"]["PYTHONPATH"].startswith(str(checkout))


@pytest.mark.slow
def test_a_checkout_that_stops_at_our_config_is_red_by_name_though_it_exits_with_0(tmp_path):
    checkout = build.checkout("v0.1.0", tmp_path / "checkout")
    asks = json.loads((checkout / "asks.json").read_text())
    asks["required"]["data.no_such_key"] = "train.py:1"
    (checkout / "asks.json").write_text(json.dumps(asks))
    done, criteria = accept(checkout, tmp_path / "results", "-m", "startup")
    assert done.returncode == 1
    assert criteria["startup"]["outcome"] == "fail"
    assert "data.no_such_key" in done.stdout
