"""Requirements: which number holds for a case, where it comes from, and what is refused."""

import math

import pytest

from acceptance import requirements
from acceptance.requirements import RequirementsError, load
from fixtures import cases
from fixtures.cases import Layout
from fixtures.internlm import flops, models
from tests.internlm.requests import request_of


def request(model="7B", layout=None, world=8, **changes):
    return request_of(cases.fit(model, layout or Layout(1, 1, 8), world), accelerator="nvidia", **changes)


def written(tmp_path, text):
    path = tmp_path / "lab.toml"
    path.write_text(text, encoding="utf-8")
    return path


PUBLISHED = {  # InternLM's own figures for A100-80G
    (1, -1): {8: 4062, 16: 3842, 32: 3752, 64: 3690},
    (1, 8): {8: 4078, 16: 3939, 32: 3919, 64: 3944},
    (2, -1): {8: 3822, 16: 3595, 32: 3475, 64: 3438},
    (2, 4): {8: 3761, 16: 3658, 32: 3655, 64: 3650},
}


@pytest.mark.parametrize(("tp", "zero"), PUBLISHED)
@pytest.mark.parametrize("world", [8, 16, 32, 64])
def test_minimum_tgs_is_nine_tenths_of_the_published_figure(tp, zero, world):
    found = load().minimum_tgs(request(layout=Layout(tp, 1, zero), world=world), "nvidia")
    assert found.value == pytest.approx(0.9 * PUBLISHED[tp, zero][world], rel=1e-12)
    assert found.unit == "tokens/GPU/s"
    assert found.source == "0.9 x InternLM's published A100-80G figure"


def test_between_two_counts_the_smaller_one_holds_and_says_so():
    found = load().minimum_tgs(request(layout=Layout(1, 1, -1), world=16) | {"world": 24}, "ascend")
    assert found.value == pytest.approx(0.9 * 3842)
    assert found.source.endswith("for 16 devices, the nearest smaller on record")


@pytest.mark.parametrize("world", [2, 4, 128, 1024])
def test_no_figure_is_invented_below_or_beyond_the_record(world):
    assert load().minimum_tgs(request(layout=Layout(1, 1, -1)) | {"world": world}, "nvidia") is None


@pytest.mark.parametrize(
    ("model", "layout"), [("7B", Layout(8, 1, 1)), ("7B", Layout(1, 1, -1, fsdp=True)), ("13B", Layout(1, 1, 8))]
)
def test_no_figure_where_none_was_published(model, layout):
    assert load().minimum_tgs(request(model, layout), "nvidia") is None
    assert load().expected_tgs(request(model, layout), "nvidia") is None


def test_every_tiny_has_a_minimum_and_a_maximum_that_follows_from_its_data():
    for model in models.known():
        if models.is_tiny(model):
            asked = request(model, Layout(1, 1, -1), world=2)
            assert 0 < load().minimum_tgs(asked, "cpu").value < 1000
            floor = flops.workload(asked).entropy_floor
            assert 0.0403 < floor < 0.041
            assert load().maximum_loss(asked).value == 1.5 * floor
            assert load().long_run(model)[:2] == (400, None)


def test_seven_and_thirteen_b_have_no_maximum_loss_until_the_lab_sets_one():
    assert load().maximum_loss(request()) is None
    assert load(max_loss=2.5).maximum_loss(request()) == requirements.Requirement(2.5, "nats per token", "--max-loss")
    assert load().long_run("7B") == (100_000, 72, "the procedure")
    assert load().long_run("13B") == (100_000, 72, "the procedure")


@pytest.mark.parametrize(("model", "maximum"), [("MoE4-7B", 0.325), ("7B-32k", 0.0005), ("InternLM2-7B", 0.0075)])
def test_maxima_of_the_procedures_owners(model, maximum):
    layout = cases.layouts(model)[0]
    asked = request(model, layout)
    assert load().maximum_loss(asked).value == maximum
    assert flops.workload(asked).entropy_floor < maximum


def test_a_long_run_does_not_outlast_its_schedule():
    for model in models.known():  # the cosine would rise again
        assert models.load(model)["lr_scheduler"]["total_steps"] >= load().long_run(model)[0], model


def test_options_go_before_everything(tmp_path):
    lab = written(tmp_path, '[[tgs]]\nmodel = "7B"\nlayout = "any"\ntgs = 1\nunit = "tokens/GPU/s"\nsource = "the lab"')
    assert load(lab, min_tgs=7.5).minimum_tgs(request(), "nvidia").value == 7.5


def test_the_labs_file_goes_before_the_defaults_and_the_family_before_any(tmp_path):
    lab = written(
        tmp_path,
        """
[[tgs]]
model = "7B"
layout = "any"
tgs = 1000
unit = "tokens/GPU/s"
source = "the lab, any"
[[tgs]]
model = "7B"
layout = "tp1-pp1-zero8"
family = "ascend"
tgs = { 8 = 2000, 16 = 1900 }
factor = 0.5
unit = "tokens/GPU/s"
source = "the lab, ascend"
[[loss]]
model = "7B"
maximum = 0.02
unit = "nats per token"
source = "the lab"
[[long]]
model = "7B"
hours = 1.5
source = "the lab"
""",
    )
    found = load(lab)
    assert found.minimum_tgs(request(), "nvidia").value == 1000
    assert found.minimum_tgs(request(), "ascend") == requirements.Requirement(
        1000.0, "tokens/GPU/s", "0.5 x the lab, ascend"
    )
    assert found.maximum_loss(request()).value == 0.02
    assert found.long_run("7B") == (None, 1.5, "the lab")
    assert found.long_run("13B")[0] == 100_000


ROW = '[[tgs]]\nmodel = "7B"\nlayout = "any"\ntgs = 10\nunit = "tokens/GPU/s"\nsource = "x"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ROW.replace("tokens/GPU/s", "tokens/s"), r"\[\[tgs\]\] number 1 \(7B\): unit = 'tokens/s'; \"tokens/GPU/s\""),
        (ROW.replace('"7B"', '"8B"'), "model = '8B'; the name of a known model"),
        (ROW.replace('"any"', '"tp1-zero8"'), "layout = 'tp1-zero8'; a layout as in the case's name"),
        (ROW + "colour = 1\n", "unknown key colour; known are model, layout"),
        (ROW.replace("tgs = 10", "tgs = -10"), "tgs = -10; a TGS above 0"),
        (ROW.replace("tgs = 10", "tgs = nan"), "tgs = nan; a TGS above 0"),
        (ROW.replace("tgs = 10", "tgs = true"), "tgs = True; a TGS above 0"),
        (ROW.replace("tgs = 10", "tgs = { eight = 1 }"), "table of them by number of devices"),
        (ROW.replace("tgs = 10", "tgs = {}"), "table of them by number of devices"),
        (ROW.replace('source = "x"', ""), "source is missing"),
        (ROW.replace('source = "x"', 'source = " "'), "where the number comes from"),
        (ROW.replace('layout = "any"\n', ""), "layout is missing"),
        ("[[tps]]\nmodel = 1", r"\[tps\] is not known"),
        ("[tgs]\nmodel = '7B'", r"\[tgs\] is not known; the tables are \[\[tgs\]\]"),
        ('[[loss]]\nmodel = "7B"\nunit = "nats per token"\nsource = "x"', "maximum or entropy_floors is missing"),
        (
            '[[loss]]\nmodel = "7B"\nmaximum = 1\nentropy_floors = 2\nunit = "nats per token"\nsource = "x"',
            "exclude each other",
        ),
        ('[[loss]]\nmodel = "7B"\nmaximum = inf\nunit = "nats per token"\nsource = "x"', "a loss above 0"),
        ('[[loss]]\nmodel = "7B"\nmaximum = 1\nunit = "bits"\nsource = "x"', "unit = 'bits'"),
        ('[[long]]\nmodel = "7B"\nsteps = 1.5\nsource = "x"', "whole number of steps"),
        ('[[long]]\nmodel = "7B"\nsource = "x"', "steps or hours is missing"),
        ("tgs = [1", "not valid TOML"),
    ],
)
def test_a_bad_file_is_one_error_that_names_file_and_key(tmp_path, text, says):
    with pytest.raises(RequirementsError, match=says) as error:
        load(written(tmp_path, text))
    assert "lab.toml" in str(error.value)
    assert "\n" not in str(error.value).split("TOML:")[0]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RequirementsError, match=r"nowhere\.toml"):
        load(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("option", ["min_tgs", "max_loss"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_a_bad_number_is_named(option, value):
    with pytest.raises(RequirementsError, match=r"--m.*a finite number above 0"):
        load(**{option: value})
