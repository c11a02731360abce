"""Each criterion on crafted steps: the figures it names, the limits it keeps."""

from __future__ import annotations

import ast
import json
import math
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from acceptance.criteria import convergence, determinism, reference, startup, throughput, whole
from acceptance.criteria.codes import CODES, CRITERIA, FAILURE_CLASSES, FINDINGS
from acceptance.criteria.reference import CurveError, Reference
from acceptance.criteria.verdict import Requirement, Verdict, Workload
from fixtures.internlm.log import Memory, Reading
from fixtures.steps import COLUMNS, Steps
from tests.criteria import honest
from tests.criteria.test_mutations import check_form

WORKLOAD = honest.WORKLOAD
TOKENS = WORKLOAD.tokens_per_step / WORKLOAD.world
DONE = {"outcome": "complete", "exit_status": 0, "failure": None}


def run(n: int = 100, seed: int = 0, seconds: np.ndarray | None = None, loss: np.ndarray | None = None) -> Steps:
    rng = np.random.default_rng(seed)
    loss = honest.losses(rng, n) if loss is None else loss
    return honest.steps(rng, loss, honest.grad_norms(np.random.default_rng(5), loss), seconds=seconds)


def edited(steps: Steps, **columns: np.ndarray) -> Steps:
    return Steps(**{name: columns.get(name, getattr(steps, name)) for name in COLUMNS}, grad_norm=steps.grad_norm)


def at_speed(tgs: float, n: int = 100, sigma: float = 0.01, seed: int = 0) -> Steps:
    noise = honest.autoregressive(np.random.default_rng(seed), (n,), 0.3)
    noise[10:] -= noise[10:].mean()
    return run(n, seconds=TOKENS / tgs * (1 + sigma * noise))


def values(verdict: Verdict) -> dict[str, float]:
    return {m.name: m.value for m in verdict.measurements}


# --- codes -----------------------------------------------------------------------------------------------------


def test_every_code_in_the_sources_is_listed():
    """The codes that criteria spell out, with a criterion's name or (a Fault's) without one."""
    folder = Path(whole.__file__).parent
    spelled, suffixes = set(), set()
    for path in (folder / f"{name}.py" for name in (*CRITERIA, "whole")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = getattr(call.func, "id", getattr(call.func, "attr", ""))
            texts = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if name == "Verdict" and len(texts) > 1:
                spelled.add(texts[1])
            elif name == "Fault":
                suffixes.add((path.stem, texts[0]))
            elif name == "Finding":
                assert texts[0] in FINDINGS
    assert len(spelled) > 10
    assert spelled <= set(CODES)
    for stem, code in suffixes:
        assert any(f"{criterion}-{code}" in CODES for criterion in (CRITERIA if stem == "whole" else [stem]))


@pytest.mark.parametrize("name", FAILURE_CLASSES)
def test_every_failure_class_has_its_code(name):
    failure = {"class": name, "summary": "It broke.", "advice": "Mend it.", "rank": 3, "quoted": ["line"]}
    end = {"outcome": "failed", "exit_status": 0, "failure": failure}
    verdict = startup.judge(Reading(run(7)), end, 100, WORKLOAD)
    assert (verdict.outcome, verdict.code) == ("fail", f"startup-{FAILURE_CLASSES[name]}")
    assert verdict.reason == "After 7 of 100 steps: It broke (rank 3). Mend it."
    assert verdict.quoted == ("line",)
    check_form(verdict)


# --- startup ---------------------------------------------------------------------------------------------------


def test_startup_passes_with_its_figures():
    reading = Reading(run(), memory=MappingProxyType({0: Memory(61.25, 70.0, 50)}))
    verdict = startup.judge(reading, {**DONE, "seconds_to_first_step": 41.5}, 100, WORKLOAD, {0: 79.1})
    assert (verdict.outcome, verdict.code) == ("pass", "startup-passed")
    assert verdict.reason == (
        "All 100 steps ran, none skipped; peak memory 61.2 of 79.1 GiB on rank 0, headroom 17.8 GiB (22.6%)."
    )
    assert [(m.name, m.value, m.comparator, m.limit) for m in verdict.measurements] == [
        ("steps", 100, "==", 100),
        ("skipped_updates", 0, "==", 0),
        ("seconds_to_first_step", 41.5, None, None),
        ("peak_memory_rank_0", 61.25, "<=", 79.1),
        ("headroom_rank_0", pytest.approx(17.85), None, None),
        ("headroom_percent_rank_0", pytest.approx(100 * 17.85 / 79.1), None, None),
    ]
    assert verdict.measurements[-1].source == "device memory - peak memory, by its lines up to step 50"


def test_the_reason_names_the_rank_that_has_the_least_headroom():
    peaks = {0: Memory(61.0, 70.0, 5), 1: Memory(30.0, 40.0, 5), 2: Memory(66.0, 70.0, 5)}
    reading = Reading(run(), memory=MappingProxyType(peaks))
    verdict = startup.judge(reading, DONE, 100, WORKLOAD, {0: 80.0, 1: 32.0})
    assert "peak memory 30.0 of 32.0 GiB on rank 1, headroom 2.0 GiB (6.2%)" in verdict.reason
    names = [m.name for m in verdict.measurements]
    assert "headroom_rank_1" in names, names
    assert "headroom_rank_2" not in names, "nobody knows its device"
    assert startup.judge(reading, DONE, 100, WORKLOAD).reason.endswith("; peak memory 66.0 GiB.")


def out_of_memory(line, rank=0):
    failure = {"class": "out of memory", "summary": "out of memory", "rank": rank, "quoted": ["elsewhere", line]}
    reading = Reading(run(1), memory=MappingProxyType({0: Memory(40.9, 56.1, 0), 1: Memory(41.0, 56.1, 0)}))
    return startup.judge(reading, {"outcome": "failed", "failure": failure}, 100, WORKLOAD, {0: 79.6, 1: 79.6})


def test_out_of_memory_says_what_was_asked_for_and_what_was_free():
    verdict = out_of_memory(
        "rank 0, logs/x:129: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB. GPU 0 has a "
        "total capacity of 79.18 GiB of which 106.19 MiB is free. Including non-PyTorch memory, this"
    )
    assert "It asked for 172.00 MiB where 106.19 MiB of 79.18 GiB was free." in verdict.reason
    (asked,) = [m for m in verdict.measurements if m.name == "memory_asked_rank_0"]
    assert (asked.value, asked.comparator, asked.limit) == (172 / 1024, "<=", pytest.approx(106.19 / 1024))
    left = values(verdict)
    assert left["headroom_rank_0"] == pytest.approx(106.19 / 1024), "what its diagnosis lines leave was not enough"
    assert left["headroom_percent_rank_0"] == pytest.approx(100 * 106.19 / 1024 / 79.6)
    assert left["headroom_rank_1"] == pytest.approx(38.6)
    check_form(verdict)


def test_out_of_memory_without_figures_claims_no_headroom():
    verdict = out_of_memory("torch.OutOfMemoryError: CUDA out of memory")
    assert "asked" not in verdict.reason
    assert [m.name for m in verdict.measurements if m.name.endswith("rank_0")] == ["peak_memory_rank_0"]
    verdict = out_of_memory("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes.", None)
    assert "It asked for 4294967296 bytes." in verdict.reason
    assert [(m.value, m.limit) for m in verdict.measurements if m.name == "memory_asked"] == [(4.0, None)]


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (1.9, "startup-passed"),
        (5.77, "startup-passed"),
        (5.78, "startup-weights-not-loaded"),
        (10.56, "startup-weights-not-loaded"),
        (11.64, "startup-weights-not-loaded"),
        (float("nan"), "startup-not-finite"),
    ],
)
def test_fine_tuning_starts_from_trained_weights(first, code):
    steps = run()
    loss = np.concatenate([[first], steps.loss[1:]])
    workload = replace(WORKLOAD, ignorant_loss=math.log(103168))
    verdict = startup.judge(Reading(replace(steps, loss=loss)), DONE, 100, workload)
    assert verdict.code == code
    limit = next(m for m in verdict.measurements if m.name == "first_loss")
    assert (limit.comparator, limit.limit) == ("<", pytest.approx(5.772, abs=1e-3))
    assert startup.judge(Reading(replace(steps, loss=loss)), DONE, 100, WORKLOAD).code != "startup-weights-not-loaded"


def test_startup_takes_no_memory_that_the_device_lacks():
    reading = Reading(run(), memory=MappingProxyType({0: Memory(95.0, 96.0, 5)}))
    assert startup.judge(reading, DONE, 100, WORKLOAD, {0: 79.1}).code == "startup-memory-contradicted"


def test_startup_wants_exactly_the_steps():
    assert startup.judge(Reading(run(101)), DONE, 100, WORKLOAD).code == "startup-too-many-steps"
    assert startup.judge(Reading(run(99)), DONE, 100, WORKLOAD).code == "startup-too-few-steps"


def test_what_a_run_left_in_use_is_said_and_what_nobody_looked_at():
    held = {"device": "GPU-1", "memory_before": 1 << 30, "memory_after": 12 << 30}
    verdict = startup.judge(Reading(run()), DONE | {"devices": [held], "ports_left": [29500]}, 100, WORKLOAD)
    (finding,) = verdict.findings
    assert (verdict.outcome, finding.code) == ("pass", "left-behind")
    assert "port 29500; device GPU-1: 12.00 GiB in use, 1.00 before" in finding.text
    assert startup.judge(Reading(run()), DONE | {"devices": []}, 100, WORKLOAD).findings == ()
    (finding,) = startup.judge(Reading(run()), DONE | {"devices_unseen": "no tool"}, 100, WORKLOAD).findings
    assert (finding.code, "no tool" in finding.text) == ("release-not-seen", True)


def test_logs_brought_from_elsewhere_say_that_the_end_is_not_on_record():
    verdict = startup.judge(Reading(run()), {}, 100, WORKLOAD)
    assert (verdict.outcome, [f.code for f in verdict.findings]) == ("pass", ["end-not-recorded"])
    verdict = startup.judge(Reading(run(60)), {}, 100, WORKLOAD)
    assert (verdict.outcome, verdict.code) == ("fail", "startup-too-few-steps")


# --- throughput ------------------------------------------------------------------------------------------------


def judged(steps: Steps, minimum: float) -> Verdict:
    verdict = throughput.judge(steps, WORKLOAD, Requirement(minimum, throughput.UNIT, "test"))
    check_form(verdict)
    return verdict


def test_throughput_three_outcomes():
    steps = at_speed(4000)
    assert judged(steps, 3960).code == "throughput-passed"
    assert judged(steps, 4040).code == "throughput-below-minimum"
    uncertain = judged(steps, 4003)
    assert (uncertain.outcome, uncertain.code) == ("inconclusive", "throughput-uncertain")
    assert "steps would settle it" in uncertain.reason


def test_sustained_is_tokens_over_time_not_a_mean_of_rates():
    seconds = np.full(100, 30.0) + 0.01 * np.sin(np.arange(100))
    seconds[50::10] = 90.0  # slow steps weigh by their time
    verdict = judged(run(seconds=seconds), 1.0)
    assert values(verdict)["tgs"] == pytest.approx(90 * TOKENS / seconds[10:].sum(), rel=1e-5)
    assert values(verdict)["tgs"] < np.mean(TOKENS / seconds[10:]) * 0.97


def test_the_reason_names_bounds_and_minimum():
    verdict = judged(at_speed(3950), 4078)
    lower, upper = values(verdict)["tgs_lower95"], values(verdict)["tgs_upper95"]
    assert verdict.reason.startswith(
        f"TGS 3,950 (95 % one-sided bounds {lower:,.0f} to {upper:,.0f}) is below the minimum 4,078 tokens/GPU/s."
    )
    assert 3930 < lower < 3950 < upper < 3970


def test_the_steps_that_would_settle_it_do():
    """Noise independent, gap 0.15 %: a run of the length that the verdict asks for is settled."""
    steps = at_speed(4000)
    result = throughput.sustained(throughput.step_seconds(steps, WORKLOAD)[10:], WORKLOAD)
    needed = throughput.steps_needed(result, 3994.0)
    assert 90 < needed < 2000
    assert judged(at_speed(4000, n=2 * needed), 3994).outcome == "pass"
    assert throughput.steps_needed(result, result.tgs) is None


def test_too_noisy_is_said():
    verdict = judged(at_speed(4000, sigma=0.15), 4005)
    assert verdict.outcome == "inconclusive"
    assert "too much for a run of 100 steps" in verdict.reason
    assert "too-noisy" in [f.code for f in verdict.findings]


def test_warm_up_does_not_count():
    steps = at_speed(4000)
    slow = throughput.step_seconds(steps, WORKLOAD).copy()
    slow[:10] *= 3
    assert judged(run(seconds=slow), 3960).outcome == "pass"


@pytest.mark.parametrize("minimum", [None, Requirement(float("nan"), "", ""), Requirement(float("inf"), "", "")])
def test_no_minimum_is_not_a_pass(minimum):
    verdict = throughput.judge(at_speed(4000), WORKLOAD, minimum)
    assert (verdict.outcome, verdict.code) == ("not run", "throughput-no-requirement")
    assert values(verdict)["tgs"] == pytest.approx(4000, rel=1e-4)


def test_findings_name_what_the_mean_hides_and_decide_nothing():
    base = throughput.step_seconds(at_speed(4000), WORKLOAD)
    k = np.arange(100)
    for code, factor in {
        "drift": 1 + 0.08 * (k > 55),
        "periodic-stalls": 1 + 2.0 * (k % 20 == 5),
        "rare-stalls": 1 + 2.0 * np.isin(k, [20, 33, 80]),
        "bimodal": 1 + 0.3 * (k * 7919 % 10 < 4),
        "slow-start": np.where(k < 10, 30, 1),
    }.items():
        verdict = judged(run(seconds=base * factor), 2000)
        assert verdict.outcome == "pass"
        assert code in [f.code for f in verdict.findings], code
    assert not judged(run(seconds=base), 2000).findings


def test_a_pause_outside_the_timer_is_a_finding():
    steps = at_speed(4000)
    paused = edited(steps, time=steps.time + 600.0 * (np.arange(100) > 50))
    verdict = judged(paused, 3960)
    assert (verdict.outcome, [f.code for f in verdict.findings]) == ("pass", ["pauses"])


def test_a_missed_minimum_names_the_finding():
    base = throughput.step_seconds(at_speed(4000), WORKLOAD)
    verdict = judged(run(seconds=base * (1 + 0.08 * (np.arange(100) > 55))), 4000)
    assert verdict.outcome == "fail"
    assert "slower than at the beginning" in verdict.reason


# --- determinism -----------------------------------------------------------------------------------------------


def test_the_first_divergence_is_named_in_ulps():
    first, second = run(seed=1, loss=run().loss), run(seed=2, loss=run().loss)
    loss = second.loss.copy()
    for _ in range(3):
        loss[42] = np.nextafter(np.float32(loss[42]), np.float32(np.inf))
    verdict = determinism.judge(first, edited(second, loss=loss), "bitwise", WORKLOAD)
    assert (verdict.outcome, verdict.code) == ("fail", "determinism-diverged")
    assert f"diverge at step 42: loss is {float(first.loss[42])!r} and {float(loss[42])!r}, " in verdict.reason
    assert "3 float32 ulps apart (1 of 100 steps differ)" in verdict.reason
    assert values(verdict)["bit_equal_steps"] == 42


def test_equal_repeats_pass_and_say_that_no_reference_was_compared():
    verdict = determinism.judge(run(seed=1, loss=run().loss), run(seed=2, loss=run().loss), "bitwise", WORKLOAD)
    check_form(verdict)
    assert (verdict.outcome, [f.code for f in verdict.findings]) == ("pass", ["no-reference"])
    assert "nothing was compared with another machine" in verdict.reason


def test_ulps():
    one = np.float32(1)
    assert determinism.ulps(1.0, 1.0) == 0
    assert determinism.ulps(1.0, float(np.nextafter(one, np.float32(2)))) == 1
    assert determinism.ulps(float(np.nextafter(one, np.float32(0))), float(np.nextafter(one, np.float32(2)))) == 2
    assert determinism.ulps(-1e-45, 1e-45) == 2


def test_distance_sees_an_offset_that_the_variance_misses():
    b = np.linspace(10.0, 5.0, 100)
    offset = determinism.distance(b * 1.0 + 0.5, b)
    assert offset.variance == pytest.approx(0, abs=1e-20)
    assert offset.window_bias == pytest.approx(0.1 * np.mean(5.0 / b[49:59]))
    assert offset.mean_error > determinism.MEAN_ERROR
    assert (offset.window_at, offset.window_limit) == (49, determinism.WINDOW_BIAS), "the last of the stricter half"


def test_the_window_that_comes_closest_to_its_limit_counts():
    b = np.full(100, 5.0)
    a = b.copy()
    a[20:30], a[80:90] = 5.0 * 1.019, 5.0 * 1.04
    found = determinism.distance(a, b)
    assert (found.window_at, found.window_limit, found.window_bias) == (20, 0.02, pytest.approx(0.019))
    a[80:90] = 5.0 * 1.06
    found = determinism.distance(a, b)
    assert (found.window_at, found.window_limit, found.window_bias) == (80, 0.05, pytest.approx(0.06))


@pytest.mark.parametrize("seed", range(5))
def test_another_family_is_compared_within_its_band_and_the_same_one_within_tolerance(seed):
    first, second = run(seed=1, loss=run().loss), run(seed=2, loss=run().loss)
    curve = honest.other_family(np.random.default_rng(seed), first.loss)
    far = Reference(curve, "reference.json", "another")
    assert determinism.judge(first, second, "bitwise", WORKLOAD, reference=far, family="this").outcome == "pass"
    late = curve.copy()
    late[95] *= 1.3  # one late step alone may be far away
    verdict = determinism.judge(first, second, "bitwise", WORKLOAD, reference=replace(far, losses=late), family="this")
    assert verdict.outcome == "pass"
    early = curve.copy()
    early[1] *= 1.05  # an early one may not
    verdict = determinism.judge(first, second, "bitwise", WORKLOAD, reference=replace(far, losses=early), family="this")
    assert verdict.code == "determinism-reference-missed"
    near = Reference(first.loss * 1.03, "reference.json", "this")
    verdict = determinism.judge(first, second, "bitwise", WORKLOAD, reference=near, family="this")
    assert verdict.code == "determinism-reference-missed"
    assert "reference_mean_relative_error is 0.0291 where 0.02 is allowed" in verdict.reason


def test_a_short_comparison_uses_only_its_steps():
    first, second = run(seed=1, loss=run().loss), run(seed=2, loss=run().loss)
    loss = second.loss.copy()
    loss[60] *= 1.1
    verdict = determinism.judge(first, edited(second, loss=loss), "bitwise", WORKLOAD, length=50)
    assert (verdict.outcome, values(verdict)["bit_equal_steps"]) == ("pass", 50)


# --- references ------------------------------------------------------------------------------------------------


def ours(**changes) -> dict:
    key = dict.fromkeys(reference.KEY, 1)
    return {**reference.as_json([3.0, 2.0, 1.5], key, {"family": "nvidia"}), **changes}


def test_references_in_both_formats():
    parsed = reference.parse(json.loads(json.dumps(ours())), "a.json")
    assert (list(parsed.losses), parsed.family, set(parsed.key)) == ([3.0, 2.0, 1.5], "nvidia", set(reference.KEY))
    lab = reference.parse({"step0": 3.0, "step2": 1.5, "step1": 2.0}, "lab.json")
    assert (list(lab.losses), lab.family) == ([3.0, 2.0, 1.5], "")
    with pytest.raises(ValueError, match="read-only"):
        lab.losses[0] = 1


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([1.0], "JSON object"),
        ({}, "neither"),
        (ours(schema=2), "neither"),
        (ours(losses=[]), "no losses"),
        (ours(losses=[1.0, "2"]), "step 1 is '2'"),
        (ours(losses=[1.0, float("nan")]), "step 1 is nan"),
        (ours(losses=[True]), "step 0 is True"),
        (ours(key={}), "`key` must hold"),
        (ours(provenance={}), "`family`"),
        ({"step0": 1.0, "step2": 2.0}, "`step1` is missing"),
        ({"step0": 1.0, "note": "x"}, "'note' where only"),
        ({"step0": -1.0}, "above 0"),
        ({"step0": 1.0, "step01": 1.0}, "'step01'"),
    ],
)
def test_what_is_no_reference_is_one_clear_error(value, what):
    with pytest.raises(CurveError, match=what):
        reference.parse(value, "a.json")


# --- convergence -----------------------------------------------------------------------------------------------


def converged(
    steps: Steps, maximum: float | None = 0.014, steps_due: int = 1200, hours: float | None = None
) -> Verdict:
    limit = None if maximum is None else Requirement(maximum, convergence.UNIT, "the lab")
    verdict = convergence.judge(steps, WORKLOAD, limit, steps_due, hours)
    check_form(verdict)
    return verdict


def test_final_loss_is_the_median_of_the_last_hundred_or_tenth():
    assert convergence.final_loss(np.arange(2000.0)) == np.median(np.arange(1900, 2000))
    assert convergence.final_loss(np.arange(400.0)) == np.median(np.arange(360, 400))
    assert convergence.final_loss(np.array([3.0, 2.0])) == 2.0


def test_the_maximum_itself_is_not_below_it():
    steps = run(1200)
    final = convergence.final_loss(steps.loss)
    assert converged(steps, final).code == "convergence-above-maximum"
    assert converged(steps, float(np.nextafter(final, 1))).code == "convergence-passed"


def test_hours_count_where_they_come_first():
    steps = run(1000)
    ran = float(steps.time[-1] - steps.time[0]) / 3600
    reached = converged(steps, hours=ran * 0.99)
    assert reached.outcome == "pass"
    assert values(reached)["hours"] == pytest.approx(ran)
    assert converged(steps, hours=ran * 1.01).code == "convergence-too-few-steps"
    assert converged(steps).code == "convergence-too-few-steps"


@pytest.mark.parametrize("change", [3600.0, -3600.0])
def test_an_hour_of_daylight_saving_is_no_time_that_passed(change):
    steps = run(1000)
    ran = float(steps.time[-1] - steps.time[0]) / 3600
    changed = edited(steps, time=steps.time + change * (np.arange(1000) >= 400))
    assert converged(changed, hours=ran * 0.999).outcome == "pass"
    assert converged(changed, hours=ran * 1.001).code == "convergence-too-few-steps"


def test_a_clock_that_goes_back_again_and_again_is_no_daylight_saving():
    steps = run(1000)
    ran = float(steps.time[-1] - steps.time[0]) / 3600
    back = edited(steps, time=steps.time - 3600.0 * (np.arange(1000) >= 400) - 3600.0 * (np.arange(1000) >= 600))
    assert converged(back, hours=ran * 0.999).code == "convergence-too-few-steps"


def test_a_pause_counts_as_hours_of_the_run():
    steps = run(1000)
    ran = float(steps.time[-1] - steps.time[0]) / 3600
    paused = edited(steps, time=steps.time + 1800.0 * (np.arange(1000) >= 400))
    assert converged(paused, hours=ran + 0.499).outcome == "pass"


def test_health_of_the_trajectory():
    n = np.arange(1200)
    healthy = 11.0 * np.exp(-n / 100) + 0.01
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal(1200)
    assert convergence.findings(healthy * noise) == ()
    for code, loss in {
        "spikes": np.where(n == 700, healthy * 50, healthy),
        "plateau": np.where(n < 400, 11.0, 11.0 * np.exp(-(n - 400) / 100) + 0.01),
        "rising": healthy + np.maximum(0, n - 900) * 0.001,
    }.items():
        assert [f.code for f in convergence.findings(loss * noise)] == [code]


# --- whole -----------------------------------------------------------------------------------------------------


def test_tokens_per_step_name_both_batches():
    steps = run()
    fault = whole.fault(edited(steps, consumed_tokens=steps.consumed_tokens * 2), 100, WORKLOAD)
    assert fault.reason == (
        "Step 0 has consumed 2,097,152 tokens, a global batch of 1,024 samples, "
        "but the request fixes 512 samples of 2,048 tokens."
    )


def test_workloads_that_differ_are_no_workload_of_this_run():
    other = Workload(4096, 256, 8, WORKLOAD.tflops_per_tgs)
    assert whole.fault(run(), 100, other) is None  # tokens are the same: nothing in the steps tells
    assert whole.fault(run(), 100, Workload(4096, 512, 8, 1.0)).code == "tokens-per-step"
