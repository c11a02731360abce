"""The bundled trainer in real training: layouts, determinism, failures, launchers, checkpoints."""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from fixtures.internlm.checkout import TRAINER
from tests.internlm import training
from tests.internlm.training import AS_CUDA, BROKEN, LAYOUTS, SMALL, clean_environment, config, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def zerodp(tmp_path_factory):
    """Three steps on two data-parallel ranks: what the others are compared with."""
    return train(tmp_path_factory.mktemp("zerodp"), SMALL)


def test_trains_and_leaves_nothing_behind(zerodp, tmp_path):
    assert zerodp.status == 0, zerodp.output
    assert len(zerodp.losses) == 3
    assert zerodp.losses[0] == pytest.approx(math.log(1024), abs=0.1)
    assert zerodp.losses[2] < zerodp.losses[0]
    assert len(re.findall(r"INFO \S+ in record_current_batch_training_metrics -- tflops=", zerodp.output)) == 3


@pytest.mark.parametrize("layout", ["tp2", "pp2"])
def test_layout_trains(layout, tmp_path):
    run = train(tmp_path, SMALL, LAYOUTS[layout])
    assert run.status == 0, run.output
    assert len(run.losses) == 3
    assert run.losses[0] == pytest.approx(math.log(1024), abs=0.1)
    assert run.losses[2] < run.losses[0]


def test_fsdp_trains_one_model_not_one_a_rank(zerodp, tmp_path):
    """InternEvo 0.4.9 alone takes fsdp=True and reduces no gradient; sharded, the run is zerodp's."""
    run = train(tmp_path, SMALL, LAYOUTS["fsdp"])
    assert run.status == 0, run.output
    assert run.losses == pytest.approx(zerodp.losses, rel=2e-3)
    assert run.norms[0] == pytest.approx(zerodp.norms[0], rel=1e-6)


@pytest.mark.parametrize(
    ("layout", "processes"),
    [
        ('parallel["tensor"]["size"] = 2', 4),
        ('parallel["tensor"]["size"] = 2; parallel["pipeline"]["size"] = 2; parallel["zero1"]["size"] = 2', 8),
    ],
    ids=["tp2-dp2", "pp2-tp2-zero2"],
)
def test_tensor_parallel_beside_other_parallelism(layout, processes, tmp_path):
    run = train(tmp_path, SMALL, layout, steps=2, torchrun=("--standalone", "--nproc-per-node", str(processes)))
    assert run.status == 0, run.output
    assert len(run.losses) == 2
    assert run.losses[1] < run.losses[0]


def test_deterministic_runs_are_equal_to_the_last_digit(tmp_path):
    runs = [
        train(tmp_path, SMALL, "deterministic = True", arguments=("--seed", seed)) for seed in ("1024", "1024", "7")
    ]
    assert [run.status for run in runs] == [0, 0, 0], runs[0].output
    first, again, other = runs
    assert len(first.losses) == len(first.norms) == 3
    assert (first.losses, first.norms) == (again.losses, again.norms)
    assert first.losses != other.losses


def test_a_rank_that_fails_ends_the_run_with_an_error(tmp_path):
    run = train(tmp_path, SMALL, steps=5, script=BROKEN, environment={"BROKEN": "raise"})
    assert run.status != 0
    said = re.search(r"ERROR .* -- Raise exception from \S+ with rank id: (\d+)\n(Traceback .*)", run.output)
    assert said
    assert said[1] == "1"
    assert "RuntimeError: this rank was told to fail" in run.output
    assert len(run.losses) <= 3


def test_a_config_that_internlm_refuses_ends_with_an_error(tmp_path):
    run = train(tmp_path, "data['use_packed_dataset'] = True")
    assert run.status != 0
    assert "Raise exception from" in run.output
    assert "use_packed_dataset should be set same value as use_flash_attn" in run.output


def test_localhost_is_an_address(zerodp, tmp_path):
    here = ("--nnodes", "1", "--nproc-per-node", "2", "--master-addr", "localhost", "--master-port", str(free_port()))
    run = train(tmp_path, SMALL, torchrun=here)
    assert run.status == 0, run.output
    assert run.losses == pytest.approx(zerodp.losses, rel=1e-6)


def test_slurm_launcher_on_a_cpu(zerodp, tmp_path):
    """What srun sets, on two processes: gloo, and no scontrol."""
    path, port = config(tmp_path, SMALL), str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, str(TRAINER), "--config", str(path), "--launcher", "slurm", "--port", port],
            env=clean_environment(
                {"SLURM_PROCID": rank, "SLURM_NPROCS": "2", "SLURM_LOCALID": rank, "SLURM_JOB_NODELIST": "localhost"}
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    outputs = [process.communicate(timeout=900)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs[0]
    assert training.Finished(0, outputs[0]).losses == pytest.approx(zerodp.losses, rel=1e-6)


def test_sigusr1_shows_where_a_rank_is(tmp_path):
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    path = config(tmp_path, SMALL, steps=100000)
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, str(TRAINER), "--config", str(path), "--launcher", "torch"],
            env=clean_environment(alone | {"MASTER_PORT": str(free_port())}),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for("-- tflops=", tmp_path / "log", process)
            os.kill(process.pid, signal.SIGUSR1)
            wait_for("(most recent call first)", tmp_path / "log", process)
            seen = (tmp_path / "log").read_text().count("-- tflops=")
            wait_for("-- tflops=", tmp_path / "log", process, more_than=seen)  # and it trains on
        finally:
            process.kill()
            process.wait()
    assert re.search(r'File ".*train.py", line \d+ in (step|train|main)', (tmp_path / "log").read_text())


def test_saves_weights_and_starts_from_them(zerodp, tmp_path):
    folder = tmp_path / "saved"
    save = f'ckpt.update(enable_save_ckpt=True, checkpoint_every=30, save_ckpt_folder="local:{folder}")'
    first = train(tmp_path, SMALL, save, steps=30)
    assert first.status == 0, first.output
    assert list((folder / "30").glob("model_*.pt"))
    load = f'ckpt["load_ckpt_info"] = dict(path="local:{folder}/30", content=("model",), ckpt_type="internevo")'
    second = train(tmp_path, SMALL, load)
    assert second.status == 0, second.output
    assert second.losses[0] < 0.7 * zerodp.losses[0]
    assert "step=0 " in second.output


@pytest.mark.parametrize("layout", ["zerodp", "tp2"])
def test_the_path_without_flash_attn(layout, tmp_path):
    """InternLM takes this CPU for a GPU: packed data, the stand-ins' attention, cross-entropy split over tp."""
    packed = 'data["use_packed_dataset"] = model["use_flash_attn"] = model["parallel_output"] = True'
    plain = train(tmp_path, SMALL, LAYOUTS[layout], steps=4)
    run = train(tmp_path, SMALL, LAYOUTS[layout], packed, steps=4, script=AS_CUDA)
    assert run.status == 0, run.output
    assert "Use flash_attn FlashCrossEntropyLoss" in run.output
    assert run.losses == pytest.approx(plain.losses, rel=5e-3)  # its attention is in bfloat16


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def wait_for(text, path, process, more_than=0, seconds=600):
    end = time.monotonic() + seconds
    while path.read_text().count(text) <= more_than:
        assert process.poll() is None, path.read_text()
        assert time.monotonic() < end, path.read_text()
        time.sleep(0.1)
