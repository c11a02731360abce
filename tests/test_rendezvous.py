"""Runs over nodes that each have a pytest (--rdzv): real training between two network namespaces of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fixtures import evidence
from tests.suite import ROOT, acceptance

NAMES, LINK, PORT = ("first", "second"), "acc0", 29400
ADDRESSES = ("10.77.0.1", "10.77.0.2")
CASE = "tiny-tp1-pp1-zerodp"
TWO = ("--nodes=2", f"--rdzv={ADDRESSES[0]}:{PORT}", "--gpus=1", "--accelerator=cpu", "--model=tiny")


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def nodes():
    """Prefixes of commands that run on two hosts: a name, an address and ports of their own, a cable between them."""
    if not (os.geteuid() == 0 and all(map(shutil.which, ("unshare", "nsenter", "ip")))):
        pytest.skip("network namespaces need root, unshare, nsenter and ip (Debian: util-linux, iproute2)")
    held = [subprocess.Popen(["unshare", "--net", "--uts", "sleep", "infinity"]) for _ in NAMES]
    places = [("nsenter", "--net", "--uts", f"--target={process.pid}") for process in held]
    own = [os.readlink(f"/proc/{os.getpid()}/ns/net")]
    deadline = time.monotonic() + 10
    try:
        while any(os.readlink(f"/proc/{process.pid}/ns/net") in own for process in held):
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


def training(results: Path, *sessions: Session) -> evidence.Attempt:
    """The speed run, once it has made a step."""
    attempt = evidence.Attempt(results / "runs" / CASE / "speed" / "attempt-1", CASE, "speed", 1)
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
    chosen = ("-k", f"{CASE} and not fsdp", "-m", "startup", "--steps=100000")
    first, second = (Session(place, results, *chosen) for place in nodes)
    attempt = training(results, first, second)
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
