"""One Slurm cluster of a kind for all tests in this folder; each test finds it empty, with both nodes up."""

from __future__ import annotations

import pytest

from fixtures import supervisor
from tests.slurm.cluster import Cluster, missing
from tests.slurm.jobs import prepared


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory):
    yield from started(tmp_path_factory, accounting=False)


@pytest.fixture(scope="session")
def running_accounting_cluster(tmp_path_factory):
    yield from started(tmp_path_factory, accounting=True)


def started(tmp_path_factory, *, accounting):
    if why := missing(accounting=accounting):
        pytest.skip(f"no Slurm cluster{' with accounting' * accounting} can be started here: {why}")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"), accounting=accounting)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(running_cluster, monkeypatch):
    yield from lent(running_cluster, monkeypatch)


@pytest.fixture
def accounting_cluster(running_accounting_cluster, monkeypatch):
    yield from lent(running_accounting_cluster, monkeypatch)


def lent(cluster, monkeypatch):
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield cluster
    cluster.restore()


@pytest.fixture
def launch(cluster, tmp_path):
    """Starts a run of 2 nodes x 2 tasks whose tasks are Python code; what a test leaves going on is ended."""
    handles = []

    def launch(
        code: str, *, steps: int = 3, site: str = "", detach: bool = False, accelerator: str = "nvidia", **limits
    ) -> supervisor.Handle:
        attempt = prepared(
            tmp_path, code, steps=steps, site=site, detach=detach, accelerator=accelerator, limits=limits
        )
        handle = supervisor.start(attempt, detach=detach)
        handles.append(handle)
        return handle

    yield launch
    for handle in handles:
        handle.stop("the test is over")
