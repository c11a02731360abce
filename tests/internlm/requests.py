"""Requests as the suite writes them, for tests."""

from copy import deepcopy


def request_of(case, run="speed", steps=100, accelerator="cpu", deterministic=None, generation="v0.4", **changes):
    request = deepcopy(case.as_request())
    request["workload"] |= {"steps": steps, "hours": None}
    return request | {
        "schema": 1,
        "run": run,
        "world": case.world,
        "accelerator": accelerator,
        "deterministic": run.startswith("repeat") if deterministic is None else deterministic,
        "internlm": {"generation": generation},
        **changes,
    }
