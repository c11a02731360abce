"""The config of every case, in each generation's dialect, is taken by a stand-in that asks what that InternLM asks."""

import json
import os
import subprocess
import sys

import pytest

from fixtures import cases
from fixtures.internlm import config, models
from tests.internlm.requests import request_of
from tests.internlm.standins import build, standin

OLD = [build.asks(tag) for tag in build.TAGS]


def written(case, tmp_path, **changes):
    path = tmp_path / "config.py"
    path.write_text(config.render(request_of(case, **changes)), encoding="utf-8")
    return standin.read(str(path))


def test_there_is_a_stand_in_for_every_generation_that_no_wheel_holds():
    assert [what["generation"] for what in OLD] == list(config.GENERATIONS[:-1])


@pytest.mark.parametrize("what", OLD, ids=lambda what: what["tag"])
@pytest.mark.parametrize("accelerator", ["cpu", "nvidia"])
def test_every_case_that_the_generation_can_run(what, accelerator, tmp_path):
    generation = what["generation"]
    seen = set()
    for world in (2, 8, 64):
        for case in cases.select(None, True, (), world, generation=generation):
            read = written(case, tmp_path, generation=generation, accelerator=accelerator, deterministic=False)
            standin.check(read, what, world)
            seen.add(case.model)
    first = {model for model in models.known() if models.load(model)["model_type"] == "INTERNLM"}
    assert {"tiny", "7B", "13B", "65B"} <= first
    assert seen == (first if generation < "v0.3" else set(models.known()))


@pytest.mark.parametrize("what", OLD, ids=lambda what: what["tag"])
def test_what_the_generation_cannot_run_is_not_collected(what):
    names = {case.name for case in cases.select(None, True, (), 8, generation=what["generation"])}
    assert ("7B-tp1-pp2-zerodp" in names) == (what["generation"] != "v0.1")
    assert ("7B-tp1-pp1-zerodp-fsdp" in names) == (what["generation"] in ("v0.2.1", "v0.3"))
    assert any("isp" in name for name in names) == (what["generation"] == "v0.3")


@pytest.mark.parametrize(
    ("generation", "layout", "says"),
    [
        ("v0.1", cases.Layout(1, 2, -1), "v0.1.0 has no pipeline parallelism"),
        ("v0.2", cases.Layout(1, 1, -1, fsdp=True), "v0.2 has no fsdp"),
        ("v0.2.1", cases.Layout(2, 1, -1, mode="isp"), "v0.2.1 has no tensor mode isp"),
    ],
)
def test_a_layout_that_the_generation_lacks_is_named(generation, layout, says):
    with pytest.raises(cases.CaseError, match=says):
        cases.fit("7B", layout, 8, generation=generation)
    request = request_of(cases.fit("7B", layout, 8), generation=generation)
    with pytest.raises(ValueError, match=says):
        config.render(request)


@pytest.mark.parametrize("what", OLD, ids=lambda what: what["tag"])
def test_the_stand_in_refuses_the_newest_dialect_or_what_is_missing(what, tmp_path):
    case = cases.fit("tiny", cases.Layout(1, 1, -1), 2)
    read = written(case, tmp_path, generation=what["generation"])
    standin.check(read, what, 2)
    for key in what["required"]:
        spoilt = json.loads(json.dumps(read))
        *tables, name = key.split(".")
        place = spoilt
        for table in tables:
            place = place[table]
        place.pop(name)
        with pytest.raises((AttributeError, KeyError)):
            standin.check(spoilt, what, 2)
    with pytest.raises(TypeError):
        standin.check({**read, "model": {**read["model"], "no_such": 1}}, what, 2)
    with pytest.raises(AssertionError):
        standin.check({**read, "model": {**read["model"], "dtype": "torch.int8"}}, what, 2)


def test_the_oldest_stand_in_refuses_the_newest_dialect(tmp_path):
    read = written(cases.fit("tiny", cases.Layout(1, 1, -1), 2), tmp_path)
    with pytest.raises((AttributeError, TypeError)):
        standin.check(read, build.asks("v0.1.0"), 2)


@pytest.mark.parametrize("tag", build.TAGS)
def test_a_stand_in_prints_the_lines_of_its_generation(tag, tmp_path):
    from fixtures.internlm import log

    what = build.asks(tag)
    folder = build.checkout(tag, tmp_path / "checkout")
    case = cases.fit("tiny", cases.Layout(1, 1, -1), 2)
    path = tmp_path / "config.py"
    path.write_text(config.render(request_of(case, steps=30, generation=what["generation"])), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(folder / "train.py"), "--config", str(path), "--launcher", "torch"],
        env={**os.environ, "RANK": "0", "WORLD_SIZE": "2"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    logs = tmp_path / "rank0.log"
    logs.write_bytes(done.stdout + done.stderr)
    steps = log.read([logs]).steps
    assert steps.step.tolist() == list(range(30))
    assert steps.consumed_tokens[-1] == 30 * case.tokens_per_step
    assert set(steps.grad_norm) >= {"0_default"}
    assert steps.loss[0] == 6.95
