"""Text from a machine under test, and numbers for a reader."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.text import clean, duration, number, pair, script_json

HOSTILE = "".join(map(chr, [*range(0x20), 0x7F, 0x9B, 0x200E, 0x202E, 0x2066, 0xFEFF, 0xD800, 0xE0041, 0x2028]))


def test_no_invisible_character_survives():
    shown = clean(HOSTILE)
    assert "\x1b" not in shown
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t"]
    assert "␀" in shown
    assert "‹U+202E›" in shown


@given(st.text(st.characters(codec=None)))
def test_cleaned_text_can_always_be_written_and_cleaning_again_changes_nothing(text):
    shown = clean(text)
    assert shown.encode("utf-8").decode() == shown
    assert clean(shown, 10**9) == shown


def test_long_text_is_cut_and_says_how_long_it_was():
    shown = clean("x" * 10_000_000)
    assert len(shown) < 2100
    assert shown.endswith("[2,000 / 10,000,000]")


def test_json_in_a_script_cannot_end_it():
    value = ["</script><script>x()</script>", "<!--", "&", "\u2028"]
    text = script_json(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0, "0"), (100000, "100,000"), (4021.37, "4,021.4"), (0.0142345, "0.014235"), (0.5, "0.5"),
        (0.0, "0"), (123456.7, "123,457"), (2.5e-7, "2.5000e-07"), (-12.5, "-12.5"), (1.0, "1"),
    ],
)  # fmt: skip
def test_numbers_as_a_reader_expects_them(value, text):
    assert number(value) == text


def test_a_near_miss_does_not_look_like_a_hit():
    assert pair(3670.1999, 3670.2) == ("3,670.1999", "3,670.2")
    assert pair(3670.2, 3670.2) == ("3,670.2", "3,670.2")
    assert pair(1.0000000000001, 1)[0] != "1"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (41.23, "41.2 s"), (3250.0, "54 min 10 s"), (258840.0, "71 h 54 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
