"""Tonight against the nights before: what is called a change, since when, and what is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acceptance.criteria import regression
from acceptance.criteria.codes import CODES
from acceptance.criteria.regression import FIGURES, Night, compare, judge, levels, overall, student
from benchmarks import regression as simulated

LOSSES = np.linspace(7, 0.1, 100)


def nights(factors, *, memory=None, startup=None, curve=None, losses=None, context=None):
    """Nights whose TGS is 4000 x the factors; the other arguments are functions of the night's number."""
    return [
        Night(
            night=i + 1,
            label=f"day {i}",
            started=i * 86400.0,
            figures={
                "tgs": None if factor is None else 4000 * factor,
                "memory": memory(i) if memory else 60.0,
                "startup": startup(i) if startup else 40.0,
            },
            curve=curve(i) if curve else "same",
            repeats=True,
            losses=losses(i) if losses else LOSSES,
            context=context(i) if context else {"driver": "550", "suite": "abc"},
        )
        for i, factor in enumerate(factors)
    ]


def noisy(count, change=lambda i: 1.0, seed=3, noise=0.01):
    rng = np.random.default_rng(seed)
    return [change(i) * math.exp(x) for i, x in enumerate(rng.normal(0, noise, count))]


def of(found, figure):
    return next(c for c in found if c.figure == figure)


def test_quiet_nights_are_unchanged():
    verdict = judge(nights(noisy(60)))
    assert (verdict.outcome, verdict.code) == ("pass", "regression-unchanged")


@pytest.mark.parametrize("count", [1, 2, regression.FEWEST])
def test_too_few_nights_are_no_pass(count):
    verdict = judge(nights(noisy(count), curve=lambda i: None))
    assert (verdict.outcome, verdict.code) == ("not run", "regression-too-few-nights")


def test_no_night_is_no_pass():
    assert judge([]).outcome == "not run"


def test_a_drop_is_a_regression_with_its_night_its_size_and_what_changed_with_it():
    drivers = nights(noisy(30, lambda i: 0.95 if i >= 25 else 1.0), context=lambda i: {"driver": str(550 + (i >= 25))})
    verdict = judge(drivers)
    tgs = of(compare(drivers), "tgs")
    assert (verdict.outcome, verdict.code) == ("fail", "regression-tgs")
    assert tgs.since.label == "day 25"
    assert tgs.low < -0.05 < tgs.high
    assert tgs.between == {"driver": ("550", "551")}
    assert "day 25" in verdict.reason
    assert "driver (550 to 551)" in verdict.reason


def test_a_regression_stays_until_its_level_is_pinned():
    rows = nights(noisy(70, lambda i: 0.95 if i >= 25 else 1.0))
    assert judge(rows).code == "regression-tgs"
    assert judge(rows, accepted=24).code == "regression-tgs"
    assert judge(rows, accepted=40).code == "regression-unchanged"


def test_a_pin_is_compared_as_it_was():
    rows = nights(noisy(70, lambda i: 0.95 if i >= 25 else 1.0))
    assert judge(rows, accepted=60, cut=True).code == "regression-unchanged"
    old = of(compare(rows, accepted=20, cut=True), "tgs")
    assert old.outcome == "regressed"
    assert old.baseline == pytest.approx(4000, rel=0.01)


def test_figures_that_come_back_are_unchanged():
    rows = nights(noisy(80, lambda i: 0.95 if 25 <= i < 50 else 1.0))
    assert judge(rows[:45]).code == "regression-tgs"
    assert judge(rows).code == "regression-unchanged"


def test_an_improvement_is_told_and_then_is_the_baseline():
    rows = nights(noisy(80, lambda i: 1.0 if i < 25 else 1.06 if i < 60 else 1.0))
    assert judge(rows[:30]).code == "regression-improved"
    assert judge(rows[:30]).outcome == "pass"
    assert judge(rows[:55]).code == "regression-unchanged"
    assert judge(rows).code == "regression-tgs"


def test_one_bad_night_is_told_once_and_does_not_count_as_noise():
    rows = nights(noisy(60, lambda i: 0.85 if i == 30 else 1.0))
    assert judge(rows[:31]).code == "regression-tgs"
    assert judge(rows[:32]).code == "regression-unchanged"
    values = [night.figures["tgs"] for night in rows]
    assert levels(values, -1, 0.001).noise < 0.012


@pytest.mark.parametrize(("figure", "code"), [("memory", "regression-memory"), ("startup", "regression-startup")])
def test_memory_and_start_up_grow_for_the_worse(figure, code):
    grows = {figure: lambda i: (60 if i < 30 else 63) * (1 + 0.002 * (i % 3))}
    assert judge(nights(noisy(35), **grows)).code == code
    shrinks = {figure: lambda i: (63 if i < 30 else 60) * (1 + 0.002 * (i % 3))}
    assert judge(nights(noisy(35), **shrinks)).code == "regression-improved"


def test_figures_without_any_noise_are_not_split_over_nothing():
    steady = nights([1.0] * 30, memory=lambda i: 60.0 + 0.01 * (i == 29))
    assert judge(steady).code == "regression-unchanged"


@pytest.mark.parametrize("tonight", [None, math.nan, 0.0])
def test_a_night_without_the_figure_is_no_pass(tonight):
    rows = nights([*noisy(30), tonight])
    verdict = judge(rows)
    assert (verdict.outcome, verdict.code) == ("fail", "regression-no-figure")
    assert "day 29" in verdict.reason


def test_losses_name_the_first_night_and_step_that_changed():
    other = LOSSES.copy()
    other[17] = np.nextafter(other[17], 8)
    rows = nights(noisy(30), curve=lambda i: "new" if i >= 22 else "old", losses=lambda i: other if i >= 22 else LOSSES)
    verdict = judge(rows)
    assert (verdict.outcome, verdict.code) == ("fail", "regression-loss-changed")
    assert "since the night of day 22" in verdict.reason
    assert "step 17" in verdict.reason
    assert repr(float(other[17])) in verdict.reason
    assert judge(rows, accepted=25).code == "regression-unchanged"
    assert [p.night.label for p in regression.loss_changes(rows)] == ["day 22"]


def test_losses_that_change_back_and_forth_name_the_latest_change():
    rows = nights(noisy(30), curve=lambda i: "b" if i in (10, 11, 28, 29) else "a")
    assert of(compare(rows), "losses").since.label == "day 28"
    rows = nights(noisy(30), curve=lambda i: "b" if i in (10, 11) else "a")
    assert of(compare(rows), "losses").outcome == "unchanged"


def test_grad_norm_alone_and_lengths_are_told_as_such():
    rows = nights(noisy(20), curve=lambda i: str(i >= 19))
    assert "grad_norm differs" in of(compare(rows), "losses").text
    rows = nights(noisy(20), curve=lambda i: str(i >= 19), losses=lambda i: LOSSES[: 90 if i >= 19 else 100])
    assert "100 and 90 steps" in of(compare(rows), "losses").text


def test_nights_that_do_not_repeat_their_own_losses_are_not_compared():
    rows = nights(noisy(20), curve=lambda i: str(i))
    rows = [Night(**{**vars(night), "repeats": False}) for night in rows]
    losses = of(compare(rows), "losses")
    assert losses.outcome == "too few nights"
    assert "does not repeat" in losses.text


def test_every_code_is_listed():
    spelled = {figure.code for figure in FIGURES}
    for rows in (
        nights(noisy(30)),
        nights(noisy(3)),
        nights([*noisy(30), None]),
        nights(noisy(30, lambda i: 1 + 0.1 * (i > 25))),
        nights(noisy(30), curve=lambda i: str(i > 25)),
    ):
        spelled |= {c.code for c in compare(rows)}
    assert spelled <= set(CODES)
    assert {code for code in CODES if code.startswith("regression-")} == spelled


def test_measurements_carry_tonight_the_baseline_and_the_interval():
    verdict = judge(nights(noisy(30)))
    names = {m.name for m in verdict.measurements}
    assert {"tgs", "tgs_baseline", "tgs_change", "tgs_change_low95", "tgs_change_high95"} <= names


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=60), st.floats(0.01, 100))
@settings(max_examples=60, deadline=None)
def test_levels_cover_the_nights_in_order_whatever_the_unit(values, unit):
    found = levels(values, -1, 0.001)
    assert found.levels[0].start == 0
    assert found.levels[-1].stop == len(values)
    assert all(a.stop == b.start for a, b in zip(found.levels, found.levels[1:], strict=False))
    assert all(1 <= level.nights <= level.stop - level.start for level in found.levels)
    scaled = levels([value * unit for value in values], -1, 0.001)
    assert [(level.start, level.stop) for level in scaled.levels] == [(le.start, le.stop) for le in found.levels]


@given(st.lists(st.floats(0.5, 2.0), min_size=13, max_size=40))
@settings(max_examples=40, deadline=None)
def test_overall_is_never_better_than_any_figure(factors):
    found = compare(nights(factors))
    worst = overall(found)
    if any(c.outcome == "regressed" for c in found):
        assert worst.outcome == "regressed"


@pytest.mark.parametrize(
    ("p", "freedom", "value"),  # printed tables of Student's t
    [(0.975, 10, 2.228), (0.975, 60, 2.000), (0.995, 10, 3.169), (0.999, 20, 3.552), (0.9995, 30, 3.646)],
)
def test_student_agrees_with_printed_tables(p, freedom, value):
    assert student(p, freedom) == pytest.approx(value, rel=2e-3)


def test_false_alarms_and_found_drops_in_a_small_simulation():
    """The promised figures, over 2,000 histories, are `python -m benchmarks.regression`'s."""
    rng = np.random.default_rng(11)
    quiet = np.array([simulated.states(row) for row in simulated.independent(rng, 150, 60)])
    assert ((quiet[:, 1:] != 0) & (quiet[:, :-1] == 0)).mean() < 1 / 200
    assert simulated.power(simulated.independent(rng, 150, 25), 20) > 0.96
