"""Telemetry from real processes and stub tools; NVIDIA's library is replaced, since CI has no GPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from fixtures import devices, telemetry
from fixtures.devices import Device, Tool
from fixtures.ranks import processes as processes_of
from fixtures.release import left_behind
from fixtures.telemetry import Command, Nvml, Processes, Stream, Watcher, peaks, watch

SCRIPT = Path(telemetry.__file__)
CHIPS = [Device(0, "SN-A", "chip", 1 << 30, "0"), Device(1, "SN-B", "chip", 1 << 30, "1")]
LINE = r"^(?P<index>\d+) (?P<id>\S+) (?P<memory_used>\S+) (?P<power_w>\S+)$"


def until(condition):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("it never came")


def script(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def rank():
    code = "import sys; held = bytearray(60_000_000); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_cpu_ranks_have_their_resident_memory_recorded(rank, tmp_path):
    path = tmp_path / "telemetry.jsonl"
    watcher = watch({"accelerator": "cpu", "gpus": 1, "environment": {"X": None}}, lambda: {0: rank.pid}, path)
    watcher.sample()
    watcher.close()
    (row,) = rows(path)
    assert row["rank"] == 0
    assert row["memory_used"] == pytest.approx(rank.memory_info().rss, rel=0.2)
    assert row["memory_used"] > 60_000_000
    assert abs(row["time"] - time.time()) < 60
    assert peaks(path) == {0: row["memory_used"]}
    assert watcher.problems == []


def test_a_sample_is_taken_once_a_second_however_often_it_is_asked_for(tmp_path):
    asked = []
    source = SimpleNamespace(rows=lambda: asked.append(1) or [{"rank": 0}], close=lambda: None)
    watcher = Watcher(source, tmp_path / "t.jsonl")
    for _ in range(100):
        watcher.sample()
    watcher.close()
    assert len(asked) == 1


def test_ranks_are_searched_for_seldom_once_all_are_there(rank):
    searches = []

    def ranks():
        searches.append(1)
        return {0: rank.pid}

    complete, missing = Processes(ranks, 1), Processes(ranks, 2)
    for source in (complete, missing):
        source.rows()
        source.rows()
    assert len(searches) == 2
    assert missing.due < complete.due


def test_a_rank_that_ended_is_left_out(rank):
    source = Processes(lambda: {0: rank.pid, 1: os.getpid()}, 2)
    assert [row["rank"] for row in source.rows()] == [0, 1]
    rank.kill()
    os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)
    assert [row["rank"] for row in source.rows()] == [1]


def test_a_tool_that_prints_once_is_run_again_and_again(tmp_path):
    command = script(tmp_path, "tool", f"echo x >> {tmp_path}/runs; echo '1 SN-B 300 200.5'; echo '0 SN-A 100 N/A'")
    source = Command(Tool((command,), LINE), CHIPS)
    assert source.rows() == []
    got = until(source.rows)
    assert got == [
        {"rank": 0, "device": "SN-A", "memory_used": 100 << 20},
        {"rank": 1, "device": "SN-B", "memory_used": 300 << 20, "power_w": 200.5},
    ]
    assert until(source.rows) == got
    source.close()
    assert len((tmp_path / "runs").read_text().split()) >= 2


def test_devices_without_an_id_are_told_by_their_place(tmp_path):
    command = script(tmp_path, "tool", "echo 'used 5'; echo 'used 7'")
    source = Command(Tool((command,), r"^used (?P<memory_used>\d+)$"), [CHIPS[1]])
    source.rows()
    assert until(source.rows) == [{"rank": 0, "device": "SN-B", "memory_used": 7 << 20}]
    source.close()


def test_a_tool_that_hangs_is_ended_and_named(tmp_path):
    command = script(tmp_path, "tool", f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    source = Command(Tool((command,), LINE, seconds=0.3), CHIPS)
    source.rows()
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    watcher = Watcher(source, tmp_path / "t.jsonl")
    until(lambda: setattr(watcher, "_due", 0) or watcher.sample() or watcher.problems)
    assert "took more than 0.3 s" in watcher.problems[0]
    assert not psutil.pid_exists(pid)
    watcher.close()


@pytest.mark.parametrize(("text", "wrong"), [("echo nonsense", "tells nothing"), ("exit 3", "tells nothing")])
def test_a_tool_that_tells_nothing_is_named_once_and_the_run_goes_on(tmp_path, text, wrong):
    source = Command(Tool((script(tmp_path, "tool", text),), LINE), CHIPS)
    watcher = Watcher(source, tmp_path / "t.jsonl")
    until(lambda: setattr(watcher, "_due", 0) or watcher.sample() or watcher.problems)
    for _ in range(20):
        watcher._due = 0
        watcher.sample()
        time.sleep(0.01)
    watcher.close()
    assert len(watcher.problems) == 1
    assert wrong in watcher.problems[0]


def test_a_tool_that_goes_on_printing_is_started_once(tmp_path):
    text = f'echo x >> {tmp_path}/runs; i=0; while :; do i=$((i+1)); echo "1 SN-B $i 1"; sleep 0.02; done'
    source = Stream(Tool((script(tmp_path, "tool", text),), LINE, continuous=True), CHIPS)
    used = []
    until(lambda: used.extend(row["memory_used"] >> 20 for row in source.rows()) or len(used) > 20)
    pid = source.process.pid
    source.close()
    assert used == list(range(1, len(used) + 1)), "a line was lost or read twice"
    assert (tmp_path / "runs").read_text() == "x\n"
    assert not psutil.pid_exists(pid)


def test_half_a_line_of_a_stream_is_left_until_it_is_whole(tmp_path):
    text = f"printf '0 SN-A 12'; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo '34 1'; sleep 60"
    tool = Tool((script(tmp_path, "tool", text),), r"^0 (?P<id>SN-A) (?P<memory_used>\d+)", continuous=True)
    source = Stream(tool, CHIPS)
    until(lambda: source.rows() or source.rest == b"0 SN-A 12")
    (tmp_path / "go").touch()
    assert until(source.rows) == [{"rank": 0, "device": "SN-A", "memory_used": 1234 << 20}]
    source.close()


def test_a_stream_that_ends_is_named(tmp_path):
    source = Stream(Tool((script(tmp_path, "tool", "echo '0 SN-A 1 1'"),), LINE, continuous=True), CHIPS)
    watcher = Watcher(source, tmp_path / "t.jsonl")
    until(lambda: setattr(watcher, "_due", 0) or watcher.sample() or watcher.problems)
    watcher.close()
    assert "ended" in watcher.problems[0]


class Library:
    """NVML as far as it is asked: GPU-1 tells no power, GPU-2 has fallen off the bus."""

    NVML_TEMPERATURE_GPU = NVML_CLOCK_SM = 0

    class NVMLError(Exception):
        pass

    def __getattr__(self, name):
        figures = {
            "nvmlDeviceGetHandleByUUID": lambda identity: identity,
            "nvmlDeviceGetMemoryInfo": lambda h: SimpleNamespace(used=5 << 30),
            "nvmlDeviceGetPowerUsage": lambda h: 650_500,
            "nvmlDeviceGetTemperature": lambda h, kind: 61,
            "nvmlDeviceGetUtilizationRates": lambda h: SimpleNamespace(gpu=97),
            "nvmlDeviceGetClockInfo": lambda h, kind: 1755,
        }

        def ask(handle, *more):
            if (name, handle) == ("nvmlDeviceGetPowerUsage", "GPU-1") or (
                handle == "GPU-2" and not name.startswith("nvmlDeviceGetHandle")
            ):
                raise self.NVMLError("not supported, or lost")
            return figures[name](handle, *more)

        return ask


def test_nvml_tells_what_it_can():
    chosen = [Device(i, f"GPU-{i}", "GPU") for i in (0, 1, 2)]
    full = {"memory_used": 5 << 30, "power_w": 650.5, "temperature_c": 61, "utilization": 97, "clock_mhz": 1755}
    assert Nvml(Library(), chosen).rows() == [
        {"rank": 0, "device": "GPU-0", **full},
        {"rank": 1, "device": "GPU-1", **{k: v for k, v in full.items() if k != "power_w"}},
        {"rank": 2, "device": "GPU-2"},
    ]


def looking(tmp_path, *told, devices=("A", "B")):
    """A watcher whose source tells `told`, a list of rows an answer, the last one again and again."""
    answers = list(told)
    source = SimpleNamespace(rows=lambda: answers.pop(0) if len(answers) > 1 else answers[0], close=lambda: None)
    return Watcher(source, tmp_path / "t.jsonl", devices=devices)


def held(**bytes_):
    return [{"device": device, "memory_used": used} for device, used in bytes_.items()]


def test_the_memory_in_use_is_waited_for_until_every_device_has_told(tmp_path):
    assert looking(tmp_path, [], held(A=5), [], held(A=6), held(B=7)).memory() == {"A": 6, "B": 7}
    assert looking(tmp_path, [], devices=()).memory() == {}, "a CPU has no devices"


def test_a_device_that_does_not_tell_its_memory_is_said_to(tmp_path, monkeypatch):
    with pytest.raises(devices.DeviceError, match="device B does not tell"):
        looking(tmp_path, held(A=5, B=None)).memory()
    monkeypatch.setattr(telemetry, "LOOK_SECONDS", 0.1)
    with pytest.raises(devices.DeviceError, match="nothing tells the memory in use of device B"):
        looking(tmp_path, held(A=5)).memory()
    with pytest.raises(devices.DeviceError, match="no telemetry: broken"):
        Watcher(None, tmp_path / "t.jsonl", ["no telemetry: broken"]).memory()
    with pytest.raises(devices.DeviceError, match="tells no way"):
        Watcher(None, tmp_path / "t.jsonl").memory()


def test_a_driver_gets_a_moment_to_take_memory_back(tmp_path):
    many, few = held(A=60 << 30, B=1 << 30), held(A=(1 << 30) + (200 << 20), B=1 << 30)
    rows = looking(tmp_path, many, many, few).released({"A": 1 << 30, "B": 1 << 30}, 30)
    assert [(row["memory_before"], row["memory_after"]) for row in rows] == [
        (1 << 30, (1 << 30) + (200 << 20)),
        (1 << 30, 1 << 30),
    ]
    assert left_behind({"devices": rows}) == []


def test_memory_that_stays_in_use_is_what_is_left_behind(tmp_path):
    rows = looking(tmp_path, held(A=60 << 30, B=1 << 30)).released({"A": 1 << 30, "B": 1 << 30}, 0.2)
    assert left_behind({"devices": rows}) == ["device A: 60.00 GiB in use, 1.00 before"]


def test_what_is_left_behind_is_named_one_by_one():
    end = {"left": [{"pid": 7, "name": "python"}, {"pid": 8}, {"job": "42"}], "ports_left": [29500]}
    assert left_behind(end) == ["process 7 (python)", "process 8 (its name is not known)", "job 42", "port 29500"]
    assert left_behind({}) == []


def test_a_gpu_that_is_lost_before_the_run_leaves_it_without_telemetry(tmp_path, monkeypatch):
    class Lost(Library):
        def nvmlDeviceGetHandleByUUID(self, identity):
            raise self.NVMLError("GPU is lost")

    found = devices.Found(devices.profiles()["nvidia"], (CHIPS[0],))
    monkeypatch.setattr(devices, "detect", lambda *_: found)
    monkeypatch.setattr(devices, "nvml", Lost)
    watcher = watch({"accelerator": "nvidia", "gpus": 1}, dict, tmp_path / "t.jsonl")
    assert watcher.problems == ["no telemetry: NVML failed: GPU is lost; see whether nvidia-smi works"]


def test_devices_that_cannot_be_found_leave_a_run_without_telemetry_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "nvml", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    watcher = watch({"accelerator": "nvidia", "gpus": 1, "environment": {}}, dict, tmp_path / "t.jsonl")
    watcher.sample()
    watcher.close()
    assert watcher.problems == ["no telemetry: nvidia-smi is not on PATH"]
    assert not (tmp_path / "t.jsonl").exists()


def test_an_unwritable_folder_ends_telemetry_not_the_run(tmp_path):
    source = SimpleNamespace(rows=lambda: [{"rank": 0}], close=lambda: None)
    watcher = Watcher(source, tmp_path / "missing" / "t.jsonl")
    watcher.sample()
    assert "cannot be written (No such file or directory)" in watcher.problems[0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the machine has no /dev/full")  # noqa: PTH110
def test_a_full_disk_ends_telemetry_not_the_run():
    source = SimpleNamespace(rows=lambda: [{"rank": 0}], close=lambda: None)
    watcher = Watcher(source, Path("/dev/full"))
    watcher.sample()
    watcher._due = 0
    watcher.sample()
    watcher.close()
    assert watcher.problems == ["telemetry ends here: it cannot be written (No space left on device)"]


def test_peaks_by_rank_pass_over_what_was_cut_short(tmp_path):
    path = tmp_path / "t.jsonl"
    lines = [
        {"rank": 0, "memory_used": 5},
        {"rank": 1, "memory_used": 9},
        {"rank": 0, "memory_used": 7},
        {"rank": 1, "memory_used": 8},
        {"rank": 1},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n[1]\n{"rank": 1, "memory_us')
    assert peaks(path) == {0: 7, 1: 9}
    assert peaks(tmp_path / "none") == {}


def test_a_family_without_telemetry_has_none():
    profile = devices.profiles()["nvidia"]
    bare = devices.Profile(profile.name, profile.title, "test", profile.torch)
    assert telemetry.source(bare, CHIPS, dict, 2) is None


# ---- one node of several: the script


def asked(folder, **changes):
    """An attempt's folder with what the script reads."""
    request = {"accelerator": "cpu", "gpus": 2, "environment": {}, **changes}
    (folder / "request.json").write_text(json.dumps(request))
    return folder


def watching(folder, node, out, mark="m", **environment):
    """The script, as node.py starts it: in an interpreter that has no packages."""
    words = [sys.executable, "-I", "-S", str(SCRIPT), str(folder), str(out), str(node)]
    return subprocess.Popen(words, cwd="/", env={**os.environ, "ACCEPTANCE_RUN": mark, **environment})


@pytest.fixture
def ranks():
    """Processes that have a rank of run `m` on two nodes, and one of another run."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    started = []
    for number, node, mark in ((0, 0, "m"), (2, 1, "m"), (3, 1, "m"), (3, 1, "m"), (2, 1, "other")):
        place = {"ACCEPTANCE_RUN": mark, "RANK": str(number), "GROUP_RANK": str(node)}
        words, pipes = [sys.executable, "-c", code], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen(words, env={**os.environ, **place}, **pipes))
        started[-1].stdout.readline()
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_a_node_watches_the_ranks_that_are_its_own(ranks, tmp_path):
    assert list(processes_of("m", 1)) == [process.pid for process in ranks[1:4]]
    out = tmp_path / "telemetry" / "b.jsonl"
    script = watching(asked(tmp_path), 1, out)
    until(lambda: out.exists() and len(rows(out)) >= 2)
    script.terminate()
    assert script.wait(10) == 0
    assert {row["rank"] for row in rows(out)} == {2, 3}
    assert all(row["memory_used"] > 1 << 20 for row in rows(out))


def test_devices_of_a_later_node_have_the_ranks_after_those_before(tmp_path):
    script(tmp_path, "nvidia-smi", "echo '0, GPU-a, H100, 81559, 580.95, 1000, 300.5, 50, 97, 1755'")
    out = tmp_path / "telemetry" / "b.jsonl"
    watcher = watching(asked(tmp_path, accelerator="nvidia", gpus=1), 3, out, PATH=f"{tmp_path}:{os.environ['PATH']}")
    until(lambda: out.exists() and rows(out))
    watcher.terminate()
    watcher.wait(10)
    assert {(row["rank"], row["device"], row["power_w"]) for row in rows(out)} == {(3, "GPU-a", 300.5)}


def test_a_node_that_cannot_be_watched_says_so_in_one_line(tmp_path):
    words = [
        sys.executable,
        "-I",
        "-S",
        str(SCRIPT),
        str(asked(tmp_path, accelerator="nvidia")),
        str(tmp_path / "b.jsonl"),
        "1",
    ]
    watcher = subprocess.Popen(words, env={"PATH": "/nowhere"}, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout.readline() == "telemetry of b: no telemetry: nvidia-smi is not on PATH\n"
    watcher.terminate()
    watcher.communicate()


def test_the_script_ends_with_whoever_started_it(tmp_path):
    out = tmp_path / "b.jsonl"
    words = [sys.executable, str(SCRIPT), str(asked(tmp_path)), str(out), "0"]
    code = f"import subprocess; print(subprocess.Popen({words!r}).pid, flush=True); import time; time.sleep(1000)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    watcher = psutil.Process(int(parent.stdout.readline()))
    until(out.exists)
    parent.kill()
    parent.communicate()
    until(lambda: not watcher.is_running() or watcher.status() == psutil.STATUS_ZOMBIE)
