"""The probe as a process of its own: what it writes, and that nothing stops it from writing."""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fixtures import devices, probe

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "fixtures" / "probe.py"


def ask(*arguments, bare=True, **environment):
    """Run the script; `bare`: in an interpreter that has no packages, which starts at once."""
    return subprocess.run(
        [sys.executable, *(["-I", "-S"] if bare else []), str(SCRIPT), *map(str, arguments)],
        cwd="/", env={**os.environ, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def here():
    """This machine as its own interpreter sees it."""
    return probe.gather(sys.executable, "cpu")


def test_node_says_who_it_is_and_what_runs_on_it(here):
    assert here["host"] == socket.gethostname()
    assert here["accelerator"] == "cpu"
    assert here["python"] == platform.python_version()
    assert here["kernel"] == platform.platform()
    assert abs(here["memory_bytes"] - psutil.virtual_memory().total) < 1 << 20
    assert abs(here["clock"] - time.time()) < 300
    assert here["utc_offset"] == time.localtime().tm_gmtoff
    assert here["cpu"].endswith(f"x {os.cpu_count()}")
    assert here["problems"] == [] or "lscpu" in here["problems"][0]


def test_torch_and_internlm_are_those_of_the_interpreter(here):
    assert here["torch"] == here["torch_details"]["version"] == here["libraries"]["torch"]
    assert here["internlm"] == here["libraries"]["InternEvo"]
    assert here["collective"].startswith("Gloo")


def test_the_file_is_written_whole_into_a_new_folder(tmp_path):
    out = tmp_path / "nodes" / "a.json"
    assert ask(out, "--profile", "cpu").returncode == 0
    assert json.loads(out.read_text())["host"] == socket.gethostname()
    assert [p.name for p in out.parent.iterdir()] == ["a.json"]


def test_in_a_folder_the_file_is_named_after_the_host(tmp_path):
    assert ask(tmp_path, "--profile", "cpu").returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == [f"{socket.gethostname()}.json"]


def test_a_file_that_cannot_be_written_is_one_line_and_status_1(tmp_path):
    (tmp_path / "file").write_text("")
    done = ask(tmp_path / "file" / "a.json", "--profile", "cpu")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be written" in done.stderr


@pytest.fixture
def broken(tmp_path):
    """A torch that is installed, and is as broken as the test wants."""

    def make(code):
        (tmp_path / "torch-9.9.dist-info").mkdir()
        (tmp_path / "torch-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
        (tmp_path / "torch.py").write_text(code)
        return {"PYTHONPATH": str(tmp_path)}

    return make


def test_a_torch_that_cannot_be_imported_is_a_problem_named_in_the_file(broken):
    done = ask(
        "-", "--profile", "cpu", bare=False, **broken("raise ImportError('libhccl.so: cannot open shared object file')")
    )
    node = json.loads(done.stdout)
    assert node["torch"] == "9.9"
    assert node["torch_details"] == {}
    assert "PyTorch could not be asked" in node["problems"][0]


def test_a_torch_that_blocks_is_given_up_after_its_time(broken, monkeypatch):
    environment = broken("import time; time.sleep(1000)")
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    problems = []
    profile = devices.profiles()["cpu"]
    assert probe._ask_torch(profile, 1.0, problems) == {}
    assert "timed out after 1.0 seconds" in problems[0]


def test_what_libraries_print_while_they_are_imported_does_not_hurt(broken):
    code = (
        "print('[WARNING] driver is old')\nimport types\n__version__ = '9.9'\n"
        "version = types.SimpleNamespace(cuda=None, hip=None)\n"
        "cuda = types.SimpleNamespace(is_available=lambda: False)\n"
    )
    node = json.loads(ask("-", "--profile", "cpu", bare=False, **broken(code)).stdout)
    assert node["torch_details"]["version"] == "9.9"


def test_an_interpreter_without_torch_says_so():
    node = json.loads(ask("-", "--profile", "cpu").stdout)
    assert node["torch"] is None
    assert "PyTorch is not installed in this interpreter" in node["problems"]


def test_devices_driver_and_the_tools_own_words_are_recorded(tmp_path):
    sample = ROOT / "tests" / "data" / "tools" / "nvidia.txt"
    (tmp_path / "nvidia-smi").write_text(
        f'#!/bin/sh\ncase "$1" in -q) echo "Attached GPUs : 2";; topo) printf "\\033[4mGPU0\\033[0m NV18";; '
        f"*) cat {sample};; esac\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "1"}
    node = json.loads(ask("-", "--profile", "nvidia", **environment).stdout)
    assert node["devices"] == [
        {"index": 1, "id": "GPU-2db1ec5d-2222", "name": "NVIDIA H100 80GB HBM3", "memory_bytes": 81559 << 20}
    ]
    assert node["driver"] == "580.95.05"
    assert node["vendor_tool"] == {"command": "nvidia-smi -q", "output": "Attached GPUs : 2\n"}
    assert node["topology"] == "GPU0 NV18", "without colours"


def test_a_node_whose_devices_are_gone_still_tells_the_rest():
    node = json.loads(ask("-", "--profile", "ascend", PATH="/nonexistent").stdout)
    assert node["devices"] == []
    assert node["accelerator"] == "ascend"
    assert node["problems"][0] == "npu-smi is not on PATH"
    assert node["kernel"] == platform.platform()


def test_an_interpreter_that_cannot_run_the_probe_is_an_error(tmp_path):
    with pytest.raises(devices.DeviceError, match="is not on PATH"):
        probe.gather(str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\necho hello\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(devices.DeviceError, match="printed no JSON: 'hello"):
        probe.gather(str(tmp_path / "python"))


def test_fingerprint_is_of_the_system_not_of_the_moment(here):
    assert probe.fingerprint(here) == probe.fingerprint({**here, "clock": 0, "vendor_tool": {}, "problems": ["x"]})
    for key, other in (("driver", "581"), ("torch", "2.0"), ("devices", [{}]), ("host", "b"), ("internlm", "x")):
        assert probe.fingerprint(here) != probe.fingerprint({**here, key: other}), key


def test_names_in_this_folder_do_not_shadow_the_vendors_packages(tmp_path):
    """fixtures/ holds a folder internlm; as the script's own folder it would stand first on sys.path."""
    code = f"import sys, runpy; sys.argv = ['probe', '--help']; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
    code += f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\nexcept SystemExit: print(sys.path[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(ROOT)
