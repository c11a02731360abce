"""The trainer's parts: who meets whom under slurm, which device, and the stand-ins for flash-attn in figures."""

import pytest

from fixtures.internlm.trainer.distributed import first_host, slurm_environment
from tests.internlm.training import STANDALONE, ask

SRUN = {"SLURM_PROCID": "5", "SLURM_NPROCS": "16", "SLURM_LOCALID": "5", "SLURM_JOB_NODELIST": "gpu[003-004]"}


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[003-005,9],x1", "gpu003"),
        ("gpu[9,11-12]", "gpu9"),
        ("rack[1-2]node[07-08].site", "rack1node07.site"),
        ("a-b-[2-3]", "a-b-2"),
        ("10.0.0.1", "10.0.0.1"),
        ("", ""),
    ],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host


def test_slurm_variables_become_torchruns():
    assert slurm_environment(SRUN, 8888, devices=8) == {
        "RANK": "5",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "5",
        "MASTER_ADDR": "gpu003",
        "MASTER_PORT": "8888",
    }


def test_a_task_that_sees_one_device_uses_that():
    assert slurm_environment(SRUN, 8888, devices=1)["LOCAL_RANK"] == "0"


def test_the_step_runs_on_its_own_nodes_not_all_of_the_job():
    assert slurm_environment(SRUN | {"SLURM_STEP_NODELIST": "gpu004"}, 1, 8)["MASTER_ADDR"] == "gpu004"
    assert slurm_environment(SRUN | {"MASTER_ADDR": "10.1.1.1"}, 1, 8)["MASTER_ADDR"] == "10.1.1.1"


@pytest.mark.parametrize(
    ("missing", "said"),
    [("SLURM_PROCID", "SLURM_PROCID: start the trainer with srun"), ("SLURM_JOB_NODELIST", "to find rank 0")],
)
def test_without_srun_is_one_clear_error(missing, said):
    with pytest.raises(ValueError, match=said):
        slurm_environment({k: v for k, v in SRUN.items() if k != missing}, 1, 8)


def test_a_device_that_torch_cannot_see_is_an_error_not_a_cpu_run():
    answer = ask("device")
    assert "no CUDA GPUs are available" in answer["driver"]
    assert "INTERNLM_ACCELERATOR=cpu" in answer["driver"]
    assert (answer["told"], answer["told otherwise"]) == (True, False)


def test_stand_in_attention_is_internlms_attention():
    answer = ask("attention")
    assert "needs flash-attn" in answer.pop("dropout")
    assert answer.pop("switch") == [{"causal": True}, {"causal": True, "deterministic": True}]
    assert set(answer) == {
        f"{name} {kind}" for name in ("self", "packed", "grouped", "told") for kind in ("causal", "full")
    }
    assert max(answer.values()) < 2e-6


@pytest.mark.parametrize("ranks", [1, 2])
def test_stand_in_cross_entropy_is_torchs(ranks):
    answer = ask("cross-entropy", (*STANDALONE[:2], str(ranks)))
    assert len(answer) == 24
    for case, gaps in answer.items():
        assert gaps["loss"] < (1e-4 if "sum" in case else 1e-5), case
        assert gaps["gradient"] < (5e-3 if "bfloat16" in case else 1e-6), case
