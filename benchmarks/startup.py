"""How fast and how small the bundled trainer starts, against itself with InternLM's own dummy dataset.

    python -m benchmarks.startup [--pairs N]

Two settings: tiny on two processes, and one process at sequence 2048. Each pair is run back to back, so that both
see the same machine; ratios are of the medians. InternLM's dataset at 2048 takes 10 GB of memory.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs" / "models" / "tiny.py"
FIRST_STEP = "record_current_batch_training_metrics -- tflops="
# Samples of their own length: at a fixed one InternLM needs 16 GB at 2048, not 10.
SETTINGS = {
    "tiny, 2 ranks": (2, "data.update(total_steps=1)\n"),
    "sequence 2048, 1 rank": (
        1,
        "data.update(total_steps=1, seq_len=2048, micro_bsz=1, fixed_random_dataset_seqlen=False)\n",
    ),
}


@dataclass(frozen=True)
class Start:
    """Seconds from the launch to the first metric line, and the largest rank's peak resident memory, bytes."""

    seconds: float
    memory: int


def main() -> None:
    """Train as a rank when torchrun says so, else measure and print the table."""
    if len(sys.argv) > 1 and sys.argv[1] == "train":
        train_with_internlms_dataset(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3, help="runs of each kind (default: %(default)s)")
    pairs = parser.parse_args().pairs
    print(f"{'':24}{'time to first step':^30}{'memory of a rank':^30}")
    print(f"{'':24}{'InternLM':>10}{'ours':>10}{'ratio':>10}{'InternLM':>10}{'ours':>10}{'ratio':>10}")
    for name, (ranks, changes) in SETTINGS.items():
        starts = [(measure(ranks, changes, ours=False), measure(ranks, changes, ours=True)) for _ in range(pairs)]
        theirs, ours = (median([pair[n] for pair in starts]) for n in (0, 1))
        print(
            f"{name:24}{theirs.seconds:8.1f} s{ours.seconds:8.1f} s{ours.seconds / theirs.seconds:10.2f}"
            f"{theirs.memory / 2**30:7.2f} GB{ours.memory / 2**30:7.2f} GB{ours.memory / theirs.memory:10.2f}"
        )


def median(starts: list[Start]) -> Start:
    return Start(
        statistics.median(start.seconds for start in starts), statistics.median_low(start.memory for start in starts)
    )


def measure(ranks: int, changes: str, ours: bool) -> Start:
    """One training run of one step.

    Raises RuntimeError, with the end of its log, if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.py"
        config.write_text(TINY.read_text(encoding="utf-8") + changes, encoding="utf-8")
        script = [str(ROOT / "fixtures/internlm/trainer/train.py")] if ours else [str(Path(__file__)), "train"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        log = Path(folder) / "log"
        with log.open("wb") as output:
            began = time.monotonic()
            process = psutil.Popen(
                [*torchrun, *script, "--config", str(config), "--launcher", "torch"],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )
            seconds, memory = None, 0
            try:
                while process.poll() is None:
                    memory = max([memory, *map(resident, process.children(recursive=True))])
                    if seconds is None and FIRST_STEP in log.read_text(errors="replace"):
                        seconds = time.monotonic() - began
                    time.sleep(0.02)
            finally:
                if process.poll() is None:
                    process.terminate()  # torchrun ends its ranks
        if process.returncode != 0 or seconds is None:
            raise RuntimeError(f"the run failed with status {process.returncode}:\n{log.read_text()[-3000:]}")
    return Start(seconds, memory)


def resident(process: psutil.Process) -> int:
    """Resident memory now, bytes; 0 for a process that has ended."""
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def train_with_internlms_dataset(arguments: list[str]) -> None:
    """The bundled trainer, less its dummy data."""
    sys.path[0] = str(ROOT)
    from fixtures.internlm import dummy
    from fixtures.internlm.trainer import train

    class InternLMs:
        """Stands where the trainer takes our dataset from, and gives back InternLM's."""

        def __new__(cls, *args: object, **kwargs: object) -> object:
            from internlm.data.tokenized.dummy_dataset import RandomDataset

            return RandomDataset(*args, **kwargs)

    dummy.DummyDataset = InternLMs
    train.end(train.main(arguments))
    sys.exit()


if __name__ == "__main__":
    main()
