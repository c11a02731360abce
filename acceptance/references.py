"""Reference curves on disk: which one a run is compared with (configs/references, --reference)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acceptance.criteria.reference import CurveError, Reference, parse
from fixtures.internlm.config import effective

FOLDER = Path(__file__).parents[1] / "configs" / "references"


def key(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the losses of a request's run depend on, by the names of acceptance.criteria.reference.KEY."""
    workload = request["workload"]
    return {
        "model": request["model"] + (f"-{request['dataset']}" if request.get("dataset") else ""),
        "generation": request["internlm"]["generation"],
        **{name: request["layout"][name] for name in ("tp", "pp", "dp", "wp")},
        "micro_bsz": workload["micro_bsz"],
        "micro_num": workload["micro_num"],
        "schedule": effective(request)["lr_scheduler"]["total_steps"],
        "seed": request["seed"],
    }


def load(path: Path) -> Reference:
    """The reference in `path`, in our format or the lab's. Raises CurveError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CurveError(f"{path}: cannot be read as JSON ({error})") from error
    return parse(value, path.name)


def find(request: Mapping[str, Any], given: Path | None = None, folder: Path = FOLDER) -> Reference | None:
    """The curve for a request: `given` (--reference), else one of `folder` with this key; None without any.

    Of several the one of the request's own device family goes first. Raises CurveError for a file that cannot be
    used, and for a `given` one that says it was recorded under another key.
    """
    wanted = key(request)
    if given is not None:
        reference = load(given)
        differs = [name for name in reference.key if reference.key[name] != wanted[name]]
        if differs:
            had = ", ".join(f"{name} {reference.key[name]} (here {wanted[name]})" for name in differs)
            raise CurveError(f"{given}: recorded with {had}; its losses say nothing about this run")
        return reference
    matching = [r for r in map(load, sorted(folder.glob("*.json"))) if dict(r.key) == wanted]
    own = [r for r in matching if r.family == request.get("accelerator")]
    return next(iter(own or matching), None)
