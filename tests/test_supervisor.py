"""fixtures/supervisor.py on cheap processes that print what ranks print; benchmarks/faults.py has the real ones."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from benchmarks import faults
from fixtures import processes, supervisor
from fixtures.evidence import Attempt, EvidenceError, read_json, write_json
from fixtures.progress import Shown, ended_line
from fixtures.release import left_behind

RANK = r"""
import os, signal, subprocess, sys, time
logs = os.path.join(os.getcwd(), "logs")


def say(text, rank=0):
    folder = os.path.join(logs, "none_x", "attempt_0", str(rank))
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "stderr.log"), "ab") as file:
        file.write(text if isinstance(text, bytes) else text.encode() + b"\n")


def step(n, loss=5.0):
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + f",{int(now % 1 * 1000):03d}"
    say(
        f"{stamp}\tINFO train.py:317 in record_current_batch_training_metrics -- tflops=1.5 step={n} loss={loss} "
        f"tgs (tokens/gpu/second)=100.0 lr=0.1 loss_scale=1.0 grad_norm={{'0_default': 2.0}} micro_num=1 "
        f"num_consumed_tokens={(n + 1) * 8} inf_nan_skip_batches=0 num_samples_in_batch=8 loss/cn=nan"
    )


def steps(count):
    for n in range(count):
        step(n)
        time.sleep(0.01)
"""


@pytest.fixture
def launch(tmp_path):
    """Starts a run whose command is Python code, `RANK` before it; what a test leaves running is ended."""
    handles = []

    def launch(code: str, *, detach: bool = False, **request) -> supervisor.Handle:
        attempt = prepared(tmp_path, code, **request)
        handle = supervisor.start(attempt, detach=detach)
        handles.append(handle)
        return handle

    yield launch
    for handle in handles:
        handle.stop("the test is over")


def prepared(root, code: str, *, steps: int = 3, hours=None, accelerator=None, **limits) -> Attempt:
    path = root / "runs" / "tiny" / "speed" / "attempt-1"
    (path / "logs").mkdir(parents=True)
    script = path / "rank.py"
    script.write_text(RANK + textwrap.dedent(code), encoding="utf-8")
    request = {
        "command": [sys.executable, str(script)],
        "workload": {"steps": steps, "hours": hours},
        "limits": limits,
        "environment": {"GIVEN": "1", "HOME": None},
        **({"accelerator": accelerator, "gpus": 1} if accelerator else {}),
    }
    write_json(path / "request.json", request)
    return Attempt(path, "tiny", "speed", 1)


def ended(handle: supervisor.Handle, limit: float = 60) -> dict:
    """The run's end.json, once it has ended; no process of it may be left."""
    deadline = time.monotonic() + limit
    while handle.poll() is not None:
        assert time.monotonic() < deadline, "the run does not end"
        time.sleep(0.02)
    assert processes.marked(handle.who["mark"]) == []
    return handle.attempt.end


def until(condition, limit: float = 30):
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.02)
    return value


# ---- how a run ends


def test_all_steps_and_status_0_are_complete(launch):
    end = ended(launch("steps(3)"))
    assert (end["outcome"], end["exit_status"], end["steps_seen"], end["failure"]) == ("complete", 0, 3, None)
    assert end["left"] == []


def test_the_environment_is_the_requests(launch):
    handle = launch('say(f\'GIVEN={os.environ.get("GIVEN")} HOME={os.environ.get("HOME")}\')\nsteps(3)')
    ended(handle)
    assert "GIVEN=1 HOME=None" in handle.attempt.logs[-1].read_text()


@pytest.mark.parametrize(
    ("code", "failure", "words"),
    [
        ("", "unknown", "exit status 0 after 0 of 3"),
        ("steps(2)", "unknown", "exit status 0 after 2 of 3"),
        ("step(0)\nstep(2)", "numerical", "step 1 has no metric line"),
        ("step(1)\nstep(2)", "set-up", "resumed"),
        ("steps(4)", "set-up", "3 steps were asked for"),
        ("steps(3)\nsys.exit(3)", "unknown", "exit status 3"),
        ("steps(3)\nos.kill(os.getpid(), 9)", "killed", "SIGKILL"),
        ("steps(3)\nprint('RuntimeError: lost', flush=True)\nsys.exit(1)", "unknown", "RuntimeError: lost"),
    ],
)
def test_an_exit_status_is_not_believed(launch, code, failure, words):
    end = ended(launch(code))
    assert (end["outcome"], end["failure"]["class"]) == ("failed", failure)
    assert words in end["failure"]["summary"]
    assert end["failure"]["advice"]


def test_steps_whose_lines_were_wrapped_are_found_too(launch):
    code = """
        whole = say
        def say(text, rank=0):
            whole(text[:150] + "\\n" + text[150:], rank)
        steps(3)
    """
    end = ended(launch(code))
    assert (end["outcome"], end["steps_seen"]) == ("complete", 3)


def test_a_normal_log_with_nan_for_a_language_without_data_is_complete(launch):
    end = ended(launch("steps(3)\nsay('Validation on en: step=2 val_loss=nan')"))
    assert end["outcome"] == "complete"


def test_a_decisive_line_ends_ranks_that_wait_and_ignore_sigterm_and_moved_away(launch):
    code = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        moved = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        if os.fork() == 0:  # orphaned, in a session of its own, with its environment gone
            os.setsid()
            if os.fork() == 0:
                os.execve("/bin/sleep", ["sleep", "1001"], {})
            os._exit(0)
        step(0)
        say("RuntimeError: Connection reset by peer", rank=0)
        say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB", rank=1)
        time.sleep(1000)
    """
    handle = launch(code)
    supervised = psutil.Process(handle.who["pid"])
    pids = until(lambda: [p.pid for p in supervised.children(recursive=True) if p.name() == "sleep"])
    end = ended(handle)
    failure = end["failure"]
    assert (failure["class"], failure["rank"]) == ("out of memory", 1)
    assert failure["file"] == "logs/none_x/attempt_0/1/stderr.log"
    assert failure["quoted"][0].endswith("Tried to allocate 172.00 MiB")
    assert "tp" in failure["advice"]
    assert len(failure["quoted"]) == 2
    assert end["exit_status"] is None
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_the_cause_may_come_a_while_after_the_first_consequence(launch):
    code = """
        step(0)
        say("ERROR train.py:3 in main -- Raise exception from h with rank id: 0")
        say("RuntimeError: Connection closed by peer [127.0.0.1]:1")
        time.sleep(1)
        say("failed (exitcode: -9) local_rank: 1 (pid: 4) of binary: python", rank=0)
        time.sleep(1000)
    """
    failure = ended(launch(code))["failure"]
    assert (failure["class"], failure["rank"]) == ("killed", 1)


def test_a_complaint_that_training_went_on_after_is_not_the_cause(launch):
    code = """
        say("ModuleNotFoundError: No module named 'rotary_emb'", rank=1)
        time.sleep(0.5)
        for n in range(4):
            step(n)
            time.sleep(0.3)
        say("RuntimeError: the real one", rank=1)
        sys.exit(1)
    """
    end = ended(launch(code, steps=9))
    assert "the real one" in end["failure"]["summary"]


def test_a_line_without_its_end_is_read_when_the_run_is_over(launch):
    end = ended(launch("step(0)\nsay(b'RuntimeError: HIP out of memory')\nsys.exit(1)"))
    assert end["failure"]["class"] == "out of memory"


def test_a_port_that_the_run_listened_on_is_free_afterwards(launch):
    code = """
        import socket
        listener = socket.create_server(("127.0.0.1", 0))
        say(f"PORT {listener.getsockname()[1]}")
        step(0)
        time.sleep(1000)
    """
    handle = launch(code)
    until(lambda: handle.poll().steps_seen)
    port = int(handle.attempt.logs[-1].read_text().split()[1])
    run = processes.marked(handle.who["mark"])
    assert port in processes.ports_of(run)
    handle.stop("seen")
    assert port not in processes.listening()
    assert handle.attempt.end["ports_left"] == []


# A mock of a foreign accelerator's tool, in ixsmi's words: the memory in use stands in a file, in MiB.
CHIP = """#!/bin/sh
[ -e {folder}/broken ] && exit 1
echo "0, GPU-mock, Iluvatar MR-V100, 32768 MiB, 4.1.0, $(cat {folder}/used) MiB, 44 C, 0 %"
"""


@pytest.fixture
def chip(tmp_path, monkeypatch):
    """A folder with the mock's `used`, first on PATH; tests write what is in use into it, ranks too."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "used").write_text("64")
    (folder / "ixsmi").write_text(CHIP.format(folder=folder))
    (folder / "ixsmi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


@pytest.mark.parametrize(("left", "text"), [(64, []), (20000, ["device GPU-mock: 19.53 GiB in use, 0.06 before"])])
def test_device_memory_is_looked_at_before_and_after(launch, chip, left, text):
    code = f"""
        used = {str(chip / "used")!r}
        open(used, "w").write("30000")
        steps(3)
        open(used, "w").write("{left}")
    """
    handle = launch(code, accelerator="iluvatar", release_seconds=1)
    end = ended(handle)
    assert end["devices"] == [{"device": "GPU-mock", "memory_before": 64 << 20, "memory_after": left << 20}]
    assert (end["outcome"], left_behind(end)) == ("complete", text)
    assert "devices_unseen" not in end
    assert ("still in use: device GPU-mock" in ended_line(handle.attempt)) is bool(text)


def test_devices_that_cannot_be_looked_at_are_said_not_to_have_been(launch, chip):
    code = f"steps(3)\nopen({str(chip / 'broken')!r}, 'w').close()"
    end = ended(launch(code, accelerator="iluvatar"))
    assert "devices" not in end
    assert "ixsmi" in end["devices_unseen"]


def test_devices_of_a_run_whose_supervisor_died_are_looked_at_by_whoever_buries_it(launch, chip):
    handle = launch(FOREVER, accelerator="iluvatar", release_seconds=1)
    until(lambda: handle.poll().steps_seen)
    (chip / "used").write_text("30000")
    os.kill(handle.who["pid"], signal.SIGKILL)
    assert left_behind(ended(handle)) == ["device GPU-mock: 29.30 GiB in use, 0.06 before"]


# ---- hang


# Two ranks that stop after their steps, each with a thread beside the one that trains.
HANG = """
    code = '''
    import faulthandler, os, signal, sys, threading, time
    folder = os.path.join("logs", "none_x", "attempt_0", os.environ["RANK"])
    os.makedirs(folder, exist_ok=True)
    log = open(os.path.join(folder, "stdout.log"), "w")
    if {asked}:
        faulthandler.register(signal.SIGUSR1, file=log, all_threads=True)
    threading.Thread(target=lambda: time.sleep(1000), daemon=True).start()
    def waits_here():
        time.sleep(1000)
    waits_here()
    '''
    import textwrap
    for rank in "01":
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=os.environ | {{"RANK": rank}})
    steps(3)
    print("Traceback (most recent call last):", "  File \\"x.py\\", line 3, in launcher", sep="\\n", flush=True)
    time.sleep(1000)
"""


def hung(launch, asked: str) -> dict:
    return ended(launch(HANG.format(asked=asked), steps=9, step_seconds_min=3, step_factor=2))["failure"]


def test_a_hang_is_found_by_the_runs_own_pace_with_a_stack_of_each_rank(launch):
    failure = hung(launch, "True")
    assert failure["class"] == "hang"
    assert "after step 2" in failure["summary"]
    assert [line.partition(":")[0] for line in failure["quoted"]] == [
        f"rank {rank}, logs/none_x/attempt_0/{rank}/stdout.log" for rank in (0, 0, 1, 1)
    ], "the main thread's two innermost frames of each, and nothing else"
    assert [line.rpartition(" ")[2] for line in failure["quoted"]] == ["waits_here", "<module>"] * 2


def test_a_rank_that_handles_no_signal_is_looked_into_from_outside(launch, tmp_path):
    """As a vendor's own train.py: SIGUSR1 would end it."""
    if not (spy := processes._spy()):
        pytest.skip("py-spy has no wheel for this machine")
    beside = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    may = subprocess.run([spy, "dump", "--nonblocking", "--pid", str(beside.pid)], capture_output=True, text=True)
    beside.kill()
    beside.wait()
    if "Permission Denied" in may.stderr:
        pytest.skip("this user may not look into other processes (kernel.yama.ptrace_scope)")
    failure = hung(launch, "False")
    assert "no stack dump" not in failure["summary"]
    assert [line.partition(":")[0] for line in failure["quoted"]] == [
        f"rank {rank}, logs/stacks/rank-{rank}.txt" for rank in (0, 0, 1, 1)
    ]
    assert ["waits_here" in line for line in failure["quoted"]] == [True, False] * 2
    (kept,) = tmp_path.rglob("logs/stacks/rank-1.txt")
    assert "waits_here" in kept.read_text()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'Permission Denied: no ptrace'; exit 1", "py-spy: Permission Denied: no ptrace"),
        ("exec sleep 1000", "py-spy: no answer"),
    ],
)
def test_a_rank_that_cannot_be_looked_into_is_said_to_be(tmp_path, monkeypatch, script, words):
    spy = tmp_path / "py-spy"
    spy.write_text(f"#!/bin/sh\n{script}\n")
    spy.chmod(0o755)
    monkeypatch.setattr(processes, "_spy", lambda: str(spy))
    monkeypatch.setattr(processes, "SPY_SECONDS", 0.5)
    sleeper = subprocess.Popen(["sleep", "1000"])
    said = processes.dump_stacks({3: psutil.Process(sleeper.pid)}, tmp_path / "stacks")
    alive = sleeper.poll() is None
    sleeper.kill()
    sleeper.wait()
    assert alive, "who handles no SIGUSR1 gets none"
    assert said == f"rank 3 gave no stack dump ({words})"
    assert list((tmp_path / "stacks").iterdir()) == []


def test_no_first_step_within_the_start_up_limit_is_a_hang(launch):
    end = ended(launch("time.sleep(1000)", startup_seconds=1))
    assert end["failure"]["class"] == "hang"
    assert "before the first step" in end["failure"]["summary"]


def test_processes_that_do_not_end_after_the_last_step_are_a_hang(launch):
    end = ended(launch("steps(3)\ntime.sleep(1000)", step_seconds_min=1, step_factor=1))
    assert (end["failure"]["class"], end["steps_seen"]) == ("hang", 3)


def test_a_stopped_process_is_named_and_ended(launch):
    code = """
        if "RANK" not in os.environ:
            os.execve(sys.executable, [sys.executable, __file__], os.environ | {"RANK": "0"})
        steps(3)
        os.kill(os.getpid(), signal.SIGSTOP)
    """
    end = ended(launch(code, steps=9, step_seconds_min=1, step_factor=1))
    assert "rank 0 is stopped" in end["failure"]["summary"]


# ---- length in hours


def test_a_run_that_reaches_its_hours_is_complete(launch):
    code = "n = 0\nwhile True:\n    step(n)\n    n += 1\n    time.sleep(0.05)"
    end = ended(launch(code, steps=10**6, hours=0.5 / 3600))
    assert (end["outcome"], end["failure"]) == ("complete", None)
    assert 1 < end["steps_seen"] < 10**6


# ---- stopping and surviving


def test_stop_leaves_evidence_and_no_process(launch):
    handle = launch("step(0)\ntime.sleep(1000)")
    until(lambda: handle.poll().steps_seen == 1)
    handle.stop("interrupted by the user")
    handle.stop("again")
    assert handle.poll() is None
    end = ended(handle)
    assert (end["outcome"], end["note"], end["steps_seen"]) == ("interrupted", "interrupted by the user", 1)


DRIVER = """
import sys, time
from pathlib import Path
from fixtures import supervisor
from fixtures.evidence import Attempt
handle = supervisor.start(Attempt(Path(sys.argv[1]), "tiny", "speed", 1), detach=sys.argv[2] == "detach")
print("started", flush=True)
try:
    while handle.poll() is not None:
        time.sleep(0.05)
except KeyboardInterrupt:
    handle.stop("Ctrl-C")
"""


def drive(attempt: Attempt, mode: str = "attached") -> subprocess.Popen:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(attempt.path), mode], cwd=supervisor.ROOT, stdout=subprocess.PIPE
    )
    with driver.stdout:
        assert driver.stdout.readline() == b"started\n"
    return driver


FOREVER = "step(0)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(1000)"


@pytest.mark.parametrize("signals", [[signal.SIGKILL], [signal.SIGINT], [signal.SIGINT] * 2, [signal.SIGTERM]])
def test_the_end_of_pytest_ends_the_run_as_interrupted(tmp_path, signals):
    attempt = prepared(tmp_path, FOREVER)
    driver = drive(attempt)
    who = read_json(attempt.path / "supervisor.json")
    until(lambda: read_json(attempt.path / "progress.json").get("steps_seen"))
    for number in signals:
        driver.send_signal(number)
        time.sleep(0.05)
    driver.wait()
    until(lambda: attempt.end)
    until(lambda: not processes.is_alive(who))
    assert attempt.end["outcome"] == "interrupted"
    assert processes.marked(who["mark"]) == []


def test_a_detached_run_outlives_its_starter_and_is_followed_on(tmp_path):
    code = "steps(2)\nwhile not os.path.exists('go'):\n    time.sleep(0.02)\nstep(2)"
    attempt = prepared(tmp_path, code)
    driver = drive(attempt, "detach")
    until(lambda: read_json(attempt.path / "progress.json").get("steps_seen") == 2)
    driver.kill()
    driver.wait()
    handle = supervisor.attach(attempt)
    assert handle.poll().steps_seen == 2
    (attempt.path / "go").touch()
    assert ended(handle)["outcome"] == "complete"
    assert supervisor.attach(attempt) is None


def test_an_attached_run_can_be_stopped(tmp_path):
    attempt = prepared(tmp_path, FOREVER)
    driver = drive(attempt, "detach")
    driver.kill()
    driver.wait()
    handle = supervisor.attach(attempt)
    handle.stop("enough")
    assert ended(handle)["outcome"] == "interrupted"


def test_a_killed_supervisor_is_buried_with_its_run(launch):
    handle = launch("os.setsid() if os.getpid() != os.getsid(0) else None\n" + FOREVER)
    until(lambda: handle.poll().steps_seen)
    os.kill(handle.who["pid"], signal.SIGKILL)
    end = ended(handle)
    assert (end["outcome"], end["failure"]["class"]) == ("failed", "killed")
    assert "supervisor" in end["failure"]["summary"]
    assert end["steps_seen"] == 1


def test_a_machine_that_was_restarted_leaves_a_run_that_is_dead(tmp_path):
    attempt = prepared(tmp_path, "")
    who = processes.identity() | {"boot": "an earlier one", "mark": "m1"}
    write_json(attempt.path / "supervisor.json", who)  # its number is a living process's: this one's
    assert supervisor.attach(attempt) is None
    supervisor.bury(attempt)
    assert "restarted" in attempt.end["failure"]["summary"]


def test_a_process_number_given_to_another_is_not_taken_for_the_supervisor(tmp_path):
    attempt = prepared(tmp_path, "")
    who = processes.identity() | {"created": time.time() - 10**6, "mark": "m1"}
    write_json(attempt.path / "supervisor.json", who)
    assert supervisor.attach(attempt) is None


def test_a_supervisor_on_another_host_is_known_alive_by_its_heartbeat(launch):
    handle = launch(FOREVER)
    file = handle.attempt.path / "supervisor.json"
    here = read_json(file)
    write_json(file, here | {"host": "elsewhere"})
    other = supervisor.attach(handle.attempt)
    until(lambda: other.poll().seconds > 0)
    with pytest.raises(EvidenceError, match="elsewhere"):
        other.stop("no")
    write_json(file, here)


def test_a_dead_supervisor_on_another_host_is_known_dead(tmp_path):
    attempt = prepared(tmp_path, "")
    write_json(attempt.path / "supervisor.json", processes.identity() | {"host": "elsewhere", "mark": "m1"})
    assert supervisor.attach(attempt) is None


def test_a_supervisor_that_hangs_itself_hangs_nobody(launch, monkeypatch):
    """Stuck in a driver, say: it lives, and says nothing any more."""
    handle = launch(FOREVER)
    until(lambda: handle.poll() and handle.poll().steps_seen)
    monkeypatch.setattr(supervisor, "STUCK_SECONDS", 1.5)
    os.kill(handle.who["pid"], signal.SIGSTOP)
    end = ended(handle)
    assert (end["outcome"], end["failure"]["class"]) == ("failed", "killed")
    assert "supervisor said nothing for 1.5 s" in end["failure"]["summary"]
    assert processes.marked(handle.who["mark"]) == []


def test_burying_keeps_an_end_that_is_on_record(launch):
    handle = launch("steps(3)")
    end = ended(handle)
    supervisor.bury(handle.attempt)
    assert handle.attempt.end == end


# ---- bad input and bad places


def test_an_attempt_without_a_request_is_refused(tmp_path):
    with pytest.raises(EvidenceError, match=r"request\.json"):
        supervisor.start(Attempt(tmp_path, "tiny", "speed", 1), detach=False)


def test_an_attempt_is_run_once(launch):
    handle = launch("steps(3)")
    ended(handle)
    (handle.attempt.path / "supervisor.json").rename(handle.attempt.path / "kept.json")
    (handle.attempt.path / "kept.json").rename(handle.attempt.path / "supervisor.json")
    done = subprocess.run(
        [sys.executable, "-m", "fixtures.supervisor", str(handle.attempt.path)],
        cwd=supervisor.ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "make a new attempt" in done.stderr


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    attempt = prepared(tmp_path, "")
    (attempt.path / "reserve").mkdir()
    with pytest.raises(EvidenceError, match="reserve"):
        supervisor.start(attempt, detach=False)


def test_a_command_that_does_not_exist_is_a_matter_of_set_up(tmp_path):
    attempt = prepared(tmp_path, "")
    write_json(attempt.path / "request.json", attempt.request | {"command": ["/no/such/program"]})
    end = ended(supervisor.start(attempt, detach=False))
    assert (end["failure"]["class"], "/no/such/program" in end["failure"]["summary"]) == ("set-up", True)


def test_a_removed_folder_ends_the_run_and_says_so(launch):
    handle = launch(FOREVER)
    until(lambda: handle.poll().steps_seen)
    shutil.rmtree(handle.attempt.path)
    end = ended(handle)
    assert (end["outcome"], end["failure"]["class"]) == ("failed", "set-up")
    assert "removed" in end["failure"]["summary"]


def test_a_full_disk_ends_the_run_and_says_so():
    if not faults.mountable():
        pytest.skip("this user may not mount a small file system")
    with faults.small_disk() as disk:
        handle = supervisor.start(prepared(disk, FOREVER), detach=False)
        until(lambda: handle.poll().steps_seen)
        with contextlib.suppress(OSError), (handle.attempt.path / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        end = ended(handle)
    assert (end["failure"]["class"], "no space left" in end["failure"]["summary"]) == ("set-up", True)


@pytest.mark.parametrize(
    "noise",
    [
        "say(os.urandom(20 << 20))",
        "say(b'x' * (100 << 20))",
        "say(b'\\xff\\xfe\\x00' * (1 << 20) + b'\\r\\r\\r')",
        "f = open('logs/sparse.log', 'wb'); f.truncate(200 << 20); f.close()",
    ],
    ids=["garbage", "endless line", "no UTF-8", "zeros"],
)
def test_noise_is_coped_with_in_little_memory(launch, noise):
    handle = launch(f"step(0)\n{noise}\nsay('')\nstep(1)\nstep(2)\nsay('NPU out of memory', rank=1)\ntime.sleep(1000)")
    supervised, peak = psutil.Process(handle.who["pid"]), 0
    while handle.poll() is not None:
        with contextlib.suppress(psutil.Error):
            peak = max(peak, supervised.memory_info().rss)
        time.sleep(0.02)
    end = ended(handle)
    assert (end["failure"]["class"], end["steps_seen"]) == ("out of memory", 3)
    assert 0 < peak < 200 << 20


def test_a_run_that_has_ended_is_no_hang_while_what_it_printed_is_still_read(launch):
    """Suspicious words in every line: slow to read, quick to print."""
    end = ended(launch("steps(3)\nsay(b'an Error that is none\\n' * (6 << 20))", step_seconds_min=3, step_factor=0))
    assert (end["outcome"], end["failure"]) == ("complete", None)


def test_a_clock_set_back_changes_nothing(tmp_path):
    attempt = prepared(tmp_path, "for n in range(20):\n    step(n)\n    time.sleep(0.1)", steps=20)
    clock = faults.CLOCK.replace("> 8", "> 0.7")
    handle = faults.start_with_jumping_clock(attempt, clock)
    end = ended(handle)
    assert (end["outcome"], end["steps_seen"]) == ("complete", 20)
    assert end["seconds"] > 0


def test_progress_is_shown_while_it_runs(launch):
    handle = launch("steps(2)\nwhile not os.path.exists('go'):\n    time.sleep(0.02)\nstep(2)", steps=3)
    progress = until(lambda: (p := handle.poll()) and p.steps_seen == 2 and p)
    assert (progress.step, progress.loss, progress.tgs, progress.phase) == (1, 5.0, 100.0, "training")
    (handle.attempt.path / "go").touch()
    assert ended(handle)["steps_seen"] == 3


def test_progress_counts_down_to_the_length_in_hours(launch):
    handle = launch("steps(2)\nwhile not os.path.exists('go'):\n    time.sleep(0.02)", steps=10**6, hours=2)
    progress = until(lambda: (p := handle.poll()) and p.steps_seen == 2 and p)
    assert 7100 < progress.time_left <= 7200
    run = Shown(handle.attempt, handle, 10**6, progress=progress, first=(time.monotonic() - 10, 1))
    assert any(text.startswith(("1:59:", "2:00:00")) for text in run.columns()), "by its steps it would take months"
    handle.stop("seen")


def test_peak_memory_is_shown_against_the_devices_from_the_first_diagnosis_lines_on(launch, tmp_path):
    lines = [
        "2026-11-24 05:12:22,143\tINFO gputest.py:147 in cuda_memory_analyze -- "
        f"Rank:{rank}-tp0-pp0-dp0: Step 0: Allocated 40 GB, Max_Allocated {peak} GB, Reserved 56 GB, Max_Reserved 56 GB"
        for rank, peak in ((0, "40.9146"), (1, "41.5"))
    ]
    code = f"for line in {lines!r}: say(line)\ntime.sleep(1000)"
    node = {"host": "h", "devices": [{"index": 0, "memory_bytes": 80 << 30}, {"index": 1, "memory_bytes": 96 << 30}]}
    write_json(tmp_path / "runs/tiny/speed/attempt-1/nodes/h.json", node)
    handle = launch(code)
    progress = until(lambda: (p := handle.poll()) and p.memory[0] and p)
    handle.stop("seen")
    assert tuple(progress.memory) == (41.5, 80.0)
    assert Shown(handle.attempt, handle, 3, progress=progress).columns()[3] == "memory 41.5 of 80.0 GiB"


def test_files_kept_open_live_as_long_as_the_supervisor(tmp_path):
    with (tmp_path / "lock").open("w") as file:
        handle = supervisor.start(prepared(tmp_path, FOREVER), detach=False, keep_open=[file])
    opened = [entry.path for entry in psutil.Process(handle.who["pid"]).open_files()]
    handle.stop("seen")
    assert str(tmp_path / "lock") in opened


def test_the_supervisor_side_is_light(launch):
    handle = launch(FOREVER)
    maps = psutil.Process(handle.who["pid"]).memory_maps()
    handle.stop("seen")
    assert not [m.path for m in maps if "libtorch" in m.path]


def test_end_json_has_every_key_of_its_schema(launch):
    end = ended(launch("steps(3)"))
    assert {
        "schema",
        "ended",
        "outcome",
        "exit_status",
        "steps_seen",
        "seconds",
        "seconds_to_first_step",
        "failure",
    } <= end.keys()
    assert json.dumps(end)
