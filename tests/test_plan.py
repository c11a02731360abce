"""The plan: what a vendor reads before a night is burnt."""

import re
from types import SimpleNamespace

import pytest

from acceptance import requirements
from fixtures import cases, plan
from fixtures.cases import Layout
from fixtures.internlm import models
from tests import golden


def setup_of(family="nvidia", steps=100, generation="v0.4", devices=(), **options):
    return SimpleNamespace(
        found=SimpleNamespace(profile=SimpleNamespace(name=family), devices=devices),
        source=SimpleNamespace(generation=generation),
        options=SimpleNamespace(
            **{"steps": steps, "long_all": False, "long_steps": None, "long_hours": None} | options
        ),
    )


def shown(chosen, **changes):
    return plan.table(chosen, setup_of(**changes), requirements.load())


def row(text, case):
    return next(line.split() for line in text.splitlines() if line.startswith(f"{case} "))


def test_seven_b_on_eight_devices():
    text = shown([cases.fit("7B", Layout(1, 1, 8), 8)])
    assert row(text, "7B-tp1-pp1-zero8")[1:] == [
        *("8", "8", "512", "=", "2", "x", "32", "x", "8", "1,048,576", "61.2", "2.7", "h", "3670.2"),
    ]
    assert "long run of 7B: 100,000 steps or 72 h, about 72.0 h" in text


def test_a_hundred_steps_of_seven_b_take_fifty_four_minutes_on_eight_a100():
    case = cases.fit("7B", Layout(1, 1, 8), 8)
    assert plan.duration(case.expected_seconds(100, 4078)) == "54 min"


def test_every_layout_of_both_models_takes_days_and_what_a_smaller_batch_saves():
    text = shown(cases.select(["7B", "13B"], False, (), 8))
    hours = float(re.search(r"one after the other: about ([\d.]+) h", text)[1])
    assert 36 < hours < 60
    saved = re.search(r"that is ([\d.]+) days; choose layouts with -k, or --global-batch (\d+): about ([\d.]+) h", text)
    assert float(saved[1]) == pytest.approx(hours / 24, abs=0.06)
    assert int(saved[2]) == 64
    assert float(saved[3]) == pytest.approx(hours / 8, abs=0.1)


def test_a_missing_requirement_is_said_before_the_night():
    text = shown([cases.fit("7B", Layout(8, 1, 1), 8)])
    assert row(text, "7B-tp8-pp1-zero1")[-1] == "none"
    assert "throughput is not judged where no minimum TGS is on record (--min-tgs" in text
    assert "convergence is not judged without a maximum loss (--max-loss, --requirements): 7B" in text


def test_nothing_is_said_where_nothing_is_missing():
    text = shown([cases.fit("tiny", Layout(1, 1, -1), 2)], family="cpu")
    assert "not judged" not in text
    assert "long run of tiny: 400 steps" in text


def test_what_does_not_fit_a_device_is_said():
    devices = [SimpleNamespace(memory_bytes=80 * 2**30)] * 8
    both = [cases.fit("13B", Layout(1, 1, 8), 8), cases.fit("7B", Layout(1, 1, 8), 8)]
    warning = [line for line in shown(both, devices=devices).splitlines() if "80 GiB" in line]
    assert len(warning) == 1
    assert "13B-tp1-pp1-zero8" in warning[0]
    assert "7B-tp1" not in warning[0].replace("13B-tp1", "")
    assert "model.checkpoint" in warning[0]


def test_long_runs_of_all_cases_are_announced():
    chosen = cases.select(["7B"], False, (), 8)
    assert f"each of {len(chosen)} cases" in shown(chosen, long_all=True)


def test_the_long_run_that_was_asked_for_is_the_one_announced():
    chosen = [cases.fit("7B", Layout(1, 1, 8), 8)]
    assert "long run of 7B: 2,000 steps or 72 h, about 17.9 h" in shown(chosen, long_steps=2000)
    assert "long run of 7B: 100,000 steps or 0.5 h, about 30 min" in shown(chosen, long_hours=0.5)


def test_no_case_no_table():
    assert shown([]) == "plan: no case is selected"


def test_the_table_of_the_real_models_on_eight_devices():
    real = [model for model in models.known() if not models.is_tiny(model)]
    assert golden.agrees("plan-8.txt", shown(cases.select(real, True, (), 8)) + "\n")
