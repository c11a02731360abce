"""Every launcher's command line, as a reviewer reads it, and what holds for all of them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from fixtures import slurm
from fixtures.launchers import LAUNCHERS, torchrun

ATTEMPT = Path("/results/runs/7B-tp1-pp1-zero8/speed/attempt-1")


def request(**changes) -> dict:
    return {
        **{"case": "7B-tp1-pp1-zero8", "run": "speed", "attempt": 1, "session": "5e55", "seed": 1024},
        **{"gpus": 8, "nodes": 1, "world": 8, "accelerator": "nvidia", "slurm_args": None, "hosts": []},
        **{"internlm": {"train_py": "/internlm/train.py"}, "python": {"executable": "/vendor/bin/python"}},
        **changes,
    }


GOLDEN = {
    "torchrun": (
        {},
        "/vendor/bin/python -m torch.distributed.run --nnodes=1 --nproc_per_node=8 --rdzv_backend=c10d "
        "--rdzv_endpoint=127.0.0.1:0 --local_addr=127.0.0.1 --max_restarts=0 --log_dir=ATTEMPT/logs --redirects=3 "
        "/internlm/train.py --config=ATTEMPT/config.py --launcher=torch --seed=1024",
    ),
    "torchrun, by ssh": (
        {"nodes": 2, "world": 16, "hosts": ["gpu1", "gpu2"]},
        "/vendor/bin/python HOSTS ATTEMPT gpu1 gpu2",
    ),
    "torchrun, by hand": (
        {"nodes": 2, "world": 16},
        "/vendor/bin/python -m torch.distributed.run --nnodes=2 --nproc_per_node=8 '--node_rank=$NODE_RANK' "
        "'--master_addr=$MASTER_ADDR' '--master_port=$MASTER_PORT' --max_restarts=0 --log_dir=ATTEMPT/logs "
        "--redirects=3 /internlm/train.py --config=ATTEMPT/config.py --launcher=torch --seed=1024",
    ),
    "slurm": (
        {"nodes": 4, "world": 32, "slurm_args": "-p internllm --time=02:00:00"},
        "srun -p internllm --time=02:00:00 --job-name=acceptance-7B-tp1-pp1-zero8-speed-1-5e55 --export=ALL --nodes=4 "
        "--ntasks=32 --ntasks-per-node=8 --gpus-per-task=1 --kill-on-bad-exit=1 --input=none "
        "--output=ATTEMPT/logs/rank-%t.out --error=ATTEMPT/logs/rank-%t.err "
        "/vendor/bin/python MEET ATTEMPT /internlm/train.py --config=ATTEMPT/config.py --launcher=slurm --seed=1024",
    ),
    "slurm, exclusive": (
        {"nodes": 2, "world": 16, "exclusive": True},
        "srun --job-name=acceptance-7B-tp1-pp1-zero8-speed-1-5e55 --export=ALL --nodes=2 --ntasks=16 "
        "--ntasks-per-node=8 --gpus-per-task=1 --exclusive --kill-on-bad-exit=1 --input=none "
        "--output=ATTEMPT/logs/rank-%t.out --error=ATTEMPT/logs/rank-%t.err "
        "/vendor/bin/python MEET ATTEMPT /internlm/train.py --config=ATTEMPT/config.py --launcher=slurm --seed=1024",
    ),
    "slurm, detached": (
        {"nodes": 4, "world": 32, "slurm_args": "-p internllm", "detach": True},
        "sbatch --parsable -p internllm --job-name=acceptance-7B-tp1-pp1-zero8-speed-1-5e55 --export=ALL --nodes=4 "
        "--ntasks=32 --ntasks-per-node=8 --gpus-per-task=1 --no-requeue --output=ATTEMPT/logs/batch.log ATTEMPT/job.sh",
    ),
}


@pytest.fixture(params=sorted(LAUNCHERS))
def launcher(request):
    return LAUNCHERS[request.param]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_command_is_the_one_that_a_reviewer_agreed_to(name):
    changes, text = GOLDEN[name]
    words = LAUNCHERS[name.partition(",")[0]](request(**changes), ATTEMPT)
    here = Path(torchrun.__file__).parent
    places = {"ATTEMPT": ATTEMPT, "MEET": here / "meet.py", "HOSTS": here / "hosts.py"}
    for word, path in places.items():
        text = text.replace(word, str(path))
    assert words == shlex.split(text)


def test_the_command_follows_from_the_request_alone(launcher):
    assert launcher(request(), ATTEMPT) == launcher(request(), ATTEMPT)


def test_the_vendors_interpreter_script_config_and_seed_are_in_the_command(launcher):
    words = launcher(request(seed=7), ATTEMPT)
    script = words.index("/internlm/train.py")
    assert "/vendor/bin/python" in words[:script]
    assert {f"--config={ATTEMPT / 'config.py'}", "--seed=7"} <= set(words[script:])


def test_everything_a_launcher_writes_is_below_the_attempt(launcher):
    written = [word.partition("=")[2] for word in launcher(request(), ATTEMPT) if word.startswith(("--log", "--out"))]
    written += map(str, launcher.files(request(detach=True), ATTEMPT))
    assert written
    assert all(path.startswith(f"{ATTEMPT}/") for path in written)


# ---- Slurm


@pytest.mark.parametrize(
    "site", ["--gres=npu:8", "--gpus=8", "--gpus-per-node=8", "-G 8", "--tres-per-task=gres/npu=1"]
)
def test_a_site_that_names_devices_its_own_way_is_left_alone(site):
    assert "--gpus-per-task=1" not in LAUNCHERS["slurm"](request(slurm_args=site), ATTEMPT)


def test_no_devices_are_asked_for_on_the_cpu():
    assert "--gpus-per-task=1" not in LAUNCHERS["slurm"](request(accelerator="cpu"), ATTEMPT)


def test_our_words_come_after_the_sites_so_that_they_win():
    words = LAUNCHERS["slurm"](request(slurm_args="--ntasks=3 -p x"), ATTEMPT)
    assert words.index("--ntasks=3") < words.index("--ntasks=8")


def test_the_batch_script_lets_the_nodes_speak_and_watch_and_ends_as_the_run_ends():
    attempt = Path("/a folder/100%/attempt-1")
    (script,) = LAUNCHERS["slurm"].files(request(nodes=4, world=32, detach=True), attempt).values()
    shebang, probe, probed, watch, run = script.splitlines()
    assert shebang == "#!/bin/sh"
    assert "--nodes=4 --ntasks=4 --ntasks-per-node=1 --gpus-per-node=8" in probe
    assert probed == ": >'/a folder/100%/attempt-1/probed'"
    assert "--overlap --nodes=4 --ntasks=4 --ntasks-per-node=1" in watch
    assert watch.endswith(" >'/a folder/100%/attempt-1/telemetry.log' 2>&1 &")
    assert run.startswith('exec srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --gpus-per-task=1 ')
    assert "'--output=/a folder/100%%/attempt-1/logs/rank-%t.out'" in run


def test_what_an_outer_allocation_leaks_is_taken_away():
    outer = {"SLURM_JOB_ID": "1", "SBATCH_PARTITION": "x", "SRUN_CPUS_PER_TASK": "4", "SALLOC_ACCOUNT": "a"}
    outer |= {"SQUEUE_PARTITION": "x", "SCANCEL_INTERACTIVE": "1"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "PATH": "/bin", "NCCL_DEBUG": "WARN"}
    assert slurm.clean_environment(outer | kept) == dict.fromkeys(outer)
