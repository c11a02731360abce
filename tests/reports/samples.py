"""Results folders as a session leaves them, made up: evidence in the 0.4.9 format and a results.json beside it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from acceptance.criteria.verdict import Finding, Measurement, Verdict
from fixtures.evidence import write_json
from fixtures.internlm.log import Memory, Reading
from fixtures.steps import Steps

JUDGED_AT = datetime(2026, 5, 5, 9, 30, tzinfo=timezone(timedelta(hours=8)))
STARTED = datetime(2026, 5, 4, 8, 0, tzinfo=timezone(timedelta(hours=8)))
TOKENS = 512 * 2048
SOURCE = "0.9 x 4,078 on 8 A100-80G"


def steps(n: int, seed: int, *, world: int = 8, tgs: float = 4021.0, start: float = 11.6, end: float = 0.014) -> Steps:
    """An honest-looking run: losses that fall with a spike at 47, a slow first step, 0.7 % step-time noise."""
    noise = np.random.default_rng(seed)
    x = np.arange(n)
    loss = end + (start - end) * np.exp(-x / max(n / 9, 8)) * np.exp(noise.normal(0, 0.03, n))
    if n > 47:
        loss[47] = start * 1.05
    speed = tgs * np.exp(noise.normal(0, 0.007, n))
    speed[: min(3, n)] *= np.array([0.2, 0.8, 0.95])[: min(3, n)]
    seconds = TOKENS / world / speed
    return Steps(
        step=x,
        time=STARTED.timestamp() + STARTED.utcoffset().total_seconds() + 60 + np.cumsum(seconds),
        loss=loss,
        tgs=speed,
        tflops=speed * 0.0444114,
        grad_norm={"0_default": loss * 2, "1_fp32": np.zeros(n)},
        consumed_tokens=(x + 1) * TOKENS,
        skipped=np.zeros(n, dtype=np.int64),
    )


def log_text(run: Steps) -> str:
    """`run` as InternEvo 0.4.9 prints it, with two ranks' memory lines."""
    head = "".join(
        f"2026-05-04 08:00:50,000\tINFO gputest.py:1 in empty_cache_and_diag -- Rank:{rank}-host Step 0: "
        f"Max_Allocated {60 + rank * 1.5:.2f} GB, Max_Reserved {66 + rank:.2f} GB\n"
        for rank in range(8)
    )
    return head + "".join(_line(run, i) for i in range(len(run)))


def _line(run: Steps, i: int) -> str:
    moment = datetime.fromtimestamp(float(run.time[i]), timezone.utc)
    loss, tflops, tgs, norm = (
        float(column[i]) for column in (run.loss, run.tflops, run.tgs, run.grad_norm["0_default"])
    )
    rates = "".join(
        f"tgs/{k}={tgs:.2f} " for k in ("last_tgs_1", "tgs_all", "tgs_avg", "tgs_SMA", "last_tgs_10", "last_tgs_50")
    )
    return (
        f"{moment:%Y-%m-%d %H:%M:%S},{moment.microsecond // 1000:03d}\tINFO training_internlm.py:600 in "
        f"record_current_batch_training_metrics -- tflops={tflops} step={run.step[i]} loss={loss} "
        f"real_tgs={tgs:.2f} tgs (tokens/gpu/second)={tgs:.2f} {rates}lr=0.0001 loss_scale=65536.0 "
        f"grad_norm={{'0_default': {norm}, '1_fp32': 0.0}} micro_num=4 "
        f"num_consumed_tokens={run.consumed_tokens[i]} inf_nan_skip_batches=0 num_samples_in_batch=8 "
        "largest_length=2048 largest_batch=8 smallest_batch=8 adam_beta2=0.95 fwd_bwd_time=1.5\n"
    )


def request(case: str, run: str, attempt: int, **changes) -> dict:
    """request.json of an attempt."""
    return {
        "schema": 1, "case": case, "model": case.split("-")[0], "run": run, "attempt": attempt,
        "layout": {"tp": 1, "pp": 1, "zero": 8, "dp": 8}, "gpus": 8, "nodes": 1, "world": 8, "accelerator": "nvidia",
        "workload": {"seq_len": 2048, "micro_bsz": 2, "micro_num": 32, "global_batch": 512, "steps": 100},
        "seed": 1024, "deterministic": run.startswith("repeat"),
        "internlm": {"kind": "wheel", "version": "0.4.9", "generation": "0.4", "commit": None, "digest": "d" * 64},
        "python": "/opt/venv/bin/python", "launcher": "torchrun",
        "command": ["python", "-m", "torch.distributed.run", "--nproc-per-node", "8", "train.py", "--config", "c.py"],
        "environment": {"NCCL_IB_HCA": "mlx5_0,mlx5_1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"},
        "config_sha256": "3f" * 32, "suite": {"version": "0.1.0", "commit": "0f" * 20, "diff_sha256": None},
        "started": STARTED.isoformat(), **changes,
    }  # fmt: skip


NODE = {
    "schema": 1, "host": "node-17", "accelerator": "nvidia",
    "devices": [{"index": i, "id": f"GPU-1b2c3d4e-{i}", "name": "NVIDIA A100-SXM4-80GB", "memory_bytes": 80 * 2**30}
                for i in range(8)],
    "driver": "550.54.15", "python": "3.11.7", "torch": "2.13.0", "internlm": "0.4.9", "collective": "nccl 2.27.3",
    "vendor_tool": {"command": "nvidia-smi", "output": "| NVIDIA-SMI 550.54.15 |\n| 0  NVIDIA A100-SXM4-80GB |"},
    "kernel": "Linux-5.15", "cpu": "AMD EPYC 7742 x 128", "problems": [], "utc_offset": 28800,
}  # fmt: skip
SYSTEM = {
    **{
        k: NODE[k]
        for k in ("host", "accelerator", "devices", "driver", "torch", "internlm", "python", "collective", "cpu")
    },
    "suite": {"version": "0.1.0", "commit": "0f" * 20},
}


def complete(n: int, seconds: float = 3200.0) -> dict:
    """end.json of a run that went well."""
    return {
        "outcome": "complete", "exit_status": 0, "failure": None, "steps_seen": n, "seconds": seconds,
        "seconds_to_first_step": 61.5, "ended": (STARTED + timedelta(seconds=seconds)).isoformat(),
    }  # fmt: skip


OUT_OF_MEMORY = {
    "outcome": "failed", "exit_status": 0, "steps_seen": 3, "seconds": 95.0, "seconds_to_first_step": 62.0,
    "ended": (STARTED + timedelta(seconds=95)).isoformat(),
    "failure": {
        "class": "out of memory", "summary": "Rank 5 ran out of device memory in step 3.",
        "advice": "Use a smaller micro_bsz, activation checkpointing, or a layout with more tensor parallelism.",
        "rank": 5, "file": "logs/rank-5.log", "line": 412, "time": "2026-05-04 08:01:35,120",
        "quoted": ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB. GPU 5 has 79.15 GiB"],
    },
}  # fmt: skip


def attempt(results: Path, case: str, run: str, number: int, logs: str | None, end: dict, **changes) -> str:
    """Write one attempt; its path relative to `results`."""
    folder = results / "runs" / case / run / f"attempt-{number}"
    (folder / "logs").mkdir(parents=True)
    write_json(folder / "request.json", request(case, run, number, **changes))
    write_json(folder / "nodes" / "node-17.json", NODE)
    write_json(folder / "end.json", end)
    (folder / "config.py").write_text("JOB_NAME = 'x'\n")
    if logs is not None:
        (folder / "logs" / "rank-0.log").write_text(logs, encoding="utf-8", errors="surrogatepass")
    return folder.relative_to(results).as_posix()


def telemetry(folder: Path, seconds: float = 3700.0) -> None:
    """Eight devices, watched every ten seconds from the start of the run."""
    with (folder / "telemetry.jsonl").open("w") as file:
        for at in np.arange(0, seconds, 10.0):
            for device in range(8):
                watts = 90 if at < 60 else 380 + 12 * np.sin(at / 40 + device)
                row = {"time": STARTED.timestamp() + at, "device": device, "power_w": round(float(watts), 1)}
                file.write(json.dumps(row) + "\n")


def verdicts(**changes: Verdict) -> dict:
    """Four passing criteria, some of them replaced."""
    passing = {
        "startup": Verdict(
            "pass", "startup-passed", "All 100 steps ran, none skipped; peak memory 70.5 GiB on rank 7.",
            (Measurement("steps", 100, "steps", "==", 100), Measurement("skipped_updates", 0, "updates", "==", 0),
             *(Measurement(f"peak_memory_rank_{r}", 60 + r * 1.5, "GiB", "<=", 80.0, "device") for r in range(8)),
             *(Measurement(f"headroom_rank_{r}", 20 - r * 1.5, "GiB") for r in range(8)),
             *(Measurement(f"headroom_percent_rank_{r}", (20 - r * 1.5) / 0.8, "%") for r in range(8))),
        ),
        "throughput": Verdict(
            "pass", "throughput-passed", "TGS 4,021 (95 % one-sided bounds 4,015 to 4,027) reaches the minimum 3,670.",
            (Measurement("tgs_lower95", 4015.2, "tokens/GPU/s", ">=", 3670.2, SOURCE),
             Measurement("tgs", 4021.3, "tokens/GPU/s"), Measurement("tgs_upper95", 4027.1, "tokens/GPU/s"),
             Measurement("tflops", 178.6, "TFLOPS"), Measurement("step_seconds", 32.6, "s"),
             Measurement("step_time_variation", 0.0071, ""), Measurement("steps_measured", 90, "steps")),
        ),
        "determinism": Verdict(
            "pass", "determinism-passed", "Losses and gradient norms of 100 steps are equal to the last digit.",
            (Measurement("bit_equal_steps", 100, "steps", "==", 100),),
            (Finding("no-reference", "No reference curve on record: nothing was compared with another machine."),),
        ),
        "convergence": Verdict(
            "pass", "convergence-passed", "The median loss of the last 100 steps is 0.0142, below the maximum 0.02.",
            (Measurement("median_loss", 0.01423, "nats/token", "<", 0.02, "the lab"),
             Measurement("loss_floor", 0.01423, "nats/token", ">=", 0.0022, "entropy of the data"),
             Measurement("steps", 100000, "steps", ">=", 100000)),
        ),
    }  # fmt: skip
    return {name: verdict.as_json() for name, verdict in {**passing, **changes}.items()}


FAILED = {
    "startup": Verdict(
        "fail", "startup-out-of-memory", "Rank 5 ran out of device memory in step 3 of 100.",
        (Measurement("steps", 3, "steps", "==", 100),), quoted=tuple(OUT_OF_MEMORY["failure"]["quoted"]),
    ),
    "throughput": Verdict("not run", "throughput-run-failed", "The speed run failed; see startup."),
    "determinism": Verdict(
        "fail", "determinism-diverged", "loss differs first at step 12: 7.2034519 and 7.2034524, 1 ulp apart.",
        (Measurement("bit_equal_steps", 12, "steps", "==", 100), Measurement("first_ulps", 1, "ulps")),
    ),
    "convergence": Verdict(
        "not run", "convergence-short-runs-failed", "No long run, because a short run of the case failed."
    ),
}  # fmt: skip
SEE_OTHER = Verdict("not run", "convergence-see-other-case", "The long run of 7B is that of 7B-tp1-pp1-zero8.")
UNCERTAIN = Verdict(
    "inconclusive", "throughput-uncertain",
    "TGS 3,672 (95 % one-sided bounds 3,660 to 3,684) is too close to 3,670; about 1,900 steps would settle it.",
    (Measurement("tgs_lower95", 3660.4, "tokens/GPU/s", ">=", 3670.2, SOURCE),
     Measurement("tgs_upper95", 3684.0, "tokens/GPU/s"), Measurement("tgs", 3672.1, "tokens/GPU/s")),
    (Finding("drift", "Steps are 1.2 % slower at the end than at the start.", (Measurement("drift", 0.012, ""),)),),
)  # fmt: skip


SHORT = {"code": "short-run", "text": "speed has 50 steps, the procedure asks for 100"}


def case_entry(name: str, runs: dict, criteria: dict, **extra) -> dict:
    """One case of results.json."""
    return {
        "case": name, "model": name.split("-")[0], "layout": {"tp": 1, "pp": 1, "zero": 8, "dp": 8}, "gpus": 8,
        "runs": runs, "criteria": criteria, **extra,
    }  # fmt: skip


def results_json(cases: list[dict], **changes) -> dict:
    """results.json of `cases`, 7B conforming by the first of them."""
    return {
        "schema": 1, "suite": {"version": "0.1.0", "commit": "0f" * 20, "diff_sha256": None}, "system": SYSTEM,
        "conformant": True, "certifiable": True, "departures": [],
        "models": [{"model": "7B", "certifiable": True, "conformant": True, "via": cases[0]["case"]}],
        "cases": cases, **changes,
    }  # fmt: skip


def vendor(results: Path, long_steps: int = 2000) -> Path:
    """A conformant 7B in one layout, an uncertain second, and a third that ran out of memory and diverged."""
    good, second, third = "7B-tp1-pp1-zero8", "7B-tp2-pp1-zero4", "7B-tp4-pp1-zero2"
    short, other = log_text(steps(100, 1)), steps(100, 2, tgs=3672)
    runs = {run: attempt(results, good, run, 1, short, complete(100)) for run in ("repeat-1", "repeat-2")}
    attempt(results, good, "speed", 1, "", OUT_OF_MEMORY)
    runs["speed"] = attempt(results, good, "speed", 2, short, complete(100))
    telemetry(results / runs["speed"])
    long = steps(long_steps, 3)
    runs["long"] = attempt(results, good, "long", 1, log_text(long), complete(long_steps, 71.9 * 3600))
    reference = {"name": "7B-A100-dp8", "losses": [round(float(v) * 1.004, 6) for v in steps(100, 1).loss]}
    unsure = {
        run: attempt(results, second, run, 1, log_text(other), complete(100))
        for run in ("speed", "repeat-1", "repeat-2")
    }
    diverged = steps(100, 4)
    drift = np.where(np.arange(100) < 12, 0, np.random.default_rng(5).normal(0, 0.02, 100))
    again = Steps(**{**vars(diverged), "loss": diverged.loss + drift})
    bad = {
        "speed": attempt(results, third, "speed", 1, "", OUT_OF_MEMORY),
        "repeat-1": attempt(results, third, "repeat-1", 1, log_text(diverged), complete(100)),
        "repeat-2": attempt(results, third, "repeat-2", 1, log_text(again), complete(100)),
    }
    cases = [
        case_entry(good, runs, verdicts(), reference=reference),
        case_entry(second, unsure, verdicts(throughput=UNCERTAIN, convergence=SEE_OTHER)),
        case_entry(third, bad, verdicts(**FAILED), departures=[SHORT]),
    ]  # fmt: skip
    write_json(results / "results.json", results_json(cases))
    return results


def reading(run: Steps) -> Reading:
    """`run` as the log reader would give it."""
    return Reading(run, memory={rank: Memory(60 + rank * 1.5, 66.0 + rank, 99) for rank in range(8)})
