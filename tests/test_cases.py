"""Which cases exist on N devices, how their batch is cut, and what is said where none fits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures import cases
from fixtures.cases import CaseError, Layout, parse, select
from fixtures.internlm import models


def names(*args, **kwargs):
    return [case.name for case in select(*args, **kwargs)]


def test_default_models_on_eight_devices():
    assert names(None, False, (), 8) == [
        "tiny-tp1-pp1-zerodp",
        "tiny-tp2-pp1-zero1",
        "tiny-tp1-pp2-zero1",
        "tiny-tp1-pp1-zerodp-fsdp",
        "7B-tp1-pp1-zero8",
        "7B-tp8-pp1-zero1",
        "7B-tp2-pp1-zero4",
        "7B-tp1-pp2-zerodp",
        "7B-tp1-pp1-zerodp-fsdp",
        "13B-tp1-pp1-zero8",
        "13B-tp8-pp1-zero1",
        "13B-tp2-pp1-zero4",
        "13B-tp1-pp2-zerodp",
        "13B-tp1-pp1-zerodp-fsdp",
    ]


def test_tiny_alone_on_two_cpu_processes():
    assert names(None, False, (), 2, cpu=True) == [
        "tiny-tp1-pp1-zerodp",
        "tiny-tp2-pp1-zero1",
        "tiny-tp1-pp2-zero1",
        "tiny-tp1-pp1-zerodp-fsdp",
    ]


def test_seven_b_needs_no_option_to_be_selected_alone_by_substring():
    found = [name for name in names(None, False, (), 8) if "7B" in name]
    assert found
    assert all(name.startswith("7B-tp") for name in found)


def test_equal_layouts_are_collected_once_and_the_numbered_one_is_kept():
    on_8 = names(["7B"], False, (), 8)
    assert "7B-tp1-pp1-zero8" in on_8
    assert "7B-tp1-pp1-zerodp" not in on_8
    on_16 = names(["7B"], False, (), 16)
    assert {"7B-tp1-pp1-zero8", "7B-tp1-pp1-zerodp"} <= set(on_16)


def test_fsdp_without_data_parallelism_is_nothing_of_its_own():
    assert names(["7B"], False, (), 1) == ["7B-tp1-pp1-zerodp"]


def test_extended_has_every_model_where_it_fits():
    assert {case.model for case in select(None, True, (), 8)} == set(models.known())
    on_64 = {case.model for case in select(None, True, (), 64)}
    assert {model for model in models.known() if not models.is_tiny(model)} <= on_64


def test_exactly_the_models_named():
    assert {case.model for case in select(["65B", "tiny-moe"], False, (), 8)} == {"65B", "tiny-moe"}


def test_fine_tuning_cases_come_with_data_only():
    assert not any("sft" in name for name in names(None, True, (), 8))
    with_data = names(None, False, (), 8, sft=True)
    assert "7B-sft-tp1-pp1-zero8" in with_data
    assert "tiny-sft-tp1-pp1-zerodp" in with_data
    assert len(set(with_data)) == len(with_data)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            {"models_": None, "world": 3, "cpu": True},
            r"tiny-.*: a global batch of \d+ does not divide.* .dp 3.*--global-batch \d+",
        ),
        ({"models_": ["8B"], "world": 8}, "unknown model 8B; the models are tiny, 7B, 13B, .*65B"),
        ({"models_": ["7B"], "world": 6}, "512 does not divide .*dp 6.*--global-batch 510"),
        (
            {"models_": ["7B"], "world": 8, "global_batch": 100},
            "100 does not divide.*--global-batch 96 or --global-batch 104",
        ),
        (
            {"models_": ["7B"], "world": 8, "global_batch": 1024},
            "1024 is larger than the models' own .512.*smaller or equal",
        ),
        (
            {"models_": ["7B"], "world": 8, "global_batch": 4},
            "8 data-parallel ranks are more than the global batch of 4",
        ),
        ({"models_": ["7B-32k"], "world": 1024}, "128 data-parallel ranks are more than the global batch of 32"),
        ({"models_": ["7B-32k"], "world": 2}, "2 devices are no multiple of tp x pp = 8"),
        (
            {"models_": ["tiny"], "world": 16, "own_layouts": (Layout(16, 1, 1),)},
            "tp=16 does not divide its attention heads .8",
        ),
        (
            {"models_": ["MoE4-7B"], "world": 8, "own_layouts": (Layout(1, 1, 4),)},
            "mixture of experts needs zero over all",
        ),
        ({"models_": ["MoE4-7B"], "world": 3, "own_layouts": ()}, "4 experts cannot be placed evenly on 3"),
        (
            {"models_": ["7B"], "world": 8, "own_layouts": (Layout(1, 16, 1),)},
            "8 devices are no multiple of tp x pp = 16",
        ),
        ({"models_": ["7B"], "world": 8, "own_layouts": (Layout(1, 1, 3),)}, "zero=3 does not divide the 8 ranks"),
        ({"models_": ["7B"], "world": 64, "own_layouts": (Layout(1, 64, 1),)}, "pp=64 is more than its 32 layers"),
        (
            {"models_": ["7B"], "world": 8, "own_layouts": (Layout(1, 2, 1, fsdp=True),)},
            "fsdp goes neither with pipeline",
        ),
        ({"models_": ["7B"], "world": 8, "own_layouts": (Layout(1, 1, 1, wp=2),)}, "needs mode=isp"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(arguments, says):
    arguments = {"extended": False, "own_layouts": ()} | arguments
    with pytest.raises(CaseError, match=says) as error:
        select(**arguments)
    assert "\n" not in str(error.value)


def test_of_the_default_set_what_cannot_exist_is_left_out_without_an_error():
    on_1024 = names(None, True, (), 1024)
    assert "7B-tp8-pp1-zero1" in on_1024
    assert not any(name.startswith(("tiny", "7B-32k", "7B-tp1-")) for name in on_1024)


def test_a_model_is_never_lost_because_its_batch_does_not_divide():
    with pytest.raises(CaseError, match="7B"):
        select(None, False, (), 6, global_batch=500)


def test_the_vendors_own_layouts_join_the_known_ones():
    known = names(["7B"], False, (), 8)
    assert names(["7B"], False, (parse("tp=4,zero=2"),), 8) == [*known, "7B-tp4-pp1-zero2"]
    assert names(["7B"], False, (parse("tp=8,zero=1"),), 8) == known


def test_a_layout_of_the_vendors_need_not_fit_every_model():
    assert "7B-tp16-pp1-zerodp" in names(None, False, (parse("tp=16"),), 16)
    assert not any(name.startswith("tiny-tp16") for name in names(None, False, (parse("tp=16"),), 16))


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("tp=4,zero=2", Layout(4, 1, 2)),
        ("tp=2, pp=2, zero=dp", Layout(2, 2, -1)),
        ("zero=-1,fsdp=true", Layout(1, 1, -1, fsdp=True)),
        ("tp=2,mode=ISP,wp=4", Layout(2, 1, -1, mode="isp", wp=4)),
    ],
)
def test_layouts_from_the_command_line(text, layout):
    assert parse(text) == layout


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tp",
        "tp=0",
        "tp=-1",
        "tp=x",
        "tp=1,tp=2",
        "dp=2",
        "zero=0",
        "fsdp=maybe",
        "mode=abc",
        "tp=4;zero=2",
        "tp=1e3",
    ],
)
def test_a_bad_layout_is_named(text):
    with pytest.raises(CaseError, match="--layout"):
        parse(text)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (Layout(1, 1, 8), "tp1-pp1-zero8"),
        (Layout(1, 1, -1), "tp1-pp1-zerodp"),
        (Layout(1, 1, -1, fsdp=True), "tp1-pp1-zerodp-fsdp"),
        (Layout(2, 1, -1, mode="isp", wp=4), "tp2-pp1-zerodp-isp-wp4"),
        (Layout(2, 1, 1, mode="msp"), "tp2-pp1-zero1-msp"),
    ],
)
def test_names(layout, name):
    assert layout.name == name
    assert cases.LAYOUT_NAME.fullmatch(name)


def test_seven_b_on_eight_devices_is_cut_as_the_procedure_says():
    case = cases.fit("7B", Layout(1, 1, 8), 8)
    assert (case.micro_bsz, case.micro_num, case.dp, case.global_batch) == (2, 32, 8, 512)
    assert case.tokens_per_step == 2048 * 512
    request = case.as_request()
    assert request["case"] == "7B-tp1-pp1-zero8"
    assert request["layout"] == {"tp": 1, "pp": 1, "zero": 8, "dp": 8, "fsdp": False, "mode": "mtp", "wp": 1}
    assert request["workload"] == {"seq_len": 2048, "micro_bsz": 2, "micro_num": 32, "global_batch": 512}


@pytest.mark.parametrize(
    ("own", "cut"),
    [
        ({}, (2, 32)),
        ({"data.micro_bsz": 4}, (4, 16)),
        ({"data.micro_num": 16}, (4, 16)),
        ({"data.micro_bsz": 1, "data.micro_num": 8}, (1, 8)),
        ({"for": {"7B": {"data.micro_bsz": 8}, "13B": {"data.micro_bsz": 1}}}, (8, 8)),
        ({"data.micro_bsz": 4, "for": {"7B-tp1-pp1-zero8": {"data.micro_bsz": 1}}}, (1, 64)),
    ],
)
def test_the_vendors_batch_settings(own, cut):
    case = cases.fit("7B", Layout(1, 1, 8), 8, settings=own)
    assert (case.micro_bsz, case.micro_num) == cut


def test_a_batch_may_be_smaller_never_larger():
    with pytest.raises(CaseError, match="4 x micro_num 32 x dp 8 = 1024 is more than the global batch of 512"):
        cases.fit("7B", Layout(1, 1, 8), 8, settings={"data.micro_bsz": 4, "data.micro_num": 32})
    with pytest.raises(CaseError, match=r"does not divide into shares of 24 .dp 8.*--global-batch 504"):
        cases.fit("7B", Layout(1, 1, 8), 8, settings={"data.micro_bsz": 3})


def test_a_pipeline_gets_enough_micro_batches_to_fill():
    case = cases.fit("7B", Layout(1, 2, 1), 512)
    assert (case.micro_bsz, case.micro_num) == (1, 2)
    with pytest.raises(CaseError, match="too few for 2 pipeline stages with micro_bsz 1"):
        cases.fit("7B", Layout(1, 2, 1), 1024)


def test_without_flash_attention_a_pipeline_joins_micro_bsz_micro_batches():
    for world in (2, 4):
        case = cases.fit("tiny", Layout(1, 2, 1), world)
        assert case.micro_num % case.micro_bsz == 0
        assert case.micro_num // case.micro_bsz >= 2
    own = {"data.micro_bsz": 16}
    assert cases.fit("7B", Layout(1, 2, 1), 8, settings=own).micro_num == 8
    with pytest.raises(CaseError, match="too few for 2 pipeline stages with micro_bsz 16"):
        cases.fit("7B", Layout(1, 2, 1), 8, settings=own | {"model.use_flash_attn": False})


def test_internlm2_grows_its_batch_with_the_ranks_as_its_owners_do():
    assert cases.fit("InternLM2-7B", Layout(1, 1, 8), 8).global_batch == 64
    assert cases.fit("InternLM2-7B", Layout(1, 1, 8), 64).global_batch == 512


@settings(deadline=None, max_examples=200)
@given(
    model=st.sampled_from(models.known()),
    layout=st.builds(
        Layout,
        st.sampled_from([1, 2, 4, 8]),
        st.sampled_from([1, 2, 4, 8]),
        st.sampled_from([-1, 1, 2, 4, 8]),
        fsdp=st.booleans(),
        mode=st.sampled_from(cases.MODES),
        wp=st.sampled_from([1, 2, 8]),
    ),
    world=st.integers(1, 1024),
    batch=st.one_of(st.none(), st.integers(1, 600)),
)
def test_whatever_fits_is_a_batch_that_the_rules_allow(model, layout, world, batch):
    try:
        case = cases.fit(model, layout, world, global_batch=batch)
    except CaseError:
        return
    own = models.global_batch(models.load(model), case.dp)
    assert case.global_batch == min(batch or own, own)
    assert case.dp * layout.tp * layout.pp == world
    assert case.micro_num >= layout.pp
    assert (
        parse(f"tp={layout.tp},pp={layout.pp},zero={layout.zero},fsdp={layout.fsdp},mode={layout.mode},wp={layout.wp}")
        == layout
    )
