"""Leases among real processes: never two on a device, nothing left behind by the dead, nobody waiting for ever."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures import leases
from fixtures.devices import Device, Found, profiles
from fixtures.leases import LeaseError, Leases, Want, may_start, once
from fixtures.options import Options
from fixtures.setup import Setup

ROOT = Path(__file__).resolve().parent.parent
NAMES = tuple(f"device-{i}" for i in range(8))


def some(count, first=0):
    return tuple(Device(i, str(i), "chip", entry=str(i)) for i in range(first, first + count))


def want(name, count, seconds=10.0, since=0.0, exclusive=False, among=NAMES):
    return Want(name, count, seconds, since, exclusive, among)


def until(condition):
    """Wait for what must come; the test's own time limit is generous and asserts no speed."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came")


class Holder:
    """A process that takes a lease, says which devices it has, and keeps them until its stdin is closed."""

    SCRIPT = """
import sys
from pathlib import Path
from fixtures.devices import Device
from fixtures.leases import Leases
folder, first, total, count, expected, exclusive = sys.argv[1:]
devices = [Device(i, str(i), "chip") for i in range(int(first), int(first) + int(total))]
leases = Leases(devices, Path(folder))
with leases.acquire(int(count), expected=float(expected), exclusive=exclusive == "True") as lease:
    print(*[d.id for d in lease.devices], flush=True)
    sys.stdin.read()
"""

    def __init__(self, folder, count, *, total=4, first=0, expected=0.0, exclusive=False):
        arguments = [str(a) for a in (folder, first, total, count, expected, exclusive)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT, *arguments],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        if self.process.stdout.read(1):
            self.said.append(True)

    @property
    def holds(self):
        return bool(self.said)

    def end(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        assert self.process.wait(30) == 0

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture
def holder(tmp_path):
    made = []

    def make(*arguments, **options):
        made.append(Holder(tmp_path / "leases", *arguments, **options))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.kill()


def waits(folder, count):
    """That many living waiters have their ticket in the folder."""
    return lambda: len(list((folder / "leases" / "waiting").glob("*.json"))) == count


# ---- the order, as a pure function -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("me", "others", "busy", "expected"),
    [
        (want("a", 8), [], [], True),
        (want("a", 8), [], [5.0], False),
        (want("a", 1), [], [5.0] * 7, True),
        # the longer of two that both fit goes first, the other takes what is left
        (want("a", 4, 10), [want("b", 4, 20)], [], True),
        (want("a", 5, 10), [want("b", 4, 20)], [], False),
        (want("b", 4, 20), [want("a", 5, 10)], [], True),
        # equally long: the one that waits longer
        (want("a", 8, 10, since=1), [want("b", 8, 10, since=0)], [], False),
        # a short one may slip in before the appointment of a long one at 5.0, a longer one may not
        (want("a", 2, 4), [want("b", 8, 20)], [5.0] * 6, True),
        (want("a", 2, 6), [want("b", 8, 20)], [5.0] * 6, False),
        (want("a", 2, 0), [want("b", 8, 20)], [5.0] * 6, False),
        # ... unless it takes what the long one leaves over
        (want("a", 2, 6), [want("b", 6, 20)], [5.0] * 6, True),
        # nobody knows when: no slipping in
        (want("a", 2, 1), [want("b", 8, 20)], [math.inf] * 6, False),
        # exclusive: all or nothing, also for a session that knows other devices
        (want("a", 1, exclusive=True), [], [5.0], False),
        (want("a", 1, exclusive=True), [], [], True),
        (want("a", 1, 10), [want("b", 1, 20, exclusive=True, among=("elsewhere",))], [], False),
        # other sessions' waiters for other devices do not matter
        (want("a", 8, 10), [want("b", 2, 20, among=("elsewhere", "too"))], [], True),
    ],
)
def test_order(me, others, busy, expected):
    assert may_start(me, [me, *others], busy, now=0.0) is expected


RUNS = st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.floats(0, 50), st.booleans()), min_size=1, max_size=20)


def size(one):
    return 8 if one.exclusive else one.count


@given(RUNS)
def test_everybody_gets_a_turn_and_no_device_is_counted_twice(runs):
    waiting = [want(f"{i:02}", k, seconds, since=i, exclusive=x) for i, (k, seconds, x) in enumerate(runs)]
    running, now = [], 0.0
    while waiting:
        busy = [end if one.seconds else math.inf for end, one in running for _ in range(size(one))]
        ready = [one for one in waiting if may_start(one, waiting, busy, now)]
        if ready:
            one = ready[0]
            waiting.remove(one)
            running.append((now + (one.seconds or 1.0), one))
            held = [other for _, other in running]
            assert sum(size(other) for other in held) <= 8
            assert len(held) == 1 or not any(other.exclusive for other in held)
        else:
            assert running, "everybody waits and nobody runs"
            running.sort(key=lambda pair: pair[0])
            now = running.pop(0)[0]


# ---- real processes --------------------------------------------------------------------------------------


def test_leases_never_meet(tmp_path):
    """Eight processes take 10 leases each. A lock of another kind on each device tells whether two ever met."""
    script = """
import fcntl, os, random, sys
from pathlib import Path
from fixtures.devices import Device
from fixtures.leases import Leases
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
random.seed(seed)
devices = [Device(i, str(i), "chip") for i in range(4)]
leases = Leases(devices, folder / "leases")
for _ in range(10):
    with leases.acquire(random.choice([1, 2, 4]), expected=random.random(), exclusive=random.random() < 0.1) as lease:
        files = [open(folder / f"oracle-{device.id}", "w") for device in lease.devices]
        for file in files:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.sched_yield()
        for file in files:
            file.close()
print("done")
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script, tmp_path, str(i)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for i in range(8)
    ]
    assert [p.communicate(timeout=120)[0] for p in processes] == ["done\n"] * 8
    assert list((tmp_path / "leases" / "waiting").iterdir()) == []


def test_lease_of_a_killed_holder_is_free_again(holder, tmp_path):
    first = holder(4)
    until(lambda: first.holds)
    second = holder(4)
    until(waits(tmp_path, 1))
    assert not second.holds
    first.kill()
    until(lambda: second.holds)


def test_a_killed_waiter_is_not_waited_for(holder, tmp_path):
    first = holder(4)
    until(lambda: first.holds)
    dead = holder(4, expected=1000)
    until(waits(tmp_path, 1))
    dead.kill()
    second = holder(1, expected=1)
    until(waits(tmp_path, 1))
    first.end()
    until(lambda: second.holds)
    assert waits(tmp_path, 0)()


def test_the_longest_waiter_goes_first(holder, tmp_path):
    first = holder(4)
    until(lambda: first.holds)
    short, long = holder(4, expected=10), holder(4, expected=100)
    until(waits(tmp_path, 2))
    first.end()
    until(lambda: long.holds)
    assert not short.holds
    long.end()
    until(lambda: short.holds)


def test_an_exclusive_lease_has_the_node_to_itself_whatever_devices_others_know(holder, tmp_path):
    elsewhere = holder(1, first=100)
    until(lambda: elsewhere.holds)
    alone = holder(1, exclusive=True, expected=50)
    until(waits(tmp_path, 1))
    late = holder(1, first=100, expected=1)
    until(waits(tmp_path, 2))
    assert not alone.holds
    assert not late.holds, "a shorter run overtook the exclusive one on a device that this one needs silent"
    elsewhere.end()
    until(lambda: alone.holds)
    assert not late.holds
    alone.end()
    until(lambda: late.holds)


def test_a_lease_that_was_handed_over_lasts_until_its_last_holder_ends(tmp_path):
    everything = Leases(some(2), tmp_path)
    with everything.acquire(2) as lease:
        supervisor = subprocess.Popen(["sleep", "60"], pass_fds=lease.files)
    try:
        assert all(leases._lock(tmp_path / f"{name}.lock") is None for name in everything.names)
    finally:
        supervisor.kill()
        supervisor.wait()
    with everything.acquire(2) as lease:
        assert [device.id for device in lease.devices] == ["0", "1"]


def test_devices_come_in_the_order_of_the_visibility_variable(tmp_path):
    mine = Leases([Device(i, f"GPU-{i}", "chip", entry=str(i)) for i in (5, 3, 1)], tmp_path)
    with mine.acquire(1) as first, mine.acquire(2) as rest:
        assert [d.index for d in first.devices] == [5]
        assert [d.index for d in rest.devices] == [3, 1]


def test_a_waiter_says_so(holder, tmp_path):
    first = holder(4)
    until(lambda: first.holds)
    said = threading.Event()

    def waiting():
        said.set()
        first.end()

    with Leases(some(4), tmp_path / "leases").acquire(1, waiting=waiting):
        assert said.is_set()


def test_an_error_inside_gives_the_lease_back(tmp_path):
    mine = Leases(some(1), tmp_path)
    with pytest.raises(RuntimeError, match="the run failed"), mine.acquire(1):
        raise RuntimeError("the run failed")
    with mine.acquire(1) as lease:
        assert len(lease.devices) == 1


def test_more_devices_than_the_session_has(tmp_path):
    with (
        pytest.raises(LeaseError, match="3 devices asked for, but the session has 2"),
        Leases(some(2), tmp_path).acquire(3),
    ):
        pass


def test_a_folder_that_cannot_hold_leases(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LeaseError, match="cannot hold leases"):
        Leases(some(1), tmp_path / "file")


def test_other_users_of_the_host_can_use_the_folder_too(tmp_path):
    mask = os.umask(0o077)
    try:
        with Leases(some(1), tmp_path / "leases").acquire(1):
            modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "leases").iterdir()}
    finally:
        os.umask(mask)
    assert modes.pop("waiting") == (tmp_path / "leases").stat().st_mode & 0o777 == 0o777
    assert set(modes) == {"changed", "mutex.lock", "node.lock", "device-0.lock"}
    assert set(modes.values()) == {0o666}


def test_a_lock_file_that_somebody_wrote_into_does_no_harm(tmp_path):
    mine = Leases(some(1), tmp_path)
    (tmp_path / "device-0.lock").write_text("not a time")
    with mine.acquire(1, expected=5):
        (tmp_path / "device-0.lock").write_text("nor this")
        assert leases._until(tmp_path / "device-0.lock") == math.inf


@pytest.mark.parametrize(("profile", "launcher"), [("cpu", "torchrun"), ("nvidia", "slurm")])
def test_what_is_not_of_this_host_is_leased_within_a_session(tmp_path, profile, launcher):
    """A login node has none of the devices that Slurm gives out."""
    options = Options({"results": tmp_path})
    mine = Setup(options, Found(profiles()[profile]), some(4), 2, None, launcher, (), ()).leases
    assert len(mine.devices) == 4
    assert mine.folder.is_relative_to(tmp_path)


def test_accelerators_of_this_host_are_leased_to_everybody(tmp_path):
    setup = Setup(Options({"results": tmp_path}), Found(profiles()["nvidia"]), some(1), 1, None, "torchrun", (), ())
    assert setup.leases.folder == leases.FOLDER


# ---- once ------------------------------------------------------------------------------------------------

ONCE = """
import sys
from pathlib import Path
from fixtures.leases import once
folder = Path(sys.argv[1])
with once(folder):
    if not (folder / "evidence").exists():
        (folder / "launches").open("a").write("x")
        print("launched", flush=True)
        if len(sys.argv) > 2:
            sys.stdin.read()
        (folder / "evidence").write_text("")
"""


def test_a_run_is_launched_once_whoever_asks_first(tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", ONCE, tmp_path / "run"], cwd=ROOT) for _ in range(5)]
    assert [p.wait(60) for p in processes] == [0] * 5
    assert (tmp_path / "run" / "launches").read_text() == "x"


def test_who_waits_for_a_killed_launcher_launches(tmp_path):
    folder = tmp_path / "run"
    first = subprocess.Popen(
        [sys.executable, "-c", ONCE, folder, "stay"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout.readline() == b"launched\n"
    second = subprocess.Popen([sys.executable, "-c", ONCE, folder], cwd=ROOT, stdout=subprocess.PIPE)
    first.kill()
    assert second.communicate(timeout=60)[0] == b"launched\n"
    first.wait()
    first.stdin.close()
    first.stdout.close()


def test_once_says_that_it_waits(tmp_path):
    said = threading.Event()
    entered = threading.Event()

    def hold():
        with once(tmp_path):
            entered.set()
            said.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(30)
    with once(tmp_path, waiting=said.set):
        assert said.is_set()
    thread.join()


def test_tickets_tell_what_is_waited_for(holder, tmp_path):
    """What a person finds who looks into the folder while nothing seems to move."""
    first = holder(4)
    until(lambda: first.holds)
    holder(3, expected=12.5)
    until(waits(tmp_path, 1))
    (ticket,) = (tmp_path / "leases" / "waiting").glob("*.json")
    content = json.loads(ticket.read_text())
    assert (content["count"], content["seconds"], content["among"]) == (3, 12.5, [f"device-{i}" for i in range(4)])
    assert os.access(ticket, os.R_OK)
