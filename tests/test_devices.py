"""Detection with stub tools on PATH, in the words that the real ones print; no accelerator is needed."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fixtures import devices
from fixtures.devices import Device, DeviceError, Found, Tool, count, detect, profile, profiles, read, run, visibility

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "tests" / "data" / "tools"
FAMILIES = sorted(profiles())

# What each family's tool prints, and what must be read from it: id, name, memory in MiB, driver, then the figures
# of the first device. Sources in the samples' names: published output (of the tool's version), or written from the
# vendor's documentation of the queried columns where no output is published.
EXPECTED = {
    "amd": (
        [("0x9e8f7d6c5b4a3921", "AMD Instinct MI300X", 196592), ("0x1a2b3c4d5e6f7081", "AMD Instinct MI300X", 196592)],
        "6.8.5",
        {"memory_used": 285 << 20, "power_w": 142.0, "temperature_c": 41.0, "utilization": 3.0, "clock_mhz": 132.0},
    ),
    "ascend": (
        [("0000:C1:00.0", "910B4", 32768), ("0000:41:00.0", "910B4", 32768)],
        "25.5.2",
        {"memory_used": 2922 << 20, "power_w": 89.9, "temperature_c": 39.0, "utilization": 7.0},
    ),
    "biren": (
        [("BR-1", "Biren 106M", 32512), ("BR-2", "Biren 106M", 32512)],
        "1.5.0",
        {"memory_used": 1024 << 20, "utilization": 12.0, "temperature_c": 40.0},
    ),
    "cambricon": (
        [("cambricon-0", "MLU370-X4", 23308), ("cambricon-1", "MLU370-X4", 23308)],
        "4.20.11",
        {"memory_used": 512 << 20, "power_w": 30.0, "temperature_c": 32.0, "utilization": 4.0},
    ),
    "enflame": (
        [("TPUH90200803", "S60", 42976), ("TPUH90200804", "S60", 42976)],
        "1.2.0.1",
        {"memory_used": 38934 << 20, "power_w": 99.0, "temperature_c": 35.0, "utilization": 1.5},
    ),
    "hygon": (
        [("7100fa8866904061", "DCU K100_AI", 65520), ("7100fa8866904062", "DCU K100_AI", 65520)],
        "6.3.13-V1.12.0a",
        {"memory_used": 2 << 20, "temperature_c": 41.0, "utilization": 0.0},
    ),
    "iluvatar": (
        [("GPU-1ac807aa", "Iluvatar MR-V100", 32768), ("GPU-2bd918bb", "Iluvatar MR-V100", 32768)],
        "4.1.0",
        {"memory_used": 27780 << 20, "temperature_c": 44.0, "utilization": 0.0},
    ),
    "kunlun": (
        [("02K15K624CV00304", "P800 OAM", 98304), ("02K15K624CV0030V", "P800 OAM", 98304)],
        "5.0.21",
        {"memory_used": 90440 << 20, "power_w": 86.0, "temperature_c": 36.0, "utilization": 0.0},
    ),
    "metax": (
        [("0000:0e:00.0", "MetaX C500", 65536), ("0000:0f:00.0", "MetaX C500", 65536)],
        "3.0.11",
        {"memory_used": 826 << 20, "power_w": 57.0, "temperature_c": 35.0, "utilization": 2.0},
    ),
    "moore-threads": (
        [("a1b2c3d4-0001", "MTT S4000", 49152), ("a1b2c3d4-0002", "MTT S4000", 49152)],
        "2.7.0",
        {
            "memory_used": 3419 << 20,
            "power_w": 30.12,
            "temperature_c": 59.0,
            "utilization": 6.0,
            "clock_mhz": 1000.0,
        },
    ),
    "nvidia": (
        [("GPU-1db1ec5d-1111", "NVIDIA H100 80GB HBM3", 81559), ("GPU-2db1ec5d-2222", "NVIDIA H100 80GB HBM3", 81559)],
        "580.95.05",
        {
            "memory_used": 4 << 20,
            "power_w": 70.73,
            "temperature_c": 29.0,
            "utilization": 0.0,
            "clock_mhz": 345.0,
        },
    ),
}


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Only our stubs are on PATH (sh for running them is reached by its own path), and no NVML, no restriction."""
    monkeypatch.setattr(devices, "nvml", lambda: None)
    for variable in [v for v in os.environ if v.endswith("VISIBLE_DEVICES")]:
        monkeypatch.delenv(variable)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def stub(name, text):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    return stub


@pytest.fixture
def gpus(tools):
    """Four NVIDIA GPUs, as nvidia-smi counts them."""
    lines = "\\n".join(
        f"{i}, GPU-{c * 4}-{i}, NVIDIA H100, 81559, 580.95, 4, 70.0, 29, 0, 345" for i, c in enumerate("abbd")
    )
    tools("nvidia-smi", f"printf '{lines}\\n'")


def sampled(tools, family):
    """A stub for the family's tool that prints the sample of its subcommand."""
    known = profiles()[family]
    command = known.devices.command
    driver = SAMPLES / f"{family}-driver.txt"
    words = f'case "$*" in "{" ".join(command[1:])}") exec /bin/cat {SAMPLES / family}.txt;; esac\n'
    tools(command[0], words + (f"exec /bin/cat {driver}" if driver.exists() else "exit 1"))


# ---- the families ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(EXPECTED))
def test_family_is_found_counted_and_named_from_its_tool(family, tools):
    sampled(tools, family)
    found = detect()
    expected, driver, figures = EXPECTED[family]
    assert found.profile.name == family
    assert [(d.id, d.name, d.memory_bytes) for d in found.devices] == [(i, n, m << 20) for i, n, m in expected]
    assert [(d.index, d.entry) for d in found.devices] == [(0, "0"), (1, "1")]
    assert (found.driver, found.notes) == (driver, ())
    row = read(found.profile.telemetry, run(found.profile.telemetry.command, 10))[0]
    assert {k: v for k, v in row.items() if k in ("memory_used", *devices.FIGURES)} == figures


def test_every_family_is_tested():
    assert set(FAMILIES) == {*EXPECTED, "cpu"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_how_far_it_was_tried_and_why_each_variable_is_set(family):
    known = profiles()[family]
    assert known.status.startswith(("not run on hardware", "run"))
    assert all(len(s.reason) > 20 for s in (*known.debug.values(), *known.deterministic.values()))
    assert {"device", "module", "backend"} == set(known.torch)
    assert known.determinism_environment() == {k: s.value for k, s in known.deterministic.items()}


@pytest.mark.parametrize(
    ("family", "sample", "expected"),
    [
        ("metax", "metax-2.2.8", [("0000:01:00.0", "MetaX N260", 65536, 37.0, 29.0)]),
        ("ascend", "ascend-310", [("0000:01:00.0", "310P3", 21534, 41.0, None)]),
        (
            "ascend",
            "ascend-910a",
            [("0000:C1:00.0", "910A", 32768, 42.0, 70.9), ("0000:81:00.0", "910A", 32768, 36.0, 67.2)],
        ),
        ("hygon", "hygon-old", [(None, "DCU Z100", 16368, 50.0, None)]),
    ],
)
def test_other_releases_of_a_tool(family, sample, expected):
    told = read(profiles()[family].devices, (SAMPLES / f"{sample}.txt").read_text())
    got = [(r.get("id"), r["name"], r["memory_total"] >> 20, r.get("temperature_c"), r.get("power_w")) for r in told]
    assert got == expected


# ---- detection -------------------------------------------------------------------------------------------


def test_nothing_found_is_a_cpu_with_as_many_processes_as_asked_for(tools):
    found = detect()
    assert (found.profile.name, found.devices, found.notes) == ("cpu", (), ())
    assert [(d.index, d.id) for d in found.take(3)] == [(0, "cpu-0"), (1, "cpu-1"), (2, "cpu-2")]
    assert len({d.id for d in detect("cpu").take(64)}) == 64
    assert visibility(found, found.take(3)) == {}


def test_unknown_accelerator_names_the_known_ones(tools):
    with pytest.raises(DeviceError, match=r"--accelerator tpu is unknown; known: amd, ascend, .*, nvidia"):
        detect("tpu")


def test_a_named_family_without_its_tool(tools):
    with pytest.raises(DeviceError, match="npu-smi is not on PATH"):
        detect("ascend")


def test_a_tool_that_fails_is_quoted(tools):
    tools("nvidia-smi", "echo 'NVIDIA-SMI has failed because it could not communicate with the driver.'; exit 9")
    with pytest.raises(DeviceError, match="ended with status 9: NVIDIA-SMI has failed because"):
        detect("nvidia")
    found = detect()
    assert found.profile.name == "cpu"
    assert "NVIDIA-SMI has failed" in found.notes[0]


def test_a_tool_that_lists_nothing(tools):
    tools("nvidia-smi", "echo 'No devices were found'")
    with pytest.raises(DeviceError, match=r"no NVIDIA GPU found: `nvidia-smi -q` lists none"):
        detect("nvidia")


def test_a_tool_that_hangs_is_given_up(tools):
    with pytest.raises(DeviceError, match=r"timed out after 0\.2 seconds"):
        run(["/bin/sleep", "60"], 0.2)


def test_devices_count_even_where_the_driver_is_not_told(tools):
    tools("brsmi", 'case $1 in gpu) echo "0, BR-1, Biren 106M, 32512, 1024, 12, 40";; *) exit 2;; esac')
    found = detect()
    assert (len(found.devices), found.driver) == (1, None)
    assert "the driver's version is not known" in found.notes[0]


def test_two_families_at_once_are_the_callers_choice(gpus, tools):
    sampled(tools, "kunlun")
    with pytest.raises(
        DeviceError, match=r"2 x Kunlunxin XPU and 4 x NVIDIA GPU: choose with --accelerator kunlun or nvidia"
    ):
        detect()
    assert detect("kunlun").profile.name == "kunlun"


def test_a_relative_that_brings_the_others_tool_wins(tools):
    sampled(tools, "hygon")
    sampled(tools, "amd")
    assert detect().profile.name == "hygon"
    assert detect("amd").profile.name == "amd"


def test_more_devices_than_exist(gpus):
    with pytest.raises(
        DeviceError, match=r"5 devices asked for, but there are 4 x NVIDIA GPU; ask for fewer with --gpus"
    ):
        detect().take(5)
    restricted = detect(environment={"CUDA_VISIBLE_DEVICES": "0,1"})
    with pytest.raises(DeviceError, match=r"3 devices .* 2 x NVIDIA GPU \(with CUDA_VISIBLE_DEVICES=0,1\)"):
        restricted.take(3)


class Library:
    """NVML's two GPUs, and a MIG instance of the second."""

    NVMLError = type("NVMLError", (Exception,), {})
    nvmlDeviceGetCount = staticmethod(lambda: 2)
    nvmlDeviceGetHandleByIndex = staticmethod(lambda i: i)
    nvmlDeviceGetUUID = staticmethod(lambda h: h if isinstance(h, str) else f"GPU-{h}".encode())
    nvmlDeviceGetName = staticmethod(lambda h: "NVIDIA H100")
    nvmlDeviceGetMemoryInfo = staticmethod(lambda h: SimpleNamespace(total=80 << 30))
    nvmlSystemGetDriverVersion = staticmethod(lambda: "580.95.05")
    nvmlDeviceGetDeviceHandleFromMigDeviceHandle = staticmethod(lambda h: 1)
    nvmlDeviceGetIndex = staticmethod(lambda h: h)

    @classmethod
    def nvmlDeviceGetHandleByUUID(cls, identity):
        if identity != "MIG-known":
            raise cls.NVMLError("Not Found")
        return identity


def test_nvml_is_asked_before_the_tool(tools, monkeypatch):
    monkeypatch.setattr(devices, "nvml", lambda: Library)
    found = detect()
    assert [(d.id, d.memory_bytes >> 30) for d in found.devices] == [("GPU-0", 80), ("GPU-1", 80)]
    assert found.driver == "580.95.05"


def test_mig_instances_are_named_by_their_uuid(tools, monkeypatch):
    monkeypatch.setattr(devices, "nvml", lambda: Library)
    found = detect(environment={"CUDA_VISIBLE_DEVICES": "MIG-known"})
    assert [(d.id, d.entry) for d in found.devices] == [("MIG-known", "MIG-known")]
    with pytest.raises(DeviceError, match="'MIG-other' names no existing device"):
        detect(environment={"CUDA_VISIBLE_DEVICES": "MIG-other"})


def test_nvml_that_fails_is_quoted(tools, monkeypatch):
    class Broken(Library):
        @staticmethod
        def nvmlDeviceGetCount():
            raise Library.NVMLError("GPU is lost")

    monkeypatch.setattr(devices, "nvml", lambda: Broken)
    with pytest.raises(DeviceError, match="NVML failed: GPU is lost"):
        detect("nvidia")


# ---- visibility ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "indices", "run_on_last_two"),
    [
        ("0,1,2,3", [0, 1, 2, 3], "2,3"),
        ("3,1", [3, 1], "3,1"),
        (" 2 , 0 ", [2, 0], "2,0"),
        ("GPU-aaaa-0,GPU-dddd", [0, 3], "GPU-aaaa-0,GPU-dddd"),
        ("gpu-DDDD,1", [3, 1], "gpu-DDDD,1"),
    ],
)
def test_the_callers_list_is_sliced_in_his_order_and_words(gpus, value, indices, run_on_last_two):
    environment = {"CUDA_VISIBLE_DEVICES": value}
    found = detect(environment=environment)
    assert [d.index for d in found.devices] == indices
    chosen = visibility(found, found.devices[-2:], environment)
    assert chosen == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": run_on_last_two}


def test_without_a_list_devices_are_numbered_and_the_callers_order_is_kept(gpus):
    found = detect()
    assert visibility(found, found.devices[1:3]) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1,2"}
    assert visibility(found, found.devices[:1], {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}) == {"CUDA_VISIBLE_DEVICES": "0"}


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ("9", "the entry '9' names no existing device; there are 0 \\(GPU-aaaa-0\\), 1 "),
        ("0,9", "the entry '9' names no existing device"),
        ("GPU-eeee", "the entry 'GPU-eeee' names no existing device"),
        ("GPU-bbbb", "the entry 'GPU-bbbb' is the beginning of several devices' ids"),
        ("0,,1", "the entry '' names no existing device"),
        ("0,-1", "the entry '-1' names no existing device"),
        ("all", "the entry 'all' names no existing device"),
        ("1,1", "names a device twice"),
        ("1,GPU-bbbb-1", "names a device twice"),
    ],
)
def test_a_wrong_entry_is_an_error_also_where_the_family_is_detected(gpus, value, wrong):
    with pytest.raises(DeviceError, match=wrong):
        detect(environment={"CUDA_VISIBLE_DEVICES": value})


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_hidden_devices_leave_the_cpu_and_are_mentioned(gpus, value):
    found = detect(environment={"CUDA_VISIBLE_DEVICES": value})
    assert found.profile.name == "cpu"
    assert "hides every NVIDIA GPU" in found.notes[0]
    with pytest.raises(DeviceError, match="hides every NVIDIA GPU; unset it"):
        detect("nvidia", {"CUDA_VISIBLE_DEVICES": value})


def amd(environment):
    return detect("amd", environment)


def test_an_outer_variable_renumbers_what_the_inner_one_counts(tools):
    sampled(tools, "amd")
    found = amd({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"})
    assert [d.id for d in found.devices] == ["0x1a2b3c4d5e6f7081"]
    assert visibility(found, found.devices, {"HIP_VISIBLE_DEVICES": "0"}) == {"HIP_VISIBLE_DEVICES": "0"}
    with pytest.raises(DeviceError, match="HIP_VISIBLE_DEVICES: the entry '1' names no existing device"):
        amd({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"})


def test_a_second_name_of_the_variable_is_used_if_the_caller_uses_it(tools):
    sampled(tools, "amd")
    environment = {"CUDA_VISIBLE_DEVICES": "1,0"}
    found = amd(environment)
    assert visibility(found, found.devices[:1], environment) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert visibility(found, found.devices[:1], {}) == {"HIP_VISIBLE_DEVICES": "1"}
    both = {"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}
    assert visibility(amd(both), found.devices[:1], both) == both
    with pytest.raises(DeviceError, match="HIP_VISIBLE_DEVICES=0 and CUDA_VISIBLE_DEVICES=1 contradict"):
        amd({"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"})


# ---- a new vendor, as README tells it --------------------------------------------------------------------

ACME = """
title = "Acme Roadrunner"
status = "not run on hardware; made up for this test"

[torch]
device = "acme"
module = "torch_acme"
backend = "accl"

[visibility]
variables = ["ACME_VISIBLE_DEVICES"]

[devices]
command = ["acme-smi", "list"]
device = '^unit (?P<index>\\d+): (?P<name>.+), serial (?P<id>.+), (?P<memory_used>.+) of (?P<memory_total>.+)$'
memory_unit = "GiB"

[collective]
library = "ACCL"

[deterministic]
ACCL_ORDERED = { value = "1", reason = "the made-up library adds in rank order" }
"""


@pytest.fixture
def acme(tools, tmp_path):
    units = ["unit 0: Roadrunner X, serial R1, 1.5 of 64 GiB", "unit 1: Roadrunner X, serial R2, 2 of 64 GiB"]
    tools("acme-smi", "\n".join(f"echo '{unit}'" for unit in units))
    folder = tmp_path / "devices"
    folder.mkdir()
    (folder / "cpu.toml").write_text((devices.FOLDER / "cpu.toml").read_text())
    (folder / "acme.toml").write_text(ACME)
    return folder


def test_a_new_vendor_is_one_file(acme):
    found = detect(known=profiles(acme), environment={"ACME_VISIBLE_DEVICES": "1"})
    assert found.profile.name == "acme"
    assert found.devices == (Device(1, "R2", "Roadrunner X", 64 << 30, "1"),)
    assert visibility(found, found.devices, {}) == {"ACME_VISIBLE_DEVICES": "1"}
    assert found.profile.determinism_environment() == {"ACCL_ORDERED": "1"}
    assert read(found.profile.telemetry, "unit 0: X, serial R1, 1.5 of 64 GiB\n")[0]["memory_used"] == 3 << 29


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ('title = "Acme Roadrunner"', "", "acme.toml: title is missing"),
        ("[collective]", "[collectives]", r"unknown table \[collectives\]; known: torch, visibility"),
        ('memory_unit = "GiB"', 'unit = "GiB"', r"unknown key 'unit' in \[devices\]"),
        ('memory_unit = "GiB"', 'memory_unit = "TiB"', "devices.memory_unit is 'TiB'; it is one of B, KiB"),
        ("(?P<index>", "(?P<index>(", "devices.device is no regular expression"),
        ("(?P<index>", "(?P<number>", r"unknown field 'number' in \[devices\]"),
        ('memory_unit = "GiB"', 'format = "xml"', "devices.format is 'xml'; it is text or json"),
        ('{ value = "1", reason = "the made-up library adds in rank order" }', "1", "ACCL_ORDERED is written"),
        ('title = "Acme', "title = Acme", "acme.toml: "),
        ('memory_unit = "GiB"', "fields = { power_w = 'W' }", r"devices.fields.power_w needs exactly one \(group\)"),
        ('memory_unit = "GiB"', "[telemetry]\ncontinuous = true\ncommand = []\ndevice = 'y'", "an id or index group"),
        ('status = "not', 'colour = "red"\nstatus = "not', "unknown key 'colour'"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_its_key(acme, old, new, wrong):
    path = acme / "acme.toml"
    assert old in ACME
    path.write_text(ACME.replace(old, new))
    with pytest.raises(DeviceError, match=wrong):
        profile(path)


def test_a_folder_without_the_cpu(tmp_path):
    with pytest.raises(DeviceError, match=r"cpu.toml is missing"):
        profiles(tmp_path)


# ---- reading ---------------------------------------------------------------------------------------------


def test_json_after_warnings_and_with_nested_lists():
    tool = Tool(("x",), "gpus/*", {"name": ("info/name",), "memory_total": ("mem (MiB)", "mem (B)")}, "json")
    output = 'WARNING: old driver\n{"gpus": [{"info": {"name": "A"}, "mem (B)": "2048"}, {"info": {}, "mem (MiB)": 3}]}'
    assert read(tool, output) == [
        {"index": 0, "name": "A", "memory_total": 2048},
        {"index": 1, "memory_total": 3 << 20},
    ]
    assert read(tool, "no JSON here") == []
    assert read(tool, '{"gpus": 3}') == []


def test_devices_are_sorted_by_their_number():
    tool = Tool(("x",), "card*", {"name": ("n",)}, "json")
    output = '{"card10": {"n": "k"}, "card2": {"n": "c"}, "system": {"n": "s"}}'
    assert [row["name"] for row in read(tool, output)] == ["c", "k"]


def test_devices_stand_alone_in_a_vendors_interpreter():
    """No package of ours, nothing but the standard library; and no vendor's library is imported by importing it."""
    code = "import fixtures.devices, sys; print({'numpy', 'torch', 'psutil', 'pynvml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_found_is_a_value():
    assert dataclasses.replace(Found(profiles()["cpu"]), notes=("x",)).notes == ("x",)
    assert count(profiles()["cpu"]) == ((), None, ())
