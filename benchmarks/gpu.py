"""What the bundled trainer's fused parts bring on one CUDA device: one model, one process, parts put in and taken out.

    python -m benchmarks.gpu [--model 7B] [--global-batch 4] [--micro-bsz 2] [--steps 8] [--recompute] [--each]
                             [--profile FOLDER]

The first row is InternLM's own formulas with torch's attention. TGS is of the median step, the ratio is to the first
row; MFU counts 6 operations a parameter and token, and attention, none of them twice (fixtures/internlm/flops.py).
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNMEASURED = 3  # first steps of a row


def main() -> None:
    """Launch one rank of this file, or be it."""
    options = parse()
    if options.config:
        sys.path[0] = str(ROOT)
        measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.py"
        config.write_text(
            (ROOT / "configs" / "models" / f"{options.model}.py").read_text(encoding="utf-8")
            + f"data.update(total_steps=10**6, micro_bsz={options.micro_bsz}, "
            f"micro_num={options.global_batch // options.micro_bsz})\n"
            f'parallel["zero1"]["size"] = -1\nmodel["checkpoint"] = {options.recompute}\n',
            encoding="utf-8",
        )
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
        command = [*torchrun, __file__, *sys.argv[1:], "--config", str(config)]
        raise SystemExit(subprocess.run(command, check=False, env=os.environ | {"TRAINER_FUSED": "none"}).returncode)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="7B")
    parser.add_argument("--global-batch", type=int, default=4)
    parser.add_argument("--micro-bsz", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each row (default: %(default)s)")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing in the first row")
    parser.add_argument("--each", action="store_true", help="also every part left out by itself")
    parser.add_argument("--profile", type=Path, help="folder for tables of the kernels of one step")
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> None:
    """Train row after row, printing each; stops at the first that runs out of memory."""
    import torch

    from fixtures.internlm.flops import model_flops_per_token
    from fixtures.internlm.models import load
    from fixtures.internlm.trainer import fused, train

    train.log_like_internlm()
    train.start(argparse.Namespace(config=options.config, launcher="torch", port=8888, seed=1024))
    undo = fused.install(["optimizer"])  # for its quick start
    session = train.prepare(options.config)
    fused.remove(undo)
    layers = [m for m in session.trainer.engine.model.modules() if hasattr(m, "dropout_selective_checkpoint")]
    parts = list(fused.PARTS)
    rows: list[tuple[str, list[str], float]] = [("InternLM's formulas", [], float(options.recompute))]
    rows.append(("all parts", parts, float(options.recompute)))
    if options.each:
        rows += [(f"all but {p}", [q for q in parts if q != p], float(options.recompute)) for p in parts]
        rows.append(("all parts, again", parts, float(options.recompute)))  # what lies between the two is noise
    rows += [(f"all parts, {share:.0%} recomputed", parts, share) for share in (0.5, 0.25, 0.0) if options.recompute]
    flops = model_flops_per_token(load(options.model))
    number, first = 0, None
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.model}, batch {options.global_batch}")
    print(f"{'':28}{'step':>10}{'TGS':>9}{'ratio':>7}{'model TFLOPS':>14}{'peak GiB':>10}", flush=True)
    for name, chosen, share in rows:
        undo = fused.install(chosen)
        for index, layer in enumerate(layers):
            layer.checkpoint = index < share * len(layers)
            layer.dropout_selective_checkpoint = not layer.checkpoint
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds = []
        try:
            for _ in range(UNMEASURED + options.steps):
                began = time.perf_counter()
                train.step(session, number)
                torch.cuda.synchronize()
                seconds.append(time.perf_counter() - began)
                number += 1
        except torch.OutOfMemoryError:
            print(f"{name:28} out of memory", flush=True)
            return
        step = statistics.median(seconds[UNMEASURED:])
        tgs = options.global_batch * 2048 / step
        first = first or tgs
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(
            f"{name:28}{step * 1000:7.1f} ms{tgs:9.0f}{tgs / first:7.2f}{tgs * flops / 1e12:14.0f}{peak:10.1f}",
            flush=True,
        )
        if options.profile and (not chosen or name == rows[-1][0] or name == "all parts"):
            profile(session, number, options.profile / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.txt")
            number += 1
        fused.remove(undo)


def profile(session: object, number: int, path: Path) -> None:
    """Write which kernels one step spends its time in."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    from fixtures.internlm.trainer import train

    with watch(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        train.step(session, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=90)
    path.write_text(table)


if __name__ == "__main__":
    main()
