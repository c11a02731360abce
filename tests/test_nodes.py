"""Runs over several nodes without Slurm: real ssh to a real sshd, whose "nodes" are two names of this machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fixtures import evidence, supervisor
from fixtures.cases import select
from fixtures.internlm import checkout, config
from fixtures.launchers import LAUNCHERS

HOSTS = ["127.0.0.1", "localhost"]
DEAF = "\nimport signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """An sshd of our own, with keys of its own."""
    if not (Path(SSHD).exists() and shutil.which("ssh")):
        pytest.skip("no ssh and sshd here (Debian: openssh-client, openssh-server)")
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"StrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile none\n"
    )
    (folder / "config").write_text(
        f"Host {' '.join(HOSTS)}\nHostName 127.0.0.1\nPort {port}\nIdentityFile {folder}/user\nIdentitiesOnly yes\n"
        f"StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # Debian's sshd wants it
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)
    monkeypatch.setenv("ACCEPTANCE_SSH", f"ssh -F {folder}/config")
    yield
    server.terminate()
    server.wait()


def prepared(results: Path, steps: int, text: str = "", **changes) -> evidence.Attempt:
    """An attempt at tiny's `speed` run on 2 nodes of one process each."""
    source = checkout.find(None, sys.executable)
    case = select(["tiny"], False, [], 2, cpu=True)[0]
    request = {
        **{"schema": evidence.SCHEMA, **case.as_request(), "run": "speed", "gpus": 1, "nodes": 2, "world": 2},
        **{"accelerator": "cpu", "settings": {}, "seed": 1024, "deterministic": False, "launcher": "torchrun"},
        "internlm": source.as_request() | {"train_py": str(source.train_py)},
        "python": {"executable": sys.executable, "version": source.python_version},
        "environment": {"OMP_NUM_THREADS": "1", **source.environment()},
        "limits": {},
        "hosts": HOSTS,
        **changes,
    }
    request["workload"] |= {"steps": steps, "hours": None}
    attempt = evidence.new_attempt(results, case.name, "speed")
    request["command"] = LAUNCHERS["torchrun"](request, attempt.path)
    request["cwd"] = str(attempt.path)
    rendered = config.render(request) + text
    attempt.config.write_text(rendered, encoding="utf-8")
    request["config_sha256"] = hashlib.sha256(rendered.encode()).hexdigest()
    evidence.write_json(attempt.path / "request.json", request)
    return attempt


def ended(handle: supervisor.Handle, limit: float = 300) -> dict:
    deadline = time.monotonic() + limit
    while handle.poll() is not None:
        assert time.monotonic() < deadline, f"the run does not end: {handle.poll()}"
        time.sleep(0.1)
    return handle.attempt.end


def of(attempt: evidence.Attempt, script: str = "") -> list[psutil.Process]:
    """Every living process that works on the attempt, wherever it came from; those of one script only."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if str(attempt.path) in words and script in words:
                found.append(process)
    return found


def test_two_nodes_train_and_each_has_spoken(ssh, tmp_path):
    attempt = prepared(tmp_path, steps=5)
    end = ended(supervisor.start(attempt, detach=False))
    assert (end["outcome"], end["failure"], end["steps_seen"]) == ("complete", None, 5), end
    assert [p.stem for p in (attempt.path / "nodes").iterdir()] == [socket.gethostname()]
    ranks = sorted(p.name for p in (attempt.path / "logs").iterdir() if p.is_dir())
    assert ranks == ["ranks-from-0", "ranks-from-1"]
    (watched,) = attempt.telemetry  # both nodes are names of one machine
    assert watched == attempt.path / "telemetry" / f"{socket.gethostname()}.jsonl"
    assert {json.loads(line)["rank"] for line in watched.open()} == {0, 1}
    assert "telemetry_problems" not in end
    assert of(attempt) == []


def test_a_rank_that_fails_on_the_second_node_is_named_and_ends_the_first(ssh, tmp_path):
    text = (
        "\nimport os\nif os.environ['RANK'] == '1':\n    raise RuntimeError('CUDA error: unspecified launch failure')\n"
    )
    attempt = prepared(tmp_path, steps=5, text=text)
    end = ended(supervisor.start(attempt, detach=False))
    assert (end["outcome"], end["failure"]["class"], end["failure"]["rank"]) == ("failed", "device", 1), end
    assert of(attempt) == []


@pytest.mark.parametrize("text", ["", DEAF], ids=["", "nor ranks that are deaf to SIGTERM"])
def test_a_dead_login_node_leaves_nothing_on_the_others(ssh, tmp_path, text):
    attempt = prepared(tmp_path, steps=100_000, text=text)
    handle = supervisor.start(attempt, detach=False)
    deadline = time.monotonic() + 240
    while not ((p := handle.poll()) and p.steps_seen):
        assert time.monotonic() < deadline, attempt.end
        time.sleep(0.1)
    handle.process.kill()
    handle.process.wait()
    for process in of(attempt, "hosts.py"):
        process.kill()
    deadline = time.monotonic() + 60
    while of(attempt):
        assert time.monotonic() < deadline, of(attempt)
        time.sleep(0.2)


def test_a_host_that_cannot_be_reached_is_named(ssh, tmp_path):
    attempt = prepared(tmp_path, steps=5, hosts=["127.0.0.1", "nowhere.invalid"])
    end = ended(supervisor.start(attempt, detach=False))
    assert end["outcome"] == "failed"
    assert "nowhere.invalid" in (attempt.path / "logs" / "launcher.log").read_text()
