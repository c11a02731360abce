"""The OCP output: every line fits the published schemas, and says what our verdicts say."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path

import pytest

from acceptance.criteria.verdict import Measurement, Verdict
from fixtures.evidence import write_json
from fixtures.internlm.log import read
from reports import ocp
from reports.gather import read_logs
from tests.acceptance import evidence_7b as made
from tests.suite import ROOT

SCHEMAS = ROOT.parent / "shared" / "ocp-schemas"
CASE = made.CASE.name


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Evidence of 7B in two layouts, one with a failed speed run, and its results.json."""
    root = tmp_path_factory.mktemp("ocp")
    results = made.record(root / "r")
    made.record(results, made.OTHER, ("speed", "repeat-1", "repeat-2"), noise=7, late=1)
    write_json(results / "runs" / made.OTHER.name / "speed" / "attempt-1" / "end.json", made.FAILED)
    return results, made.judge(results, root).results_json()


def rows(results: Path, found: dict, case: str = CASE) -> list[dict]:
    entry = next(c for c in found["cases"] if c["case"] == case)
    return [json.loads(line) for line in ocp.text(found, entry, results, read_logs).splitlines()]


def artifacts(lines: list[dict], kind: str) -> list[dict]:
    return [content for row in lines for part in row.values() if isinstance(part, dict)
            for name, content in part.items() if name == kind]  # fmt: skip


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason=f"OCP's schemas are not beside the checkout, in {SCHEMAS}")
@pytest.mark.parametrize("case", [CASE, made.OTHER.name])
def test_every_line_fits_the_published_schemas(judged, case):
    import jsonschema
    from referencing import Registry, Resource

    documents = [json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")]
    root = next(d for d in documents if d["$id"].endswith("/output"))
    registry = Registry().with_resources((d["$id"], Resource.from_contents(d)) for d in documents)
    validator = jsonschema.Draft202012Validator(
        root, registry=registry, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    lines = rows(*judged, case)
    assert len(lines) > 20
    for line in lines:
        validator.validate(line)
    broken = lines[1] | {"timestamp": 5}
    assert not validator.is_valid(broken), "the schemas do reject"


def test_lines_are_numbered_and_in_the_order_of_time(judged):
    lines = rows(*judged)
    assert [line["sequenceNumber"] for line in lines] == list(range(len(lines)))
    times = [datetime.fromisoformat(line["timestamp"]) for line in lines]
    assert times == sorted(times)
    assert all(time.utcoffset() is not None for time in times)
    assert lines[0]["schemaVersion"] == {"major": 2, "minor": 0}
    assert lines[-1]["testRunArtifact"] == {"testRunEnd": {"status": "COMPLETE", "result": "PASS"}}


def test_measurements_carry_our_limits(judged):
    found = {m["name"]: m for m in artifacts(rows(*judged), "measurement")}
    assert found["tgs_lower95"]["validators"][0]["type"] == "GREATER_THAN_OR_EQUAL"
    assert found["tgs_lower95"]["value"] >= found["tgs_lower95"]["validators"][0]["value"] > 3000
    assert found["bit_equal_steps"]["validators"][0] | {"name": ""} == {"type": "EQUAL", "value": 100, "name": ""}
    assert found["median_loss"]["validators"] == [{"type": "LESS_THAN", "value": 0.014, "name": "the lab"}]
    for name in ("peak_memory", "headroom", "headroom_percent"):
        assert found[f"{name}_rank_3"]["hardwareInfoId"] == f"{made.HOST}:3"


def test_the_device_under_test_is_named_with_serial_numbers_and_versions(judged):
    start = artifacts(rows(*judged), "testRunStart")[0]
    hardware = start["dutInfo"]["hardwareInfos"]
    assert [h["serialNumber"] for h in hardware] == [d["id"] for d in made.NODE["devices"]]
    software = {(s["name"], s.get("version")) for s in start["dutInfo"]["softwareInfos"]}
    assert {("driver", "550.54.15"), ("torch", "2.13.0"), ("internlm", "0.4.9")} <= software
    assert start["parameters"]["suite_commit"] == judged[1]["suite"]["commit"]
    assert "torch.distributed.run" in start["commandLine"]


def test_series_hold_the_first_hundred_steps_and_the_long_run_is_a_file(judged):
    lines = rows(*judged)
    ends = {e["measurementSeriesId"]: e["totalCount"] for e in artifacts(lines, "measurementSeriesEnd")}
    assert ends == {"tgs_speed": 100, "loss_repeat_1": 100, "loss_repeat_2": 100}
    elements = [e for e in artifacts(lines, "measurementSeriesElement") if e["measurementSeriesId"] == "loss_repeat_1"]
    log = judged[0] / "runs" / CASE / "repeat-1" / "attempt-1" / "logs" / "stderr.log"
    assert [e["value"] for e in elements] == read([log]).steps.loss.tolist()
    assert elements[0]["timestamp"].startswith("2026-05-04T10:01:00")
    assert elements[0]["timestamp"].endswith("+08:00")
    (file,) = artifacts(lines, "file")
    path = (judged[0] / "ocp" / file["uri"]).resolve()
    assert file["metadata"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_failed_run_is_a_fail_with_our_code_and_what_was_not_run_is_skipped(judged):
    lines = rows(*judged, made.OTHER.name)
    diagnoses = [(d["verdict"], d["type"]) for d in artifacts(lines, "diagnosis")]
    assert diagnoses == [
        ("startup-out-of-memory", "FAIL"), ("throughput-run-failed", "FAIL"), ("determinism-passed", "PASS"),
    ]  # fmt: skip
    assert [e["status"] for e in artifacts(lines, "testStepEnd")] == ["COMPLETE", "COMPLETE", "COMPLETE", "SKIP"]
    assert lines[-1]["testRunArtifact"]["testRunEnd"] == {"status": "COMPLETE", "result": "FAIL"}


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({}, ("COMPLETE", "PASS")),
        ({"startup": ("fail", "startup-hang")}, ("COMPLETE", "FAIL")),
        ({"throughput": ("inconclusive", "throughput-uncertain")}, ("COMPLETE", "FAIL")),
        ({"convergence": ("not run", "convergence-see-other-case")}, ("COMPLETE", "PASS")),
        ({"convergence": ("not run", "convergence-not-run")}, ("SKIP", "NOT_APPLICABLE")),
        ({"startup": ("fail", "startup-unreadable")}, ("ERROR", "NOT_APPLICABLE")),
        ({"startup": ("fail", "startup-unfinished"), "determinism": ("fail", "determinism-diverged")},
         ("COMPLETE", "FAIL")),
    ],
)  # fmt: skip
def test_a_run_ends_as_its_verdicts_say(outcomes, expected):
    criteria = {name: {"outcome": "pass", "code": f"{name}-passed"} for name in ocp.CRITERIA}
    criteria |= {name: {"outcome": outcome, "code": code} for name, (outcome, code) in outcomes.items()}
    assert tuple(ocp.outcome(criteria).values()) == expected


def test_a_case_without_any_run_and_a_loss_that_is_no_number(judged, tmp_path):
    verdict = Verdict("not run", "startup-not-run", "not run").as_json()
    empty = {
        "case": "7B-tp8-pp1-zero1", "model": "7B", "layout": {}, "gpus": 8, "runs": {},
        "criteria": {name: verdict | {"code": f"{name}-not-run"} for name in ocp.CRITERIA},
    }  # fmt: skip
    lines = [json.loads(line) for line in ocp.text(judged[1], empty, tmp_path, read_logs).splitlines()]
    assert lines[-1]["testRunArtifact"]["testRunEnd"] == {"status": "SKIP", "result": "NOT_APPLICABLE"}
    log = made.record(tmp_path / "r") / "runs" / CASE / "repeat-1" / "attempt-1" / "logs" / "stderr.log"
    log.write_text(log.read_text().replace(" step=3 loss=", " step=3 loss=nan real_loss=", 1))
    text = ocp.text(judged[1], next(c for c in judged[1]["cases"] if c["case"] == CASE), tmp_path / "r", read_logs)
    assert "NaN" not in text
    assert '"value": "nan"' in text


def test_null_measurements_and_unknown_units_are_left_out(judged):
    entry = dict(judged[1]["cases"][0])
    measured = [Measurement("tgs", None, "tokens/GPU/s").as_json(), Measurement("ratio", 0.5, "").as_json()]
    entry["criteria"] = {
        name: {"outcome": "pass", "code": f"{name}-passed", "reason": "", "measurements": measured}
        for name in ocp.CRITERIA
    }
    lines = [json.loads(line) for line in ocp.text(judged[1], entry, judged[0], read_logs).splitlines()]
    assert artifacts(lines, "measurement") == [{"name": "ratio", "value": 0.5}] * 4
