"""Our dummy data is InternLM's, bit by bit; its entropy floor is what the samples' own counts say."""

import math
from collections import Counter

import pytest

from fixtures.internlm.dummy import PERIODS, REPEATS, DummyDataset, entropy_floor
from tests.internlm.training import ask


def test_samples_and_lengths_equal_internlms():
    answers = ask("dummy")
    assert len(answers) == 12
    for case, answer in answers.items():
        assert answer["samples"][0] == answer["samples"][1] > 0, case
        assert answer["tokens"] > 0, case
        assert answer["unlike"] == [], case
        assert answer["lengths"], case
        assert answer["name"], case


@pytest.mark.parametrize(
    ("seq_len", "fixed", "floor"),
    [
        (128, True, 0.0404),
        (128, False, 0.0418),
        (2048, True, 0.0022),
        (2048, False, 0.0043),
        (32768, True, 0.00014),
        (32768, False, 0.0033),
    ],
)
def test_floor(seq_len, fixed, floor):
    assert entropy_floor(seq_len, fixed) == pytest.approx(floor, rel=0.04)


@pytest.mark.parametrize("fixed", [True, False])
def test_floor_is_what_the_samples_say(fixed):
    """From a million samples: the entropy of the second token given the first, over the mean length."""
    data = DummyDataset(1_000_000, 128, fixed)
    pairs = Counter(zip(data.period.tolist(), data.repeats.tolist(), strict=True))
    firsts = Counter(data.period.tolist())
    nats = -sum(count * math.log(count / firsts[n]) for (n, _), count in pairs.items()) / len(data)
    assert set(firsts) == set(PERIODS)
    assert nats / data.lengths.mean() == pytest.approx(entropy_floor(128, fixed), rel=2e-3)


def test_no_floor_is_above_what_a_single_sample_costs():
    """Even a batch of the cheapest samples, label 0 left out of the mean as InternLM does, stays above it."""
    for seq_len in (128, 2048):
        for fixed in (True, False):
            costs = []
            for n in PERIODS:
                doubled = [r * 2 ** max(0, math.ceil(math.log2(seq_len / (n * r)))) for r in REPEATS]
                rows = doubled if fixed else list(REPEATS)
                counts = Counter(rows)
                nats = -sum(c / len(rows) * math.log(c / len(rows)) for c in counts.values())
                bodies = [min(n * r, seq_len - 2) for r in rows]
                labels = sum(1 + body - math.ceil(body / n) for body in bodies) / len(rows)
                costs.append((nats, labels))
            mean = sum(n for n, _ in costs) / sum(labels for _, labels in costs)
            assert entropy_floor(seq_len, fixed) < mean


def test_floor_needs_room_for_a_sample():
    with pytest.raises(ValueError, match="sequence length 1"):
        entropy_floor(1, True)
