"""Runs the bundled trainer on tiny, changed, in processes of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fixtures.internlm.checkout import TRAINER

TINY = Path(__file__).parents[2] / "configs" / "models" / "tiny.py"
BROKEN = Path(__file__).with_name("broken.py")
AS_CUDA = Path(__file__).with_name("as_cuda.py")
CHECKER = Path(__file__).with_name("check_trainer.py")
SMALL = 'data["micro_num"] = 2; data["micro_bsz"] = 2'
LAYOUTS = {
    "zerodp": "",
    "tp2": 'parallel["tensor"]["size"] = 2; parallel["zero1"]["size"] = 1',
    "pp2": 'parallel["pipeline"]["size"] = 2; parallel["zero1"]["size"] = 1',
    "fsdp": 'parallel["zero1"]["fsdp"] = True',
}
STANDALONE = ("--standalone", "--nproc-per-node", "2")


@dataclass(frozen=True)
class Finished:
    """A training run that is over; losses and gradient norms by step, as printed."""

    status: int
    output: str

    @property
    def losses(self) -> list[float]:
        return [float(x) for x in re.findall(r"training_metrics -- tflops=\S+ step=\d+ loss=(\S+) ", self.output)]

    @property
    def norms(self) -> list[float]:
        return [float(x) for x in re.findall(r"grad_norm=\{'0_default': ([^,}]+)", self.output)]


def config(folder: Path, *changes: str, steps: int = 3) -> Path:
    """tiny's config with lines of Python after it."""
    path = folder / "config.py"
    path.write_text("\n".join([TINY.read_text(), f'data["total_steps"] = {steps}', *changes]) + "\n")
    return path


def train(
    folder: Path,
    *changes: str,
    steps: int = 3,
    script: Path = TRAINER,
    torchrun: Sequence[str] = STANDALONE,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Train through torchrun in `folder`, without a PYTHONPATH."""
    command = [sys.executable, "-m", "torch.distributed.run", *torchrun, str(script)]
    command += ["--config", str(config(folder, *changes, steps=steps)), "--launcher", "torch", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=clean_environment(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    return Finished(done.returncode, done.stdout)


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables less PYTHONPATH, and `more`."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | dict(more or {})


def ask(question: str, torchrun: Sequence[str] = ()) -> dict:
    """What check_trainer.py answers, run by itself or through torchrun."""
    launcher = ["-m", "torch.distributed.run", *torchrun] if torchrun else []
    command = [sys.executable, *launcher, str(CHECKER), question]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
