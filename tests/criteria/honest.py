"""Makes honest runs: noise as machines have it, losses shaped like InternLM's on the dummy data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from acceptance.criteria.reference import Reference
from acceptance.criteria.verdict import Requirement, Workload
from fixtures.steps import Steps

# 7B at sequence 2048, global batch 512 on 8 devices; the floor is that of samples of variable length
WORKLOAD = Workload(seq_len=2048, global_batch=512, world=8, tflops_per_tgs=0.0444113711, entropy_floor=0.0043)
TGS = 4078.0
GROUPS = ("0_default", "1_fp32")


@dataclass
class Evidence:
    """All that the four criteria judge, as log lines; mutations edit it in place."""

    first: list[str]
    second: list[str]
    long: list[str]
    workload: Workload
    minimum: Requirement
    maximum: Requirement
    long_steps: int
    steps: int = 100
    long_hours: float | None = None
    reference: Reference | None = None
    family: str = ""
    end: dict = field(default_factory=lambda: {"outcome": "complete", "exit_status": 0, "failure": None})

    def copy(self) -> Evidence:
        return replace(self, first=list(self.first), second=list(self.second), long=list(self.long), end=dict(self.end))


def autoregressive(rng: np.random.Generator, shape: tuple[int, ...], phi: float) -> np.ndarray:
    """Gaussian noise of unit variance, AR(1) along the last axis."""
    noise = rng.standard_normal(shape)
    out = np.empty(shape)
    out[..., 0] = noise[..., 0]
    for i in range(1, shape[-1]):
        out[..., i] = phi * out[..., i - 1] + np.sqrt(1 - phi * phi) * noise[..., i]
    return out


def step_times(rng: np.random.Generator, n: int, mean: float) -> np.ndarray:
    """Seconds of n steps: slow first steps, autocorrelated noise of 0.3 to 2 %, now and then an outlier."""
    noise = rng.uniform(0.003, 0.02) * autoregressive(rng, (n,), rng.choice([0.0, 0.3, 0.7]))
    seconds = mean * np.exp(noise)
    stalled = rng.random(n) < rng.choice([0.0, 0.0, 0.01])
    seconds[stalled] *= rng.uniform(1.1, 1.6, int(stalled.sum()))
    seconds[:3] *= 1 + rng.exponential(0.5, min(3, n)) * (0.5 ** np.arange(min(3, n)))
    return seconds


def losses(rng: np.random.Generator, n: int) -> np.ndarray:
    """A curve like 7B's: 11.64, about 7.2 at step 10, 5.2 to 6 around 40, a spike at 47, 0.014 at 100, then falling."""
    at = [0, 2, 10, 25, 40, 46, 47, 50, 60, 75, 90, 100, 400, 2000, 100_000]
    to = [11.64, 8.6, 7.2, 6.0, 5.5, 5.2, 12.2, 6.5, 2.5, 0.4, 0.05, 0.014, 0.009, 0.0065, 0.0055]
    curve = np.exp(np.interp(np.arange(n), at, np.log(to)))
    noisy = curve * np.exp(rng.uniform(0.005, 0.03) * autoregressive(rng, (n,), 0.3))
    return np.maximum(noisy, 0.0052).astype(np.float32).astype(np.float64) + _digits(rng, n)


def _digits(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.float32(1e-5) * rng.random(n)


def steps(
    rng: np.random.Generator,
    loss: np.ndarray,
    grad_norm: dict[str, np.ndarray],
    tgs: float = TGS,
    workload: Workload = WORKLOAD,
    seconds: np.ndarray | None = None,
) -> Steps:
    """An honest run with these losses; shape (n,)."""
    n = len(loss)
    tokens = workload.tokens_per_step / workload.world
    if seconds is None:
        seconds = step_times(rng, n, tokens / tgs)
    outside = rng.uniform(0.0002, 0.003, n) + (np.arange(n) % 50 == 0) * rng.uniform(0, 0.3)
    start = 1.7e9 + rng.uniform(0, 3e7)
    rates = np.round(tokens / seconds, 2)
    return Steps(
        step=np.arange(n),
        time=np.floor((start + np.cumsum(seconds + outside)) * 1000) / 1000,
        loss=loss.astype(np.float32).astype(np.float64),
        tgs=rates,
        tflops=tokens / seconds * workload.tflops_per_tgs,
        grad_norm=grad_norm,
        consumed_tokens=(np.arange(n) + 1) * workload.tokens_per_step,
        skipped=np.zeros(n, np.int64),
    )


def grad_norms(rng: np.random.Generator, loss: np.ndarray) -> dict[str, np.ndarray]:
    norm = 2 * np.sqrt(loss) * np.exp(0.3 * rng.standard_normal(len(loss)))
    return {"0_default": norm, "1_fp32": np.zeros(len(loss))}


def close(rng: np.random.Generator, loss: np.ndarray) -> np.ndarray:
    """The losses of the same run on the same machine without deterministic kernels: differences that grow."""
    grown = np.minimum(1e-6 * 1.12 ** np.arange(len(loss)), 0.01)
    return loss * (1 + grown * autoregressive(rng, loss.shape, 0.3))


def other_family(rng: np.random.Generator, loss: np.ndarray) -> np.ndarray:
    """The losses of another honest device family: 0.22 % off at step 1 at the median, 0.83 % at the ninetieth
    percentile, single late steps by several per cent, the mean of the last fifth by about 0.3 %."""
    n = len(loss)
    early = 0.0022 * np.exp(min(1.036 * abs(rng.standard_normal()), 1.9) * rng.choice([-1, 1]))
    bias = early * rng.choice([-1, 1]) * np.exp(-np.arange(n) / 20)
    single = (0.002 + 0.04 * (np.arange(n) / n) ** 2) * np.clip(rng.standard_normal(n), -3, 3)
    curve = loss * (1 + bias + single)
    fifth = slice(-max(n // 5, 1), None)
    late = np.clip(rng.normal(0, 0.0045), -0.015, 0.015)
    curve[fifth] *= (1 + late) * np.mean(loss[fifth]) / np.mean(curve[fifth])
    return curve


def evidence(seed: int, long_steps: int = 1200) -> tuple[Evidence, dict[str, Steps]]:
    """Honest evidence of one case, as log lines and as the steps that they say."""
    from tests.internlm.lines import lines

    rng = np.random.default_rng(seed)
    loss, long_loss = losses(rng, 100), losses(rng, long_steps)
    norm = grad_norms(rng, loss)
    runs = {
        "first": steps(rng, loss, norm),
        "second": steps(rng, loss, norm),
        "long": steps(rng, long_loss, grad_norms(rng, long_loss)),
    }
    made = Evidence(
        **{name: lines(run) for name, run in runs.items()},
        workload=WORKLOAD,
        minimum=Requirement(TGS * 0.95, "tokens/GPU/s", "0.95 of the figure"),
        maximum=Requirement(0.014, "nats per token", "the lab"),
        long_steps=long_steps,
        reference=Reference(other_family(rng, runs["first"].loss), "reference.json", "another"),
        family="this",
    )
    return made, runs
