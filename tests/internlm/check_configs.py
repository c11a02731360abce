"""Asks InternLM itself whether it takes a config: run as a script, because the tests never import internlm.

Reads {"folder", "configs": [{"name", "world", "source"}]} on stdin; prints {name: None or what InternLM said}. The
process groups are stubbed, all else is InternLM's: Config.from_file, args_sanity_check, init_parallel_groups with
its asserts, and the model's builder, whose keyword arguments must exist.
"""

import inspect
import json
import os
import sys
from pathlib import Path

os.environ["INTERNLM_ACCELERATOR"] = "cuda"  # its checks depend on the kind of device, none is touched

import torch.distributed as dist

# As it is in InternLM once a process group is there.
dist.new_group = lambda ranks, **_: tuple(ranks)
dist.get_backend = lambda *_: "gloo"
dist.is_initialized = lambda: True

from internlm.core.context import Config, ParallelMode  # noqa: E402
from internlm.core.context import global_context as gpc  # noqa: E402
from internlm.initialize.launch import args_sanity_check  # noqa: E402
from internlm.utils.registry import MODEL_INITIALIZER  # noqa: E402


def check(path: Path, world: int) -> str | None:
    for rank in sorted({0, world // 2, world - 1}):
        for table in (gpc._global_ranks, gpc._local_ranks, gpc._world_sizes, gpc._groups, gpc._cpu_groups):
            table.clear()
        gpc._ranks_in_group.clear()
        gpc._config = Config.from_file(str(path))
        gpc._register_dist(rank, world, "world", None, list(range(world)), ParallelMode.GLOBAL)
        gpc._global_ranks[ParallelMode.GLOBAL] = rank
        gpc.init_parallel_groups()
        args_sanity_check()
        model = dict(gpc.config.model)
        inspect.signature(MODEL_INITIALIZER.get_module(gpc.config.model_type)).bind(**model)
        dp = gpc.get_world_size(ParallelMode.DATA)
        expected = gpc.config.get("GLOBAL_BATCH") or gpc.config.BATCH_PER_RANK * dp
        batch = gpc.config.data.micro_bsz * gpc.config.data.micro_num * dp
        assert batch == expected, f"InternLM trains {batch} samples a step, the case says {expected}"
        assert gpc.config.data.gradient_accumulation == gpc.config.data.micro_num
        assert gpc.config.ckpt.auto_resume is False
        assert gpc.config.ckpt.enable_save_ckpt is False
    return None


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    path = Path(asked["folder"]) / "config.py"
    answers = {}
    for config in asked["configs"]:
        path.write_text(config["source"], encoding="utf-8")
        # Config.from_file imports it by its file name; a cached module or byte code would be the previous one.
        sys.dont_write_bytecode = True
        sys.modules.pop("config", None)
        try:
            answers[f"{config['name']} on {config['world']}"] = check(path, config["world"])
        except Exception as error:  # noqa: BLE001 - whatever InternLM raises is the answer
            answers[f"{config['name']} on {config['world']}"] = f"{type(error).__name__}: {error}"
    print(json.dumps(answers))
