"""TFLOPS per TGS, as InternLM reckons it."""

import pytest

from fixtures import cases
from fixtures.cases import Layout
from fixtures.internlm import flops
from tests.internlm.requests import request_of


@pytest.mark.parametrize(
    ("model", "checkpoint", "figure"),
    [("7B", False, 0.0444114), ("7B", True, 0.0583700), ("7B", 0.25, 0.0583700), ("13B", True, 0.11054)],
)
def test_the_models_of_the_procedure(model, checkpoint, figure):
    case = cases.fit(model, Layout(1, 1, 8), 8, settings={"model.checkpoint": checkpoint})
    found = flops.workload(request_of(case, accelerator="nvidia"))
    assert found.tflops_per_tgs == pytest.approx(figure, abs=0.5e-5 if model == "13B" else 0.5e-7)


def test_the_procedures_sample_line_fits_13b_with_checkpointing():
    case = cases.fit("13B", Layout(1, 1, 8), 8, settings={"model.checkpoint": True})
    found = flops.workload(request_of(case, accelerator="nvidia"))
    assert 491.55 * found.tflops_per_tgs == pytest.approx(54.33760564166562, rel=1e-5)


def test_a_workload_says_what_the_steps_must_agree_with():
    found = flops.workload(request_of(cases.fit("7B", Layout(2, 1, 4), 16), accelerator="nvidia"))
    assert (found.seq_len, found.global_batch, found.world) == (2048, 512, 16)
    assert found.entropy_floor == pytest.approx(0.0022, abs=5e-5)


def test_an_older_internlm_has_samples_of_varying_length():
    case = cases.fit("7B", Layout(1, 1, 8), 8)
    found = flops.workload(request_of(case, accelerator="nvidia", generation="v0.2.1"))
    assert found.entropy_floor == pytest.approx(0.0043, abs=5e-5)


def test_nothing_is_known_of_the_loss_on_the_vendors_text():
    case = cases.fit("7B", Layout(1, 1, 8), 8, dataset="sft")
    found = flops.workload(request_of(case, accelerator="nvidia"))
    assert found.entropy_floor == 0.0
    assert found.ignorant_loss == pytest.approx(11.544, abs=1e-3)
    assert flops.workload(request_of(cases.fit("7B", Layout(1, 1, 8), 8))).ignorant_loss is None
