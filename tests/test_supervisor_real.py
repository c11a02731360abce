"""The short form of the fault matrix: each fault strikes real training once."""

from __future__ import annotations

import pytest

from benchmarks import faults


@pytest.mark.slow
@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_is_named_and_leaves_nothing_behind(fault, tmp_path):
    if fault.place is faults.small_disk and not faults.mountable():
        pytest.skip("this user may not mount a small file system")
    outcome = faults.play(fault, tmp_path)
    assert not outcome.hung
    assert outcome.left == ()
    assert outcome.right(fault), outcome.end
