"""Runs over nodes that each have a pytest (--rdzv): real training between two network namespaces of this machine."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from fixtures import evidence, rendezvous
from fixtures.devices import Device, Found, profiles
from fixtures.options import Options, endpoint
from fixtures.rendezvous import Place, RendezvousError
from fixtures.setup import Setup
from tests.suite import ROOT

NAMES, LINK, PORT = ("first", "second"), "acc0", 29400
ADDRESSES = ("10.77.0.1", "10.77.0.2")
CASE, PIPELINE = "tiny-tp1-pp1-zerodp", "tiny-tp1-pp2-zero1"  # the second's metrics are printed on the second node
TWO = ("--nodes=2", f"--rdzv={ADDRESSES[0]}:{PORT}", "--gpus=1", "--accelerator=cpu", "--model=tiny")


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


def network(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/net").readlink()


@pytest.fixture
def nodes():
    """Prefixes of commands that run on two hosts: a name, an address and ports of their own, a cable between them."""
    if not (os.geteuid() == 0 and all(map(shutil.which, ("unshare", "nsenter", "ip")))):
        pytest.skip("network namespaces need root, unshare, nsenter and ip (Debian: util-linux, iproute2)")
    held = [subprocess.Popen(["unshare", "--net", "--uts", "sleep", "infinity"]) for _ in NAMES]
    places = [("nsenter", "--net", "--uts", f"--target={process.pid}") for process in held]
    own = network(os.getpid())
    deadline = time.monotonic() + 10
    try:
        while any(network(process.pid) == own for process in held):
            if time.monotonic() > deadline or any(process.poll() is not None for process in held):
                pytest.skip("no network namespace can be made here (unshare is not permitted)")
            time.sleep(0.02)
        try:
            run(*places[0], "ip", "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", str(held[1].pid))
        except OSError as error:
            pytest.skip(f"no cable between network namespaces can be made here: {error}")
        for place, name, address in zip(places, NAMES, ADDRESSES, strict=True):
            run(*place, "hostname", name)
            run(*place, "ip", "addr", "add", f"{address}/24", "dev", LINK)
            for device in ("lo", LINK):
                run(*place, "ip", "link", "set", device, "up")
        yield places
    finally:
        for process in held:
            process.kill()
            process.wait()


class Session:
    """`pytest acceptance` on one node."""

    def __init__(self, place: tuple[str, ...], results: Path, *arguments: str) -> None:
        self.said = results.parent / f"said-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "pytest", "acceptance", "-p", "no:cacheprovider", f"--results={results}"]
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [*place, *command, *TWO, *arguments],
                cwd=ROOT,
                env={**os.environ, "GLOO_SOCKET_IFNAME": LINK},
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.said.read_text(encoding="utf-8", errors="replace")

    def wait(self, limit: float = 400) -> int:
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"it does not end:\n{self.text}") from None

    def outcomes(self) -> list[str]:
        """Last line of pytest, without the time."""
        return self.text.strip().splitlines()[-1].strip("= ").split(" in ")[0].split(", ")


def left(results: Path) -> list[str]:
    """Every living process that has to do with the results, wherever it came from."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if str(results) in words and process.status() != psutil.STATUS_ZOMBIE:
                found.append(words)
    return found


def until(condition, limit: float = 240, said=lambda: ""):
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"it does not come about: {said()}"
        time.sleep(0.1)
    return value


def training(results: Path, *sessions: Session, case: str = CASE) -> evidence.Attempt:
    """The speed run, once it has made a step."""
    attempt = evidence.Attempt(results / "runs" / case / "speed" / "attempt-1", case, "speed", 1)
    until(
        lambda: evidence.read_json(attempt.path / "progress.json").get("steps_seen"),
        said=lambda: "\n".join(session.text for session in sessions),
    )
    return attempt


@pytest.mark.slow
def test_two_pytests_run_one_training_and_come_to_one_verdict(nodes, tmp_path):
    results = tmp_path / "results"
    chosen = ("-k", f"{CASE} and not fsdp", "-m", "startup or determinism", "--steps=12")
    second = Session(nodes[1], results, *chosen)
    first = Session(nodes[0], results, *chosen)
    assert (first.wait(), second.wait()) == (0, 0), first.text + second.text
    assert first.outcomes() == second.outcomes() == ["2 passed", "14 deselected"]
    assert "report:" in first.text
    assert "report:" not in second.text
    (case,) = json.loads((results / "results.json").read_text())["cases"]
    assert case["criteria"]["determinism"]["outcome"] == "pass"
    assert not any(departure["code"] == "unlike-nodes" for departure in case["departures"])
    attempt = evidence.latest(results, CASE, "repeat-2")
    assert sorted(node["host"] for node in attempt.nodes) == sorted(NAMES)
    watched = {path.stem: {json.loads(line)["rank"] for line in path.open()} for path in attempt.telemetry}
    assert watched == {"first": {0}, "second": {1}}
    assert "telemetry_problems" not in attempt.end
    assert sorted(p.name for p in (attempt.path / "logs").iterdir() if p.is_dir()) == ["ranks-from-0", "ranks-from-1"]
    assert not list(results.glob(".rdzv*"))
    assert left(results) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_node_whose_pytest_ends_fails_the_run_by_its_name_and_leaves_nothing(nodes, tmp_path, number):
    results = tmp_path / "results"
    chosen = ("-k", f"{CASE} and not fsdp", "-m", "startup", "--steps=100000")
    first, second = (Session(place, results, *chosen) for place in nodes)
    attempt = training(results, first, second)
    second.process.send_signal(number)
    assert second.wait(60) == (2 if number == signal.SIGINT else -number), second.text
    assert first.wait(120) == 1, first.text
    end = attempt.end
    assert (end["outcome"], end["failure"]["class"], end["left"]) == ("failed", "killed", []), end
    assert "node second was taken away" in end["failure"]["summary"]
    assert "node second was taken away" in first.text
    until(lambda: not left(results), 30, said=lambda: left(results))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_when_the_node_that_leads_has_gone_nothing_is_left_on_the_others(nodes, tmp_path, number):
    results = tmp_path / "results"
    chosen = ("-k", PIPELINE, "-m", "startup", "--steps=100000")
    first, second = (Session(place, results, *chosen) for place in nodes)
    attempt = training(results, first, second, case=PIPELINE)
    printed = [log for log in attempt.logs if "record_current_batch_training_metrics" in log.read_text()]
    assert {log.relative_to(attempt.path / "logs").parts[0] for log in printed} == {"ranks-from-1"}
    first.process.send_signal(number)
    first.wait(60)
    if number == signal.SIGINT:
        assert second.wait(60) == 1, second.text  # it judges what was left
        assert "interrupted" in second.text
    else:
        assert second.wait(60) == 4, second.text
        assert "the node that leads has gone in the middle of its session" in second.text
    until(lambda: not left(results), 60, said=lambda: left(results))
    assert attempt.end["outcome"] == "interrupted"


@pytest.mark.slow
def test_a_cable_that_is_pulled_ends_the_run_on_both_sides(nodes, tmp_path):
    results = tmp_path / "results"
    chosen = ("-k", f"{CASE} and not fsdp", "-m", "startup", "--steps=100000")
    first, second = (Session(place, results, *chosen) for place in nodes)
    attempt = training(results, first, second)
    run(*nodes[1], "ip", "link", "set", LINK, "down")  # nobody is told: no packet gets out any more
    assert first.wait(180) == 1, first.text
    assert second.wait(180) == 4, second.text
    assert "node second was taken away" in attempt.end["failure"]["summary"], attempt.end
    assert "has gone in the middle of its session" in second.text
    until(lambda: not left(results), 60, said=lambda: left(results))


def test_a_node_that_never_comes_is_a_usage_error_within_the_limit(nodes, tmp_path):
    alone = Session(nodes[0], tmp_path / "results", "--startup-limit=2")
    assert alone.wait(60) == 4
    assert "1 other nodes were to come within 2 s (--startup-limit), of which came none" in alone.text
    assert "Traceback" not in alone.text
    assert not list((tmp_path / "results").glob(".rdzv*"))


def test_a_leader_that_never_comes_is_a_usage_error_within_the_limit(nodes, tmp_path):
    alone = Session(nodes[1], tmp_path / "results", "--startup-limit=2")
    assert alone.wait(60) == 4
    assert "no node leads there within 2 s" in alone.text
    assert "Traceback" not in alone.text


def test_nodes_of_different_commands_are_told_so(nodes, tmp_path):
    first = Session(nodes[0], tmp_path / "results", "--startup-limit=15")
    second = Session(nodes[1], tmp_path / "results", "--gpus=2")
    assert (second.wait(60), first.wait(60)) == (4, 4)
    assert "gpus 2 here and 1 there" in second.text


# ---- how nodes come together, in one process


@pytest.mark.parametrize(
    ("text", "means"),
    [("gpu1", ("gpu1", 29400)), ("10.0.0.1:5000", ("10.0.0.1", 5000)), ("[fe80::1]:7", ("fe80::1", 7))],
)
def test_a_place_is_written_as_torchrun_writes_it(text, means):
    assert endpoint(text) == means


@pytest.fixture
def named(monkeypatch):
    """Each thread is a node that has the thread's name."""
    monkeypatch.setattr(rendezvous.socket, "gethostname", lambda: threading.current_thread().name)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Meeting:
    """A leader in a thread, and what it came to."""

    def __init__(self, results: Path, nodes: int, seconds: float) -> None:
        self.results, self.seconds, self.said, self.came = results, seconds, [], None
        self.place, self.terms = Place("127.0.0.1", free_port(), True), {"nodes": nodes}
        self.thread = threading.Thread(target=self._lead, name="leader")
        self.thread.start()

    def _lead(self) -> None:
        try:
            self.came = rendezvous.lead(self.place, self.results, self.terms, self.seconds, self.said.append)
        except RendezvousError as error:
            self.came = error

    def join(self, name: str, **terms) -> rendezvous.Follower:
        threading.current_thread().name = name
        ours = self.terms | terms
        return rendezvous.join(
            self.place, self.results, ours, self.seconds, self.said.append, python=sys.executable, own=dict
        )

    def outcome(self) -> rendezvous.Leader | RendezvousError:
        self.thread.join(30)
        return self.came


@pytest.fixture
def meeting(named, tmp_path):
    name, made = threading.current_thread().name, []

    def meeting(nodes: int = 2, seconds: float = 30) -> Meeting:
        made.append(Meeting(tmp_path / "results", nodes, seconds))
        return made[-1]

    yield meeting
    threading.current_thread().name = name
    for one in made:
        if isinstance(leader := one.outcome(), rendezvous.Leader):
            leader.over()


def test_strangers_keep_nobody_from_coming(meeting):
    met = meeting()
    at = ("127.0.0.1", met.place.port)
    until(lambda: met.said)
    silent, slow = socket.create_connection(at), socket.create_connection(at)
    slow.sendall(b'{"secret": ')  # and never goes on
    for words in (
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"secret": "guessed", "host": "x", "port": 1}\n',
        b"[]\n",
        b"[" * 50_000 + b"\n",
        b"\xff" * 99999,
    ):
        with socket.create_connection(at) as stranger:
            stranger.sendall(words)
    follower = met.join("b")
    leader = met.outcome()
    assert leader.hosts == ("127.0.0.1", "b")
    assert leader.addresses["b"][1] == follower.server.getsockname()[1]
    silent.close()
    slow.close()
    leader.over()
    follower.serve()  # returns: the session is over


def test_one_host_takes_part_once(meeting):
    met = meeting(3, seconds=5)
    first = met.join("b")
    for name in ("b", "leader"):
        with pytest.raises(RendezvousError, match=f"there is a node {name} already"):
            met.join(name)
    assert "of which came b" in str(met.outcome())
    with pytest.raises(RendezvousError, match="2 other nodes were to come"):
        first.serve()  # it is told why


def test_a_node_that_left_is_waited_for_again(meeting):
    met = meeting(3)
    follower = met.join("b")
    follower.link.close()
    until(lambda: any("node b has left again" in line for line in met.said))
    kept = [met.join("b"), met.join("c")]
    assert met.outcome().hosts == ("127.0.0.1", "b", "c")
    assert len(kept) == 2


def test_results_that_are_not_shared_are_found_out(named, tmp_path, monkeypatch):
    monkeypatch.setattr(rendezvous, "PROOF_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = Place("127.0.0.1", server.getsockname()[1], False)

        def lead():
            with server.accept()[0] as connection:
                connection.sendall(json.dumps({"nodes": 2, "proof": str(tmp_path / ".rdzv-1")}).encode() + b"\n")
                connection.recv(1)

        leader = threading.Thread(target=lead)
        leader.start()
        with pytest.raises(RendezvousError, match=r"which this node does not see: name a folder that all nodes share"):
            rendezvous.join(place, tmp_path, {"nodes": 2}, 5, print, python="", own=dict)
        leader.join()


def test_a_follower_obeys_nobody_but_its_leader(meeting, tmp_path):
    met = meeting()
    follower = met.join("b")
    leader = met.outcome()
    attempt = tmp_path / "elsewhere" / "attempt-1"
    for header in (
        {"secret": "guessed", "attempt": str(attempt), "number": 1, "mark": "m"},
        {"secret": leader.secret, "attempt": str(attempt), "number": 1, "mark": "m"},  # not among the results
    ):
        with socket.create_connection(("127.0.0.1", follower.server.getsockname()[1])) as caller:
            caller.sendall(json.dumps(header).encode() + b"\n")
            follower._accept()
            assert caller.recv(1) == b""
        assert "a caller was turned away" in met.said[-1]
    assert follower.jobs == []
    leader.over()
    follower.serve()


# ---- devices


def setup_of(tmp_path: Path, launcher: str, devices: Sequence[Device]) -> Setup:
    found = Found(profiles()["nvidia"], tuple(devices))
    return Setup(Options({"results": tmp_path}), found, tuple(devices), len(devices), None, launcher, (), ())


def test_a_node_takes_its_own_devices_at_the_places_of_the_leaders(tmp_path, monkeypatch):
    setup = setup_of(tmp_path, "torchrun", [Device(i, f"GPU-{i}", "H100", entry=str(i + 4)) for i in range(4)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    own = setup.own_devices({"places": [1, 3]})
    assert own["CUDA_VISIBLE_DEVICES"] == "5,7"
    monkeypatch.syspath_prepend(Path(rendezvous.NODE).parent)
    node = importlib.import_module("node")
    monkeypatch.setenv("ACCEPTANCE_NODE", json.dumps(own))
    request = {"environment": {"CUDA_VISIBLE_DEVICES": "0,1", "NCCL_ALGO": "Ring", "PWD": None}}
    environment = node.environment({"ACCEPTANCE_RUN": "m"}, request)
    kept = {name: environment.get(name) for name in ("CUDA_VISIBLE_DEVICES", "NCCL_ALGO", "ACCEPTANCE_RUN", "PWD")}
    assert kept == {"CUDA_VISIBLE_DEVICES": "5,7", "NCCL_ALGO": "Ring", "ACCEPTANCE_RUN": "m", "PWD": None}
