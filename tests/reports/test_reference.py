"""`python -m reports reference`: a curve from evidence, found again by its key; refusals are one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from acceptance import references
from acceptance.criteria.reference import KEY, CurveError
from fixtures.evidence import new_attempt, write_json
from reports.__main__ import main
from tests.criteria.mutations import put, where

LOGS = Path(__file__).parents[1] / "data" / "logs"
CASE = "tiny-tp1-pp1-zerodp"
REQUEST = {
    "case": CASE,
    "run": "repeat-1",
    "model": "tiny",
    "dataset": None,
    "layout": {"tp": 1, "pp": 1, "zero": -1, "dp": 2, "fsdp": False, "mode": "mtp", "wp": 1},
    "workload": {"seq_len": 128, "global_batch": 32, "micro_bsz": 8, "micro_num": 2, "steps": 120, "hours": None},
    "world": 2,
    "accelerator": "cpu",
    "internlm": {"version": "0.4.9", "generation": "v0.4", "commit": None, "digest": "00"},
    "settings": {},
    "deterministic": True,
    "seed": 1024,
    "config_sha256": "11",
    "suite": {"version": "0.1.0", "commit": "abc", "diff_sha256": None},
    "started": "2026-01-01T00:00:00+00:00",
}


@pytest.fixture
def results(tmp_path) -> Path:
    """Evidence of two real repeats of tiny."""
    for run, name in (("repeat-1", "0.4.9-dp2.log"), ("repeat-2", "0.4.9-dp2-repeat.log")):
        attempt = new_attempt(tmp_path / "results", CASE, run)
        (attempt.path / "logs" / "rank0.log").write_bytes((LOGS / name).read_bytes())
        write_json(attempt.path / "request.json", {**REQUEST, "run": run})
        write_json(attempt.path / "end.json", {"outcome": "complete", "exit_status": 0, "failure": None})
        write_json(
            attempt.path / "nodes" / "node.json", {"host": "node", "cpu": "a CPU", "torch": "2.13.0", "devices": []}
        )
    return tmp_path / "results"


def reference(results: Path, output: Path) -> int:
    return main(["reference", CASE, "--results", str(results), "--output", str(output)])


def test_a_reference_says_where_it_comes_from_and_is_found_by_its_key(results, tmp_path, capsys):
    output = tmp_path / "curves" / "tiny.json"
    assert reference(results, output) == 0
    assert capsys.readouterr().out == f"{output}\n"
    value = json.loads(output.read_text())
    assert set(value["key"]) == set(KEY)
    assert value["key"] == references.key(REQUEST)
    assert value["key"]["schedule"] == 400
    assert value["provenance"]["family"] == "cpu"
    assert value["provenance"]["devices"] == ["a CPU"]
    assert value["provenance"]["config_sha256"] == "11"
    assert len(value["losses"]) == 100
    found = references.find(REQUEST, folder=output.parent)
    assert list(found.losses) == value["losses"]
    other = {**REQUEST, "layout": {**REQUEST["layout"], "dp": 1}}
    assert references.find(other, folder=output.parent) is None
    split = {**REQUEST, "layout": {**REQUEST["layout"], "tp": 2}}  # each part draws its own random weights
    assert references.find(split, folder=output.parent) is None
    with pytest.raises(CurveError, match=r"recorded with dp 2 \(here 1\)"):
        references.find(other, given=output)


def test_of_two_curves_the_own_family_goes_first(results, tmp_path):
    folder = tmp_path / "curves"
    assert reference(results, folder / "b.json") == 0
    value = json.loads((folder / "b.json").read_text())
    value["provenance"]["family"] = "nvidia"
    write_json(folder / "a.json", value)
    assert references.find(REQUEST, folder=folder).source == "b.json"
    assert references.find({**REQUEST, "accelerator": "nvidia"}, folder=folder).source == "a.json"
    assert references.find({**REQUEST, "accelerator": "ascend"}, folder=folder).source == "a.json"


def test_repeats_that_differ_make_no_reference(results, tmp_path, capsys):
    log = results / "runs" / CASE / "repeat-2" / "attempt-1" / "logs" / "rank0.log"
    lines = log.read_text().splitlines()
    i = where(lines)[40]
    lines[i] = put(lines[i], "loss", float(np.float32(0.1234567)))
    log.write_text("\n".join(lines) + "\n")
    assert reference(results, tmp_path / "a.json") == 1
    error = capsys.readouterr().err
    assert "diverge at step 40" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("end.json", {"outcome": "failed"}, "has not run to its end"),
        ("request.json", {}, "holds logs only"),
    ],
)
def test_evidence_that_is_not_whole_makes_no_reference(results, tmp_path, capsys, name, value, what):
    write_json(results / "runs" / CASE / "repeat-1" / "attempt-1" / name, value)
    assert reference(results, tmp_path / "a.json") == 1
    assert what in capsys.readouterr().err


def test_an_unknown_case_names_those_there_are(results, tmp_path, capsys):
    assert main(["reference", "7B", "--results", str(results), "--output", str(tmp_path / "a.json")]) == 1
    assert f"no repeat-1 run under {results} (cases there: {CASE})" in capsys.readouterr().err


def test_the_lab_s_format_is_taken_as_it_is(tmp_path):
    path = tmp_path / "lab.json"
    write_json(path, {f"step{i}": 11.0 - i for i in range(10)})
    found = references.find(REQUEST, given=path)
    assert list(found.losses) == [11.0 - i for i in range(10)]
    path.write_text("{")
    with pytest.raises(CurveError, match="cannot be read as JSON"):
        references.find(REQUEST, given=path)
