"""The command line as a vendor engineer meets it: what is collected, planned, refused."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import faults
from fixtures.options import OPTIONS, collect, ini_name
from tests.suite import ROOT, acceptance

USAGE_ERROR = 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpus", "3"], "shares of 3"),
        (["--accelerator", "abacus"], "abacus"),
        (["--accelerator", "nvidia", "--gpus", "64"], "nvidia|NVIDIA"),
        (["--internlm", "."], "no train.py"),
        (["--python", "/nowhere/python"], "/nowhere/python"),
        (["--gpus", "4", "--gpus-per-run", "3"], "does not divide"),
        (["--model", "9B"], "unknown model 9B"),
        (["--layout", "tp=two"], "tp=two"),
        (["--override", "nowhere.toml"], "nowhere.toml"),
        (["--requirements", "nowhere.toml"], "nowhere.toml"),
        (["--sft-data", "/nowhere"], "/nowhere"),
        (["--gpus", "none"], "--gpus"),
        (["--min-tgs", "-3"], "--min-tgs"),
        (["--evidence", "/nowhere"], "/nowhere"),
        (["--rdzv", "10.0.0.1"], "say how many there are with --nodes"),
        (["--rdzv", "10.0.0.1", "--nodes", "2", "--host-file", "hosts"], "choose one"),
        (["--rdzv", "10.0.0.1", "--nodes", "2", "--launcher", "slurm"], "leave --rdzv out"),
        (["--rdzv", "10.0.0.1", "--nodes", "2", "--detach"], "leave it out"),
        (["--rdzv", "nowhere.invalid:29400", "--nodes", "2"], "--rdzv nowhere.invalid: cannot be resolved"),
        (["--rdzv", "localhost", "--nodes", "2"], "every node has this name"),
        (["--rdzv", "a:b:c", "--nodes", "2"], "is not HOST or HOST:PORT"),
        (["--nodes", "2", "--launcher", "torchrun"], "--host-file FILE, for ssh, or --rdzv HOST"),
        (["-k", "7B"], "no accelerator was found"),
        (["-k", "7B", "-n", "1"], "no accelerator was found"),
        (["--model", "9B", "-n", "1"], "unknown model 9B"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_cannot_be_met_is_one_clear_usage_error(arguments, says, tmp_path):
    done = acceptance(*arguments, "--results", tmp_path / "results")
    assert done.returncode == USAGE_ERROR, done.stdout
    assert any(word in done.stdout for word in says.split("|")), done.stdout
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "results" / "results.json").exists()


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "-n"])
def test_a_results_folder_that_cannot_be_written_is_one_clear_usage_error(workers, tmp_path):
    (tmp_path / "file").touch()
    done = acceptance("-k", "tiny", *workers, "--results", tmp_path / "file" / "results")
    assert done.returncode == USAGE_ERROR, done.stdout
    assert f"--results {tmp_path}/file/results: cannot be written (Not a directory)" in done.stdout
    assert "INTERNALERROR" not in done.stdout


@pytest.mark.parametrize(
    ("free", "status", "says"),
    [(0, USAGE_ERROR, "cannot be written (No space left on device)"), (2, 3, "results and report cannot be written")],
    ids=["at the start", "at the end"],
)
def test_a_full_disk_is_one_clear_error(free, status, says):
    """free: pages of 4 KiB that are left."""
    if not faults.mountable():
        pytest.skip("this user may not mount a small file system")
    with faults.small_disk() as disk:
        with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        os.truncate(disk / "ballast", (disk / "ballast").stat().st_size - 4096 * free)
        recorded = ROOT / "tests" / "data" / "evidence" / "sigkill-h100"
        done = acceptance("--evidence", recorded, "--results", disk / "results")
    assert done.returncode == status, done.stdout
    assert says in done.stdout
    assert "Traceback" not in done.stdout


def test_a_missing_internlm_is_a_usage_error(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH= exec {sys._base_executable} -I "$@"\n')
    python.chmod(0o755)
    done = acceptance("--python", python, "--results", tmp_path / "results")
    assert done.returncode == USAGE_ERROR, done.stdout
    assert "torch" in done.stdout or "InternLM" in done.stdout
    assert "Traceback" not in done.stdout


def test_collecting_lists_cases_in_order_and_imports_no_torch(tmp_path):
    script = (
        "import sys, pytest\n"
        "status = pytest.main(['acceptance', '--collect-only', '-q', '-p', 'no:cacheprovider', *sys.argv[1:]])\n"
        "heavy = [name for name in ('torch', 'internlm', 'transformers') if name in sys.modules]\n"
        "print('imported:', heavy)\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--results", str(tmp_path / "results")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "imported: []" in done.stdout
    listed = [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]
    assert listed[:5] == [
        "test_startup[tiny-tp1-pp1-zerodp]",
        "test_throughput[tiny-tp1-pp1-zerodp]",
        "test_determinism[tiny-tp1-pp1-zerodp]",
        "test_convergence[tiny-tp1-pp1-zerodp]",
        "test_startup[tiny-tp2-pp1-zero1]",
    ]
    assert {name.partition("[")[2] for name in listed} == {
        "tiny-tp1-pp1-zerodp]",
        "tiny-tp2-pp1-zero1]",
        "tiny-tp1-pp2-zero1]",
        "tiny-tp1-pp1-zerodp-fsdp]",
    }
    assert not (tmp_path / "results").exists()


def test_only_the_long_run_of_a_real_model_is_marked_long(tmp_path):
    arguments = ("--collect-only", "-q", "--gpus", "8", "--results", tmp_path / "results", "-m", "long")
    listed = [line for line in acceptance(*arguments).stdout.splitlines() if "::" in line]
    assert listed
    assert all("test_convergence[7B-" in line or "test_convergence[13B-" in line for line in listed)


def test_k_7b_selects_the_pre_training_cases_of_7b_alone(tmp_path):
    done = acceptance("--collect-only", "-q", "--gpus", "8", "-k", "7B", "--results", tmp_path / "results")
    names = {line.partition("[")[2] for line in done.stdout.splitlines() if "::" in line}
    assert "7B-tp1-pp1-zero8]" in names
    assert all(name.startswith("7B-tp") for name in names)


def test_a_dry_run_writes_configs_and_commands_and_launches_nothing(tmp_path):
    done = acceptance("--dry-run", "--gpus", "8", "-k", "7B-tp8", "--results", tmp_path, "-n", "2")
    assert done.returncode == 0, done.stdout
    assert "7B-tp8-pp1-zero1" in done.stdout
    folder = tmp_path / "plan" / "7B-tp8-pp1-zero1"
    assert {run.name for run in folder.iterdir()} == {"speed", "repeat-1", "repeat-2", "long"}
    assert "--nproc_per_node=8" in (folder / "speed" / "command.sh").read_text()
    assert "use_deterministic_algorithms" in (folder / "repeat-1" / "config.py").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"plan"}


def test_a_dry_run_of_a_detached_run_writes_the_batch_job_that_would_be_submitted(tmp_path):
    only = ("--gpus", "8", "-k", "7B-tp8", "--accelerator", "nvidia", "--launcher", "slurm", "--detach")
    done = acceptance("--dry-run", *only, "--results", tmp_path)
    assert done.returncode == 0, done.stdout
    folder = tmp_path / "plan" / "7B-tp8-pp1-zero1" / "long"
    script = (folder / "command.sh").read_text()
    assert "exec sbatch" in script
    (batch,) = [word for word in script.split() if word.startswith(str(folder))][-1:]
    assert "srun" in Path(batch).read_text()


def test_an_ini_setting_stands_in_for_an_option_and_gives_way_to_it():
    ini = {"acceptance_steps": "40"}.get
    assert collect(lambda _: None, ini).steps == 40
    assert collect({"acceptance_steps": "60"}.get, ini).steps == 60
    assert collect(lambda _: None, lambda _: None).steps == 100


@pytest.mark.parametrize(("name", "text"), [("steps", "many"), ("lang", "fr"), ("gpus", "0")])
def test_a_wrong_ini_setting_is_named(name, text):
    with pytest.raises(ValueError, match=f"acceptance_{name} = {text}"):
        collect(lambda _: None, {f"acceptance_{name}": text}.get)


def test_no_option_is_declared_twice():
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)
    assert len({ini_name(option) for option in OPTIONS}) == len(OPTIONS)
