"""Stands in for train.py of an old InternLM: reads the config as that does, stops where it stops, prints its lines.

Copied into a stand-in checkout beside asks.json (its tag's .toml). It trains nothing: what is tested is that the
suite writes configs which that generation takes, finds and launches its train.py, and reads its metric lines.
No torch, so that it is fast.
"""

import argparse
import inspect
import json
import logging
import math
import os
import socket
import sys
import time
from pathlib import Path

STEP_SECONDS = 0.01
DTYPES = ("torch.float16", "torch.half", "torch.bfloat16", "torch.float32", "torch.tf32")
logger = logging.getLogger("standin")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--launcher", default="slurm", choices=["slurm", "torch"])
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--seed", type=int, default=1024)
    options = parser.parse_args()
    names = ("RANK", "WORLD_SIZE") if options.launcher == "torch" else ("SLURM_PROCID", "SLURM_NPROCS")
    rank, world = (int(os.environ[name]) for name in names)
    handler = logging.StreamHandler()
    form = "%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s in %(funcName)s -- %(message)s"
    handler.setFormatter(logging.Formatter(form))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    asks = json.loads(Path(__file__).with_name("asks.json").read_text())
    try:
        config = read(options.config)
        check(config, asks, world)
        if rank == 0:
            train(config, asks["metric"], world)
    except Exception:
        # As InternLM's train.py: said in the log, and exit status 0.
        word = "proc id" if asks["tag"] == "v0.1.0" else "rank id"
        logger.exception(f"Raise exception from {socket.gethostname()} with {word}: {rank}")


def read(path):
    """Every name of the file but dunders and modules, as InternLM's Config.from_file."""
    names = {}
    exec(compile(Path(path).read_text(), path, "exec"), names)
    return {k: v for k, v in names.items() if not k.startswith("__") and not inspect.ismodule(v)}


def check(config, asks, world):
    for key, where in asks["required"].items():
        value = config
        for name in key.split("."):
            if name not in value:
                raise AttributeError(f"{key} ({asks['tag']} {where})")
            value = value[name]
    builder = asks["model"][config.get("model_type", "INTERNLM")]
    if unknown := set(config["model"]) - set(builder["arguments"]):
        raise TypeError(f"unexpected keyword argument {sorted(unknown)} ({asks['tag']} {builder['at']})")
    for name, where in asks["asserts"].items():
        assert ASSERTS[name](config, world), f"{name} ({asks['tag']} {where})"


def size(value):
    return value["size"] if isinstance(value, dict) else value


def sizes(config):
    """(tensor, pipeline, zero1), each a number or a dict with `size`, and left out: 1, 1, all."""
    parallel = config["parallel"]
    return size(parallel.get("tensor", 1)), size(parallel.get("pipeline", 1)), size(parallel.get("zero1", -1))


def zero_divides(config, world):
    tensor, pipeline, zero = sizes(config)
    dp = world // (tensor * pipeline)
    return dp % (zero if zero > 0 else dp) == 0


ASSERTS = {
    "pipeline_is_one": lambda config, world: config["parallel"].get("pipeline", 1) == 1,
    "world_is_product": lambda config, world: world % (sizes(config)[0] * sizes(config)[1]) == 0,
    "zero_divides": zero_divides,
    "fsdp_without_pipeline": lambda config, world: (
        not (config["parallel"]["zero1"].get("fsdp") and sizes(config)[1] > 1)
    ),
    "accumulation_is_micro_num": lambda config, world: (
        config["data"].get("gradient_accumulation", config["data"]["micro_num"]) == config["data"]["micro_num"]
    ),
    "weight_needs_isp": lambda config, world: (
        config["parallel"]["tensor"]["mode"] == "isp" or size(config["parallel"].get("weight", 1)) <= 1
    ),
    "known_mode": lambda config, world: config["parallel"]["tensor"]["mode"] in ("mtp", "msp", "fsp", "isp"),
    "known_dtype": lambda config, world: config["model"].get("dtype", DTYPES[0]) in DTYPES,
}


def train(config, form, world):
    tensor, pipeline, _ = sizes(config)
    dp, data, model = world // (tensor * pipeline), config["data"], config["model"]
    tokens = data["micro_num"] * data["micro_bsz"] * data["seq_len"] * dp
    started = time.time()
    for step in range(data["total_steps"]):
        time.sleep(STEP_SECONDS)
        now = time.time()
        seconds, started = now - started, now
        # The loss of every run is the same, and falls to 1.2 times what n and r of a dummy sample cost.
        loss = 0.05 + 6.9 * math.exp(-step / 20)
        record_current_batch_training_metrics(step, loss, tokens, seconds, world, data, model, form)


def record_current_batch_training_metrics(step, loss, tokens, seconds, world, data, model, form):
    h, s, r = model["hidden_size"], data["seq_len"], model["mlp_ratio"]
    k = 4 if model["checkpoint"] else 3
    a_token = k * ((8 + 6 * r) * h**2 + 4 * s * h) * model["num_layers"] + 6 * h * model["vocab_size"]
    tgs = tokens / world / seconds
    norm = 1.0 + loss / 3
    numbers = {
        "tflops": tgs * a_token / 1e12,
        "step": step,
        "loss": loss,
        "tgs (tokens/gpu/second)": round(tgs, 2),
    }
    if form == "groups":
        last = dict.fromkeys(
            ("last_tgs_1", "tgs_all", "tgs_avg", "tgs_SMA", "last_tgs_10", "last_tgs_50"), round(tgs, 2)
        )
        numbers |= {f"tgs/{key}": value for key, value in last.items()}
    numbers |= {
        "lr": 1e-4,
        "loss_scale": 65536.0,
        "grad_norm": {"comma": norm, "brackets": f"[{norm:.8g}]", "groups": {"0_default": norm, "1_fp32": 0.0}}[form],
        "micro_num": data["micro_num"],
        "num_consumed_tokens": tokens * (step + 1),
        "inf_nan_skip_batches": 0,
        "num_samples_in_batch": data["micro_bsz"] * data["micro_num"],
        "largest_length": s,
        "largest_batch": data["micro_bsz"],
        "smallest_batch": data["micro_bsz"],
        "adam_beta2": 0.95,
        "fwd_bwd_time": round(seconds, 2),
    }
    if form != "comma":
        numbers |= {"acc": 0.5, "perplexity": math.exp(loss), "loss_from_metric": round(loss, 4)}
    logger.info(("," if form == "comma" else " ").join(f"{key}={value}" for key, value in numbers.items()))


if __name__ == "__main__":
    sys.exit(main())
