"""The real run on eight devices: its parts can be run as they stand, and what they show can be red."""

from __future__ import annotations

import argparse
import json

import pytest

from benchmarks import certify8
from fixtures import evidence, rules
from fixtures.cases import parse, select
from tests.suite import ROOT, acceptance

PARTS = [(part, cpu) for cpu in (False, True) for devices in (8, 4, 2) for part in certify8.parts(cpu, devices)]


def parsed(command):
    parser = argparse.ArgumentParser()
    for name in ("gpus", "gpus-per-run", "global-batch", "steps", "n"):
        parser.add_argument(f"--{name}" if len(name) > 1 else f"-{name}", type=int)
    for name in ("--model", "--layout", "--override", "--accelerator", "-k", "-m"):
        parser.add_argument(name)
    return parser.parse_args(command)


@pytest.mark.parametrize(("part", "cpu"), PARTS, ids=lambda value: getattr(value, "title", str(value))[:20])
def test_every_part_selects_cases_that_exist_within_ten_minutes(part, cpu):
    assert part.minutes <= 10
    for command in part.commands:
        given = parsed(command)
        own = [parse(given.layout)] if given.layout else []
        world = given.gpus_per_run or given.gpus
        settings = rules.load(ROOT / given.override)
        cases = select(given.model.split(","), False, own, world, given.global_batch, settings, cpu=cpu)
        wanted = given.k.split()[0]
        assert any(wanted in case.name for case in cases), [case.name for case in cases]
        assert all(case.settings["environment.NCCL_NVLS_ENABLE"] == "0" for case in cases)
    assert len(set(certify8.places_of(part, certify8.RESULTS))) == len(part.commands)


def test_the_procedures_layouts_are_all_there():
    commands = " ".join(" ".join(command) for part in certify8.parts(cpu=False) for command in part.commands)
    for case in ("7B-tp1-pp1-zero8", "7B-tp8-pp1-zero1", "7B-tp2-pp1-zero4"):
        assert case in commands
    same = select(["7B"], False, [parse("zero=dp")], 8, 16)
    assert "7B-tp1-pp1-zerodp" not in [case.name for case in same], "on eight it is tp1-zero8"


def test_what_is_printed_is_what_is_run(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["certify8"])
    assert certify8.main() == 0
    said = capsys.readouterr().out
    assert "pytest acceptance" in said
    assert all(part.title in said for part in certify8.parts(cpu=False))
    assert "SIGSTOP to rank 7" in said


def test_a_part_that_is_not_there_is_a_usage_error(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["certify8", "99"])
    with pytest.raises(SystemExit) as exit_:
        certify8.main()
    assert exit_.value.code == 2
    assert "the parts are 1 to" in capsys.readouterr().err


def attempt(results, run, device, times, gpus=2):
    made = evidence.new_attempt(results, "1.6B-tp1-pp1-zerodp", run)
    evidence.write_json(made.path / "request.json", {"gpus": gpus})
    evidence.write_json(made.path / "end.json", {"outcome": "complete"})
    rows = [{"time": t, **({"device": device} if device else {})} for t in times]
    (made.path / "telemetry.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("second", "times", "good"),
    [
        ("GPU-b", (3, 9), True),  # side by side, on two devices
        ("GPU-a", (3, 9), False),  # on one device at one time
        ("GPU-a", (5, 9), False),  # one after the other: nothing ran side by side
    ],
)
def test_two_runs_on_one_device_are_seen(second, times, good, tmp_path, capsys):
    attempt(tmp_path, "speed", "GPU-a", (1, 5))
    attempt(tmp_path, "repeat-1", second, times)
    assert certify8.show_devices(tmp_path, 8) is good
    assert ("were both on GPU-a" in capsys.readouterr().out) is (second == "GPU-a" and times[0] < 5)


def test_more_runs_than_devices_are_seen_where_devices_have_no_names(tmp_path):
    for run in ("speed", "repeat-1"):
        attempt(tmp_path, run, None, (1, 5), gpus=4)
    assert certify8.show_devices(tmp_path, 8)
    attempt(tmp_path, "repeat-2", None, (2, 5), gpus=4)
    assert not certify8.show_devices(tmp_path, 8)


def test_scaling_without_a_figure_is_no_success(tmp_path, capsys):
    def results(folder, measurements):
        verdict = {"measurements": measurements, "reason": "the run failed"}
        case = {"case": "1.6B-tp1-pp1-zerodp", "gpus": 2, "criteria": {"throughput": verdict}}
        evidence.write_json(tmp_path / folder / "results.json", {"cases": [case]})

    results("one", [{"name": "tgs", "value": 200.0}])
    results("two", [{"name": "tgs", "value": 190.0}])
    results("none", [])
    assert certify8.show_scaling([tmp_path / "one", tmp_path / "two"])
    assert "190 tokens/GPU/s, 0.950" in capsys.readouterr().out
    assert not certify8.show_scaling([tmp_path / "one", tmp_path / "none"])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tp=8,zero=1", "zero=8", "tp=2,pp=2,zero=2"])
def test_tiny_trains_on_eight_ranks(layout, tmp_path):
    only = ("--model", "tiny", "--layout", layout, "-k", parse(layout).name, "-m", "startup", "--steps", "5")
    done = acceptance("--accelerator", "cpu", "--gpus", "8", *only, "--results", tmp_path)
    assert done.returncode == 0, done.stdout
    (case,) = json.loads((tmp_path / "results.json").read_text())["cases"]
    assert (case["gpus"], case["criteria"]["startup"]["code"]) == (8, "startup-passed")
