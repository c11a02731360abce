"""Writes steps as the log lines of each InternLM version: the reader's opposite, for tests and benchmarks."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence

import numpy as np

from fixtures.steps import Steps

DIALECTS = ("v0.1.0", "v0.2.0", "v0.2.1dev20231121", "0.4.9", "0.4.9-moe")
_ANCHOR = "in record_current_batch_training_metrics --"


def lines(steps: Steps, dialect: str = "0.4.9") -> list[str]:
    """One metric line a step, without newline."""
    stamps = _stamps(steps.time)
    return [_line(steps, i, stamps[i], dialect) for i in range(len(steps))]


def _stamps(seconds: np.ndarray) -> list[str]:
    milliseconds = np.round(seconds * 1000).astype("datetime64[ms]")
    return [str(stamp).replace("T", " ").replace(".", ",") for stamp in milliseconds]


def _line(steps: Steps, i: int, stamp: str, dialect: str) -> str:
    norms = {group: float(values[i]) for group, values in steps.grad_norm.items()}
    tgs = f"tgs (tokens/gpu/second)={float(steps.tgs[i])!r}"
    head = [f"tflops={float(steps.tflops[i])!r}", f"step={steps.step[i]}", f"loss={float(steps.loss[i])!r}"]
    before = ["lr=4.0000000000000003e-07", "loss_scale=65536.0"]
    after = [
        "micro_num=4",
        f"num_consumed_tokens={steps.consumed_tokens[i]}",
        f"inf_nan_skip_batches={steps.skipped[i]}",
        "num_samples_in_batch=18",
        "largest_length=2048",
        "largest_batch=6",
        "smallest_batch=4",
        "adam_beta2=0.95",
        "fwd_bwd_time=13.78",
    ]
    metrics = [
        "acc=0.0", "perplexity=104321.7969", "acc/en=0.0", "acc/cn=0.0", "acc/code=0.0", "tokens/en=60571",
        "tokens/cn=0", "tokens/code=0", f"loss_from_metric={float(steps.loss[i]):.4f}",
        f"loss/en={float(steps.loss[i]):.4f}", "loss/cn=nan", "loss/code=nan",
    ]  # fmt: skip
    if dialect == "v0.1.0":
        first = next(iter(norms.values()))
        figures = [*head, tgs, *before, f"grad_norm={first!r}", *after]
        return f"{stamp}\tINFO train.py:317 {_ANCHOR} {','.join(figures)}"
    if dialect == "v0.2.0":
        # numpy prints eight digits and pads: the only dialect that rounds
        norm = f"grad_norm={np.array(list(norms.values()))}"
        figures = [*head, tgs, *before, norm, *after, *metrics]
        return f"{stamp}\tINFO training_internlm.py:415 {_ANCHOR} {' '.join(figures)} "
    rate = float(steps.tgs[i])
    rates = [f"tgs/{key}={rate!r}" for key in ("last_tgs_1", "tgs_all", "tgs_avg", "tgs_SMA")]
    rates += ["tgs/last_tgs_10=0", "tgs/last_tgs_50=0"]
    real = [] if dialect == "v0.2.1dev20231121" else [f"real_tgs={round(rate * 0.87, 2)!r}"]
    moe = ["moe_loss=0.09876543283462524"] if dialect.endswith("moe") else []
    figures = [*head, *real, tgs, *rates, *before, f"grad_norm={norms!r}", *moe, *after, *metrics]
    return f"{stamp}\tINFO pipeline.py:559 {_ANCHOR} {' '.join(figures)} "


NOISE = (
    "2024-03-01 12:00:00,123\tWARNING hybrid_zero_optim.py:540 in _step -- Overflow occurs, please check it.",
    "2024-03-01 12:00:00,124\tINFO pipeline.py:701 in evaluate_on_val_dls -- Validation on en: step=50 "
    "val_loss=5.1 val_perplexity=164.0 val_acc=0.2",
    "/opt/torch/autograd/__init__.py:200: UserWarning: an accumulator is on another stream",
    "  return Variable._execution_engine.run_backward(",
    "[W socket.cpp:601] [c10d] The client socket cannot be initialized to connect to [node]:29500",
    "Every 50 steps: loss=3, step=7",
    "训练日志",
    "",
)


def wrapped(line: str, width: int) -> list[str]:
    """The physical lines that a terminal of `width` columns makes of one line."""
    return [line[i : i + width] for i in range(0, len(line), width)]


def mailed(line: str, width: int) -> list[str]:
    """The physical lines that a mail of `width` columns makes of one line: broken at spaces, which are lost."""
    return textwrap.wrap(line, width, break_on_hyphens=False)


def text(rows: Sequence[str], newline: str = "\n") -> bytes:
    return "".join(row + newline for row in rows).encode()


TOKENS = (
    b"\n", b"\r", b"\x1b[3", b"2024-01-01 00:00:00,000 ", b"step=", b"nan", b"{", b"}", b"[", b"'", b"=", b"\xff", b"-",
    b"record_current_batch_training_metrics -- tflops=", b"9" * 30, b"Rank:", b"e",
)  # fmt: skip


def damage(chance: random.Random, content: bytearray) -> None:
    """One edit: delete, double, flip or put in something that means something to the reader."""
    at, size = chance.randrange(len(content) + 1), chance.randint(1, 80)
    kind = chance.randrange(4)
    if kind == 0:
        del content[at : at + size]
    elif kind == 1:
        content[at:at] = content[at : at + size * 5]
    elif kind == 2 and at < len(content):
        content[at] = chance.randrange(256)
    else:
        content[at:at] = chance.choice(TOKENS)
