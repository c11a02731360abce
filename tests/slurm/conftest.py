"""One Slurm cluster for all tests in this folder; each test finds it empty, with both nodes up."""

from __future__ import annotations

import pytest

from tests.slurm.cluster import Cluster, missing


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory):
    if why := missing():
        pytest.skip(f"no Slurm cluster can be started here: {why}")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(running_cluster, monkeypatch):
    for name, value in running_cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield running_cluster
    running_cluster.restore()
