"""The fused parts of the trainer compute what InternLM's formulas do, and a training with them is the same training."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.internlm.training import AS_CUDA, clean_environment, train

CHECK = Path(__file__).with_name("check_fused.py")
WITHOUT_TRITON = "norm,optimizer,timers"
PACKED = (
    'data.update(micro_num=2, micro_bsz=2, seq_len=32, num_worker=0); model["dtype"] = "torch.bfloat16"',
    'data["use_packed_dataset"] = model["use_flash_attn"] = model["parallel_output"] = True',
)
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None,
    reason="triton is not installed; it comes with CUDA builds of torch: pip install triton",
)


@needs_triton
def test_kernels_are_as_near_the_exact_result_as_internlms_formulas_and_repeat():
    """On CUDA the kernels themselves, elsewhere by Triton's interpreter, which cuts bfloat16 off where CUDA rounds."""
    done = subprocess.run(
        [sys.executable, str(CHECK)], env=clean_environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer.pop("best column")
    assert answer.pop("varlen bfloat16", {"fused": 0})["fused"] < 0.01
    assert len(answer) == 9
    for name, figures in answer.items():
        assert figures["fused"] < (3e-7 if "float32" in name else 0.01), name
        assert figures["again"], name


def ask(code):
    done = subprocess.run(
        [sys.executable, "-c", f"from fixtures.internlm.trainer import fused; {code}"],
        cwd=CHECK.parents[2],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.stdout + done.stderr


def test_the_switch_names_parts_or_all_or_none():
    said = ask("print(fused.chosen('all') == tuple(fused.PARTS), fused.chosen('none'), fused.chosen('norm,loss'))")
    assert said == "True () ('norm', 'loss')\n"
    assert "ValueError: TRAINER_FUSED=norms: no part norms; there are norm, rotary," in ask("fused.chosen('norms')")


@pytest.mark.slow
@pytest.mark.parametrize("parts", [WITHOUT_TRITON, pytest.param("all", marks=needs_triton)])
def test_training_is_the_same_but_for_rounding(parts, tmp_path):
    """Real InternLM in bfloat16 on a CPU that it takes for a GPU."""
    plain, fused = (
        train(
            tmp_path,
            *PACKED,
            steps=4,
            script=AS_CUDA,
            torchrun=("--standalone", "--nproc-per-node", "1"),
            environment={"TRAINER_FUSED": chosen},
        )
        for chosen in ("none", parts)
    )
    assert (plain.status, fused.status) == (0, 0), plain.output + fused.output
    assert fused.losses == pytest.approx(plain.losses, rel=5e-4)
    assert fused.losses != plain.losses  # the parts were in place
    assert fused.norms == pytest.approx(plain.norms, rel=0.02)
