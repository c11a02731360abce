"""The short form of benchmarks/flood.py: a log of 1 GB (there: 10 GB), supervised and judged."""

from __future__ import annotations

import pytest

from benchmarks import flood


@pytest.mark.slow
def test_a_log_of_a_gigabyte_is_coped_with_in_little_memory(tmp_path):
    cost = flood.flood(tmp_path, 10**9)
    size = sum(path.stat().st_size for path in tmp_path.rglob("launcher.log"))
    for path in tmp_path.rglob("launcher.log"):
        path.unlink()
    assert size >= 10**9
    assert (cost.ended, cost.judged) == ("complete", "startup-passed")
    assert 0 < cost.supervisor_bytes < 200e6
    assert 0 < cost.judge_bytes < 200e6
